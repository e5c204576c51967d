/** @file
  The crash record of the run before, and of this one.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HvDxe.h"

#define VARIABLE        L"HvCrash"
#define SCAN_PAGES_MAX  EFI_SIZE_TO_PAGES (SIZE_4GB)
#define LINES_MAX       48
#define LINE_BYTES      256
#define LINE_START      "hv: "

///
/// A piece of free memory, where a record of the run before can be.
///
STATIC
BOOLEAN
IsInside (
  IN CONST EFI_MEMORY_DESCRIPTOR  *Entry,
  IN UINT64                       Address,
  IN UINT64                       Bytes
  )
{
  UINT64  Size;

  Size = EFI_PAGES_TO_SIZE (Entry->NumberOfPages);
  return (BOOLEAN)((Entry->Type == EfiConventionalMemory) && (Address >= Entry->PhysicalStart) && (Bytes <= Size) &&
                   (Address - Entry->PhysicalStart <= Size - Bytes));
}

///
/// Without the variable, whose firmware may not keep any: from the top of a piece down, as HvDxe's memory was taken.
///
STATIC
HV_CRASH_RECORD *
Scan (
  IN     CONST EFI_MEMORY_DESCRIPTOR  *Entry,
  IN OUT UINT64                       *PagesLeft
  )
{
  UINT64  Pages;
  UINT64  Address;

  for (Pages = Entry->NumberOfPages; (Pages > 0) && (*PagesLeft > 0); Pages--, (*PagesLeft)--) {
    Address = Entry->PhysicalStart + EFI_PAGES_TO_SIZE (Pages - 1);
    if ((Address != 0) && HvCrashIsValid ((HV_CRASH_RECORD *)(UINTN)Address, Address)) {
      return (HV_CRASH_RECORD *)(UINTN)Address;
    }
  }

  return NULL;
}

STATIC
VOID
LogLine (
  IN OUT CHAR8  *Line
  )
{
  CHAR8  *Char;

  if (AsciiStrnCmp (Line, LINE_START, sizeof (LINE_START) - 1) == 0) {
    Line += sizeof (LINE_START) - 1;
  }

  // It is a value in quotation marks, and the memory may hold anything.
  for (Char = Line; *Char != '\0'; Char++) {
    if ((*Char < ' ') || (*Char > '~') || (*Char == '"')) {
      *Char = '\'';
    }
  }

  HV_LOG (0, PreviousLog, HV_STR (Line));
}

///
/// The last lines of the ring, oldest first.
///
STATIC
UINT64
LogRing (
  IN CONST HV_LOG_RING  *Ring,
  IN UINT64             Bytes
  )
{
  CHAR8   Line[LINE_BYTES];
  UINT64  Begin;
  UINT64  Oldest;
  UINT64  At;
  UINT64  Lines;
  UINTN   Length;
  CHAR8   Char;

  if ((Ring->Signature != HV_LOG_RING_SIGNATURE) ||
      (Ring->Size != GetPowerOfTwo32 ((UINT32)(Bytes - sizeof (*Ring)))))
  {
    return 0;
  }

  Oldest = (Ring->Head > Ring->Size) ? Ring->Head - Ring->Size : 0;
  Lines  = 0;
  for (Begin = Ring->Head; Begin > Oldest; Begin--) {
    if ((Ring->Text[(Begin - 1) & (Ring->Size - 1)] == '\n') && (Lines++ == LINES_MAX)) {
      break;
    }
  }

  Lines  = 0;
  Length = 0;
  for (At = Begin; At < Ring->Head; At++) {
    Char = Ring->Text[At & (Ring->Size - 1)];
    if ((Char != '\n') && (Length < sizeof (Line) - 1)) {
      Line[Length++] = Char;
    } else {
      Line[Length] = '\0';
      Length       = 0;
      Lines++;
      LogLine (Line);
    }
  }

  return Lines;
}

VOID
HvCrashReport (
  VOID
  )
{
  EFI_MEMORY_DESCRIPTOR  *Map;
  EFI_MEMORY_DESCRIPTOR  *Entry;
  HV_CRASH_RECORD        *Record;
  UINT64                 Address;
  UINT64                 Left;
  UINT64                 Lines;
  UINTN                  Size;
  UINTN                  EntrySize;
  BOOLEAN                Known;

  Size  = sizeof (Address);
  Known = (BOOLEAN)!EFI_ERROR (gRT->GetVariable (VARIABLE, &gHvOptionsGuid, NULL, &Size, &Address));
  if (EFI_ERROR (HvMemoryMap (&Map, &Size, &EntrySize))) {
    return;
  }

  Record = NULL;
  Left   = SCAN_PAGES_MAX;
  for (Entry = Map; (UINTN)Entry < (UINTN)Map + Size; Entry = NEXT_MEMORY_DESCRIPTOR (Entry, EntrySize)) {
    if (Entry->Type != EfiConventionalMemory) {
      continue;
    }

    if (!Known) {
      Record = Scan (Entry, &Left);
    } else if (IsInside (Entry, Address, sizeof (*Record)) && ((Address & EFI_PAGE_MASK) == 0) &&
               HvCrashIsValid ((HV_CRASH_RECORD *)(UINTN)Address, Address))
    {
      Record = (HV_CRASH_RECORD *)(UINTN)Address;
    }

    if (Record != NULL) {
      HV_LOG (0, PreviousRun, Record->ImageBase, Record->ImageBytes, Record->CpuIndex);
      HvHostLogCrash (Record->CpuIndex, Record);
      Lines = 0;
      if (IsInside (Entry, Record->Ring, Record->RingBytes) && (Record->RingBytes == HV_RING_BYTES)) {
        Lines = LogRing ((CONST HV_LOG_RING *)(UINTN)Record->Ring, Record->RingBytes);
      }

      HV_LOG (0, PreviousRunEnd, Lines);
      Record->Signature = 0;
      break;
    }
  }

  FreePool (Map);
}

VOID
HvCrashPrepare (
  IN HV_HOST         *Host,
  IN CONST HV_IMAGE  *Image
  )
{
  HV_CRASH_RECORD  *Record;
  EFI_STATUS       Status;
  UINT64           Address;
  UINT64           Known;
  UINTN            Size;

  Record             = Host->Crash;
  Address            = (UINTN)Record;
  Record->Signature  = HV_CRASH_SIGNATURE;
  Record->Self       = Address;
  Record->Ring       = (UINTN)HvMemoryRing (Host);
  Record->RingBytes  = HV_RING_BYTES;
  Record->ImageBase  = Image->CopyBase;
  Record->ImageBytes = Image->Bytes;

  // Flash wears out: only when it changed.
  Size   = sizeof (Known);
  Status = gRT->GetVariable (VARIABLE, &gHvOptionsGuid, NULL, &Size, &Known);
  if (EFI_ERROR (Status) || (Size != sizeof (Known)) || (Known != Address)) {
    gRT->SetVariable (
           VARIABLE,
           &gHvOptionsGuid,
           EFI_VARIABLE_NON_VOLATILE | EFI_VARIABLE_BOOTSERVICE_ACCESS,
           sizeof (Address),
           &Address
           );
  }
}
