/** @file
  Which rules of a VM entry a refused state breaks. A failed entry leaves the fields as they were (SDM 27.8).

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "VmxInternal.h"

#include <Library/HvConsoleLib.h>
#include <Library/HvVmxCheckLib.h>
#include <Generated/HvOptions.h>
#include <Generated/HvVmxChecks.h>

#define FINDINGS_MAX  8

#ifndef MDEPKG_NDEBUG

#define CORRUPTION_ROW(Choice, Field, Bytes, Clear, Set)  { Clear, Set, Field, Choice },

STATIC CONST struct {
  UINT64    Clear;
  UINT64    Set;
  UINT32    Field;
  UINT32    Choice;
} mCorruptions[] = {
  HV_VMX_CORRUPTION_LIST (CORRUPTION_ROW)
};

#endif

STATIC
VOID
EFIAPI
ReadCpuid (
  IN  UINT32  Leaf,
  IN  UINT32  SubLeaf,
  OUT UINT32  Registers[4]
  )
{
  UINT32  Max;

  AsmCpuid (Leaf & 0x80000000, &Max, NULL, NULL, NULL);
  if (Leaf > Max) {
    ZeroMem (Registers, 4 * sizeof (Registers[0]));
  } else {
    AsmCpuidEx (Leaf, SubLeaf, &Registers[0], &Registers[1], &Registers[2], &Registers[3]);
  }
}

STATIC
BOOLEAN
EFIAPI
ReadField (
  IN  VOID    *Context,
  IN  UINT32  Encoding,
  OUT UINT64  *Value
  )
{
  BOOLEAN  Done;

  *Value = 0;
  __asm__ __volatile__ (
    "vmread %2, %0; seta %1"
    : "+r" (*Value), "=qm" (Done)
    : "r" ((UINT64)Encoding)
    : "cc"
    );
  return Done;
}

#define ENCODING_ROW(Field, Bytes, Name)  Field,

STATIC CONST UINT32  mEncodings[HvVmcsIndexCount] = {
  HV_VMCS_LIST (ENCODING_ROW)
};

///
/// Logs all that HvVmxCheck looks at, for the same check elsewhere (`hv decode`).
///
STATIC
VOID
DumpState (
  IN HV_CPU                  *Cpu,
  IN CONST HV_VMX_CHECK_ENV  *Env,
  IN CONST HV_VMCS_IMAGE     *Image
  )
{
  HV_DUMP  Dump;
  UINTN    Index;

  if (!HvCoreDumpBegin (Cpu, &Dump)) {
    return;
  }

  HV_LOG (
    Cpu->Index,
    VmxCapability,
    Env->Basic,
    Env->Misc,
    Env->Cr0Fixed0,
    Env->Cr0Fixed1,
    Env->Cr4Fixed0,
    Env->Cr4Fixed1,
    Env->EptVpidCap,
    Env->VmFunc
    );
  HV_LOG (
    Cpu->Index,
    VmxAllowed,
    Env->Pin,
    Env->Proc,
    Env->Proc2,
    Env->Proc3,
    Env->Exit,
    Env->Exit2,
    Env->Entry
    );
  HV_LOG (
    Cpu->Index,
    VmxProcessor,
    Env->Cr3Valid,
    Env->EferValid,
    Env->DebugCtlValid,
    Env->PerfGlobalValid,
    Env->AddressBits,
    Env->LinearBits,
    Env->HostLong,
    Env->Sgx
    );
  for (Index = 0; Index < HvVmcsIndexCount; Index++) {
    HvCoreDumpWord (&Dump, mEncodings[Index], Image->Value[Index]);
  }

  HvCoreDumpEnd (&Dump, "vmcs", HvPartAll);
}

///
/// Checks and logs; TRUE when a rule is broken.
///
STATIC
BOOLEAN
Report (
  IN CONST HV_VCPU  *Vcpu,
  IN BOOLEAN        Refused ///< the processor has refused the state
  )
{
  HV_VMX_CHECK_ENV  Env;
  HV_VMCS_IMAGE     Image;
  HV_FINDING        Findings[FINDINGS_MAX];
  UINTN             Count;

  if (RETURN_ERROR (HvVmxCheckEnv (&Env, AsmReadMsr64, ReadCpuid, AsmReadMsr64 (HV_MSR_EFER)))) {
    return FALSE;
  }

  HvVmxImageFill (&Image, ReadField, NULL);
  Count = HvVmxCheck (&Image, &Env, HvPartAll, Findings, FINDINGS_MAX);
  HvCoreLogFindings (Vcpu->Cpu, Findings, MIN (Count, FINDINGS_MAX));
  if (Refused || (Count != 0)) {
    DumpState (Vcpu->Cpu, &Env, &Image);
  }

  return (BOOLEAN)(Count != 0);
}

#ifndef MDEPKG_NDEBUG

///
/// The test option corrupt.
///
STATIC
VOID
Corrupt (
  IN UINT32  Choice
  )
{
  UINTN  Row;

  for (Row = 0; Row < ARRAY_SIZE (mCorruptions); Row++) {
    if (mCorruptions[Row].Choice == Choice) {
      VmxWrite (
        mCorruptions[Row].Field,
        (VmxRead (mCorruptions[Row].Field) & ~mCorruptions[Row].Clear) | mCorruptions[Row].Set
        );
    }
  }
}

BOOLEAN
VmxRefuses (
  IN HV_VCPU  *Vcpu
  )
{
  CONST HV_HOST  *Host;

  Host = Vcpu->Cpu->Host;
  if (Vcpu->Cpu->Entered == HV_ENTERED_NEVER) {
    // The rules look at it, and the switch writes it as its last step.
    VmxWrite (HV_VMCS_HOST_RSP, Vcpu->Cpu->StackTop);
    VmxVcpu (Vcpu)->HostRsp = 0;
    if (Vcpu->Cpu->Index == Host->CorruptCpu) {
      Corrupt (Host->Corrupt);
    }
  }

  return (BOOLEAN)(Host->EntryCheck && Report (Vcpu, FALSE));
}

#endif

VOID
VmxExplain (
  IN CONST HV_VCPU  *Vcpu
  )
{
  Report (Vcpu, TRUE);
}
