/** @file
  What SVM needs, as named checks.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "SvmInternal.h"

STATIC
VOID
Add (
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

VOID
SvmProbe (
  OUT HV_PROBE  *Probe
  )
{
  UINT32  Max;
  UINT32  Ebx;
  UINT32  Ecx;
  UINT32  Edx;
  UINT64  VmCr;
  UINT64  Efer;

  ZeroMem (Probe, sizeof (*Probe));
  Probe->LargestLevel = HV_PAGING_LEVEL_2M;
  Probe->SharedPages  = SVM_SHARED_PAGES;
  Probe->CpuPages     = SVM_CPU_PAGES;
  Probe->KickMethod   = "nmi";
  Probe->Format       = ((AsmReadCr4 () & HV_CR4_LA57) != 0) ? HvPagingNpt5 : HvPagingNpt4;

  AsmCpuid (HV_CPUID_80000000, &Max, NULL, NULL, NULL);
  Add (Probe, "extended-leaves", "CPUID.80000000h:EAX", Max, ">= 8000000Ah", (BOOLEAN)(Max >= HV_CPUID_8000000A));
  AsmCpuid (HV_CPUID_80000001, NULL, NULL, &Ecx, &Edx);
  Add (Probe, "svm", "CPUID.80000001h:ECX", Ecx, "bit 2 = 1", (BOOLEAN)((Ecx & HV_CPUID_80000001_ECX_SVM) != 0));
  Add (Probe, "nx", "CPUID.80000001h:EDX", Edx, "bit 20 = 1", (BOOLEAN)((Edx & HV_CPUID_80000001_EDX_NX) != 0));
  if ((Edx & HV_CPUID_80000001_EDX_PAGE1GB) != 0) {
    Probe->LargestLevel = HV_PAGING_LEVEL_1G;
  }

  if ((Max < HV_CPUID_8000000A) || ((Ecx & HV_CPUID_80000001_ECX_SVM) == 0)) {
    // The MSRs and the leaf below do not exist then.
    return;
  }

  VmCr = AsmReadMsr64 (HV_MSR_VM_CR);
  Add (
    Probe,
    "svm-not-disabled",
    "MSR C0010114h (VM_CR)",
    VmCr,
    "bit 4 = 0 (firmware set-up: SVM mode)",
    (BOOLEAN)((VmCr & HV_VM_CR_SVMDIS) == 0)
    );
  Efer = AsmReadMsr64 (HV_MSR_EFER);
  Add (Probe, "svm-not-in-use", "MSR C0000080h (EFER)", Efer, "bit 12 = 0", (BOOLEAN)((Efer & HV_EFER_SVME) == 0));
  AsmCpuid (HV_CPUID_8000000A, NULL, &Ebx, NULL, &Edx);
  Add (Probe, "asids", "CPUID.8000000Ah:EBX", Ebx, ">= 2", (BOOLEAN)(Ebx >= 2));
  Add (Probe, "nested-paging", "CPUID.8000000Ah:EDX", Edx, "bit 0 = 1", (BOOLEAN)((Edx & HV_SVM_FEATURE_NP) != 0));
}
