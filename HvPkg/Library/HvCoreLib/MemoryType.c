/** @file
  The MTRRs, and the nested tables that have to follow them.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define UNSEEN_TICKS  BIT30 // of the time-stamp counter: a third of a second at 3 GHz

VOID
HvCoreReadMtrrs (
  OUT HV_MTRRS  *Mtrrs
  )
{
  STATIC CONST UINT32  Fixed[HV_MTRR_FIXED_COUNT] = {
    HV_MSR_MTRR_FIX64K_00000, HV_MSR_MTRR_FIX16K_80000, HV_MSR_MTRR_FIX16K_A0000, HV_MSR_MTRR_FIX4K_C0000,
    HV_MSR_MTRR_FIX4K_C8000,  HV_MSR_MTRR_FIX4K_D0000,  HV_MSR_MTRR_FIX4K_D8000,  HV_MSR_MTRR_FIX4K_E0000,
    HV_MSR_MTRR_FIX4K_E8000,  HV_MSR_MTRR_FIX4K_F0000,  HV_MSR_MTRR_FIX4K_F8000
  };
  UINT32               Edx;
  UINT64               Capabilities;
  UINT32               Index;

  ZeroMem (Mtrrs, sizeof (*Mtrrs));
  AsmCpuid (HV_CPUID_1, NULL, NULL, NULL, &Edx);
  if ((Edx & HV_CPUID_1_EDX_MTRR) == 0) {
    return;
  }

  Capabilities         = AsmReadMsr64 (HV_MSR_MTRR_CAP);
  Mtrrs->DefType       = AsmReadMsr64 (HV_MSR_MTRR_DEF_TYPE);
  Mtrrs->VariableCount = MIN ((UINT32)(Capabilities & HV_MTRR_CAP_VCNT_MASK), HV_MTRR_VARIABLE_MAX);
  for (Index = 0; Index < Mtrrs->VariableCount; Index++) {
    Mtrrs->Base[Index] = AsmReadMsr64 (HV_MSR_MTRR_PHYSBASE0 + 2 * Index);
    Mtrrs->Mask[Index] = AsmReadMsr64 (HV_MSR_MTRR_PHYSMASK0 + 2 * Index);
  }

  if ((Capabilities & HV_MTRR_CAP_FIX) == 0) {
    Mtrrs->DefType &= ~(UINT64)HV_MTRR_DEF_TYPE_FE;
    return;
  }

  for (Index = 0; Index < HV_MTRR_FIXED_COUNT; Index++) {
    Mtrrs->Fixed[Index] = AsmReadMsr64 (Fixed[Index]);
  }
}

///
/// Gives a piece of a leaf its memory type; the caller holds the lock.
///
/// Where no page is left to split the leaf, all of it becomes uncacheable: that is slow, but it is right for every kind of
/// memory and device.
///
/// @return  Where the next piece begins.
///
STATIC
UINT64
RetypePiece (
  IN OUT HV_CPU                *Cpu,
  IN OUT HV_PAGING             *Nested,
  IN     CONST HV_PAGING_LEAF  *Leaf,
  IN     UINT64                Address,
  IN     UINT64                End,
  IN     UINT8                 Type
  )
{
  UINT64  LeafBase;
  UINT64  LeafBytes;
  UINT32  Rights;

  Rights = Leaf->Attributes & ~HV_PAGE_TYPE_MASK;
  if ((Leaf->Attributes == (Rights | HV_PAGE_TYPE (Type))) ||
      !RETURN_ERROR (HvPagingProtect (Nested, Address, End - Address, Rights | HV_PAGE_TYPE (Type))))
  {
    return End;
  }

  LeafBytes = HV_PAGING_LEVEL_SIZE (Leaf->Level);
  LeafBase  = Address & ~(LeafBytes - 1);
  HvPagingProtect (Nested, LeafBase, LeafBytes, Rights | HV_PAGE_TYPE_UC);
  HV_LOG_GUEST (Cpu, MapFailed, Address, HV_STR ("no page to split a leaf: it is uncacheable"));
  return LeafBase + LeafBytes;
}

///
/// Gives every leaf of the root's tables the memory type that the MTRRs say; the caller holds the lock.
///
STATIC
VOID
Retype (
  IN OUT HV_CPU     *Cpu,
  IN OUT HV_PAGING  *Nested
  )
{
  CONST HV_HOST   *Host;
  HV_PAGING_LEAF  Leaf;
  UINT64          Address;
  UINT64          Limit;
  UINT64          End;
  UINT64          PieceEnd;
  UINT8           Type;

  Host  = Cpu->Host;
  Limit = LShiftU64 (1, Nested->AddressBits);
  for (Address = 0; Address < Limit; Address = End) {
    if (HvCoreIsHostMemory (Host, Address)) {
      // The block, or the registers of an IOMMU.
      End = (Address - Host->Base < Host->Bytes) ? Host->Base + Host->Bytes : Address + EFI_PAGE_SIZE;
      continue;
    }

    HvPagingQuery (Nested, Address, &Leaf);
    End = (Address | (HV_PAGING_LEVEL_SIZE (Leaf.Level) - 1)) + 1;
    if (Leaf.Present) {
      // It fails for no address below the limit. What the manuals leave undefined is UC.
      HvMemoryTypeGet (&Host->Mtrrs, Host->AddressBits, Address, &Type, &PieceEnd);
      End = RetypePiece (Cpu, Nested, &Leaf, Address, MIN (End, PieceEnd), Type);
    }
  }
}

///
/// The MTRRs, with a default type that makes all uncacheable that none of them names.
///
STATIC
VOID
NamedTypes (
  IN  CONST HV_HOST  *Host,
  OUT HV_MTRRS       *Named
  )
{
  CopyMem (Named, &Host->Mtrrs, sizeof (*Named));
  Named->DefType = (Named->DefType & ~HV_MTRR_DEF_TYPE_TYPE_MASK) | HV_MEMORY_UC;
}

///
/// Whether UC is the type of all that is mapped, but is neither memory nor named by an MTRR; the caller holds the lock.
///
STATIC
BOOLEAN
IsRestUncacheable (
  IN CONST HV_HOST    *Host,
  IN CONST HV_PAGING  *Nested
  )
{
  HV_MTRRS        Named;
  HV_PAGING_LEAF  Leaf;
  UINT64          Address;
  UINT64          Limit;
  UINT64          End;
  UINT64          PieceEnd;
  UINT32          Mapped;
  UINT8           Type;

  if ((Host->Mtrrs.DefType & HV_MTRR_DEF_TYPE_TYPE_MASK) == HV_MEMORY_UC) {
    return TRUE;
  }

  NamedTypes (Host, &Named);
  Limit = LShiftU64 (1, Nested->AddressBits);
  for (Address = 0; Address < Limit; Address = End) {
    if (HvCoreRamAt (Host, Address, &End)) {
      continue;
    }

    if (HvCoreIsHostMemory (Host, Address)) {
      End = Address + EFI_PAGE_SIZE; // the registers of an IOMMU: the root has other pages there
      continue;
    }

    HvPagingQuery (Nested, Address, &Leaf);
    End = MIN (End, (Address | (HV_PAGING_LEVEL_SIZE (Leaf.Level) - 1)) + 1);
    if (Leaf.Present) {
      HvMemoryTypeGet (&Named, Host->AddressBits, Address, &Type, &PieceEnd);
      End    = MIN (End, PieceEnd);
      Mapped = Leaf.Attributes & HV_PAGE_TYPE_MASK;
      if ((Mapped != HV_PAGE_TYPE (Type)) && (Mapped != HV_PAGE_TYPE_UC)) {
        return FALSE;
      }
    }
  }

  return TRUE;
}

RETURN_STATUS
HvCoreMapStart (
  IN     CONST HV_HOST  *Host,
  IN OUT HV_VM          *Vm,
  IN     UINT64         End
  )
{
  HV_MTRRS        Named;
  HV_PAGING_LEAF  Leaf;
  RETURN_STATUS   Status;
  UINT64          Mapped;
  UINT64          Address;
  UINT64          PieceEnd;
  UINT64          NamedEnd;
  UINT64          Hole;
  UINT64          HoleEnd;
  UINT8           Type;
  UINT8           NamedType;

  Mapped = 0;
  if (HvCoreIsEpt (&Vm->Nested)) {
    NamedTypes (Host, &Named);
    for (Address = 0; Address < End; Address = PieceEnd) {
      if (HvCoreRamAt (Host, Address, &PieceEnd)) {
        continue;
      }

      PieceEnd = MIN (PieceEnd, End);
      HvMemoryTypeGet (&Named, Host->AddressBits, Address, &NamedType, &NamedEnd);
      PieceEnd = MIN (PieceEnd, NamedEnd);
      HvMemoryTypeGet (&Host->Mtrrs, Host->AddressBits, Address, &Type, &NamedEnd);
      PieceEnd = MIN (PieceEnd, NamedEnd);
      Hole     = ALIGN_VALUE (Address, SIZE_2MB);
      HoleEnd  = PieceEnd & ~(UINT64)(SIZE_2MB - 1);
      if ((Type != NamedType) && (Hole < HoleEnd)) {
        Status = HvCoreMapIdentity (Host, Vm, Mapped, Hole);
        if (RETURN_ERROR (Status)) {
          return Status;
        }

        Mapped = HoleEnd;
      }
    }
  }

  Status = HvCoreMapIdentity (Host, Vm, Mapped, End);
  HvPagingQuery (&Vm->Nested, Host->ApicPage, &Leaf);
  if (!RETURN_ERROR (Status) && !Leaf.Present) {
    // Writes to it are to exit.
    Status = HvCoreMapIdentity (Host, Vm, Host->ApicPage, Host->ApicPage + EFI_PAGE_SIZE);
  }

  Vm->RestCached = !IsRestUncacheable (Host, &Vm->Nested);
  return Status;
}

///
/// The guest has turned its MTRRs off. If no other one differs from what the tables have, and its caches are off as the
/// manual wants it (SDM 12.11.8), it may turn them on again without an exit: nearly always that brings back what was there.
///
/// Until the next exit the tables do not know whether it brought another default type. That must not leave a device cached:
/// what neither is memory nor has its type from a range is UC until then. So the worst that can be, and for a moment, is
/// memory that is cached although its new type says otherwise, and a first MiB that keeps its fixed ranges.
///
STATIC
VOID
LetUnseen (
  IN OUT HV_CPU    *Cpu,
  IN OUT HV_VCPU   *Vcpu,
  IN OUT HV_MTRRS  *Mtrrs ///< as they are, off
  )
{
  CONST UINT64          InForce = HV_MTRR_DEF_TYPE_E | HV_MTRR_DEF_TYPE_FE;
  CONST HV_BACKEND_OPS  *Ops;
  HV_HOST               *Host;
  HV_VCPU_STATE         State;
  BOOLEAN               Harmless;

  Host = Cpu->Host;
  Ops  = Host->Ops;
  if (Ops->PassDefType == NULL) {
    return;
  }

  Ops->StateGet (Vcpu, HV_STATE_CONTROL, &State);
  if ((State.Cr0 & HV_CR0_CD) == 0) {
    return;
  }

  HvCoreLock (&Vcpu->Vm->Lock);
  Mtrrs->DefType = Host->Mtrrs.DefType;
  Harmless       = (BOOLEAN)(((Mtrrs->DefType & InForce) == InForce) &&
                             (CompareMem (Mtrrs, &Host->Mtrrs, sizeof (*Mtrrs)) == 0) && !Vcpu->Vm->RestCached);
  HvCoreUnlock (&Vcpu->Vm->Lock);
  if (Harmless && Ops->PassDefType (Vcpu, UNSEEN_TICKS)) {
    Ops->Flush (Vcpu); // the tables may be another processor's change, and its kick still on the way
    Vcpu->UnseenDefType = Mtrrs->DefType;
    Vcpu->Quick         = HvCoreQuickNone;
  }
}

VOID
HvCoreMtrrsUnseen (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  UINT64  Before;
  UINT64  Now;

  Before              = Vcpu->UnseenDefType;
  Vcpu->UnseenDefType = 0;
  Vcpu->Quick         = Cpu->Host->Ops->Quick;
  Cpu->Host->Ops->PassDefType (Vcpu, 0);

  // The other MTRRs exit.
  Now = AsmReadMsr64 (HV_MSR_MTRR_DEF_TYPE);
  if ((Now != Before) && ((Now & HV_MTRR_DEF_TYPE_E) != 0)) {
    AsmWbinvd (); // memory may have been cached that is not to be any more
    HvCoreMtrrsWritten (Cpu, Vcpu, HV_MSR_MTRR_DEF_TYPE);
  }
}

VOID
HvCoreMtrrsWritten (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT32   Msr
  )
{
  HV_HOST   *Host;
  HV_MTRRS  Mtrrs;
  BOOLEAN   Changed;

  // An operating system turns the MTRRs off, changes them, and turns them on again (SDM volume 3, "Multiple-Processor
  // Considerations" for MTRRs). The tables follow at the end: between, its caches are off.
  Host = Cpu->Host;
  HvCoreReadMtrrs (&Mtrrs);
  if ((Mtrrs.DefType & HV_MTRR_DEF_TYPE_ENABLE) == 0) {
    if (Msr == HV_MSR_MTRR_DEF_TYPE) {
      LetUnseen (Cpu, Vcpu, &Mtrrs);
    }

    return;
  }

  // All processors do it at the same time. Who finds it done waits until the tables are complete.
  HvCoreLock (&Vcpu->Vm->Lock);
  Changed = (BOOLEAN)(CompareMem (&Mtrrs, &Host->Mtrrs, sizeof (Mtrrs)) != 0);
  if (Changed) {
    CopyMem (&Host->Mtrrs, &Mtrrs, sizeof (Mtrrs));
    Retype (Cpu, &Vcpu->Vm->Nested);
    Vcpu->Vm->RestCached = !IsRestUncacheable (Host, &Vcpu->Vm->Nested);
  }

  HvCoreUnlock (&Vcpu->Vm->Lock);
  if (Changed) {
    HvCoreFlushAll (Cpu, Vcpu);
    HV_LOG_GUEST (Cpu, MemoryTypes, Mtrrs.DefType, Host->Pool.Used);
  } else {
    Host->Ops->Flush (Vcpu); // its kick may still be on the way
  }
}
