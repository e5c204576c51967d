/** @file
  The exits that a running system cannot avoid, with the least that they take. The policy is that of their handlers.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

BOOLEAN
HvCoreQuickNone (
  IN OUT HV_VCPU  *Vcpu
  )
{
  return FALSE;
}

BOOLEAN
HvCoreQuickCall (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HvCoreCountQuick (Vcpu->Cpu, HvExitHypercall);
  Vcpu->Regs.Rax = HV_HC_OK;
  return TRUE;
}

BOOLEAN
HvCoreQuickWrmsr (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HvCoreCountQuick (Vcpu->Cpu, HvExitWrmsr);
  HvHostSendIcr (Vcpu->Cpu, LShiftU64 ((UINT32)Vcpu->Regs.Rdx, 32) | (UINT32)Vcpu->Regs.Rax);
  return TRUE;
}

///
/// The 32-bit value of a plain store to memory, where it is an immediate or in a register that is there.
///
STATIC HV_INLINE
BOOLEAN
StoredValue (
  IN  CONST HV_VCPU  *Vcpu,
  IN  CONST HV_INSN  *Insn,
  OUT UINT32         *Value
  )
{
  CONST UINT32  There = BIT0 | BIT1 | BIT2 | BIT3 | BIT6 | BIT7 | BIT8 | BIT9 | BIT10 | BIT11; // by HV_REGS

  if ((Insn->OperandSize != sizeof (UINT32)) || !Insn->HasMemory) {
    return FALSE;
  }

  if (Insn->Op == HvOpMovStoreReg) {
    *Value = (UINT32)Vcpu->Regs.Index[Insn->Reg];
    return (BOOLEAN)((Insn->Form == HvFormRmReg) && (((There >> Insn->Reg) & 1) != 0));
  }

  *Value = (UINT32)Insn->Immediate;
  return (BOOLEAN)((Insn->Op == HvOpMovStoreImm) && (Insn->Form == HvFormRmImm));
}

BOOLEAN
HvCoreQuickStore (
  IN OUT HV_VCPU        *Vcpu,
  IN     UINT64         Gpa,
  IN     CONST HV_INSN  *Insn
  )
{
  HV_CPU  *Cpu;
  UINT64  Offset;
  UINT32  Value;

  Cpu    = Vcpu->Cpu;
  Offset = Gpa - Cpu->Host->ApicPage;
  if ((Offset - 1 >= EFI_PAGE_SIZE - 1) || ((Offset & 0xF) != 0) || Cpu->X2Apic || !StoredValue (Vcpu, Insn, &Value)) {
    return FALSE;
  }

  switch (Offset) {
    case HV_APIC_REG_LDR:
    case HV_APIC_REG_DFR:
      return FALSE;
    case HV_APIC_REG_ICR_LOW:
      if (!HvApicIsFixed (Value)) {
        return FALSE;
      }
  }

  HvHostApicWrite (Cpu, (UINT32)Offset, Value);
  HvCoreCountQuick (Cpu, HvExitApicWrite);
  return TRUE;
}
