/** @file
  HvDecodeLib and HvEmulateLib over random bytes, registers, segments and page tables: what they may never do.

  usage: emulate_fuzz CASES SEED
  Built with the address and undefined-behaviour sanitizers: the bytes end where the heap block ends. Ends with 1 at the
  first broken promise. Prints how often each result was met.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef NULL
#include <Base.h>
#include <Generated/HvCpuid.h>
#include <Library/HvEmulateLib.h>

#define PAGE    0x1000ull
#define PIECES  4 // two operands, two pages each

static UINT64  mRandom;

///
/// What HvEmulate has asked for since the last element of a string instruction.
///
typedef struct {
  UINT64       Gpa[PIECES];
  HV_ACCESS    Access[PIECES];
  UINT32       Pieces;
  UINT32       Reads;
  UINT32       Writes;
  BOOLEAN      Denied;
} TRACE;

static
UINT64
Random (
  void
  )
{
  mRandom += 0x9E3779B97F4A7C15ull;
  UINT64  Z = mRandom;
  Z = (Z ^ (Z >> 30)) * 0xBF58476D1CE4E5B9ull;
  Z = (Z ^ (Z >> 27)) * 0x94D049BB133111EBull;
  return Z ^ (Z >> 31);
}

static
void
Promise (
  BOOLEAN     Kept,
  const char  *What
  )
{
  if (!Kept) {
    fprintf (stderr, "broken: %s\n", What);
    exit (1);
  }
}

static
RETURN_STATUS
Map (
  VOID           *Context,
  UINT64         Linear,
  HV_ACCESS      Access,
  UINT64         *Gpa,
  HV_PAGE_FAULT  *Fault
  )
{
  TRACE  *Trace = Context;

  Promise ((Access == HV_ACCESS_READ) || (Access == HV_ACCESS_WRITE), "the access is one of two");
  Promise (!Trace->Denied, "nothing is mapped after a refusal");
  Promise (Trace->Writes == 0 || Trace->Pieces <= PIECES, "all pieces are mapped before the first is written");
  if (Trace->Reads + Trace->Writes != 0) {
    memset (Trace, 0, sizeof (*Trace)); // the next element
  }

  switch (Random () % 16) {
    case 0:
      Fault->ErrorCode = (UINT32)Random ();
      Fault->Cr2       = Linear;
      Trace->Denied    = TRUE;
      return RETURN_ACCESS_DENIED;
    case 1:
      Trace->Denied = TRUE;
      return RETURN_NOT_FOUND;
    case 2:
      Trace->Denied = TRUE;
      return RETURN_DEVICE_ERROR;
    default:
      Promise (Trace->Pieces < PIECES, "an element has two operands at most");
      *Gpa                          = (Random () % 8) * PAGE + Linear % PAGE;
      Trace->Gpa[Trace->Pieces]     = *Gpa;
      Trace->Access[Trace->Pieces++] = Access;
      return RETURN_SUCCESS;
  }
}

static
BOOLEAN
Mapped (
  const TRACE  *Trace,
  UINT64       Gpa,
  UINTN        Size,
  BOOLEAN      Write
  )
{
  for (UINT32 Piece = 0; Piece < Trace->Pieces; Piece++) {
    if ((Trace->Gpa[Piece] == Gpa) && (!Write || (Trace->Access[Piece] == HV_ACCESS_WRITE))) {
      return (BOOLEAN)((Size >= 1) && (Size <= 8) && (Gpa % PAGE + Size <= PAGE));
    }
  }

  return FALSE;
}

static
VOID
Read (
  VOID    *Context,
  UINT64  Gpa,
  VOID    *Buffer,
  UINTN   Size
  )
{
  UINT64  Value = Random ();

  Promise (Mapped (Context, Gpa, Size, FALSE), "only what was mapped is read");
  memcpy (Buffer, &Value, Size);
  ((TRACE *)Context)->Reads++;
}

static
VOID
Write (
  VOID    *Context,
  UINT64  Gpa,
  VOID    *Buffer,
  UINTN   Size
  )
{
  Promise (Mapped (Context, Gpa, Size, TRUE), "only what was mapped for it is written");
  ((TRACE *)Context)->Writes++;
}

///
/// Bytes that are often the beginning of an instruction.
///
static
void
MakeBytes (
  UINT8  *Bytes,
  UINTN  Count
  )
{
  static const UINT8  Prefixes[] = { 0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x40, 0x48, 0x4F };
  UINTN               Index = 0;

  for (UINTN Byte = 0; Byte < Count; Byte++) {
    Bytes[Byte] = (UINT8)Random ();
  }

  while ((Index < Count) && (Random () % 3 == 0)) {
    Bytes[Index++] = Prefixes[Random () % sizeof (Prefixes)];
  }

  if ((Index < Count) && (Random () % 4 == 0)) {
    Bytes[Index] = 0x0F;
  }
}

static
void
MakeState (
  HV_EMULATE  *Emulate,
  HV_REGS     *Regs,
  HV_SEGMENT  *Segment
  )
{
  for (int Index = 0; Index < 18; Index++) {
    Regs->Index[Index] = Random () >> (Random () % 64);
  }

  for (int Index = 0; Index < 6; Index++) {
    Segment[Index].Base       = Random () >> (Random () % 64);
    Segment[Index].Limit      = (UINT32)(Random () >> (Random () % 64));
    Segment[Index].Attributes = (UINT16)Random ();
    Segment[Index].Selector   = (UINT16)Random ();
  }

  memset (Emulate, 0, sizeof (*Emulate));
  Emulate->Regs           = Regs;
  Emulate->Segment        = Segment;
  Emulate->Protected      = (BOOLEAN)(Random () % 4 != 0);
  Emulate->AlignmentCheck = (BOOLEAN)(Random () % 4 == 0);
  Emulate->Repeats        = 1 + (UINT32)(Random () % 20);
  Emulate->Map            = Map;
  Emulate->Read           = Read;
  Emulate->Write          = Write;
}

int
main (
  int   Count,
  char  **Arguments
  )
{
  static const UINT8  Modes[] = { 16, 32, 64 };
  static const char   *Names[] = { "done", "again", "fault", "refused", "not-decoded" };
  UINT64              Met[ARRAY_SIZE (Names)] = { 0 };
  UINT64              Cases = strtoull (Arguments[1], NULL, 0);
  UINT64              Arithmetic = HV_RFLAGS_CF | HV_RFLAGS_PF | HV_RFLAGS_AF | HV_RFLAGS_ZF | HV_RFLAGS_SF | HV_RFLAGS_OF;

  mRandom = strtoull (Arguments[2], NULL, 0);
  for (UINT64 Case = 0; Case < Cases; Case++) {
    HV_INSN     Insn;
    HV_EMULATE  Emulate;
    HV_REGS     Regs, Before;
    HV_SEGMENT  Segment[6];
    TRACE       Trace = { 0 };
    UINTN       Length = 1 + Random () % 15;
    UINT8       *Bytes = malloc (Length);

    MakeBytes (Bytes, Length);
    RETURN_STATUS  Status = HvDecode (Bytes, Length, Modes[Random () % 3], &Insn);
    free (Bytes);
    if (RETURN_ERROR (Status)) {
      Met[4]++;
      continue;
    }

    Promise ((Insn.Length >= 1) && (Insn.Length <= Length), "an instruction has no more bytes than there are");
    MakeState (&Emulate, &Regs, Segment);
    Emulate.Context = &Trace;
    Before          = Regs;
    HV_EMULATE_RESULT  Result = HvEmulate (&Insn, &Emulate);
    Met[Result]++;
    Promise (Regs.Rip == Before.Rip, "RIP stays");
    Promise (((Regs.Rflags ^ Before.Rflags) & ~Arithmetic) == 0, "no other flags change");
    switch (Result) {
      case HvEmulateFault:
      case HvEmulateRefused:
        if (Insn.Rep == HV_REP_NONE) {
          Promise (memcmp (&Regs, &Before, sizeof (Regs)) == 0, "no register changes before an exception");
          Promise (Trace.Reads + Trace.Writes == 0, "no memory is touched before an exception");
        }
        break;
      default:
        Promise (!Trace.Denied, "what may not be accessed is not ignored");
        Promise ((Result != HvEmulateAgain) || (Insn.Rep != HV_REP_NONE), "only what is repeated goes on");
    }
  }

  for (UINT32 Index = 0; Index < ARRAY_SIZE (Names); Index++) {
    printf ("%s %llu\n", Names[Index], Met[Index]);
  }

  return 0;
}
