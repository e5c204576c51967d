/** @file
  Writes to the xAPIC page: while the page is read-only for the root, each one exits.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

///
/// Carries out a write to a register of the local APIC.
///
STATIC
VOID
WriteRegister (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT32   Offset,
  IN     UINT32   Value
  )
{
  UINT64  Icr;

  switch (Offset) {
    case HV_APIC_REG_ICR_LOW:
      Icr = LShiftU64 (HvHostApicRead (Cpu, HV_APIC_REG_ICR_HIGH), 32) | Value;
      if (!HvCoreInterruptCommand (Cpu, Icr)) {
        HvHostApicWrite (Cpu, Offset, Value);
      }

      // An INIT may have been for this processor too.
      HvCoreMail (Cpu, Vcpu);
      return;
    case HV_APIC_REG_LDR:
      Cpu->Apic.Ldr = Value;
      break;
    case HV_APIC_REG_DFR:
      Cpu->Apic.Dfr = Value;
      break;
  }

  HvHostApicWrite (Cpu, Offset, Value);
}

VOID
HvCoreOsStarted (
  IN OUT HV_CPU  *Cpu
  )
{
  HV_HOST         *Host;
  HV_PAGING       *Nested;
  HV_PAGING_LEAF  Leaf;
  HV_CPU          *Other;
  UINT32          Index;

  // The own mark is out before the others' are looked at: whoever comes last sees all of them.
  InterlockedCompareExchange32 ((UINT32 *)&Cpu->OsStarted, 0, 1);
  Host   = Cpu->Host;
  Nested = &Host->Root.Nested;
  if (!Host->LiftApicTrap || (Host->ApicTrapLifted != 0)) {
    return;
  }

  for (Index = 0; Index < Host->CpuCount; Index++) {
    Other = HvHostCpu (Host, Index);
    if ((Other->OsStarted == 0) || Other->X2Apic) {
      return;
    }
  }

  // More is allowed than before: a processor that has the old translation cached exits once more, which takes it out of
  // its cache (SDM volume 3, 29.4.3.1), and the write is carried out as before.
  HvCoreLock (&Host->Root.Lock);
  if (Host->ApicTrapLifted == 0) {
    HvPagingQuery (Nested, Host->ApicPage, &Leaf);
    if (!RETURN_ERROR (HvPagingProtect (Nested, Host->ApicPage, EFI_PAGE_SIZE, Leaf.Attributes | HV_PAGE_RWX))) {
      Host->ApicTrapLifted = 1;
      HV_LOG (Cpu->Index, ApicLifted);
    }
  }

  HvCoreUnlock (&Host->Root.Lock);
}

VOID
HvOnApicWrite (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  CONST HV_INSN  *Insn;
  HV_EVENT       Event;
  HV_APIC_STORE  Store;
  UINT64         Value;

  if (((Exit->FaultFlags & HV_FAULT_TABLE) != 0) || Cpu->Host->Ops->EventQueued (Vcpu, &Event)) {
    HV_LOG_GUEST (Cpu, NpfUnexpected, Exit->Gpa, Exit->Info1, Vcpu->Regs.Rip);
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  Insn = HvCoreDecode (Cpu, Vcpu, Exit);
  if (Insn == NULL) {
    return;
  }

  Store.Offset  = (UINT32)(Exit->Gpa & EFI_PAGE_MASK);
  Store.Written = FALSE;
  if (HvEmulateStoredValue (Insn, &Vcpu->Regs, &Value) && HvCoreIsWhole (Vcpu, Exit, Insn)) {
    // What nearly every write is: a MOV.
    HvCoreRetire (Cpu, Vcpu, Exit, Insn->Length);
    Store.Written = HvCoreIsApicAccess (Cpu, Store.Offset, Insn->OperandSize);
    Store.Value   = (UINT32)Value;
  } else if (!HvCoreEmulate (Cpu, Vcpu, Exit, Insn, 1, &Store)) {
    return;
  }

  if (Store.Written) {
    WriteRegister (Cpu, Vcpu, Store.Offset, Store.Value);
  }
}
