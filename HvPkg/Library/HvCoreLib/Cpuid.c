/** @file
  CPUID and XSETBV for the root.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define POLICY_ROW(Leaf, Register, Clear, Set, Text)  { Leaf, Register, Clear, Set },

STATIC CONST struct {
  UINT32    Leaf;
  UINT32    Register;
  UINT32    Clear;
  UINT32    Set;
} mPolicy[] = {
  HV_CPUID_ROOT_POLICY_LIST (POLICY_ROW)
};

VOID
HvCoreCpuid (
  IN  HV_CPU  *Cpu,
  IN  UINT64  Cr4,
  IN  UINT32  Leaf,
  IN  UINT32  SubLeaf,
  OUT UINT32  Registers[4]
  )
{
  UINTN   Row;
  UINT64  Status;

  switch (Leaf) {
    case HV_CPUID_40000000:
      Registers[0] = HV_CPUID_HYPERVISOR_MAX;
      Registers[1] = HV_CPUID_SIGNATURE_EBX;
      Registers[2] = HV_CPUID_SIGNATURE_ECX;
      Registers[3] = HV_CPUID_SIGNATURE_EDX;
      return;
    case HV_CPUID_40000001:
      Registers[0] = HV_CPUID_INTERFACE_VERSION;
      Registers[1] = HV_CPUID_FEATURE_STATUS | HV_CPUID_FEATURE_HYPERCALL;
      Registers[2] = Cpu->Host->Ops->Id;
      Registers[3] = Cpu->Index;
      return;
    case HV_CPUID_40000002:
      Status       = (UINTN)Cpu->Host->Status;
      Registers[0] = (UINT32)Status;
      Registers[1] = (UINT32)RShiftU64 (Status, 32);
      Registers[2] = (UINT32)Cpu->Host->SharedBytes;
      Registers[3] = 0;
      return;
  }

  if ((Leaf & 0xF0000000) == HV_CPUID_40000000) {
    // What a hypervisor below offers is not for our root.
    ZeroMem (Registers, 4 * sizeof (UINT32));
    return;
  }

  AsmCpuidEx (Leaf, SubLeaf, &Registers[0], &Registers[1], &Registers[2], &Registers[3]);
  // The rows are in the order of the leaves, and most leaves come before most rows.
  for (Row = 0; (Row < ARRAY_SIZE (mPolicy)) && (mPolicy[Row].Leaf <= Leaf); Row++) {
    if (mPolicy[Row].Leaf == Leaf) {
      Registers[mPolicy[Row].Register] &= ~mPolicy[Row].Clear;
      Registers[mPolicy[Row].Register] |= mPolicy[Row].Set;
    }
  }

  for (Row = 0; Row < Cpu->Host->HiddenCount; Row++) {
    if ((Cpu->Host->Hidden[Row].Leaf == Leaf) && (Cpu->Host->Hidden[Row].SubLeaf == SubLeaf)) {
      Registers[Cpu->Host->Hidden[Row].Register] &= ~Cpu->Host->Hidden[Row].Bits;
    }
  }

  // These bits mirror CR4, and the processor looked at the host's.
  if (Leaf == HV_CPUID_1) {
    Registers[2] &= ~(UINT32)HV_CPUID_1_ECX_OSXSAVE;
    if ((Cr4 & HV_CR4_OSXSAVE) != 0) {
      Registers[2] |= HV_CPUID_1_ECX_OSXSAVE;
    }
  } else if ((Leaf == HV_CPUID_7) && (SubLeaf == 0)) {
    Registers[2] &= ~(UINT32)HV_CPUID_7_ECX_OSPKE;
    if ((Cr4 & HV_CR4_PKE) != 0) {
      Registers[2] |= HV_CPUID_7_ECX_OSPKE;
    }
  }
}

VOID
HvOnCpuid (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  HV_VCPU_STATE  State;
  UINT32         Registers[4];
  UINT32         Leaf;

  // Only these leaves mirror CR4, and reading it costs more than the rest of most answers.
  Leaf      = (UINT32)Vcpu->Regs.Rax;
  State.Cr4 = 0;
  if ((Leaf == HV_CPUID_1) || (Leaf == HV_CPUID_7)) {
    Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_CONTROL, &State);
  }

  HvCoreCpuid (Cpu, State.Cr4, Leaf, (UINT32)Vcpu->Regs.Rcx, Registers);
  Vcpu->Regs.Rax = Registers[0];
  Vcpu->Regs.Rbx = Registers[1];
  Vcpu->Regs.Rcx = Registers[2];
  Vcpu->Regs.Rdx = Registers[3];
  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}

BOOLEAN
HvCoreXcr0IsValid (
  IN UINT32  Register,
  IN UINT64  Value,
  IN UINT64  Supported
  )
{
  UINT64  Group;

  if ((Register != 0) || ((Value & ~Supported) != 0) || ((Value & HV_XCR0_X87) == 0)) {
    return FALSE;
  }

  if (((Value & HV_XCR0_AVX) != 0) && ((Value & HV_XCR0_SSE) == 0)) {
    return FALSE;
  }

  Group = Value & (HV_XCR0_BNDREGS | HV_XCR0_BNDCSR);
  if ((Group != 0) && (Group != (HV_XCR0_BNDREGS | HV_XCR0_BNDCSR))) {
    return FALSE;
  }

  Group = Value & (HV_XCR0_OPMASK | HV_XCR0_ZMM_HI256 | HV_XCR0_HI16_ZMM);
  if (Group != 0) {
    if ((Group != (HV_XCR0_OPMASK | HV_XCR0_ZMM_HI256 | HV_XCR0_HI16_ZMM)) || ((Value & HV_XCR0_AVX) == 0)) {
      return FALSE;
    }
  }

  Group = Value & (HV_XCR0_TILECFG | HV_XCR0_TILEDATA);
  return (BOOLEAN)((Group == 0) || (Group == (HV_XCR0_TILECFG | HV_XCR0_TILEDATA)));
}

VOID
HvOnXsetbv (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  UINT32  Low;
  UINT32  High;
  UINT64  Value;

  AsmCpuidEx (HV_CPUID_D, 0, &Low, NULL, NULL, &High);
  Value = LShiftU64 ((UINT32)Vcpu->Regs.Rdx, 32) | (UINT32)Vcpu->Regs.Rax;
  if (!HvCoreXcr0IsValid ((UINT32)Vcpu->Regs.Rcx, Value, LShiftU64 (High, 32) | Low) ||
      !HvHostXsetbv ((UINT32)Vcpu->Regs.Rcx, Value))
  {
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}
