/** @file
  The root's physical address space: identity, without the host.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define HOST_REPEATS        1024     ///< elements of a string instruction for one exit

BOOLEAN
HvCoreIsHostMemory (
  IN CONST HV_HOST  *Host,
  IN UINT64         Address
  )
{
  UINT32  Index;

  for (Index = 0; Index < Host->IommuCount; Index++) {
    if ((Address >= Host->Iommu[Index].Base) && (Address < Host->Iommu[Index].End)) {
      return TRUE;
    }
  }

  return (BOOLEAN)(Address - Host->Base < Host->Bytes);
}

BOOLEAN
HvCoreRamAt (
  IN  CONST HV_HOST  *Host,
  IN  UINT64         Address,
  OUT UINT64         *End
  )
{
  UINT32  Index;

  *End = MAX_UINT64;
  for (Index = 0; Index < Host->RamCount; Index++) {
    if (Address < Host->Ram[Index].Base) {
      *End = MIN (*End, Host->Ram[Index].Base);
    } else if (Address < Host->Ram[Index].End) {
      *End = Host->Ram[Index].End;
      return TRUE;
    }
  }

  return FALSE;
}

BOOLEAN
HvCoreIsRam (
  IN CONST HV_HOST  *Host,
  IN UINT64         Address
  )
{
  UINT64  End;

  return HvCoreRamAt (Host, Address, &End);
}

///
/// Where a mapping has to stop in front of the next unit of an IOMMU, or go on behind the one it begins in.
///
STATIC
BOOLEAN
StopsAtUnit (
  IN     CONST HV_HOST  *Host,
  IN OUT UINT64         *Base,
  IN OUT UINT64         *End
  )
{
  UINT32  Index;

  for (Index = 0; Index < Host->IommuCount; Index++) {
    if ((*Base >= Host->Iommu[Index].Base) && (*Base < Host->Iommu[Index].End)) {
      *Base = Host->Iommu[Index].End;
      return TRUE;
    }

    if (Host->Iommu[Index].Base > *Base) {
      *End = MIN (*End, Host->Iommu[Index].Base);
    }
  }

  return FALSE;
}

RETURN_STATUS
HvCoreMapIdentity (
  IN     CONST HV_HOST  *Host,
  IN OUT HV_VM          *Vm,
  IN     UINT64         Base,
  IN     UINT64         End
  )
{
  RETURN_STATUS  Status;
  UINT64         PieceEnd;
  UINT64         UnitAt;
  UINT32         Attributes;
  UINT8          Type;

  while (Base < End) {
    PieceEnd = End;
    if (StopsAtUnit (Host, &Base, &PieceEnd)) {
      continue;
    }

    UnitAt = PieceEnd;
    // A leaf must not span two memory types (SDM volume 3, 11.11.9; APM2 7.7.4), so each uniform piece is mapped
    // by itself.
    Status = HvMemoryTypeGet (&Host->Mtrrs, Host->AddressBits, Base, &Type, &PieceEnd);
    if (RETURN_ERROR (Status) && (Status != RETURN_COMPROMISED_DATA)) {
      return Status;
    }

    PieceEnd   = MIN (PieceEnd, UnitAt);
    Attributes = HV_PAGE_RWX | HV_PAGE_TYPE_WB;
    if (HvCoreIsEpt (&Vm->Nested)) {
      // With EPT the MTRRs have no say of their own; with NPT they have (SDM volume 3, 28.3.7.2; APM2 15.25.8).
      Attributes = HV_PAGE_RWX | HV_PAGE_TYPE (Type);
    }

    Status = HvPagingMap (&Vm->Nested, Base, Base, PieceEnd - Base, Attributes);
    if (RETURN_ERROR (Status)) {
      return Status;
    }

    Base = PieceEnd;
  }

  return RETURN_SUCCESS;
}

VOID
HvCoreLock (
  IN volatile UINT32  *Word
  )
{
  while (InterlockedCompareExchange32 ((UINT32 *)Word, 0, 1) != 0) {
    CpuPause ();
  }
}

VOID
HvCoreUnlock (
  IN volatile UINT32  *Word
  )
{
  InterlockedCompareExchange32 ((UINT32 *)Word, 1, 0);
}

///
/// Maps what is not there; what is may have rights of its own.
///
STATIC
RETURN_STATUS
MapAbsent (
  IN     CONST HV_HOST  *Host,
  IN OUT HV_VM          *Vm,
  IN     UINT64         Base,
  IN     UINT64         End
  )
{
  HV_PAGING_LEAF  Leaf;
  RETURN_STATUS   Status;
  UINT64          Address;
  UINT64          Next;

  for (Address = Base; Address < End; Address = Next) {
    HvPagingQuery (&Vm->Nested, Address, &Leaf);
    Next = MIN ((Address | (HV_PAGING_LEVEL_SIZE (Leaf.Level) - 1)) + 1, End);
    if (!Leaf.Present) {
      Status = HvCoreMapIdentity (Host, Vm, Address, Next);
      if (RETURN_ERROR (Status)) {
        return Status;
      }
    }
  }

  return RETURN_SUCCESS;
}

VOID
HvOnNestedFault (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  HV_HOST         *Host;
  HV_VM           *Vm;
  HV_PAGING_LEAF  Leaf;
  RETURN_STATUS   Status;
  UINT64          Base;
  UINT64          Bytes;
  UINT64          Limit;

  Host  = Cpu->Host;
  Vm    = Vcpu->Vm;
  if ((Exit->FaultFlags & HV_FAULT_MALFORMED) != 0) {
    HvPagingQuery (&Vm->Nested, Exit->Gpa, &Leaf);
    HV_LOG_GUEST (Cpu, NestedMalformed, Exit->Gpa, Leaf.Attributes, Leaf.Level, Vcpu->Regs.Rip);
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  Limit = LShiftU64 (1, Vm->Nested.AddressBits);
  if (((Exit->FaultFlags & HV_FAULT_PRESENT) != 0) || (Exit->Gpa >= Limit)) {
    HV_LOG_GUEST (Cpu, NpfUnexpected, Exit->Gpa, Exit->Info1, Vcpu->Regs.Rip);
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  // Only what was absent becomes present, which no processor can have cached: nothing has to be flushed.
  Status = RETURN_SUCCESS;
  HvCoreLock (&Vm->Lock);
  HvPagingQuery (&Vm->Nested, Exit->Gpa, &Leaf);
  if (!Leaf.Present) {
    // A piece takes one table (HvMemoryBuild), which its leaves fill.
    Bytes  = (Vm->Nested.LargestLevel == HV_PAGING_LEVEL_4K) ? SIZE_2MB : SIZE_1GB;
    Base   = Exit->Gpa & ~(Bytes - 1);
    Status = (HV_PAGING_LEVEL_SIZE (Leaf.Level) < Bytes) ?
             MapAbsent (Host, Vm, Base, MIN (Base + Bytes, Limit)) :
             HvCoreMapIdentity (Host, Vm, Base, MIN (Base + Bytes, Limit)); // there is nothing yet
    if ((Host->Mtrrs.DefType & HV_MTRR_DEF_TYPE_TYPE_MASK) != HV_MEMORY_UC) {
      Vm->RestCached = TRUE;
    }
  }

  HvCoreUnlock (&Vm->Lock);
  if (RETURN_ERROR (Status)) {
    if (Status == RETURN_OUT_OF_RESOURCES) {
      HV_LOG_GUEST (Cpu, PagePoolEmpty, Host->Pool.Used);
    }

    HV_LOG_GUEST (Cpu, MapFailed, Exit->Gpa, HV_STR ("no nested mapping"));
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
  }
}

VOID
HvOnHostMemory (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  CONST HV_INSN  *Insn;
  HV_EVENT       Event;
  UINT64         Value;

  HV_LOG_GUEST (Cpu, HostWriteDropped, Exit->Gpa, Vcpu->Regs.Rip);
  if (((Exit->FaultFlags & HV_FAULT_TABLE) != 0) || Cpu->Host->Ops->EventQueued (Vcpu, &Event)) {
    // The guest keeps page tables there, or its stack for an event. It would read all ones, and could not return; the
    // linear address is not known, so it gets #GP in place of #PF.
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  Insn = HvCoreDecode (Cpu, Vcpu, Exit);
  if (Insn == NULL) {
    return;
  }

  if (HvEmulateStoredValue (Insn, &Vcpu->Regs, &Value) && HvCoreIsWhole (Vcpu, Exit, Insn)) {
    HvCoreRetire (Cpu, Vcpu, Exit, Insn->Length);
  } else {
    HvCoreEmulate (Cpu, Vcpu, Exit, Insn, HOST_REPEATS, NULL);
  }
}
