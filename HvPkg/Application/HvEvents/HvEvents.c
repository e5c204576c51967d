/** @file
  Runs pieces of code that a hypervisor has to carry out in part, and prints the events that they saw. The same lines have
  to come with a hypervisor and without.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvApicLib.h>
#include <Library/HvTrapLib.h>
#include <Library/IoLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/UefiLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>

#include "Scenarios.h"

#define PAGE_TABLE  (BIT0 | BIT1)        // present, writable
#define PAGE_LARGE  (BIT0 | BIT1 | BIT7)
#define PML4_INDEX(Address)  (((Address) >> 39) & 0x1FF)

typedef struct {
  CONST CHAR8     *Name;
  HV_TRAP_CODE    Code;
  UINT64          Flags;
} SCENARIO;

typedef struct {
  UINT64    Stack;  ///< its top
  UINT64    Icr;    ///< where a write sends an IPI to this processor
} SCENARIO_CONTEXT;

STATIC_ASSERT (OFFSET_OF (SCENARIO_CONTEXT, Stack) == CONTEXT_STACK, "Scenarios.h");
STATIC_ASSERT (OFFSET_OF (SCENARIO_CONTEXT, Icr) == CONTEXT_ICR, "Scenarios.h");
STATIC_ASSERT (INTERRUPT == HV_TRAP_INTERRUPT, "Scenarios.h");
STATIC_ASSERT (NMI == HV_TRAP_NMI, "Scenarios.h");

extern SCENARIO  mScenarios[];
extern SCENARIO  mScenariosEnd[];

///
/// MSRs that a processor may accept although the manual forbids the value.
///
STATIC CONST UINT32  mMsrs[] = {
  HV_MSR_EFER, HV_MSR_APIC_BASE, HV_MSR_PAT, HV_MSR_MTRR_PHYSBASE0, HV_MSR_MTRR_FIX64K_00000, HV_MSR_LSTAR,
  HV_MSR_DEBUGCTL
};

typedef struct {
  UINTN     Cr0;
  UINTN     Cr4;
  UINT64    Msr[ARRAY_SIZE (mMsrs)];
} STATE;

STATIC
VOID
Save (
  OUT STATE  *State
  )
{
  UINTN  Index;

  State->Cr0 = AsmReadCr0 ();
  State->Cr4 = AsmReadCr4 ();
  for (Index = 0; Index < ARRAY_SIZE (mMsrs); Index++) {
    State->Msr[Index] = AsmReadMsr64 (mMsrs[Index]);
  }
}

STATIC
VOID
Restore (
  IN CONST STATE  *State
  )
{
  UINTN  Index;

  AsmWriteDr7 (0x400);
  AsmWriteDr0 (0);
  AsmWriteDr6 (0xFFFF0FF0);
  AsmWriteCr0 (State->Cr0);
  AsmWriteCr4 (State->Cr4);
  for (Index = 0; Index < ARRAY_SIZE (mMsrs); Index++) {
    if (AsmReadMsr64 (mMsrs[Index]) != State->Msr[Index]) {
      AsmWriteMsr64 (mMsrs[Index], State->Msr[Index]);
    }
  }
}

///
/// Page tables like the present ones, and with the holes: addresses with nothing behind them, a gibibyte apart from each
/// other, so that each is the first of its piece.
///
STATIC
UINT64 *
MapHoles (
  IN UINTN  Count
  )
{
  UINT64  *Pml4;
  UINT64  *Directories;
  UINT64  *Pages;
  UINT64  Base;
  UINT32  AddressBits;
  UINTN   Index;

  AsmCpuid (HV_CPUID_80000008, &AddressBits, NULL, NULL, NULL);
  Base        = LShiftU64 (1, (UINT8)AddressBits - 1);
  Pml4        = AllocatePages (1);
  Directories = AllocatePages (1);
  Pages       = AllocatePages (Count);
  if ((Pml4 == NULL) || (Directories == NULL) || (Pages == NULL)) {
    return NULL;
  }

  CopyMem (Pml4, (VOID *)(AsmReadCr3 () & ~(UINTN)EFI_PAGE_MASK), EFI_PAGE_SIZE);
  ZeroMem (Directories, EFI_PAGE_SIZE);
  ZeroMem (Pages, Count * EFI_PAGE_SIZE);
  Pml4[PML4_INDEX (UNMAPPED)] = 0;
  Pml4[PML4_INDEX (HOLES)]    = (UINTN)Directories | PAGE_TABLE;
  for (Index = 0; Index < Count; Index++) {
    Directories[Index]                                 = (UINTN)(Pages + Index * 512) | PAGE_TABLE;
    Pages[Index * 512] = (Base + Index * SIZE_1GB) | PAGE_LARGE;
  }

  return Pml4;
}

///
/// Takes what is still pending, so that the firmware does not have to.
///
STATIC
VOID
EFIAPI
Drain (
  IN OUT VOID  *Context
  )
{
  UINTN  Index;

  // More than the one instruction that STI shields.
  EnableInterrupts ();
  for (Index = 0; Index < 10; Index++) {
    CpuPause ();
  }

  DisableInterrupts ();
}

STATIC
VOID
Show (
  IN CONST SCENARIO  *Scenario,
  IN CONST HV_TRAPS  *Traps
  )
{
  CONST HV_TRAP  *Trap;
  UINTN          Index;

  Print (L"HvEvents: %a events=%d gave-up=%d\n", Scenario->Name, Traps->Count, Traps->Faulted);
  for (Index = 0; Index < MIN (Traps->Count, ((Scenario->Flags & ASYNC) != 0) ? 1 : HV_TRAPS_MAX); Index++) {
    Trap = &Traps->Trap[Index];
    Print (L"HvEvents: %a vector=%d", Scenario->Name, Trap->Vector);
    if ((Scenario->Flags & (LOST | ASYNC)) == 0) {
      Print (
        L" at=%ld error=0x%lx rflags=0x%lx rax=0x%lx rcx=0x%lx rdx=0x%lx",
        Trap->Rip - (UINTN)Scenario->Code,
        Trap->ErrorCode,
        Trap->Rflags,
        // An address of the application itself is another one in each run.
        (Trap->Rax - (UINTN)Scenario->Code < EFI_PAGE_SIZE) ? 0 : Trap->Rax,
        Trap->Rcx,
        Trap->Rdx
        );
    }

    if ((Scenario->Flags & ASYNC) == 0) {
      Print (L" cr2=0x%lx dr6=0x%lx dr7=0x%lx", Trap->Cr2, Trap->Dr6, Trap->Dr7);
    }

    Print (L"\n");
  }
}

/**
  Runs all scenarios and prints their events.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS           All ran; whether they saw the right events is for who reads the lines.
  @retval EFI_UNSUPPORTED       The local APIC is in x2APIC mode.
  @retval EFI_OUT_OF_RESOURCES  No memory.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvEventsMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  SCENARIO_CONTEXT  Context;
  STATE             State;
  HV_TRAPS          Traps;
  HV_TRAPS          Drained;
  SCENARIO          *Scenario;
  UINT64            *Pml4;
  UINTN             Cr3;
  UINT64            Apic;
  UINTN             Hole;
  BOOLEAN           Lost;

  Apic = AsmReadMsr64 (HV_MSR_APIC_BASE);
  if ((Apic & HV_APIC_BASE_EXTD) != 0) {
    Print (L"HvEvents: needs the local APIC in xAPIC mode\n");
    return EFI_UNSUPPORTED;
  }

  Apic       &= HV_APIC_BASE_ADDRESS_MASK;
  Context.Icr = Apic + HV_APIC_REG_ICR_LOW;
  Pml4        = MapHoles ((UINTN)(mScenariosEnd - mScenarios));
  if (Pml4 == NULL) {
    return EFI_OUT_OF_RESOURCES;
  }

  Hole = 0;
  for (Scenario = mScenarios; Scenario < mScenariosEnd; Scenario++) {
    if ((Scenario->Flags & LOST) != 0) {
      Context.Stack = HOLES + Hole * SIZE_1GB + SIZE_1MB;
      Hole++;
    }

    HvTrapBegin ();
    Save (&State);
    Cr3 = AsmReadCr3 ();
    AsmWriteCr3 ((UINTN)Pml4);
    MmioWrite32 (Apic + HV_APIC_REG_ICR_HIGH, MmioRead32 (Apic + HV_APIC_REG_ID) & 0xFF000000);
    HvTrapGate (HV_VECTOR_GP, (BOOLEAN)((Scenario->Flags & NO_GATE_GP) == 0));
    HvTrapGate (HV_VECTOR_UD, (BOOLEAN)((Scenario->Flags & NO_GATE_UD) == 0));
    HvTrapGate (HV_VECTOR_PF, (BOOLEAN)((Scenario->Flags & NO_GATE_PF) == 0));
    HvTrapGate (INTERRUPT, (BOOLEAN)((Scenario->Flags & NO_GATE_INTERRUPT) == 0));
    // Without the context no register has an address, which would be another one in each run.
    Lost = (BOOLEAN)((Scenario->Flags & LOST) != 0);
    HvTrapRun (Scenario->Code, Lost ? &Context : NULL, Lost, &Traps);
    if ((Scenario->Flags & NO_GATE_INTERRUPT) != 0) {
      MmioWrite32 (Apic + HV_APIC_REG_EOI, 0);
    }

    Restore (&State);
    HvTrapGate (INTERRUPT, TRUE);
    HvTrapRun (Drain, NULL, FALSE, &Drained);
    AsmWriteCr3 (Cr3);
    HvTrapEnd ();
    Show (Scenario, &Traps);
  }

  Print (L"HvEvents: done\n");
  return EFI_SUCCESS;
}
