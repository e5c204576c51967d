/** @file
  HvEmulateLib against the processor that this program runs on: random instructions in 64-, 32- and 16-bit code, executed
  natively and by the library from the same state, then registers, flags, memory and exceptions are compared.

  usage: emulate_native CASES SEED
  Prints how often each kind of case was met. Ends with 1 at the first difference, 3 where LDT segments are not to be had.

  A case runs like this: INT3 in RunNative enters the signal handler, which exchanges the registers for those of the case
  and returns into its code. INT3 behind the instruction, or its exception, enters the handler again, which notes what
  has become of the registers and gives back those of RunNative.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#define _GNU_SOURCE
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#undef NULL
#include <Base.h>
#include <Generated/HvCpuid.h>
#include <Library/HvEmulateLib.h>

#define PAGE   0x1000ull
#define PAGES  20
#define CODE   18  // the page of the code
#define BYTES  (PAGES * PAGE)
#define SPAN   0x10000u

enum { None, Rw, Ro };

//
// What the pages are. The first and the last are a margin that no generated operand leaves.
//
static const UINT8  mRights[PAGES] = { None, Rw, Rw, Ro, Rw, None, Rw, Rw, Rw, Rw, Ro, Rw, Rw, None, Rw, Rw, Rw, Rw, Ro, None };

static UINT8   *mArea;   ///< Native memory
static UINT8   *mAlias;  ///< The page of the code, writable
static UINT8   mShadow[BYTES];
static UINT64  mFsBase;
static UINT64  mRandom;

//
// Segments for 16- and 32-bit code: LDT entries, with bases in the area.
//
enum { SegAll, SegPart, SegReadOnly, SegDown32, SegDown16, SegCode, SegFlat, SegCs16, SegCs32, SegCs16X, SegCs32X, SegNull };

#define DATA(Down, Big, Writable)  ((UINT16)(0x91 | BIT5 | BIT6 | ((Down) ? 4 : 0) | ((Writable) ? 2 : 0) | ((Big) ? BIT10 : 0)))
#define CODESEG(Big, Readable)     ((UINT16)(0x99 | BIT5 | BIT6 | ((Readable) ? 2 : 0) | ((Big) ? BIT10 : 0)))

static HV_SEGMENT  mSegments[] = {
  [SegAll]      = { 0, DATA (0, 1, 1), BYTES - 1,  0      },
  [SegPart]     = { 0, DATA (0, 1, 1), 0x6FFB,     0x1803 },
  [SegReadOnly] = { 0, DATA (0, 0, 0), 0xFFFF,     0x1000 },
  [SegDown32]   = { 0, DATA (1, 1, 1), 0x20FF,     0      },
  [SegDown16]   = { 0, DATA (1, 0, 1), 0x10FD,     0x1000 },
  [SegCode]     = { 0, CODESEG (1, 1), 0xEFFF,     0x1000 },
  [SegFlat]     = { 0, DATA (0, 1, 1), 0xFFFFFFFF, 0      },
  [SegCs16]     = { 0, CODESEG (0, 1), 0xFFFF,     0x3000 },
  [SegCs32]     = { 0, CODESEG (1, 1), 0xFFFF,     0x3000 },
  [SegCs16X]    = { 0, CODESEG (0, 0), 0xFFFF,     0x3000 },
  [SegCs32X]    = { 0, CODESEG (1, 0), 0xFFFF,     0x3000 },
  [SegNull]     = { 0, 0,              0,          0      },
};

///
/// A case: what the processor starts with.
///
typedef struct {
  UINT8         Mode;
  UINT8         Code[16];
  UINT8         Length;
  UINT64        Start;      ///< Address of the code
  HV_REGS       Regs;
  HV_SEGMENT    Segment[6];
  BOOLEAN       Strings;
  UINT64        Undefined;  ///< Flags that the manuals leave undefined
} CASE;

typedef struct {
  HV_REGS    Regs;
  int        Vector;
  UINT32     ErrorCode;
  UINT64     Cr2;
} RESULT;

static CASE     mCase;
static RESULT   mNative;
static RESULT   mOurs;
static HV_INSN  mInsn;

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
UINT64
Below (
  UINT64  Limit
  )
{
  return Random () % Limit;
}

///
/// Numbers whose edges are more likely than chance has them.
///
static
UINT64
Number (
  void
  )
{
  static const UINT64  Edges[] = {
    0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, ~0ull
  };

  return (Below (3) == 0) ? Edges[Below (ARRAY_SIZE (Edges))] : Random () >> Below (64);
}

//
// Native execution.
//

static greg_t        mSaved[NGREG];
static volatile int  mStage;
static const int     mGregs[16] = {
  REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15
};

static
void
LoadSegments (
  UINT16  Es,
  UINT16  Ds,
  UINT16  Gs
  )
{
  asm volatile ("mov %w0, %%es; mov %w1, %%ds; mov %w2, %%gs" : : "r" (Es), "r" (Ds), "r" (Gs));
}

static
void
OnSignal (
  int        Number,
  siginfo_t  *Info,
  void       *Context
  )
{
  //
  // The case may have set it, and the kernel leaves it.
  //
  asm volatile ("pushf; andl $~0x40000, (%%rsp); popf" : : : "memory", "cc");
  greg_t  *Gregs = ((ucontext_t *)Context)->uc_mcontext.gregs;

  if (mStage == 1) {
    mStage = 2;
    memcpy (mSaved, Gregs, sizeof (mSaved));
    for (int Index = 0; Index < 16; Index++) {
      Gregs[mGregs[Index]] = (greg_t)mCase.Regs.Index[Index];
    }

    Gregs[REG_RIP] = (greg_t)mCase.Regs.Rip;
    Gregs[REG_EFL] = (greg_t)mCase.Regs.Rflags;
    if (mCase.Mode != 64) {
      Gregs[REG_CSGSFS]  = (greg_t)mCase.Segment[HvSegmentCs].Selector;
      Gregs[REG_CSGSFS] |= (greg_t)((UINT64)mCase.Segment[HvSegmentSs].Selector << 48);
      LoadSegments (
        mCase.Segment[HvSegmentEs].Selector,
        mCase.Segment[HvSegmentDs].Selector,
        mCase.Segment[HvSegmentGs].Selector
        );
    }

    return;
  }

  if (mStage != 2) {
    _exit (4);
  }

  mStage = 3;
  if (mCase.Mode != 64) {
    LoadSegments (0, 0, 0);
  }

  for (int Index = 0; Index < 16; Index++) {
    mNative.Regs.Index[Index] = (UINT64)Gregs[mGregs[Index]];
  }

  mNative.Regs.Rip    = (UINT64)Gregs[REG_RIP];
  mNative.Regs.Rflags = (UINT64)Gregs[REG_EFL];
  mNative.Vector      = (int)Gregs[REG_TRAPNO];
  mNative.ErrorCode   = (UINT32)Gregs[REG_ERR];
  mNative.Cr2         = (mNative.Vector == HV_VECTOR_PF) ? (UINT64)Gregs[REG_CR2] : 0;
  if ((mNative.Vector == HV_VECTOR_BP) && (mNative.Regs.Rip == mCase.Regs.Rip + mCase.Length + 1)) {
    mNative.Vector    = -1;
    mNative.Regs.Rip -= 1;
  }

  memcpy (Gregs, mSaved, sizeof (mSaved));
}

static
void
RunNative (
  void
  )
{
  memcpy (mAlias + (mCase.Start & (PAGE - 1)), mCase.Code, mCase.Length);
  memset (mAlias + (mCase.Start & (PAGE - 1)) + mCase.Length, 0xCC, 16);
  memcpy (mShadow + CODE * PAGE, mAlias, PAGE);
  if (mCase.Mode == 64) {
    syscall (SYS_arch_prctl, ARCH_SET_GS, mCase.Segment[HvSegmentGs].Base);
  }

  mStage = 1;
  asm volatile ("int3" : : : "memory");
  if (mStage != 3) {
    fprintf (stderr, "the case did not run\n");
    exit (1);
  }
}

//
// The same by the library. Its guest-physical addresses are those of the shadow, with the pages in reverse order.
//

static
UINT64
ToGpa (
  UINT64  Offset
  )
{
  return (PAGES - 1 - Offset / PAGE) * PAGE + Offset % PAGE;
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
  UINT64  Offset = Linear - (UINTN)mArea;

  if ((UINT64)((INT64)(Linear << 16) >> 16) != Linear) {
    return RETURN_NOT_FOUND;
  }

  if (Offset >= BYTES) {
    return RETURN_DEVICE_ERROR;
  }

  UINT8  Rights = mRights[Offset / PAGE];
  if ((Rights == None) || ((Access == HV_ACCESS_WRITE) && (Rights == Ro))) {
    Fault->Cr2       = Linear;
    Fault->ErrorCode = HV_PF_USER | ((Rights != None) ? HV_PF_PRESENT : 0) | ((Access == HV_ACCESS_WRITE) ? HV_PF_WRITE : 0);
    return RETURN_ACCESS_DENIED;
  }

  *Gpa = ToGpa (Offset);
  return RETURN_SUCCESS;
}

static
UINT8 *
Shadow (
  UINT64  Gpa,
  UINTN   Size
  )
{
  if ((Size < 1) || (Size > 8) || (Gpa / PAGE != (Gpa + Size - 1) / PAGE) || (Gpa >= BYTES)) {
    abort ();
  }

  return mShadow + ToGpa (Gpa);
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
  memcpy (Buffer, Shadow (Gpa, Size), Size);
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
  memcpy (Shadow (Gpa, Size), Buffer, Size);
}

static
const char *
RunOurs (
  void
  )
{
  HV_EMULATE  Emulate = {
    .Regs           = &mOurs.Regs,
    .Segment        = mCase.Segment,
    .Protected      = TRUE,
    .AlignmentCheck = TRUE,
    .Map            = Map,
    .Read           = Read,
    .Write          = Write,
  };
  UINT8       *Bytes = malloc (mCase.Length);

  memcpy (Bytes, mCase.Code, mCase.Length);
  RETURN_STATUS  Status = HvDecode (Bytes, mCase.Length, mCase.Mode, &mInsn);
  free (Bytes);
  mOurs.Regs      = mCase.Regs;
  mOurs.Vector    = -1;
  mOurs.ErrorCode = 0;
  mOurs.Cr2       = 0;
  if (RETURN_ERROR (Status)) {
    if (mInsn.Reason != HvDecodeBadLock) {
      return "not decoded";
    }

    mOurs.Vector = HV_VECTOR_UD;
    return NULL;
  }

  if (mInsn.Length != mCase.Length) {
    return "another length";
  }

  HV_EMULATE_RESULT  Result;
  do {
    Emulate.Repeats = 1 + (UINT32)Below (8);
    Result          = HvEmulate (&mInsn, &Emulate);
  } while (Result == HvEmulateAgain);

  switch (Result) {
    case HvEmulateDone:
      mOurs.Regs.Rip += mInsn.Length;
      return NULL;
    case HvEmulateFault:
      mOurs.Vector    = Emulate.Fault.Vector;
      mOurs.ErrorCode = Emulate.Fault.ErrorCode;
      mOurs.Cr2       = (mOurs.Vector == HV_VECTOR_PF) ? Emulate.Fault.Cr2 : 0;
      return NULL;
    default:
      return "refused";
  }
}

//
// Random instructions. The generator has its own table of encodings and computes addresses by itself.
//

enum { ModRm = 1, Byte = 2, Ib = 4, Iz = 8, Lockable = 16, Only64 = 32, String = 64, Moffs = 128, BitReg = 256, Shifts = 512, NoPrefix = 1024 };

typedef struct {
  const char    *Name;
  UINT8         Escape;  ///< 0F, or 0 for none
  UINT8         Opcode;
  INT8          Digit;   ///< The reg field, -1: a register
  UINT16        Flags;
  UINT16        Undefined;
} FORM;

#define LOGIC  HV_RFLAGS_AF
#define BITS   (HV_RFLAGS_OF | HV_RFLAGS_SF | HV_RFLAGS_ZF | HV_RFLAGS_AF | HV_RFLAGS_PF)

#define ALU(Name, Opcode, Digit, Lock, Undefined)             \
  { Name, 0, Opcode,     -1,    ModRm | Byte | Lock, Undefined },    \
  { Name, 0, Opcode + 1, -1,    ModRm | Lock, Undefined },           \
  { Name, 0, Opcode + 2, -1,    ModRm | Byte, Undefined },           \
  { Name, 0, Opcode + 3, -1,    ModRm, Undefined },                  \
  { Name, 0, 0x80,       Digit, ModRm | Byte | Ib | Lock, Undefined }, \
  { Name, 0, 0x81,       Digit, ModRm | Iz | Lock, Undefined },      \
  { Name, 0, 0x83,       Digit, ModRm | Ib | Lock, Undefined }

#define BIT(Name, Opcode, Digit, Lock)                        \
  { Name, 0x0F, Opcode, -1,    ModRm | BitReg | Lock, BITS }, \
  { Name, 0x0F, 0xBA,   Digit, ModRm | Ib | Lock, BITS }

//
// What is undefined depends on the count.
//
#define SHIFT(Name, Digit)                                     \
  { Name, 0, 0xC0, Digit, ModRm | Byte | Ib | Shifts, 0 },     \
  { Name, 0, 0xC1, Digit, ModRm | Ib | Shifts, 0 },            \
  { Name, 0, 0xD0, Digit, ModRm | Byte | Shifts, 0 },          \
  { Name, 0, 0xD1, Digit, ModRm | Shifts, 0 },                 \
  { Name, 0, 0xD2, Digit, ModRm | Byte | Shifts, 0 },          \
  { Name, 0, 0xD3, Digit, ModRm | Shifts, 0 }

#define SET(Condition)  { "setcc", 0x0F, 0x90 + (Condition), -1, ModRm | Byte, 0 }

static const FORM  mForms[] = {
  SHIFT ("rol", 0),
  SHIFT ("ror", 1),
  SHIFT ("rcl", 2),
  SHIFT ("rcr", 3),
  SHIFT ("shl", 4),
  SHIFT ("shr", 5),
  SHIFT ("shl", 6),
  SHIFT ("sar", 7),
  SET (0),
  SET (1),
  SET (2),
  SET (3),
  SET (4),
  SET (5),
  SET (6),
  SET (7),
  SET (8),
  SET (9),
  SET (10),
  SET (11),
  SET (12),
  SET (13),
  SET (14),
  SET (15),
  { "movnti",  0x0F, 0xC3, -1, ModRm | NoPrefix,        0     },
  ALU ("add", 0x00, 0, Lockable, 0),
  ALU ("or",  0x08, 1, Lockable, LOGIC),
  ALU ("adc", 0x10, 2, Lockable, 0),
  ALU ("sbb", 0x18, 3, Lockable, 0),
  ALU ("and", 0x20, 4, Lockable, LOGIC),
  ALU ("sub", 0x28, 5, Lockable, 0),
  ALU ("xor", 0x30, 6, Lockable, LOGIC),
  ALU ("cmp", 0x38, 7, 0, 0),
  { "test",    0,    0x84, -1, ModRm | Byte,            LOGIC },
  { "test",    0,    0x85, -1, ModRm,                   LOGIC },
  { "test",    0,    0xF6, 0,  ModRm | Byte | Ib,       LOGIC },
  { "test",    0,    0xF7, 0,  ModRm | Iz,              LOGIC },
  { "not",     0,    0xF6, 2,  ModRm | Byte | Lockable, 0     },
  { "not",     0,    0xF7, 2,  ModRm | Lockable,        0     },
  { "neg",     0,    0xF6, 3,  ModRm | Byte | Lockable, 0     },
  { "neg",     0,    0xF7, 3,  ModRm | Lockable,        0     },
  { "inc",     0,    0xFE, 0,  ModRm | Byte | Lockable, 0     },
  { "inc",     0,    0xFF, 0,  ModRm | Lockable,        0     },
  { "dec",     0,    0xFE, 1,  ModRm | Byte | Lockable, 0     },
  { "dec",     0,    0xFF, 1,  ModRm | Lockable,        0     },
  { "xchg",    0,    0x86, -1, ModRm | Byte | Lockable, 0     },
  { "xchg",    0,    0x87, -1, ModRm | Lockable,        0     },
  { "mov",     0,    0x88, -1, ModRm | Byte,            0     },
  { "mov",     0,    0x89, -1, ModRm,                   0     },
  { "mov",     0,    0x8A, -1, ModRm | Byte,            0     },
  { "mov",     0,    0x8B, -1, ModRm,                   0     },
  { "mov",     0,    0xC6, 0,  ModRm | Byte | Ib,       0     },
  { "mov",     0,    0xC7, 0,  ModRm | Iz,              0     },
  { "moffs",   0,    0xA0, -1, Moffs | Byte,            0     },
  { "moffs",   0,    0xA1, -1, Moffs,                   0     },
  { "moffs",   0,    0xA2, -1, Moffs | Byte,            0     },
  { "moffs",   0,    0xA3, -1, Moffs,                   0     },
  { "movsxd",  0,    0x63, -1, ModRm | Only64,          0     },
  { "movzx",   0x0F, 0xB6, -1, ModRm,                   0     },
  { "movzx",   0x0F, 0xB7, -1, ModRm,                   0     },
  { "movsx",   0x0F, 0xBE, -1, ModRm,                   0     },
  { "movsx",   0x0F, 0xBF, -1, ModRm,                   0     },
  { "cmpxchg", 0x0F, 0xB0, -1, ModRm | Byte | Lockable, 0     },
  { "cmpxchg", 0x0F, 0xB1, -1, ModRm | Lockable,        0     },
  { "xadd",    0x0F, 0xC0, -1, ModRm | Byte | Lockable, 0     },
  { "xadd",    0x0F, 0xC1, -1, ModRm | Lockable,        0     },
  BIT ("bt",  0xA3, 4, 0),
  BIT ("bts", 0xAB, 5, Lockable),
  BIT ("btr", 0xB3, 6, Lockable),
  BIT ("btc", 0xBB, 7, Lockable),
  { "movs",    0,    0xA4, -1, String | Byte,           0     },
  { "movs",    0,    0xA5, -1, String,                  0     },
  { "stos",    0,    0xAA, -1, String | Byte,           0     },
  { "stos",    0,    0xAB, -1, String,                  0     },
  { "lods",    0,    0xAC, -1, String | Byte,           0     },
  { "lods",    0,    0xAD, -1, String,                  0     },
};

static const FORM  *mForm;
static UINT8       mOperandSize;
static UINT8       mAddressSize;
static UINT8       mPrefixSegment;

static
void
Emit (
  UINT64  Value,
  UINT8   Size
  )
{
  memcpy (mCase.Code + mCase.Length, &Value, Size);
  mCase.Length += Size;
}

static
UINT64
Mask (
  UINT8  Size
  )
{
  return (Size == 8) ? ~0ull : (1ull << 8 * Size) - 1;
}

///
/// An offset in a segment for an operand: near the edge of a page or of the segment, or anywhere in the area.
///
static
UINT64
Target (
  UINT8  Segment,
  UINT8  Size
  )
{
  const HV_SEGMENT  *Own = &mCase.Segment[Segment];
  UINT64            Linear;

  if ((mCase.Mode == 64) && (Segment < HV_SEGMENT_FS) && (mAddressSize == 8) && (Below (40) == 0)) {
    return 0x7FFFFFFFFFF0ull + ((Below (2) == 0) ? 0x10000000000ull : 0x800000000000ull) * (1 + Below (9));
  }

  switch (Below (3)) {
    case 0:
      Linear = (1 + Below (PAGES - 2)) * PAGE + Below (17) - 8;
      break;
    case 1:
      if (mCase.Mode != 64) {
        Linear = Own->Base - (UINTN)mArea + Own->Limit + Below (17) - 8;
      } else {
        Linear = PAGE + Below (BYTES - 2 * PAGE);
      }

      break;
    default:
      Linear = PAGE + Below (BYTES - 2 * PAGE);
  }

  if (Size > 1 && (Below (4) != 0)) {
    Linear &= ~(UINT64)(Size - 1);
  }

  Linear += (UINTN)mArea;
  return Linear - ((mCase.Mode == 64 && Segment < HV_SEGMENT_FS) ? 0 : Own->Base);
}

///
/// Whether the operand stays in the area, so that nothing else of this process can be written.
///
static
BOOLEAN
Inside (
  UINT8   Segment,
  UINT64  Offset,
  UINT64  Before,
  UINT64  After
  )
{
  UINT64  Linear = Offset;

  if (mCase.Mode != 64) {
    Linear = (UINT32)(Offset + mCase.Segment[Segment].Base);
  } else if (Segment >= HV_SEGMENT_FS) {
    Linear += mCase.Segment[Segment].Base;
  }

  if ((UINT64)((INT64)(Linear << 16) >> 16) != Linear) {
    return TRUE;
  }

  Linear -= (UINTN)mArea;
  return (BOOLEAN)((Linear < BYTES) && (Linear >= Before) && (Linear + After <= BYTES));
}

static
UINT8
SegmentOr (
  UINT8  Default
  )
{
  return (mPrefixSegment != 0xFF) ? mPrefixSegment : Default;
}

///
/// The ModRM byte, SIB and displacement of a random addressing form, with registers that make it reach the target.
///
static
BOOLEAN
EmitMemory (
  UINT8   Rex,
  UINT8   RegField,
  UINT8   Size,
  UINT8   ImmediateSize,
  INT64   Addend,
  UINT64  *Keep ///< a register that must not change, or NULL
  )
{
  static const UINT8  Pairs[8][2] = { { 3, 6 }, { 3, 7 }, { 5, 6 }, { 5, 7 }, { 6, 16 }, { 7, 16 }, { 5, 16 }, { 3, 16 } };
  UINT64              *Regs = mCase.Regs.Index;
  UINT8               Mod = (UINT8)Below (3);
  UINT8               Rm = (UINT8)Below (8);
  UINT8               Base = 16, Index = 16, Scale = 0, Sib = 0;
  BOOLEAN             HasSib = FALSE, RipRelative = FALSE;
  UINT8               DisplacementSize = (Mod == 0) ? 0 : (Mod == 1) ? 1 : (mAddressSize == 2) ? 2 : 4;
  INT64               Displacement;
  UINT64              Offset;
  UINT8               Segment;

  if (mAddressSize == 2) {
    Base  = Pairs[Rm][0];
    Index = Pairs[Rm][1];
    if ((Mod == 0) && (Rm == 6)) {
      Base             = 16;
      DisplacementSize = 2;
    }
  } else if (Rm == 4) {
    HasSib = TRUE;
    Sib    = (UINT8)Random ();
    Scale  = Sib >> 6;
    Base   = (Sib & 7) | ((Rex & 1) ? 8 : 0);
    Index  = ((Sib >> 3) & 7) | ((Rex & 2) ? 8 : 0);
    if (Index == 4) {
      Index = 16;
    }

    if ((Mod == 0) && ((Sib & 7) == 5)) {
      Base             = 16;
      DisplacementSize = 4;
    }
  } else if ((Mod == 0) && (Rm == 5)) {
    RipRelative      = (BOOLEAN)(mCase.Mode == 64);
    DisplacementSize = 4;
  } else {
    Base = Rm | ((Rex & 1) ? 8 : 0);
  }

  Segment = SegmentOr (((Base == 4) || (Base == 5)) ? HV_SEGMENT_SS : HV_SEGMENT_DS);
  Offset  = Target (Segment, Size) & Mask (mAddressSize);

  Displacement = (DisplacementSize == 0) ? 0 : (INT64)Random () >> (64 - 8 * DisplacementSize);
  if (((Base < 16) && (&Regs[Base] == Keep)) || ((Index < 16) && (&Regs[Index] == Keep)) || ((Base < 16) && (Base == Index)))
  {
    return FALSE;
  }

  if (Index < 16) {
    Regs[Index] = (Below (2) == 0) ? Number () : Regs[Index];
  }

  UINT64  Rest = Offset - (UINT64)Displacement - ((Index < 16) ? Regs[Index] << Scale : 0);
  if (RipRelative) {
    UINT64  Next = mCase.Regs.Rip + mCase.Length + 1 + 4 + ImmediateSize;
    Displacement = (INT64)(Offset - Next);
    if ((INT64)(INT32)Displacement != Displacement) {
      return FALSE;
    }
  } else if (Base < 16) {
    Regs[Base] = Rest;
    if ((mAddressSize < 8) && (mCase.Mode == 64)) {
      Regs[Base] += Random () << 32; // does not count
    } else if (mAddressSize == 2) {
      Regs[Base] += (Random () << 16) & 0xFFFF0000;
    }
  } else {
    Displacement += (INT64)Rest;
    if (mAddressSize == 2) {
      Displacement = (INT16)Displacement;
    } else if ((mAddressSize == 4) || ((INT64)(INT32)Displacement == Displacement)) {
      Displacement = (INT32)Displacement;
    } else {
      return FALSE;
    }
  }

  if (!Inside (Segment, (Offset + (UINT64)Addend) & Mask (mAddressSize), 8, 16)) {
    return FALSE;
  }

  Emit ((UINT64)(Mod << 6 | RegField << 3 | Rm), 1);
  if (HasSib) {
    Emit (Sib, 1);
  }

  Emit ((UINT64)Displacement, DisplacementSize);
  return TRUE;
}

static
UINT8
EmitPrefixes (
  BOOLEAN  *Lock,
  BOOLEAN  *Rep
  )
{
  static const UINT8  Overrides[6] = { 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65 };
  BOOLEAN             Prefix66 = Below (4) == 0;
  BOOLEAN             Prefix67 = Below (5) == 0;
  UINT8               Rex = ((mCase.Mode == 64) && (Below (2) == 0)) ? (UINT8)(0x40 + Below (16)) : 0;
  UINT8               Segment = 0xFF;

  *Lock          = Below (8) == 0;
  *Rep           = (mForm->Flags & String) && (Below (2) == 0);
  mPrefixSegment = 0xFF;
  if (Below (4) == 0) {
    Segment = (UINT8)Below (6);
    if ((mCase.Mode != 64) && (Segment == HV_SEGMENT_FS)) {
      Segment = HV_SEGMENT_GS; // FS is libc's
    }

    Emit (Overrides[Segment], 1);
    if ((mCase.Mode != 64) || (Segment >= HV_SEGMENT_FS)) {
      mPrefixSegment = Segment;
    }
  }

  if (*Lock) {
    Emit (0xF0, 1);
  }

  if (Prefix66) {
    Emit (0x66, 1);
  }

  if (*Rep) {
    Emit ((Below (4) == 0) ? 0xF2 : 0xF3, 1);
  }

  if (Prefix67) {
    Emit (0x67, 1);
  }

  if (Rex != 0) {
    Emit (Rex, 1);
  }

  switch (mCase.Mode) {
    case 16:
      mOperandSize = Prefix66 ? 4 : 2;
      mAddressSize = Prefix67 ? 4 : 2;
      break;
    case 32:
      mOperandSize = Prefix66 ? 2 : 4;
      mAddressSize = Prefix67 ? 2 : 4;
      break;
    default:
      mOperandSize = (Rex & 8) ? 8 : Prefix66 ? 2 : 4;
      mAddressSize = Prefix67 ? 4 : 8;
  }

  return Rex;
}

static
void
ChooseSegments (
  void
  )
{
  static const UINT8  Data[] = {
    SegAll, SegAll, SegAll, SegPart, SegReadOnly, SegDown32, SegDown16, SegCode, SegFlat, SegFlat, SegNull
  };
  static const UINT8  Stack[] = { SegAll, SegPart, SegDown32, SegFlat };

  if (mCase.Mode == 64) {
    memset (mCase.Segment, 0, sizeof (mCase.Segment));
    mCase.Segment[HvSegmentFs].Base = mFsBase;
    mCase.Segment[HvSegmentGs].Base = (UINTN)mArea + Random () % BYTES;
    return;
  }

  mCase.Segment[HvSegmentDs] = mSegments[Data[Below (ARRAY_SIZE (Data))]];
  mCase.Segment[HvSegmentEs] = mSegments[Data[Below (ARRAY_SIZE (Data))]];
  mCase.Segment[HvSegmentGs] = mSegments[Data[Below (ARRAY_SIZE (Data))]];
  mCase.Segment[HvSegmentSs] = mSegments[Stack[Below (ARRAY_SIZE (Stack))]];
  mCase.Segment[HvSegmentCs] = mSegments[((mCase.Mode == 16) ? SegCs16 : SegCs32) + 2 * Below (2)];
}

///
/// Sets the registers of a string instruction.
///
static
BOOLEAN
PlaceString (
  BOOLEAN  Rep
  )
{
  UINT8   Segment = SegmentOr (HV_SEGMENT_DS);
  UINT64  Source = Target (Segment, mOperandSize) & Mask (mAddressSize);
  UINT64  Destination = Target (HV_SEGMENT_ES, mOperandSize) & Mask (mAddressSize);
  UINT64  Count = Rep ? Below (40) : 1;
  UINT64  High = (mAddressSize == 8) ? 0 : (mAddressSize == 4) ? Random () << 32 : Random () << 16;
  UINT64  Bytes = (Count + 2) * 8;

  if (mCase.Mode != 64) {
    High = (UINT32)High;
  }

  mCase.Regs.Rsi = Source + High;
  mCase.Regs.Rdi = Destination + High;
  if (Rep) {
    mCase.Regs.Rcx = Count + High;
    //
    // With a count of 0, processors differ in whether the address size cuts the registers.
    //
    if (Count == 0 && High != 0) {
      return FALSE;
    }
  }

  return (BOOLEAN)(((mForm->Opcode >= 0xAA && mForm->Opcode <= 0xAB) || Inside (Segment, Source, Bytes, Bytes)) &&
                   ((mForm->Opcode >= 0xAC) || Inside (HV_SEGMENT_ES, Destination, Bytes, Bytes)));
}

///
/// The flags that a shift leaves undefined: OF unless it is by 1, CF if it is by more than there are bits, AF unless it
/// is by 0 or a rotation.
///
static
UINT64
UndefinedByShift (
  UINT64  Count
  )
{
  UINT64   Flags = 0;
  BOOLEAN  Rotation = (BOOLEAN)(mForm->Digit < 4);

  Count &= (mOperandSize == 8) ? 63 : 31;
  if (Count == 0) {
    return 0;
  }

  Flags |= (Count != 1) ? HV_RFLAGS_OF : 0;
  Flags |= Rotation ? 0 : HV_RFLAGS_AF;
  Flags |= (!Rotation && (Count >= 8ull * mOperandSize)) ? HV_RFLAGS_CF : 0;
  return Flags;
}

///
/// Makes a case; FALSE if the choices do not fit together.
///
static
BOOLEAN
Make (
  UINT8  Mode
  )
{
  BOOLEAN  Lock, Rep;
  UINT8    Rex, ImmediateSize, RegField;

  memset (&mCase, 0, sizeof (mCase));
  mCase.Mode = Mode;
  mForm      = &mForms[Below (ARRAY_SIZE (mForms))];
  if ((mForm->Flags & Only64) && (Mode != 64)) {
    return FALSE;
  }

  ChooseSegments ();
  for (int Index = 0; Index < 16; Index++) {
    mCase.Regs.Index[Index] = (Mode == 64) ? Number () : (UINT32)Number ();
  }

  mCase.Start       = CODE * PAGE + Below (PAGE - 64);
  mCase.Regs.Rip    = (UINTN)mArea + mCase.Start - mCase.Segment[HvSegmentCs].Base;
  mCase.Regs.Rflags = 0x202 | (Random () & 0x8D5) | ((Below (3) == 0) ? HV_RFLAGS_DF : 0);
  if (Below (16) == 0) {
    mCase.Regs.Rflags |= HV_RFLAGS_AC;
  }

  mCase.Undefined = mForm->Undefined;

  Rex = EmitPrefixes (&Lock, &Rep);
  if (mForm->Flags & Byte) {
    mOperandSize = 1;
  }

  if (mForm->Flags & NoPrefix) {
    if (memchr (mCase.Code, 0x66, mCase.Length) != NULL) {
      return FALSE;
    }

    mOperandSize = MAX (mOperandSize, 4);
  }

  if (mForm->Escape) {
    Emit (mForm->Escape, 1);
  }

  Emit (mForm->Opcode, 1);
  if (mForm->Flags & String) {
    return PlaceString (Rep);
  }

  if (mForm->Flags & Moffs) {
    UINT8   Segment = SegmentOr (HV_SEGMENT_DS);
    UINT64  Offset = Target (Segment, mOperandSize) & Mask (mAddressSize);
    Emit (Offset, mAddressSize);
    return (BOOLEAN)(Inside (Segment, Offset, 8, 16) && (mCase.Length <= 15));
  }

  //
  // MOVSXD to a 16-bit register reads 16 bits on Intel's processors and 32 on AMD's.
  //
  if ((mForm->Flags & Only64) && (mOperandSize == 2)) {
    return FALSE;
  }

  RegField      = (mForm->Digit >= 0) ? (UINT8)mForm->Digit : (UINT8)Below (8);
  ImmediateSize = (mForm->Flags & Ib) ? 1 : (mForm->Flags & Iz) ? MIN (mOperandSize, 4) : 0;

  INT64   Addend = 0;
  UINT64  *Keep  = NULL;
  if (mForm->Flags & BitReg) {
    Keep = &mCase.Regs.Index[RegField | ((Rex & 4) ? 8 : 0)];
    //
    // In 64-bit registers, small offsets: all others leave the area.
    //
    INT64  Bit = (INT64)Below (0x20000) - 0x10000;
    *Keep  = (UINT64)Bit;
    Addend = (mOperandSize == 2) ? (INT16)Bit : Bit;
    Addend = (Addend >> 3) & ~(INT64)(mOperandSize - 1);
    if (mOperandSize == 2) {
      *Keep ^= (UINT64)Random () << 16;
    } else if (mOperandSize == 4) {
      *Keep ^= (UINT64)Random () << 32;
    }

    if (Mode != 64) {
      *Keep = (UINT32)*Keep;
    }
  }

  //
  // Bus locks across cache lines are punished by some kernels.
  //
  BOOLEAN  Locked = (BOOLEAN)(Lock || (mForm->Opcode == 0x86) || (mForm->Opcode == 0x87));
  if (!EmitMemory (Rex, RegField, (mForm->Escape && (mForm->Opcode & 0xF6) == 0xB6) ? 1 : mOperandSize, ImmediateSize, Addend, Keep)) {
    return FALSE;
  }

  Emit ((mForm->Flags & Shifts) ? Below (70) : Number (), ImmediateSize);
  if (mForm->Flags & Shifts) {
    mCase.Undefined = UndefinedByShift (
                        (mForm->Opcode < 0xD0) ? mCase.Code[mCase.Length - 1] :
                        (mForm->Opcode < 0xD2) ? 1 : (UINT8)mCase.Regs.Rcx
                        );
  }

  if (Mode != 64) {
    for (int Index = 0; Index < 16; Index++) {
      mCase.Regs.Index[Index] = (UINT32)mCase.Regs.Index[Index];
    }
  }

  if (mCase.Length > 15) {
    return FALSE;
  }

  if (Locked && !RETURN_ERROR (HvDecode (mCase.Code, mCase.Length, Mode, &mInsn))) {
    UINT64  Offset = HvInsnOffset (&mInsn, &mInsn.Memory, mCase.Regs.Index, mCase.Regs.Rip, (UINT64)Addend);
    UINT64  Linear = Offset + mCase.Segment[mInsn.Memory.Segment].Base;
    return (BOOLEAN)(Linear % 64 + mOperandSize <= 64);
  }

  return TRUE;
}

static
BOOLEAN
SameMemory (
  void
  )
{
  for (int Page = 0; Page < PAGES; Page++) {
    if ((mRights[Page] != None) && (memcmp (mArea + Page * PAGE, mShadow + Page * PAGE, PAGE) != 0)) {
      return FALSE;
    }
  }

  return TRUE;
}

//
// A repeated instruction with 32-bit addresses that faults in 64-bit code: some processors have written its count and
// its addresses by then, with their upper halves cleared, some have not. Neither manual says which.
//
static
BOOLEAN
UpperHalfMayBeGone (
  int  Index
  )
{
  return (mNative.Vector >= 0) && (mInsn.Rep != HV_REP_NONE) && (mInsn.AddressSize == 4) &&
         ((Index == 1) || (Index == 6) || (Index == 7)); // RCX, RSI, RDI
}

static
const char *
Compare (
  void
  )
{
  UINT64  Width = (mCase.Mode == 64) ? ~0ull : 0xFFFFFFFF;
  UINT64  Flags = (HV_RFLAGS_CF | HV_RFLAGS_PF | HV_RFLAGS_AF | HV_RFLAGS_ZF | HV_RFLAGS_SF | HV_RFLAGS_DF | HV_RFLAGS_OF | HV_RFLAGS_AC);

  if ((mNative.Vector != mOurs.Vector) || (mNative.ErrorCode != mOurs.ErrorCode) || (mNative.Cr2 != mOurs.Cr2)) {
    return "another exception";
  }

  if (mNative.Vector < 0) {
    Flags &= ~mCase.Undefined;
  }

  for (int Index = 0; Index < ((mCase.Mode == 64) ? 16 : 8); Index++) {
    UINT64  Differs = (mNative.Regs.Index[Index] ^ mOurs.Regs.Index[Index]) & Width;

    if ((Differs != 0) &&
        !(UpperHalfMayBeGone (Index) && (mNative.Regs.Index[Index] == (UINT32)mOurs.Regs.Index[Index])))
    {
      return "another register";
    }
  }

  if (mNative.Regs.Rip != mOurs.Regs.Rip) {
    return "another RIP";
  }

  if (((mNative.Regs.Rflags ^ mOurs.Regs.Rflags) & Flags) != 0) {
    return "other flags";
  }

  return SameMemory () ? NULL : "other memory";
}

static
void
Print (
  const char    *Who,
  const RESULT  *Result
  )
{
  fprintf (stderr, "%s: vector %d error %x cr2 %llx rflags %llx rip %llx\n", Who, Result->Vector, Result->ErrorCode, Result->Cr2, Result->Regs.Rflags, Result->Regs.Rip);
  for (int Index = 0; Index < 16; Index++) {
    fprintf (stderr, " %llx%s", Result->Regs.Index[Index], (Index == 15) ? "\n" : "");
  }
}

static
void
Explain (
  UINT64      Number,
  const char  *What
  )
{
  RESULT  Start = { mCase.Regs, -1, 0, 0 };

  fprintf (stderr, "case %llu: %s\n%s in %u-bit code:", Number, What, mForm->Name, mCase.Mode);
  for (int Index = 0; Index < mCase.Length; Index++) {
    fprintf (stderr, " %02x", mCase.Code[Index]);
  }

  fprintf (stderr, "\narea %p\n", (void *)mArea);
  for (int Index = 0; Index < 6; Index++) {
    fprintf (stderr, "segment %d: base %llx limit %x attributes %x\n", Index, mCase.Segment[Index].Base, mCase.Segment[Index].Limit, mCase.Segment[Index].Attributes);
  }

  Print ("start ", &Start);
  Print ("native", &mNative);
  Print ("ours  ", &mOurs);
}

static
BOOLEAN
MakeSegments (
  void
  )
{
  for (UINT32 Index = 0; Index < SegNull; Index++) {
    HV_SEGMENT        *Segment = &mSegments[Index];
    struct user_desc  Entry;

    memset (&Entry, 0, sizeof (Entry));
    if (Index != SegFlat) {
      Segment->Base += (UINTN)mArea;
    }

    Segment->Selector     = (UINT16)(Index << 3 | 7);
    Entry.entry_number    = Index;
    Entry.base_addr       = (UINT32)Segment->Base;
    Entry.limit           = (Segment->Limit > 0xFFFFF) ? Segment->Limit >> 12 : Segment->Limit;
    Entry.limit_in_pages  = Segment->Limit > 0xFFFFF;
    Entry.seg_32bit       = (Segment->Attributes & HV_SEGMENT_DB) != 0;
    Entry.contents        = (Segment->Attributes & 8) ? 2 : (Segment->Attributes & 4) ? 1 : 0;
    Entry.read_exec_only  = (Segment->Attributes & 2) == 0;
    Entry.useable         = 1;
    if (syscall (SYS_modify_ldt, 1, &Entry, sizeof (Entry)) != 0) {
      return FALSE;
    }
  }

  return TRUE;
}

static
void
MakeArea (
  void
  )
{
  int  File = memfd_create ("code", 0);

  mArea = mmap (NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  if ((File < 0) || (ftruncate (File, PAGE) != 0) || (mArea == MAP_FAILED)) {
    exit (1);
  }

  for (UINT64 Index = 0; Index < BYTES; Index++) {
    mArea[Index] = mShadow[Index] = (UINT8)Random ();
  }

  mAlias = mmap (NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, File, 0);
  if ((mAlias == MAP_FAILED) ||
      (mmap (mArea + CODE * PAGE, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, File, 0) == MAP_FAILED))
  {
    exit (1);
  }

  for (int Page = 0; Page < PAGES; Page++) {
    if (Page != CODE) {
      mprotect (mArea + Page * PAGE, PAGE, (mRights[Page] == None) ? PROT_NONE : (mRights[Page] == Ro) ? PROT_READ : PROT_READ | PROT_WRITE);
    }

    if (mRights[Page] != None) {
      (void)*(volatile UINT8 *)(mArea + Page * PAGE);
    }
  }
}

int
main (
  int   Count,
  char  **Arguments
  )
{
  static const UINT8  Modes[] = { 64, 64, 32, 16 };
  static UINT64       Met[ARRAY_SIZE (mForms)][3][40];
  UINT64              Cases = strtoull (Arguments[1], NULL, 0);
  static UINT8        Stack[65536];
  stack_t             Alternate = { .ss_sp = Stack, .ss_size = sizeof (Stack) };
  struct sigaction    Action = { .sa_sigaction = OnSignal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };

  mRandom = strtoull (Arguments[2], NULL, 0);
  MakeArea ();
  if (!MakeSegments ()) {
    fprintf (stderr, "this kernel has no modify_ldt\n");
    return 3;
  }

  syscall (SYS_arch_prctl, ARCH_GET_FS, &mFsBase);
  sigaltstack (&Alternate, NULL);
  static const int  Signals[] = { SIGTRAP, SIGSEGV, SIGBUS, SIGILL };
  for (UINT32 Index = 0; Index < ARRAY_SIZE (Signals); Index++) {
    sigaction (Signals[Index], &Action, NULL);
  }

  for (UINT64 Number = 0; Number < Cases; ) {
    if (!Make (Modes[Below (ARRAY_SIZE (Modes))])) {
      continue;
    }

    RunNative ();
    const char  *Wrong = RunOurs ();
    if (Wrong == NULL) {
      Wrong = Compare ();
    }

    if (Wrong != NULL) {
      Explain (Number, Wrong);
      return 1;
    }

    Met[mForm - mForms][(mCase.Mode == 64) ? 2 : mCase.Mode / 32][mNative.Vector + 1]++;
    Number++;
  }

  for (UINT32 Form = 0; Form < ARRAY_SIZE (mForms); Form++) {
    for (UINT32 Mode = 0; Mode < 3; Mode++) {
      for (int Vector = 0; Vector < 40; Vector++) {
        if (Met[Form][Mode][Vector] != 0) {
          printf ("%s %02x%02x/%d %u %d %llu\n", mForms[Form].Name, mForms[Form].Escape, mForms[Form].Opcode, mForms[Form].Digit, 16u << Mode, Vector - 1, Met[Form][Mode][Vector]);
        }
      }
    }
  }

  return 0;
}
