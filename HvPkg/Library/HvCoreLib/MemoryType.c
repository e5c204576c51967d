/** @file
  The MTRRs, and the nested tables that have to follow them.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

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

VOID
HvCoreMtrrsWritten (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_HOST   *Host;
  HV_MTRRS  Mtrrs;
  BOOLEAN   Changed;

  // An operating system turns the MTRRs off, changes them, and turns them on again (SDM volume 3, "Multiple-Processor
  // Considerations" for MTRRs). What it does between is of no interest: its caches are off.
  Host = Cpu->Host;
  HvCoreReadMtrrs (&Mtrrs);
  if ((Mtrrs.DefType & HV_MTRR_DEF_TYPE_ENABLE) == 0) {
    return;
  }

  // All processors do it at the same time. Who finds it done waits until the tables are complete.
  HvCoreLock (&Vcpu->Vm->Lock);
  Changed = (BOOLEAN)(CompareMem (&Mtrrs, &Host->Mtrrs, sizeof (Mtrrs)) != 0);
  if (Changed) {
    CopyMem (&Host->Mtrrs, &Mtrrs, sizeof (Mtrrs));
    Retype (Cpu, &Vcpu->Vm->Nested);
  }

  HvCoreUnlock (&Vcpu->Vm->Lock);
  if (Changed) {
    HvCoreFlushAll (Cpu, Vcpu);
    HV_LOG_GUEST (Cpu, MemoryTypes, Mtrrs.DefType, Host->Pool.Used);
  } else {
    Host->Ops->Flush (Vcpu); // its kick may still be on the way
  }
}
