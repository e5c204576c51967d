/** @file
  Reads, writes, executes and walks the reserved memory of the hypervisor, which must read as ones and keep nothing.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvTrapLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvStatus.h>

#define PATTERN          0x5AA5A55A0FF0F00FULL
#define VECTOR_UD        6
#define VECTOR_GP        13
#define VECTOR_PF        14
#define BAD_LINES        8
#define TOP_ENTRY        300 // of a table of the highest level, in the upper half, which the firmware does not use
#define ENTRY_PRESENT    7   // present, writable, user

extern CONST UINT8  HvTryLoad[];
extern CONST UINT8  HvTryStore[];
extern CONST UINT8  HvTryLoadVector[];

STATIC UINTN  mBad;
STATIC UINTN  mReads;
STATIC UINTN  mWrites;

STATIC
VOID
Bad (
  IN CONST CHAR8  *What,
  IN UINTN        Address
  )
{
  if (mBad++ < BAD_LINES) {
    Print (L"HvReservedProbe: %lx %a\n", Address, What);
  }
}

STATIC
VOID
Write (
  IN UINTN  Address,
  IN UINTN  Width
  )
{
  switch (Width) {
    case 1:
      *(volatile UINT8 *)Address = (UINT8)PATTERN;
      break;
    case 2:
      *(volatile UINT16 *)Address = (UINT16)PATTERN;
      break;
    case 4:
      *(volatile UINT32 *)Address = (UINT32)PATTERN;
      break;
    default:
      *(volatile UINT64 *)Address = PATTERN;
  }

  mWrites++;
}

///
/// All widths at an address; the last bytes of the block are read by the narrow ones alone.
///
STATIC
VOID
ReadAll (
  IN UINTN  Address,
  IN UINTN  End
  )
{
  BOOLEAN  Ones;

  Ones = (BOOLEAN)(*(volatile UINT8 *)Address == MAX_UINT8);
  if (Address + sizeof (UINT16) <= End) {
    Ones &= (BOOLEAN)(*(volatile UINT16 *)Address == MAX_UINT16);
  }

  if (Address + sizeof (UINT32) <= End) {
    Ones &= (BOOLEAN)(*(volatile UINT32 *)Address == MAX_UINT32);
  }

  if (Address + sizeof (UINT64) <= End) {
    Ones &= (BOOLEAN)(*(volatile UINT64 *)Address == MAX_UINT64);
  }

  if (!Ones) {
    Bad ("does not read as ones", Address);
  }
}

STATIC
VOID
ReadVector (
  IN UINTN  Address
  )
{
  HV_TRAP_REGS  Regs;

  ZeroMem (&Regs, sizeof (Regs));
  Regs.Rsi = Address;
  if ((HvTrapTry (HvTryLoadVector, &Regs) != HV_TRAP_NONE) || (Regs.Rbx != TRUE)) {
    Bad ("does not read as ones by 16 bytes", Address);
  }
}

///
/// Every width at an address. All that it could have changed is read again.
///
STATIC
VOID
WriteAll (
  IN UINTN  Address,
  IN UINTN  End
  )
{
  UINTN  Width;

  for (Width = 1; (Width <= sizeof (UINT64)) && (Address + Width <= End); Width *= 2) {
    Write (Address, Width);
    if (Address + sizeof (UINT64) <= End) {
      if (*(volatile UINT64 *)Address != MAX_UINT64) {
        Bad ("keeps what was written", Address);
      }
    } else {
      ReadAll (Address, End);
    }
  }
}

STATIC
VOID
TryHostPages (
  IN UINTN  Base,
  IN UINTN  End
  )
{
  UINTN  Address;
  UINTN  Page;

  for (Address = Base; Address < End; Address++) {
    ReadAll (Address, End);
    mReads++;
  }

  for (Page = Base; Page < End; Page += EFI_PAGE_SIZE) {
    ReadVector (Page);
    ReadVector (Page + EFI_PAGE_SIZE - 16);
    WriteAll (Page, End);
    WriteAll (Page + 1, End);
    WriteAll (Page + EFI_PAGE_SIZE - sizeof (UINT64), End);
    // Over the boundary of two host pages, but at the end of the block.
    WriteAll (Page + EFI_PAGE_SIZE - 3, End);
  }

  for (Address = Base; Address < Base + EFI_PAGE_SIZE; Address++) {
    WriteAll (Address, End);
  }
}

///
/// The shared pages are for reading: their last bytes, which nothing uses, stay as they are.
///
STATIC
VOID
TrySharedPages (
  IN UINTN  Base,
  IN UINTN  End
  )
{
  UINT8  Before[16];
  UINTN  Width;
  UINTN  Address;

  CopyMem (Before, (VOID *)(End - sizeof (Before)), sizeof (Before));
  for (Width = 1; Width <= sizeof (UINT64); Width *= 2) {
    for (Address = End - sizeof (Before); Address < End; Address++) {
      Write (Address, Width); // the last ones reach into the first host page
    }
  }

  if (CompareMem (Before, (VOID *)(End - sizeof (Before)), sizeof (Before)) != 0) {
    Bad ("the shared pages can be written", End - sizeof (Before));
  }

  if (((CONST HV_STATUS_HEADER *)Base)->Signature != HV_STATUS_SIGNATURE) {
    Bad ("the status page has no signature", Base);
  }
}

///
/// From the last page of the block to the memory behind it.
///
STATIC
VOID
TryEdge (
  IN UINTN  End
  )
{
  UINT32  Behind;
  UINT64  Value;

  Behind = *(volatile UINT32 *)End;
  Value  = *(volatile UINT64 *)(End - sizeof (UINT32));
  if (((UINT32)Value != MAX_UINT32) || ((UINT32)RShiftU64 (Value, 32) != Behind)) {
    Bad ("reads otherwise over the end of the block", End);
  }
}

///
/// Ones are no instruction.
///
STATIC
VOID
TryExecute (
  IN UINTN  Address
  )
{
  HV_TRAP_REGS  Regs;
  UINT64        Vector;

  ZeroMem (&Regs, sizeof (Regs));
  Vector = HvTrapTry ((VOID *)Address, &Regs);
  if ((Vector != VECTOR_UD) && (Vector != VECTOR_PF)) {
    Bad ("can be executed", Address);
  }
}

///
/// Page tables that are in host memory have nothing but reserved bits, and their accessed bits are not written.
///
STATIC
VOID
TryPageTable (
  IN UINTN  Address
  )
{
  HV_TRAP_REGS  Regs;
  UINT64        *Top;
  UINT64        Linear;
  UINT64        Load;
  UINT64        Store;
  UINTN         Cr3;
  UINTN         Shift;

  Top = AllocatePages (1);
  if (Top == NULL) {
    Bad ("no memory for a page table", 0);
    return;
  }

  Cr3 = AsmReadCr3 ();
  CopyMem (Top, (VOID *)(Cr3 & ~(UINTN)EFI_PAGE_MASK), EFI_PAGE_SIZE);
  Top[TOP_ENTRY] = Address | ENTRY_PRESENT;
  Shift          = ((AsmReadCr4 () & HV_CR4_LA57) != 0) ? 48 : 39;
  Linear         = LShiftU64 (TOP_ENTRY, Shift) | (0 - LShiftU64 (1, Shift + 9));
  HvTrapBegin ();
  AsmWriteCr3 ((UINTN)Top);
  ZeroMem (&Regs, sizeof (Regs));
  Regs.Rsi = Linear;
  Load     = HvTrapTry (HvTryLoad, &Regs);
  ZeroMem (&Regs, sizeof (Regs));
  Regs.Rdi = Linear;
  Store    = HvTrapTry (HvTryStore, &Regs);
  AsmWriteCr3 (Cr3);
  HvTrapEnd ();
  FreePages (Top, 1);
  if (((Load != VECTOR_PF) && (Load != VECTOR_GP)) || ((Store != VECTOR_PF) && (Store != VECTOR_GP))) {
    Bad ("works as a page table", Address);
  }
}

/**
  Looks at the whole reserved block.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS             Host memory reads as ones and keeps nothing; what is shared is not writable.
  @retval EFI_NOT_STARTED         There is no hypervisor.
  @retval EFI_SECURITY_VIOLATION  Something is otherwise: a line says what and where.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvReservedProbeMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  CONST HV_STATUS_HEADER  *Status;
  UINT32                  Eax;
  UINT32                  Ebx;
  UINT32                  Ecx;
  UINT32                  Edx;
  UINTN                   Base;
  UINTN                   End;

  AsmCpuid (HV_CPUID_40000000, NULL, &Ebx, &Ecx, &Edx);
  if ((Ebx != HV_CPUID_SIGNATURE_EBX) || (Ecx != HV_CPUID_SIGNATURE_ECX) || (Edx != HV_CPUID_SIGNATURE_EDX)) {
    Print (L"HvReservedProbe: no hypervisor\n");
    return EFI_NOT_STARTED;
  }

  // The shared part comes first in the block.
  AsmCpuid (HV_CPUID_40000002, &Eax, &Ebx, &Ecx, NULL);
  Status = (CONST HV_STATUS_HEADER *)(UINTN)(LShiftU64 (Ebx, 32) | Eax);
  Base   = (UINTN)Status + Ecx;
  End    = (UINTN)Status + (UINTN)Status->ReservedBytes;
  HvTrapBegin ();
  TryHostPages (Base, End);
  TrySharedPages ((UINTN)Status, Base);
  TryEdge (End);
  TryExecute (Base);
  HvTrapEnd ();
  TryPageTable (Base);
  Print (L"HvReservedProbe: bytes=%ld reads=%ld writes=%ld bad=%ld\n", End - Base, mReads, mWrites, mBad);
  return ((mBad == 0) && (mReads == End - Base)) ? EFI_SUCCESS : EFI_SECURITY_VIOLATION;
}
