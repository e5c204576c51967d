/** @file
  Every MSR of the architectural and vendor ranges: read, written with what it holds, and with random values.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "Fuzz.h"

#define RANDOM_WRITES  3
#define NOT_TRIED      0xFF

typedef struct {
  UINT32    First;
  UINT32    Last;
} RANGE;

STATIC CONST RANGE  mRanges[] = {
  { 0x00000000, 0x00001FFF },
  { 0x40000000, 0x400001FF },
  { 0xC0000000, 0xC0001FFF },
  { 0xC0010000, 0xC0011FFF },
  { 0xFFFFFFF0, 0xFFFFFFFF },
};

///
/// Not written with random values: that ends this program or the machine on the bare processor too, or cannot be undone.
///
STATIC CONST RANGE  mNotRandom[] = {
  { HV_MSR_TSC,             HV_MSR_TSC             }, // the firmware's clock
  { HV_MSR_APIC_BASE,       HV_MSR_APIC_BASE       }, // the local APIC goes elsewhere
  { HV_MSR_FEATURE_CONTROL, HV_MSR_FEATURE_CONTROL }, // may lock itself
  { 0x0000003B,             0x0000003B             }, // TSC_ADJUST: the firmware's clock
  { HV_MSR_BIOS_UPDT_TRIG,  HV_MSR_BIOS_UPDT_TRIG  }, // microcode from anywhere
  { 0x000001A0,             0x000001A0             }, // MISC_ENABLE: may take NX or CPUID leaves away
  { HV_MSR_MTRR_PHYSBASE0,  0x000002FF             }, // memory types of the code that runs
  { 0x000006E0,             0x000006E0             }, // TSC_DEADLINE: an interrupt at once
  { 0x00000800,             0x000008FF             }, // x2APIC: interrupts to any processor
  { HV_MSR_EFER,            HV_MSR_EFER            }, // bit by bit in Registers.c
  { HV_MSR_PATCH_LOADER,    HV_MSR_PATCH_LOADER    }, // microcode from anywhere
};

///
/// Their values change by themselves.
///
STATIC CONST RANGE  mClocks[] = {
  { HV_MSR_TSC,   HV_MSR_TSC   },
  { HV_MSR_MPERF, 0x000000E8   }, // MPERF, APERF
  { 0xC00000E7,   0xC00000E8   }, // read-only MPERF, APERF
  { 0x00000839,   0x00000839   }, // x2APIC timer
};

///
/// What an MSR did: vectors or HV_TRAP_NONE.
///
typedef struct {
  UINT32    Read;
  UINT32    Same;                  ///< written with what it holds
  UINT32    Random[RANDOM_WRITES];
  UINT64    Value;                 ///< what it holds
  UINT64    Kept;                  ///< digest of what it held after each random value that it took, 0 for always Value
} OUTCOME;

STATIC
BOOLEAN
IsIn (
  IN UINT32       Msr,
  IN CONST RANGE  *Ranges,
  IN UINTN        Count
  )
{
  UINTN  Index;

  for (Index = 0; Index < Count; Index++) {
    if ((Msr >= Ranges[Index].First) && (Msr <= Ranges[Index].Last)) {
      return TRUE;
    }
  }

  return FALSE;
}

STATIC
VOID
TryMsr (
  IN  UINT32   Msr,
  OUT OUTCOME  *Outcome
  )
{
  UINT64   Sequence;
  UINT64   Held;
  UINT64   Kept;
  UINTN    Index;
  BOOLEAN  There;
  BOOLEAN  NotRandom;

  SetMem (Outcome, sizeof (*Outcome), 0);
  HvTrapBegin ();
  There         = FuzzReadMsr (Msr, &Held);
  Outcome->Read = There ? HV_TRAP_NONE : HV_VECTOR_GP;
  Held          = There ? Held : 0;
  NotRandom     = IsIn (Msr, mNotRandom, ARRAY_SIZE (mNotRandom));
  Outcome->Same = NOT_TRIED;
  if (!IsIn (Msr, mClocks, ARRAY_SIZE (mClocks))) {
    Outcome->Value = Held;
    if (There || !NotRandom) {
      Outcome->Same = FuzzWriteMsr (Msr, Held);
    }
  }

  Sequence = FuzzSequence (Msr);
  for (Index = 0; Index < RANDOM_WRITES; Index++) {
    if (NotRandom) {
      Outcome->Random[Index] = NOT_TRIED;
      continue;
    }

    // The second and third are narrower: fewer reserved bits.
    Outcome->Random[Index] = FuzzWriteMsr (Msr, FuzzRandom (&Sequence) >> (Index * 24));
    if ((Outcome->Random[Index] == HV_TRAP_NONE) && There) {
      if (FuzzReadMsr (Msr, &Kept) && (Kept != Held)) {
        Outcome->Kept = FuzzDigest (Outcome->Kept, Kept);
      }

      FuzzWriteMsr (Msr, Held);
    }
  }

  HvTrapEnd ();
}

STATIC
VOID
PrintVector (
  IN UINT32  Vector
  )
{
  if (Vector == HV_TRAP_NONE) {
    Print (L" -");
  } else if (Vector == NOT_TRIED) {
    Print (L" .");
  } else {
    Print (L" %d", Vector);
  }
}

STATIC
VOID
PrintRun (
  IN UINT32         First,
  IN UINT32         Last,
  IN CONST OUTCOME  *Outcome
  )
{
  UINTN  Index;

  Print (L"HvFuzz: msr %08x %08x", First, Last);
  PrintVector (Outcome->Read);
  PrintVector (Outcome->Same);
  for (Index = 0; Index < RANDOM_WRITES; Index++) {
    PrintVector (Outcome->Random[Index]);
  }

  Print (L" %lx %lx\n", Outcome->Value, Outcome->Kept);
}

VOID
FuzzMsrs (
  VOID
  )
{
  OUTCOME  Before;
  OUTCOME  Outcome;
  UINT64   Msr;
  UINT32   First;
  UINTN    Range;

  for (Range = 0; Range < ARRAY_SIZE (mRanges); Range++) {
    First = mRanges[Range].First;
    TryMsr (First, &Before);
    for (Msr = (UINT64)First + 1; Msr <= mRanges[Range].Last; Msr++) {
      TryMsr ((UINT32)Msr, &Outcome);
      if (CompareMem (&Outcome, &Before, sizeof (Outcome)) != 0) {
        PrintRun (First, (UINT32)(Msr - 1), &Before);
        First = (UINT32)Msr;
        CopyMem (&Before, &Outcome, sizeof (Before));
      }
    }

    PrintRun (First, mRanges[Range].Last, &Before);
  }
}
