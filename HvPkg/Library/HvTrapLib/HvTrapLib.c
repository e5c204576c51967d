/** @file
  Notes interrupts and exceptions of code that a test runs.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvApicLib.h>
#include <Library/HvTrapLib.h>
#include <Library/IoLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>

#define GATE_INTERRUPT  0x8E // present, DPL 0, interrupt gate
#define GATE_PRESENT    0x80

#define ICR_FIXED    0x00004000 // asserted, to the processor in the high word
#define ICR_NMI      0x00004400
#define ICR_PENDING  BIT12
#define ICR_SELF     0x00040000

typedef struct {
  UINT64    R15;
  UINT64    R14;
  UINT64    R13;
  UINT64    R12;
  UINT64    R11;
  UINT64    R10;
  UINT64    R9;
  UINT64    R8;
  UINT64    Rdi;
  UINT64    Rsi;
  UINT64    Rbp;
  UINT64    Rbx;
  UINT64    Rdx;
  UINT64    Rcx;
  UINT64    Rax;
  UINT64    ErrorCode;
  UINT64    Rip;
  UINT64    Cs;
  UINT64    Rflags;
  UINT64    Rsp;
  UINT64    Ss;
} TRAP_FRAME;

extern UINT32  mHvTrapVector;
extern UINT32  mHvTrapLost;
extern UINT64  mHvTrapStubs[256];

UINT8
EFIAPI
HvTrapCall (
  IN     HV_TRAP_CODE  Code,
  IN OUT VOID          *Context
  );

UINT64
EFIAPI
HvTrapSetPriority (
  IN UINT64  Priority
  );

///
/// What HvTrapTry runs; X64/Trap.nasm has its layout.
///
typedef struct {
  CONST VOID      *Code;
  HV_TRAP_REGS    *Regs;
} TRY_CONTEXT;

VOID
EFIAPI
HvTrapWithRegs (
  IN OUT VOID  *Context
  );

STATIC IA32_IDT_GATE_DESCRIPTOR  mIdt[256];
STATIC IA32_DESCRIPTOR           mSaved;
STATIC BOOLEAN                   mInterrupts;
STATIC UINT64                    mPriority;
STATIC HV_TRAPS                  *mTraps;

STATIC
UINT64
ApicPage (
  VOID
  )
{
  return AsmReadMsr64 (HV_MSR_APIC_BASE) & HV_APIC_BASE_ADDRESS_MASK;
}

/**
  Notes an event. Called by the stubs.

  @param[in,out] Frame  What was interrupted, or NULL.

  @retval TRUE   It goes on.
  @retval FALSE  It is given up.

  @par Context: Boot
**/
BOOLEAN
EFIAPI
HvTrapNote (
  IN OUT TRAP_FRAME  *Frame
  )
{
  HV_TRAP  Lost;
  HV_TRAP  *Trap;

  Trap = (mTraps->Count < HV_TRAPS_MAX) ? &mTraps->Trap[mTraps->Count] : &Lost;
  mTraps->Count++;
  ZeroMem (Trap, sizeof (*Trap));
  Trap->Vector = (UINT8)mHvTrapVector;
  Trap->Cr2    = (Trap->Vector == HV_VECTOR_PF) ? AsmReadCr2 () : 0;
  Trap->Dr7    = AsmReadDr7 ();
  if (Trap->Vector == HV_VECTOR_DB) {
    Trap->Dr6 = AsmReadDr6 ();
    AsmWriteDr6 (0xFFFF0FF0);
  }

  if (Trap->Vector == HV_TRAP_INTERRUPT) {
    MmioWrite32 (ApicPage () + HV_APIC_REG_EOI, 0);
  }

  if (Frame == NULL) {
    return FALSE;
  }

  Trap->ErrorCode = Frame->ErrorCode;
  Trap->Rip       = Frame->Rip;
  Trap->Rflags    = Frame->Rflags;
  Trap->Rsp       = Frame->Rsp;
  Trap->Rax       = Frame->Rax;
  Trap->Rcx       = Frame->Rcx;
  Trap->Rdx       = Frame->Rdx;
  Trap->Rbx       = Frame->Rbx;
  Trap->Rsi       = Frame->Rsi;
  Trap->Rdi       = Frame->Rdi;
  switch (Trap->Vector) {
    case HV_VECTOR_DB:
      if ((Trap->Dr6 & HV_DR6_B_MASK) != 0) {
        Frame->Rflags |= HV_RFLAGS_RF;
      }

      return TRUE;
    case HV_VECTOR_NMI:
    case HV_VECTOR_BP:
      return TRUE;
    default:
      return (BOOLEAN)(Trap->Vector >= 32);
  }
}

VOID
HvTrapGate (
  IN UINT8    Vector,
  IN BOOLEAN  Present
  )
{
  mIdt[Vector].Bits.GateType = Present ? GATE_INTERRUPT : (GATE_INTERRUPT & ~GATE_PRESENT);
}

VOID
HvTrapBegin (
  VOID
  )
{
  IA32_DESCRIPTOR  Own;
  UINTN            Vector;

  for (Vector = 0; Vector < ARRAY_SIZE (mIdt); Vector++) {
    mIdt[Vector].Bits.OffsetLow   = (UINT32)(mHvTrapStubs[Vector] & 0xFFFF);
    mIdt[Vector].Bits.OffsetHigh  = (UINT32)((mHvTrapStubs[Vector] >> 16) & 0xFFFF);
    mIdt[Vector].Bits.OffsetUpper = (UINT32)(mHvTrapStubs[Vector] >> 32);
    mIdt[Vector].Bits.Selector    = AsmReadCs ();
    HvTrapGate ((UINT8)Vector, TRUE);
  }

  // The firmware's timer waits: its vector is of a lower class, and nobody here would acknowledge it.
  mInterrupts = SaveAndDisableInterrupts ();
  mPriority   = HvTrapSetPriority ((HV_TRAP_INTERRUPT >> 4) - 1);
  AsmReadIdtr (&mSaved);
  Own.Base  = (UINTN)mIdt;
  Own.Limit = sizeof (mIdt) - 1;
  AsmWriteIdtr (&Own);
}

VOID
HvTrapEnd (
  VOID
  )
{
  AsmWriteIdtr (&mSaved);
  HvTrapSetPriority (mPriority);
  SetInterruptState (mInterrupts);
}

VOID
HvTrapRun (
  IN     HV_TRAP_CODE  Code,
  IN OUT VOID          *Context,
  IN     BOOLEAN       Lost,
  OUT    HV_TRAPS      *Traps
  )
{
  mTraps         = Traps;
  Traps->Count   = 0;
  mHvTrapLost    = Lost ? 1 : 0;
  Traps->Faulted = (BOOLEAN)(HvTrapCall (Code, Context) != 0);
  mHvTrapLost    = 0;
}

UINT32
HvTrapTry (
  IN     CONST VOID    *Code,
  IN OUT HV_TRAP_REGS  *Regs
  )
{
  STATIC HV_TRAPS  Traps;
  TRY_CONTEXT      Context;
  CONST HV_TRAP    *Trap;

  Context.Code = Code;
  Context.Regs = Regs;
  HvTrapRun (HvTrapWithRegs, &Context, FALSE, &Traps);
  if (Traps.Count == 0) {
    return HV_TRAP_NONE;
  }

  Trap            = &Traps.Trap[0];
  Regs->ErrorCode = Trap->ErrorCode;
  Regs->Rip       = Trap->Rip;
  if (Traps.Faulted) {
    Regs->Rax = Trap->Rax;
    Regs->Rbx = Trap->Rbx;
    Regs->Rcx = Trap->Rcx;
    Regs->Rdx = Trap->Rdx;
    Regs->Rsi = Trap->Rsi;
    Regs->Rdi = Trap->Rdi;
  }

  return Trap->Vector;
}

VOID
EFIAPI
HvTrapSend (
  IN UINT8  Vector
  )
{
  UINT64  Page;

  // By its id: the shorthand for self is for fixed interrupts alone (SDM volume 3, 11.6.1).
  Page = ApicPage ();
  if (Vector == HV_TRAP_NMI) {
    MmioWrite32 (Page + HV_APIC_REG_ICR_HIGH, MmioRead32 (Page + HV_APIC_REG_ID) & 0xFF000000);
    MmioWrite32 (Page + HV_APIC_REG_ICR_LOW, ICR_NMI);
  } else {
    MmioWrite32 (Page + HV_APIC_REG_ICR_LOW, ICR_SELF | ICR_FIXED | Vector);
  }

  while ((MmioRead32 (Page + HV_APIC_REG_ICR_LOW) & ICR_PENDING) != 0) {
    CpuPause ();
  }
}
