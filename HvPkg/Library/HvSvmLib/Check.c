/** @file
  Which rules of VMRUN a refused state breaks.

  QEMU and Bochs overwrite the save area of a VMCB that they refuse, so what the host changes is kept in a page of its
  own. Between two changes the guest's part is what the processor itself saved, and only the control area can be wrong.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "SvmInternal.h"
#include <Library/HvConsoleLib.h>
#include <Generated/HvOptions.h>
#include <Generated/HvSvmChecks.h>

#define FINDINGS_MAX  8

// No rule looks at anything beyond G_PAT.
#define REMEMBERED_BYTES  (HV_VMCB_SAVE_GPAT + sizeof (UINT64))

#ifndef MDEPKG_NDEBUG

#define CORRUPTION_ROW(Choice, Offset, Bytes, Clear, Set)  { Clear, Set, Choice, Offset, Bytes },

STATIC CONST struct {
  UINT64    Clear;
  UINT64    Set;
  UINT16    Choice;
  UINT16    Offset;
  UINT16    Bytes;
} mCorruptions[] = {
  HV_SVM_CORRUPTION_LIST (CORRUPTION_ROW)
};

#endif

STATIC
HV_VMCB *
Input (
  IN CONST HV_VCPU  *Vcpu
  )
{
  return (HV_VMCB *)((UINT8 *)Vcpu->Cpu->BackendPages + EFI_PAGES_TO_SIZE (SVM_PAGE_INPUT));
}

VOID
SvmRemember (
  IN HV_VCPU  *Vcpu
  )
{
  CopyMem (Input (Vcpu), Vcpu->Hw, REMEMBERED_BYTES);
  if (Vcpu->Cpu->Entered != HV_ENTERED_NEVER) {
    Vcpu->Cpu->Entered = HV_ENTERED_CHANGED;
  }
}

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

///
/// Logs all that HvSvmCheck looks at, for the same check elsewhere (`hv decode`).
///
STATIC
VOID
DumpState (
  IN HV_CPU                  *Cpu,
  IN CONST HV_SVM_CHECK_ENV  *Env,
  IN CONST HV_VMCB           *State,
  IN UINT32                  Parts
  )
{
  HV_DUMP       Dump;
  CONST UINT64  *Words;
  UINT32        Offset;

  if (!HvCoreDumpBegin (Cpu, &Dump)) {
    return;
  }

  HV_LOG (
    Cpu->Index,
    SvmProcessor,
    Env->Cr4Valid,
    Env->EferValid,
    Env->HostCr0,
    Env->Asids,
    Env->Features,
    Env->AddressBits,
    Env->LongMode
    );
  Words = (CONST UINT64 *)State;
  for (Offset = 0; Offset < REMEMBERED_BYTES; Offset += sizeof (*Words)) {
    HvCoreDumpWord (&Dump, Offset, Words[Offset / sizeof (*Words)]);
  }

  HvCoreDumpEnd (&Dump, "vmcb", Parts);
}

///
/// Checks and logs; TRUE when a rule is broken.
///
STATIC
BOOLEAN
Report (
  IN HV_VCPU        *Vcpu,
  IN CONST HV_VMCB  *State,
  IN UINT32         Parts,
  IN BOOLEAN        Refused ///< the processor has refused the state
  )
{
  HV_SVM_CHECK_ENV  Env;
  HV_FINDING        Findings[FINDINGS_MAX];
  UINTN             Count;

  if (RETURN_ERROR (HvSvmCheckEnv (&Env, ReadCpuid, AsmReadCr0 ()))) {
    return FALSE;
  }

  // What this processor runs with is not reserved, whatever its CPUID leaves out.
  Env.Cr4Valid  |= AsmReadCr4 ();
  Env.EferValid |= AsmReadMsr64 (HV_MSR_EFER);
  Count          = HvSvmCheck (State, &Env, Parts, Findings, FINDINGS_MAX);
  HvCoreLogFindings (Vcpu->Cpu, Findings, MIN (Count, FINDINGS_MAX));
  if (Refused || (Count != 0)) {
    DumpState (Vcpu->Cpu, &Env, State, Parts);
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
  IN OUT HV_VCPU  *Vcpu
  )
{
  UINTN   Row;
  UINT64  Value;
  UINT8   *Field;

  for (Row = 0; Row < ARRAY_SIZE (mCorruptions); Row++) {
    if (mCorruptions[Row].Choice == Vcpu->Cpu->Host->Corrupt) {
      Field = (UINT8 *)Vcpu->Hw + mCorruptions[Row].Offset;
      Value = 0;
      CopyMem (&Value, Field, mCorruptions[Row].Bytes);
      Value = (Value & ~mCorruptions[Row].Clear) | mCorruptions[Row].Set;
      CopyMem (Field, &Value, mCorruptions[Row].Bytes);
      SvmRemember (Vcpu);
    }
  }
}

BOOLEAN
SvmRefuses (
  IN OUT HV_VCPU  *Vcpu
  )
{
  CONST HV_HOST  *Host;

  Host = Vcpu->Cpu->Host;
  if ((Vcpu->Cpu->Entered == HV_ENTERED_NEVER) && (Vcpu->Cpu->Index == Host->CorruptCpu)) {
    Corrupt (Vcpu);
  }

  return (BOOLEAN)(Host->EntryCheck && Report (Vcpu, Vcpu->Hw, HvPartAll, FALSE));
}

#endif

VOID
SvmExplain (
  IN HV_VCPU  *Vcpu
  )
{
  CONST HV_VMCB_CONTROL  *Now;
  HV_VMCB                *Kept;

  // Intercepts, maps, ASID, TLB control and nested tables may have been changed since; no processor writes them.
  Now  = &((CONST HV_VMCB *)Vcpu->Hw)->Control;
  Kept = Input (Vcpu);
  CopyMem (&Kept->Control, Now, HV_VMCB_CONTROL_INTERRUPT_SHADOW);
  Kept->Control.NestedControl = Now->NestedControl;
  Kept->Control.NCr3          = Now->NCr3;
  if (Vcpu->Cpu->Entered == HV_ENTERED_RAN) {
    // What is injected again is an event that the processor reported.
    Kept->Control.EventInj = 0;
    Report (Vcpu, Kept, HvPartControl, TRUE);
  } else {
    Report (Vcpu, Kept, HvPartAll, TRUE);
  }
}
