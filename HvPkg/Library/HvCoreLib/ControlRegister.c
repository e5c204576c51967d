/** @file
  Writes to CR0 and CR4 that the processor does not carry out by itself.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define CR0_DEFINED  (HV_CR0_PE | HV_CR0_MP | HV_CR0_EM | HV_CR0_TS | HV_CR0_ET | HV_CR0_NE | HV_CR0_WP | HV_CR0_AM | \
                      HV_CR0_NW | HV_CR0_CD | HV_CR0_PG)

#define PDPTE_PRESENT   BIT0
#define PDPTE_RESERVED  0x1E6ULL // bits 8:5 and 2:1 (SDM volume 3, 4.4.1)

BOOLEAN
HvCoreLoadPdptes (
  IN     HV_CPU         *Cpu,
  IN OUT HV_VCPU_STATE  *State
  )
{
  UINT64  Reserved;
  UINTN   Index;

  if (RETURN_ERROR (HvCoreReadGuest (Cpu->Host, State->Cr3 & 0xFFFFFFE0, State->Pdpte, sizeof (State->Pdpte)))) {
    return FALSE;
  }

  Reserved = PDPTE_RESERVED | ~(LShiftU64 (1, Cpu->Host->AddressBits) - 1);
  for (Index = 0; Index < ARRAY_SIZE (State->Pdpte); Index++) {
    if (((State->Pdpte[Index] & PDPTE_PRESENT) != 0) && ((State->Pdpte[Index] & Reserved) != 0)) {
      return FALSE;
    }
  }

  return TRUE;
}

///
/// MOV to CR0, with the conditions of SDM volume 2, MOV to control registers, and SDM volume 3, 2.5.
///
STATIC
BOOLEAN
WriteCr0 (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT64   Value
  )
{
  HV_VCPU_STATE  State;
  UINT64         Changed;
  UINT32         Parts;
  BOOLEAN        Code64;

  Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_CONTROL | HV_STATE_SEGMENTS | HV_STATE_SYSTEM, &State);
  Value   = (Value & (CR0_DEFINED | ~(UINT64)MAX_UINT32)) | HV_CR0_ET;
  Changed = Value ^ State.Cr0;
  Parts   = HV_STATE_CONTROL;
  Code64  = (BOOLEAN)((State.Segment[HvSegmentCs].Attributes & HV_SEGMENT_LONG) != 0);
  if (((Value & ~(UINT64)MAX_UINT32) != 0) ||
      ((Value & (HV_CR0_PG | HV_CR0_PE)) == HV_CR0_PG) ||
      ((Value & (HV_CR0_NW | HV_CR0_CD)) == HV_CR0_NW) ||
      (((Value & HV_CR0_WP) == 0) && ((State.Cr4 & HV_CR4_CET) != 0)))
  {
    return FALSE;
  }

  if ((Changed & HV_CR0_PG) != 0) {
    if ((Value & HV_CR0_PG) == 0) {
      if (((State.Cr4 & HV_CR4_PCIDE) != 0) || (Code64 && ((State.Efer & HV_EFER_LMA) != 0))) {
        return FALSE;
      }

      State.Efer &= ~HV_EFER_LMA;
    } else if ((State.Efer & HV_EFER_LME) != 0) {
      // Nor with a TSS of 16 bits (SDM volume 3, 10.8.5; 27.3.1.2).
      if (((State.Cr4 & HV_CR4_PAE) == 0) || Code64 || ((State.Segment[HvSegmentTr].Attributes & BIT3) == 0)) {
        return FALSE;
      }

      State.Efer |= HV_EFER_LMA;
    }
  }

  if (((Changed & (HV_CR0_PG | HV_CR0_CD | HV_CR0_NW)) != 0) && ((Value & HV_CR0_PG) != 0) &&
      ((State.Cr4 & HV_CR4_PAE) != 0) && ((State.Efer & HV_EFER_LMA) == 0))
  {
    if (!HvCoreLoadPdptes (Cpu, &State)) {
      return FALSE;
    }

    Parts |= HV_STATE_PDPTE;
  }

  State.Cr0 = Value;
  if ((Changed & (HV_CR0_CD | HV_CR0_NW)) != 0) {
    // No entry moves these two (SDM volume 3, 27.3.2.1): they are the processor's.
    AsmWriteCr0 ((AsmReadCr0 () & ~(UINTN)(HV_CR0_CD | HV_CR0_NW)) | (UINTN)(Value & (HV_CR0_CD | HV_CR0_NW)));
  }

  Cpu->Host->Ops->StateSet (Vcpu, Parts, &State);
  return TRUE;
}

BOOLEAN
HvCoreAtCr4Write (
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  CONST HV_INSN  *Insn;

  Insn = HvCoreDecode (Vcpu->Cpu, Vcpu, Exit);
  return (BOOLEAN)((Insn != NULL) && (Insn->Op == HvOpMovToCr) && (Insn->Reg == 4));
}

VOID
HvOnCrAccess (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  // Of CR4 only what is reserved comes here: VMXE and SMXE on a processor whose CPUID has neither VMX nor SMX; all such
  // bits on QEMU, whose SVM leaves the guest there.
  if ((Exit->CrNumber != 0) || !WriteCr0 (Cpu, Vcpu, Exit->CrValue)) {
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}
