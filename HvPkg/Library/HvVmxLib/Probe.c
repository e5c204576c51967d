/** @file
  What VMX needs, as named checks.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "VmxInternal.h"

#define HOST_CR0  (HV_CR0_PE | HV_CR0_MP | HV_CR0_ET | HV_CR0_NE | HV_CR0_WP | HV_CR0_PG)

VOID
VmxRequire (
  IN OUT HV_PROBE     *Probe,
  IN     CONST CHAR8  *Name,
  IN     CONST CHAR8  *Source,
  IN     UINT64       Value,
  IN     CONST CHAR8  *Expected,
  IN     BOOLEAN      Met
  )
{
  HV_REQUIREMENT  *Requirement;

  ASSERT (Probe->Count < HV_REQUIREMENTS_MAX);
  Requirement           = &Probe->Requirement[Probe->Count++];
  Requirement->Name     = Name;
  Requirement->Source   = Source;
  Requirement->Value    = Value;
  Requirement->Expected = Expected;
  Requirement->Met      = Met;
}

STATIC
VOID
ProbeEpt (
  IN OUT HV_PROBE  *Probe
  )
{
  STATIC CONST struct {
    UINT64         Bit;
    CONST CHAR8    *Name;
    CONST CHAR8    *Expected;
  } Needed[] = {
    { HV_VMX_EPT_VPID_CAP_WALK4,       "ept-4-levels",     "bit 6 = 1"  },
    { HV_VMX_EPT_VPID_CAP_WB,          "ept-write-back",   "bit 14 = 1" },
    { HV_VMX_EPT_VPID_CAP_INVEPT,      "invept",           "bit 20 = 1" },
    { HV_VMX_EPT_VPID_CAP_INVEPT_ALL,  "invept-all",       "bit 26 = 1" },
    { HV_VMX_EPT_VPID_CAP_INVVPID,     "invvpid",          "bit 32 = 1" },
    { HV_VMX_EPT_VPID_CAP_INVVPID_ALL, "invvpid-all",      "bit 42 = 1" },
  };
  VMX_CAPABILITY  Proc2;
  UINT64          Capabilities;
  UINTN           Row;
  UINT32          Eax;

  // The MSR exists where EPT or VPID does (SDM A.10).
  VmxCapability (VmxWordProc2, &Proc2);
  if ((Proc2.May & (HV_VMX_PROC2_EPT | HV_VMX_PROC2_VPID)) == 0) {
    return;
  }

  Capabilities = AsmReadMsr64 (HV_MSR_VMX_EPT_VPID_CAP);
  for (Row = 0; Row < ARRAY_SIZE (Needed); Row++) {
    VmxRequire (
      Probe,
      Needed[Row].Name,
      "MSR 48Ch (IA32_VMX_EPT_VPID_CAP)",
      Capabilities,
      Needed[Row].Expected,
      (BOOLEAN)((Capabilities & Needed[Row].Bit) != 0)
      );
  }

  if ((Capabilities & HV_VMX_EPT_VPID_CAP_PAGE_1G) != 0) {
    Probe->LargestLevel = HV_PAGING_LEVEL_1G;
  } else if ((Capabilities & HV_VMX_EPT_VPID_CAP_PAGE_2M) == 0) {
    Probe->LargestLevel = HV_PAGING_LEVEL_4K;
  }

  // Four levels reach 48 bits, which is less than some processors have.
  AsmCpuid (HV_CPUID_80000008, &Eax, NULL, NULL, NULL);
  if (((Capabilities & HV_VMX_EPT_VPID_CAP_WALK5) != 0) &&
      ((Eax & HV_CPUID_80000008_EAX_PHYSICAL_BITS_MASK) > HvPagingFormatBits (HvPagingEpt4)))
  {
    Probe->Format = HvPagingEpt5;
  }
}

///
/// The bits of CR0 and CR4 that VMX operation dictates (SDM A.7, A.8). Those that the backend knows how to keep from
/// the root are PE, NE, PG and VMXE.
///
STATIC
VOID
ProbeFixedBits (
  IN OUT HV_PROBE  *Probe
  )
{
  UINT64  Value;
  UINT64  HostCr4;

  Value          = AsmReadMsr64 (HV_MSR_VMX_CR0_FIXED0);
  Probe->RootCr0 = Value;
  VmxRequire (
    Probe,
    "cr0-fixed-to-1",
    "MSR 486h (IA32_VMX_CR0_FIXED0)",
    Value,
    "none but bits 0, 5, 31",
    (BOOLEAN)((Value & ~(UINT64)(HV_CR0_PE | HV_CR0_NE | HV_CR0_PG)) == 0)
    );
  Value = AsmReadMsr64 (HV_MSR_VMX_CR0_FIXED1);
  VmxRequire (
    Probe,
    "cr0-may-be-1",
    "MSR 487h (IA32_VMX_CR0_FIXED1)",
    Value,
    "bits 0, 1, 4, 5, 16, 31 = 1",
    (BOOLEAN)((~Value & HOST_CR0) == 0)
    );

  Value          = AsmReadMsr64 (HV_MSR_VMX_CR4_FIXED0);
  Probe->RootCr4 = Value;
  VmxRequire (
    Probe,
    "cr4-fixed-to-1",
    "MSR 488h (IA32_VMX_CR4_FIXED0)",
    Value,
    "bit 13 alone",
    (BOOLEAN)(Value == HV_CR4_VMXE)
    );
  Value   = AsmReadMsr64 (HV_MSR_VMX_CR4_FIXED1);
  HostCr4 = AsmReadCr4 () | HV_CR4_VMXE | HV_CR4_PAE | HV_CR4_MCE;
  VmxRequire (
    Probe,
    "cr4-may-be-1",
    "MSR 489h (IA32_VMX_CR4_FIXED1)",
    Value,
    "the firmware's CR4 and bits 5, 6, 13",
    (BOOLEAN)((~Value & HostCr4) == 0)
    );
}

VOID
VmxProbe (
  OUT HV_PROBE  *Probe
  )
{
  UINT32  Ecx;
  UINT64  Value;

  ZeroMem (Probe, sizeof (*Probe));
  Probe->LargestLevel = HV_PAGING_LEVEL_2M;
  Probe->Format       = HvPagingEpt4;
  Probe->SharedPages  = VMX_SHARED_PAGES;
  Probe->CpuPages     = VMX_CPU_PAGES;
  Probe->KickMethod   = "nmi";

  AsmCpuid (HV_CPUID_1, NULL, NULL, &Ecx, NULL);
  VmxRequire (Probe, "vmx", "CPUID.1:ECX", Ecx, "bit 5 = 1", (BOOLEAN)((Ecx & HV_CPUID_1_ECX_VMX) != 0));
  if ((Ecx & HV_CPUID_1_ECX_VMX) == 0) {
    // The MSRs below do not exist then.
    return;
  }

  // Not locked: it is set and locked on each processor at its launch.
  Value = AsmReadMsr64 (HV_MSR_FEATURE_CONTROL);
  VmxRequire (
    Probe,
    "vmx-not-locked-off",
    "MSR 3Ah (IA32_FEATURE_CONTROL)",
    Value,
    "bit 0 = 0, or bits 0 and 2 = 1 (firmware set-up: VT-x)",
    (BOOLEAN)(((Value & HV_FEATURE_CONTROL_LOCK) == 0) || ((Value & HV_FEATURE_CONTROL_VMX_OUTSIDE_SMX) != 0))
    );
  Value = AsmReadCr4 ();
  VmxRequire (Probe, "vmx-not-in-use", "CR4", Value, "bit 13 = 0", (BOOLEAN)((Value & HV_CR4_VMXE) == 0));
  Value = AsmReadMsr64 (HV_MSR_VMX_BASIC);
  VmxRequire (
    Probe,
    "true-controls",
    "MSR 480h (IA32_VMX_BASIC)",
    Value,
    "bit 55 = 1",
    (BOOLEAN)((Value & HV_VMX_BASIC_TRUE_CTLS) != 0)
    );
  VmxRequire (
    Probe,
    "vmcs-anywhere",
    "MSR 480h (IA32_VMX_BASIC)",
    Value,
    "bit 48 = 0",
    (BOOLEAN)((Value & HV_VMX_BASIC_ADDRESS32) == 0)
    );
  Probe->SipiExits = (BOOLEAN)((AsmReadMsr64 (HV_MSR_VMX_MISC) & HV_VMX_MISC_WAIT_FOR_SIPI) != 0);
  ProbeFixedBits (Probe);
  VmxProbeControls (Probe);
  ProbeEpt (Probe);
}
