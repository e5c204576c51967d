/** @file
  Writes to the xAPIC page: while the page is read-only for the root, each one exits.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

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
  HV_INSN   Insn;
  HV_EVENT  Event;
  UINT64    Value;
  UINT32    Offset;
  UINT32    Old;

  if (((Exit->FaultFlags & HV_FAULT_TABLE) != 0) || Cpu->Host->Ops->EventQueued (Vcpu, &Event)) {
    HV_LOG_GUEST (Cpu, NpfUnexpected, Exit->Gpa, Exit->Info1, Vcpu->Regs.Rip);
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  if (!HvCoreDecode (Cpu, Vcpu, Exit, &Insn)) {
    return;
  }

  Offset = (UINT32)(Exit->Gpa & EFI_PAGE_MASK);
  if (Cpu->X2Apic) {
    // The page is not the APIC's then: writes go nowhere.
    Old = MAX_UINT32;
  } else if ((Insn.Op == HvOpMovStoreReg) || (Insn.Op == HvOpMovStoreImm)) {
    Old = 0; // a store alone must not read: some registers change by it
  } else {
    Old = HvHostApicRead (Cpu, Offset & ~3U);
  }

  // Registers are 32 bits wide and have to be accessed so (SDM volume 3, 10.4.1; APM2 16.3.2).
  if ((Insn.OperandSize != sizeof (UINT32)) || !HvCoreStore (Vcpu, &Insn, Old, &Value)) {
    HV_LOG_GUEST (Cpu, DecodeFailed, Vcpu->Regs.Rip, Insn.Op, HV_STR ("a store to the local APIC that is not carried out"));
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  HvCoreRetire (Cpu, Vcpu, Exit, Insn.Length);
  if (Cpu->X2Apic) {
    return;
  }

  switch (Offset) {
    case HV_APIC_REG_ICR_LOW:
      Value |= LShiftU64 (HvHostApicRead (Cpu, HV_APIC_REG_ICR_HIGH), 32);
      if (!HvCoreInterruptCommand (Cpu, Value)) {
        HvHostApicWrite (Cpu, Offset, (UINT32)Value);
      }

      // An INIT may have been for this processor too.
      HvCoreMail (Cpu, Vcpu);
      return;
    case HV_APIC_REG_LDR:
      Cpu->Apic.Ldr = (UINT32)Value;
      break;
    case HV_APIC_REG_DFR:
      Cpu->Apic.Dfr = (UINT32)Value;
      break;
  }

  HvHostApicWrite (Cpu, Offset, (UINT32)Value);
}
