/** @file
  Dumps of refused states in the log: words as KEY:VALUE, as many as fit into a line.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define DUMPS_MAX  4 // of at most 6 KiB each; the ring has 64
#define WORD_MAX   (1 + 8 + 1 + 16) // blank, key, colon, value

BOOLEAN
HvCoreDumpBegin (
  IN  HV_CPU   *Cpu,
  OUT HV_DUMP  *Dump
  )
{
  UINT32  Dumps;

  do {
    Dumps = Cpu->Host->Dumps;
    if (Dumps == DUMPS_MAX) {
      return FALSE;
    }
  } while (InterlockedCompareExchange32 ((UINT32 *)&Cpu->Host->Dumps, Dumps, Dumps + 1) != Dumps);

  Dump->CpuIndex = Cpu->Index;
  Dump->Words    = 0;
  Dump->Length   = 0;
  return TRUE;
}

STATIC
VOID
PutHex (
  IN OUT HV_DUMP  *Dump,
  IN     UINT64   Value
  )
{
  UINTN  Shift;

  Shift = 0;
  while ((Shift < 60) && (Value >> (Shift + 4) != 0)) {
    Shift += 4;
  }

  for ( ; ; Shift -= 4) {
    Dump->Text[Dump->Length++] = "0123456789abcdef"[Value >> Shift & 0xF];
    if (Shift == 0) {
      break;
    }
  }
}

STATIC
VOID
Flush (
  IN OUT HV_DUMP  *Dump
  )
{
  if (Dump->Length != 0) {
    Dump->Text[Dump->Length] = '\0';
    HV_LOG (Dump->CpuIndex, Dump, HV_STR (Dump->Text));
    Dump->Length = 0;
  }
}

VOID
HvCoreDumpWord (
  IN OUT HV_DUMP  *Dump,
  IN     UINT32   Key,
  IN     UINT64   Value
  )
{
  if (Value == 0) {
    return;
  }

  if (Dump->Length + WORD_MAX >= sizeof (Dump->Text)) {
    Flush (Dump);
  }

  if (Dump->Length != 0) {
    Dump->Text[Dump->Length++] = ' ';
  }

  PutHex (Dump, Key);
  Dump->Text[Dump->Length++] = ':';
  PutHex (Dump, Value);
  Dump->Words++;
}

VOID
HvCoreDumpEnd (
  IN OUT HV_DUMP      *Dump,
  IN     CONST CHAR8  *Kind,
  IN     UINT32       Parts
  )
{
  Flush (Dump);
  HV_LOG (Dump->CpuIndex, DumpEnd, HV_STR (Kind), Dump->Words, Parts);
}
