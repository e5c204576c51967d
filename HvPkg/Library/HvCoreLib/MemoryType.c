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
/// Gives every leaf of the root's tables the memory type that the MTRRs say; the caller holds the lock.
///
STATIC
RETURN_STATUS
Retype (
  IN     CONST HV_HOST  *Host,
  IN OUT HV_PAGING      *Nested
  )
{
  HV_PAGING_LEAF  Leaf;
  RETURN_STATUS   Status;
  UINT64          Address;
  UINT64          Limit;
  UINT64          End;
  UINT64          PieceEnd;
  UINT8           Type;

  Limit = LShiftU64 (1, Nested->AddressBits);
  for (Address = 0; Address < Limit; Address = End) {
    if (HvCoreIsHostMemory (Host, Address)) {
      End = Host->Base + Host->Bytes;
      continue;
    }

    HvPagingQuery (Nested, Address, &Leaf);
    End = (Address | (HV_PAGING_LEVEL_SIZE (Leaf.Level) - 1)) + 1;
    if (!Leaf.Present) {
      continue;
    }

    Status = HvMemoryTypeGet (&Host->Mtrrs, Host->AddressBits, Address, &Type, &PieceEnd);
    if (RETURN_ERROR (Status) && (Status != RETURN_COMPROMISED_DATA)) {
      return Status;
    }

    End = MIN (End, PieceEnd);
    if ((Leaf.Attributes & HV_PAGE_TYPE_MASK) != HV_PAGE_TYPE (Type)) {
      Status = HvPagingProtect (
                 Nested,
                 Address,
                 End - Address,
                 (Leaf.Attributes & ~HV_PAGE_TYPE_MASK) | HV_PAGE_TYPE (Type)
                 );
      if (RETURN_ERROR (Status)) {
        return Status;
      }
    }
  }

  return RETURN_SUCCESS;
}

VOID
HvCoreMtrrsWritten (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_HOST        *Host;
  HV_MTRRS       Mtrrs;
  RETURN_STATUS  Status;

  // An operating system turns the MTRRs off, changes them, and turns them on again (SDM volume 3, "Multiple-Processor
  // Considerations" for MTRRs). What it does between is of no interest: its caches are off.
  Host = Cpu->Host;
  HvCoreReadMtrrs (&Mtrrs);
  if (((Mtrrs.DefType & HV_MTRR_DEF_TYPE_ENABLE) == 0) || (CompareMem (&Mtrrs, &Host->Mtrrs, sizeof (Mtrrs)) == 0)) {
    return;
  }

  HvCoreLock (&Vcpu->Vm->Lock);
  CopyMem (&Host->Mtrrs, &Mtrrs, sizeof (Mtrrs));
  Status = Retype (Host, &Vcpu->Vm->Nested);
  HvCoreUnlock (&Vcpu->Vm->Lock);
  if (RETURN_ERROR (Status)) {
    HV_LOG_GUEST (Cpu, MapFailed, 0, HV_STR ("the nested tables do not follow the MTRRs"));
  }

  HvCoreFlushAll (Cpu, Vcpu);
  HV_LOG_GUEST (Cpu, MemoryTypes, Mtrrs.DefType, Host->Pool.Used);
}
