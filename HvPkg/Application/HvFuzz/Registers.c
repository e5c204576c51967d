/** @file
  Control and debug registers, XCR0, ports and memory.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "Fuzz.h"

#define WRAPPING      0xFFFD     // a port from where 32 bits go over the last one
#define XCR0_VALUES   0x1000
#define HOLE          0xFEF00000 // between the local APIC and the flash chip: nothing answers on any platform here
#define APIC_VERSION  0x30
#define PM_BLOCK      16

///
/// Bits that end the program or the machine where #GP would be right: QEMU takes away what the code that runs needs, and
/// stops at a bit of CR4 that its processor has not (HvPolicyProbe tries those under the hypervisor).
///
#define CR0_NEEDED   (HV_CR0_PE | HV_CR0_PG)
#define CR4_NEEDED   (~(UINT64)(HV_CR4_VME | HV_CR4_PVI | HV_CR4_TSD | HV_CR4_DE | HV_CR4_PSE | HV_CR4_MCE | HV_CR4_PGE | \
                               HV_CR4_PCE | HV_CR4_OSFXSR | HV_CR4_OSXMMEXCPT | HV_CR4_FSGSBASE | HV_CR4_OSXSAVE | \
                               HV_CR4_SMEP | HV_CR4_SMAP))
#define EFER_NEEDED  (HV_EFER_LME | HV_EFER_LMA)

///
/// Bits of a register that were flipped, one at a time.
///
typedef struct {
  UINT64    Taken; ///< and held until flipped back
  UINT64    Lost;  ///< no exception, and the register did not change
  UINT64    Gp;
  UINT64    Other; ///< other exceptions
} FLIPS;

STATIC
VOID
CountFlip (
  IN OUT FLIPS    *Flips,
  IN     UINT64   Bit,
  IN     UINT32   Vector,
  IN     BOOLEAN  Held
  )
{
  switch (Vector) {
    case HV_TRAP_NONE:
      Flips->Taken |= Held ? Bit : 0;
      Flips->Lost  |= Held ? 0 : Bit;
      break;
    case HV_VECTOR_GP:
      Flips->Gp |= Bit;
      break;
    default:
      Flips->Other |= Bit;
  }
}

STATIC
VOID
PrintFlips (
  IN CONST CHAR8  *Name,
  IN CONST FLIPS  *Flips
  )
{
  Print (
    L"HvFuzz: flip %a taken=%lx lost=%lx gp=%lx other=%lx\n",
    Name,
    Flips->Taken,
    Flips->Lost,
    Flips->Gp,
    Flips->Other
    );
}

STATIC
VOID
FlipRegister (
  IN CONST CHAR8  *Name,
  IN CONST UINT8  *Code,
  IN UINT64       Held,
  IN UINT64       Bits
  )
{
  HV_TRAP_REGS  Regs;
  FLIPS         Flips;
  UINT64        Bit;
  UINT32        Vector;

  ZeroMem (&Flips, sizeof (Flips));
  HvTrapBegin ();
  for (Bit = 1; Bit != 0; Bit <<= 1) {
    if ((Bits & Bit) != 0) {
      ZeroMem (&Regs, sizeof (Regs));
      Regs.Rax = Held ^ Bit;
      Regs.Rbx = Held;
      Vector   = HvTrapTry (Code, &Regs);
      CountFlip (&Flips, Bit, Vector, (BOOLEAN)(((Regs.Rdx ^ Held) & Bit) != 0));
    }
  }

  HvTrapEnd ();
  PrintFlips (Name, &Flips);
}

STATIC
VOID
FlipEfer (
  IN UINT64  Bits
  )
{
  HV_TRAP_REGS  Regs;
  FLIPS         Flips;
  UINT64        Bit;
  UINT64        Held;
  UINT64        Kept;
  UINT32        Vector;

  ZeroMem (&Flips, sizeof (Flips));
  Held = AsmReadMsr64 (HV_MSR_EFER);
  HvTrapBegin ();
  for (Bit = 1; Bit != 0; Bit <<= 1) {
    if ((Bits & Bit) != 0) {
      Regs.Rcx = HV_MSR_EFER;
      Regs.Rax = (UINT32)(Held ^ Bit);
      Regs.Rdx = RShiftU64 (Held ^ Bit, 32);
      Regs.Rsi = (UINT32)Held;
      Regs.Rdi = RShiftU64 (Held, 32);
      Vector   = HvTrapTry (HvTryFlipMsr, &Regs);
      Kept     = (UINT32)Regs.Rbx | LShiftU64 (Regs.Rdi, 32);
      CountFlip (&Flips, Bit, Vector, (BOOLEAN)(((Kept ^ Held) & Bit) != 0));
    }
  }

  HvTrapEnd ();
  PrintFlips ("efer", &Flips);
}

///
/// XCR0 with all values of the low bits, and with random ones. The digest is of those that were taken.
///
STATIC
VOID
FuzzXcr0 (
  VOID
  )
{
  HV_TRAP_REGS  Regs;
  UINT64        Sequence;
  UINT64        Held;
  UINT64        Value;
  UINT64        Digest;
  UINTN         Cr4;
  UINTN         Index;
  UINTN         Taken;
  UINTN         Other;
  UINT32        Ecx;
  UINT32        Vector;

  AsmCpuid (HV_CPUID_1, NULL, NULL, &Ecx, NULL);
  if ((Ecx & HV_CPUID_1_ECX_XSAVE) == 0) {
    return;
  }

  Taken    = 0;
  Other    = 0;
  Digest   = FUZZ_DIGEST;
  Sequence = FuzzSequence (HV_CPUID_D);
  HvTrapBegin ();
  Cr4 = AsmReadCr4 ();
  AsmWriteCr4 (Cr4 | HV_CR4_OSXSAVE);
  ZeroMem (&Regs, sizeof (Regs));
  HvTrapTry (HvTryXgetbv, &Regs);
  Held = (UINT32)Regs.Rax | LShiftU64 (Regs.Rdx, 32);
  for (Index = 0; Index < XCR0_VALUES; Index++) {
    Value    = (Index < XCR0_VALUES / 2) ? Index : FuzzRandom (&Sequence) & FuzzRandom (&Sequence);
    Regs.Rcx = ((Index % 16) == 15) ? FuzzRandom (&Sequence) % 4 : 0;
    Regs.Rax = (UINT32)Value;
    Regs.Rdx = RShiftU64 (Value, 32);
    Vector   = HvTrapTry (HvTryXsetbv, &Regs);
    if (Vector == HV_TRAP_NONE) {
      Taken++;
      Digest = FuzzDigest (Digest, Index);
    } else if (Vector != HV_VECTOR_GP) {
      Other++;
    }
  }

  Regs.Rcx = 0;
  Regs.Rax = (UINT32)Held;
  Regs.Rdx = RShiftU64 (Held, 32);
  HvTrapTry (HvTryXsetbv, &Regs);
  AsmWriteCr4 (Cr4);
  // Without OSXSAVE it is #UD.
  Vector = HvTrapTry (HvTryXsetbv, &Regs);
  HvTrapEnd ();
  Print (L"HvFuzz: xcr0 held=%lx taken=%d digest=%lx other=%d off=%d\n", Held, Taken, Digest, Other, Vector);
}

///
/// One access; RDX and RSI, RDI are the port and the address, RAX the value.
///
typedef struct {
  UINTN     Faults;
  UINT64    Digest; ///< of what was read
} ACCESSES;

STATIC
VOID
Access (
  IN OUT ACCESSES     *Accesses,
  IN     CONST UINT8  *Code,
  IN     UINT64       Where,
  IN     UINT64       Value,
  IN     BOOLEAN      Compare
  )
{
  STATIC UINT32  Memory[8];
  HV_TRAP_REGS   Regs;

  ZeroMem (&Regs, sizeof (Regs));
  ZeroMem (Memory, sizeof (Memory));
  Regs.Rax = Value;
  Regs.Rdx = Where;
  Regs.Rsi = Where;
  Regs.Rdi = Where;
  Regs.Rcx = 3;
  if ((Code == HvTryIns8) || (Code == HvTryIns16) || (Code == HvTryIns32)) {
    Regs.Rdi = (UINTN)Memory;
  } else if (Code == HvTryOuts8) {
    Regs.Rsi = (UINTN)Memory;
  }

  if (HvTrapTry (Code, &Regs) != HV_TRAP_NONE) {
    Accesses->Faults++;
  } else if (Compare) {
    Accesses->Digest = FuzzDigest (FuzzDigest (Accesses->Digest, Regs.Rax), Memory[0]);
  }
}

///
/// Ports that nothing or nothing that minds answers: every offset, every size.
///
STATIC
VOID
FuzzPorts (
  VOID
  )
{
  STATIC CONST UINT8   *Reads[] = { HvTryIn8, HvTryIn16, HvTryIn32, HvTryIns8, HvTryIns16, HvTryIns32 };
  STATIC CONST UINT16  Ports[]  = { 0x80, 0xE0, 0x1E0, 0x4F0, 0xFFE0 };
  ACCESSES             Done;
  ACCESSES             Strings;
  UINTN                Block;
  UINTN                Port;
  UINTN                Size;

  Done.Faults    = 0;
  Done.Digest    = FUZZ_DIGEST;
  Strings.Faults = 0;
  HvTrapBegin ();
  for (Block = 0; Block < ARRAY_SIZE (Ports); Block++) {
    for (Port = Ports[Block]; Port < Ports[Block] + 16U; Port++) {
      for (Size = 0; Size < ARRAY_SIZE (Reads); Size++) {
        Access (&Done, Reads[Size], Port, 0, TRUE);
      }
    }
  }

  // Over the end of the ports: under VMX these exit (SDM volume 3, 26.1.3).
  for (Port = WRAPPING; Port <= MAX_UINT16; Port++) {
    for (Size = 0; Size < ARRAY_SIZE (Reads); Size++) {
      Access ((Size < 3) ? &Done : &Strings, Reads[Size], Port, 0, TRUE);
    }
  }

  Access (&Done, HvTryOut8, 0x80, 0x5A, FALSE);
  Access (&Done, HvTryOut16, 0x80, 0x5A5A, FALSE);
  Access (&Done, HvTryOut32, 0x80, 0x5A5A5A5A, FALSE);
  Access (&Done, HvTryOut32, 0xFFFE, 0, FALSE);
  Access (&Done, HvTryOuts8, 0x80, 0, FALSE);
  HvTrapEnd ();
  Print (L"HvFuzz: ports faults=%d digest=%lx\n", Done.Faults, Done.Digest);
  Print (L"HvFuzz: wrapping-strings faults=%d\n", Strings.Faults);
}

///
/// The block with the port of sleep requests, of which the hypervisor looks at each write.
///
STATIC
VOID
FuzzSleepPorts (
  IN UINT16  Block
  )
{
  STATIC CONST UINT8  *Reads[]   = { HvTryIn8, HvTryIn16, HvTryIn32 };
  STATIC CONST UINT8  *Strings[] = { HvTryIns8, HvTryIns16, HvTryIns32 };
  STATIC CONST UINT8  *Writes[]  = { HvTryOut8, HvTryOut16, HvTryOut32 };
  ACCESSES            Done;
  ACCESSES            InStrings;
  HV_TRAP_REGS        Regs;
  UINT16              Control;
  UINT16              After;
  UINTN               Offset;
  UINTN               Size;

  Control          = Block + 4;
  InStrings.Faults = 0;
  Done.Faults      = 0;
  Done.Digest      = FUZZ_DIGEST;
  HvTrapBegin ();
  for (Offset = 0; Offset < PM_BLOCK; Offset++) {
    for (Size = 0; Size < ARRAY_SIZE (Reads); Size++) {
      // The timer and the status change by themselves.
      Access (&Done, Reads[Size], Block + Offset, 0, (BOOLEAN)((Offset == 4) && (Size < 2)));
      Access (&InStrings, Strings[Size], Block + Offset, 0, FALSE);
    }
  }

  // What is there goes back in, in every size at every offset around it. SLP_EN reads as 0.
  for (Offset = 1; Offset < 6; Offset++) {
    for (Size = 0; Size < ARRAY_SIZE (Writes); Size++) {
      ZeroMem (&Regs, sizeof (Regs));
      Regs.Rdx = Block + Offset;
      HvTrapTry (Reads[Size], &Regs);
      Access (&Done, Writes[Size], Block + Offset, Regs.Rax, FALSE);
    }
  }

  // SLP_TYP of several states, without SLP_EN.
  ZeroMem (&Regs, sizeof (Regs));
  Regs.Rdx = Control;
  HvTrapTry (HvTryIn16, &Regs);
  for (Size = 0; Size < 8; Size++) {
    Access (&Done, HvTryOut16, Control, (Regs.Rax & 0xC3FF) | (Size << 10), FALSE);
    Access (&Done, HvTryIn16, Control, 0, TRUE);
    Access (&Done, HvTryOut8, Control + 1, Size << 2, FALSE);
    Access (&Done, HvTryIn16, Control, 0, TRUE);
  }

  Access (&Done, HvTryOut16, Control, Regs.Rax, FALSE);
  ZeroMem (&Regs, sizeof (Regs));
  Regs.Rdx = Control;
  HvTrapTry (HvTryIn16, &Regs);
  After = (UINT16)Regs.Rax;
  HvTrapEnd ();
  Print (L"HvFuzz: sleep-ports %x faults=%d digest=%lx control=%x\n", Block, Done.Faults, Done.Digest, After);
  Print (L"HvFuzz: sleep-strings %x faults=%d\n", Block, InStrings.Faults);
}

///
/// Memory-mapped: a hole with every size at odd offsets, over its page's end; the local APIC's registers by parts.
///
STATIC
VOID
FuzzMmio (
  VOID
  )
{
  STATIC CONST UINT8  *Loads[]  = { HvTryLoad8, HvTryLoad16, HvTryLoad32, HvTryLoad64 };
  STATIC CONST UINT8  *Stores[] = { HvTryStore8, HvTryStore16, HvTryStore32, HvTryStore64, HvTryXchg32, HvTryAdd16, HvTryStos32 };
  ACCESSES            Hole;
  ACCESSES            Apic;
  UINTN               Page;
  UINTN               Offset;
  UINTN               Size;

  Hole.Faults = 0;
  Hole.Digest = FUZZ_DIGEST;
  Apic.Faults = 0;
  Apic.Digest = FUZZ_DIGEST;
  Page        = AsmReadMsr64 (HV_MSR_APIC_BASE) & HV_APIC_BASE_ADDRESS_MASK;
  HvTrapBegin ();
  for (Offset = 0xFF0; Offset < 0x1010; Offset++) {
    for (Size = 0; Size < ARRAY_SIZE (Loads); Size++) {
      Access (&Hole, Loads[Size], HOLE + Offset, 0, TRUE);
    }

    for (Size = 0; Size < ARRAY_SIZE (Stores); Size++) {
      Access (&Hole, Stores[Size], HOLE + Offset, 0x5A5A5A5A5A5A5A5AULL, FALSE);
    }
  }

  // Bochs stops at an access over the end of a register.
  for (Offset = 0; Offset < 4; Offset++) {
    for (Size = 0; (Size < 3) && (Offset + (1U << Size) <= 4); Size++) {
      Access (&Apic, Loads[Size], Page + APIC_VERSION + Offset, 0, TRUE);
    }
  }

  // Bochs stops at any write that is not of 32 bits to the start of a register.
  for (Offset = 0; !gFuzz.Strict && (Offset < 16); Offset++) {
    for (Size = 0; Size < ARRAY_SIZE (Stores) - 1; Size++) {
      if ((Offset != 0) || (Size != 2)) {
        Access (&Apic, Stores[Size], Page + APIC_VERSION + Offset, 0, FALSE);
      }
    }
  }

  HvTrapEnd ();
  Print (
    L"HvFuzz: mmio hole-faults=%d hole-digest=%lx apic-faults=%d apic-digest=%lx\n",
    Hole.Faults,
    Hole.Digest,
    Apic.Faults,
    Apic.Digest
    );
}

VOID
FuzzRegisters (
  VOID
  )
{
  // In a guest under SVM, Bochs takes PG without PE, and stops at what comes of it.
  FlipRegister (
    "cr0",
    HvTryCr0,
    AsmReadCr0 (),
    gFuzz.Strict ? ~(UINT64)(gFuzz.Amd ? HV_CR0_PE : 0) : ~(UINT64)CR0_NEEDED
    );
  FlipRegister ("cr4", HvTryCr4, AsmReadCr4 (), gFuzz.Strict ? MAX_UINT64 : ~CR4_NEEDED);
  FlipEfer (gFuzz.Strict ? MAX_UINT64 : ~(UINT64)EFER_NEEDED);
  FlipRegister ("dr0", HvTryDr0, 0, MAX_UINT64);
  FlipRegister ("dr1", HvTryDr1, 0, MAX_UINT64);
  FlipRegister ("dr2", HvTryDr2, 0, MAX_UINT64);
  FlipRegister ("dr3", HvTryDr3, 0, MAX_UINT64);
  FlipRegister ("dr4", HvTryDr4, 0xFFFF0FF0, MAX_UINT64);
  FlipRegister ("dr6", HvTryDr6, 0xFFFF0FF0, MAX_UINT64);
  FlipRegister ("dr7", HvTryDr7, 0x400, MAX_UINT64);
  FuzzXcr0 ();
  FuzzPorts ();
  FuzzSleepPorts (0x600);
  FuzzSleepPorts (0xB000);
  FuzzMmio ();
}
