/** @file
  Carries out an instruction with a memory operand in place of the processor.

  SDM 2A and APM3 have the instructions; SDM 5.3 to 5.5 and APM2 4.7 to 4.12 what a segment allows.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Generated/HvCpuid.h>
#include <Library/HvEmulateLib.h>

#define PAGE_SIZE  0x1000u
#define REG_CX     1
#define REG_SI     6
#define REG_DI     7

//
// Types of code and data segments (SDM 3.4.5.1, APM2 4.7).
//
#define TYPE_WRITABLE     BIT1  // data
#define TYPE_READABLE     BIT1  // code
#define TYPE_EXPAND_DOWN  BIT2  // data
#define TYPE_CODE         BIT3

#define ARITHMETIC_FLAGS  (HV_RFLAGS_CF | HV_RFLAGS_PF | HV_RFLAGS_AF | HV_RFLAGS_ZF | HV_RFLAGS_SF | HV_RFLAGS_OF)

///
/// What an operation does to its memory operand, where that is the one that it changes; else it reads it.
///
#define READS    1
#define WRITES   2
#define CHANGES  (READS | WRITES)

STATIC CONST UINT8  mOps[HvOpMax] = {
  [HvOpMovStoreReg] = WRITES,
  [HvOpMovStoreImm] = WRITES,
  [HvOpMovLoad]     = READS,
  [HvOpMovzx]       = READS,
  [HvOpMovsx]       = READS,
  [HvOpXchg]        = CHANGES,
  [HvOpXadd]        = CHANGES,
  [HvOpCmpxchg]     = CHANGES,
  [HvOpAdd]         = CHANGES,
  [HvOpOr]          = CHANGES,
  [HvOpAdc]         = CHANGES,
  [HvOpSbb]         = CHANGES,
  [HvOpAnd]         = CHANGES,
  [HvOpSub]         = CHANGES,
  [HvOpXor]         = CHANGES,
  [HvOpCmp]         = READS,
  [HvOpTest]        = READS,
  [HvOpNot]         = CHANGES,
  [HvOpNeg]         = CHANGES,
  [HvOpInc]         = CHANGES,
  [HvOpDec]         = CHANGES,
  [HvOpBt]          = READS,
  [HvOpBts]         = CHANGES,
  [HvOpBtr]         = CHANGES,
  [HvOpBtc]         = CHANGES,
  [HvOpRol]         = CHANGES,
  [HvOpRor]         = CHANGES,
  [HvOpRcl]         = CHANGES,
  [HvOpRcr]         = CHANGES,
  [HvOpShl]         = CHANGES,
  [HvOpShr]         = CHANGES,
  [HvOpSar]         = CHANGES,
  [HvOpSetcc]       = WRITES,
};

//
// All functions are EFIAPI: a function of Microsoft's convention that calls one of System V's saves vector registers, and
// host life may touch none.
//

///
/// A memory operand where it is: in one piece, or in two where it crosses a page.
///
typedef struct {
  UINT64    Gpa[2];
  UINT32    Size[2];
} HV_PLACE;

STATIC
UINT64
EFIAPI
Cut (
  IN UINT64  Value,
  IN UINT8   Size
  )
{
  return Value & (MAX_UINT64 >> (64 - 8 * Size));
}

STATIC
UINT64
EFIAPI
SignExtend (
  IN UINT64  Value,
  IN UINT8   Size
  )
{
  return (UINT64)((INT64)(Value << (64 - 8 * Size)) >> (64 - 8 * Size));
}

STATIC
HV_EMULATE_RESULT
EFIAPI
Raise (
  IN OUT HV_EMULATE  *Emulate,
  IN     UINT8       Vector,
  IN     UINT32      ErrorCode,
  IN     UINT64      Cr2
  )
{
  Emulate->Fault.Vector    = Vector;
  Emulate->Fault.ErrorCode = ErrorCode;
  Emulate->Fault.Cr2       = Cr2;
  return HvEmulateFault;
}

///
/// What a segment allows outside 64-bit code: its type, in protected mode, and its limit.
///
STATIC
BOOLEAN
EFIAPI
SegmentAllows (
  IN CONST HV_EMULATE  *Emulate,
  IN CONST HV_SEGMENT  *Segment,
  IN UINT64            Offset,
  IN UINT8             Size,
  IN HV_ACCESS         Access
  )
{
  BOOLEAN  Code;
  BOOLEAN  Bit1;
  UINT64   Last;
  UINT64   Top;

  Code = (BOOLEAN)((Segment->Attributes & TYPE_CODE) != 0);
  Bit1 = (BOOLEAN)((Segment->Attributes & TYPE_WRITABLE) != 0); // of code: readable
  Last = Offset + Size - 1;
  if (Emulate->Protected && ((Emulate->Regs->Rflags & HV_RFLAGS_VM) == 0)) {
    if ((Segment->Attributes & HV_SEGMENT_PRESENT) == 0) {
      return FALSE;
    }

    if ((Access == HV_ACCESS_WRITE) ? (Code || !Bit1) : (Code && !Bit1)) {
      return FALSE;
    }
  }

  if (!Code && ((Segment->Attributes & TYPE_EXPAND_DOWN) != 0)) {
    Top = ((Segment->Attributes & HV_SEGMENT_DB) != 0) ? MAX_UINT32 : MAX_UINT16;
    return (BOOLEAN)((Offset > Segment->Limit) && (Last <= Top));
  }

  return (BOOLEAN)(Last <= Segment->Limit);
}

///
/// Finds a memory operand: segment, alignment, page tables. Nothing is read or written yet.
///
STATIC
HV_EMULATE_RESULT
EFIAPI
Locate (
  IN OUT HV_EMULATE       *Emulate,
  IN     CONST HV_INSN    *Insn,
  IN     CONST HV_MEMORY  *Memory,
  IN     UINT64           Addend, ///< to the effective address
  IN     UINT8            Size,
  IN     HV_ACCESS        Access,
  OUT    HV_PLACE         *Place
  )
{
  CONST HV_SEGMENT  *Segment;
  HV_PAGE_FAULT     Fault;
  UINT64            Linear;
  UINT8             Vector;
  UINT32            Piece;

  Segment = &Emulate->Segment[Memory->Segment];
  Vector  = (Memory->Segment == HV_SEGMENT_SS) ? HV_VECTOR_SS : HV_VECTOR_GP;
  Linear  = HvInsnOffset (Insn, Memory, Emulate->Regs->Index, Emulate->Regs->Rip, Addend);
  if (Insn->Mode != 64) {
    if (!SegmentAllows (Emulate, Segment, Linear, Size, Access)) {
      return Raise (Emulate, Vector, 0, 0);
    }

    Linear = (UINT32)(Linear + Segment->Base);
  } else if (Memory->Segment >= HV_SEGMENT_FS) {
    Linear += Segment->Base;
  }

  if (Emulate->AlignmentCheck && ((Emulate->Regs->Rflags & HV_RFLAGS_AC) != 0) && ((Linear & (Size - 1)) != 0)) {
    return Raise (Emulate, HV_VECTOR_AC, 0, 0);
  }

  Place->Size[0] = MIN (Size, PAGE_SIZE - (UINT32)(Linear & (PAGE_SIZE - 1)));
  Place->Size[1] = Size - Place->Size[0];
  for (Piece = 0; (Piece < 2) && (Place->Size[Piece] != 0); Piece++) {
    switch (Emulate->Map (Emulate->Context, Linear, Access, &Place->Gpa[Piece], &Fault)) {
      case RETURN_SUCCESS:
        break;
      case RETURN_ACCESS_DENIED:
        return Raise (Emulate, HV_VECTOR_PF, Fault.ErrorCode, Fault.Cr2);
      case RETURN_NOT_FOUND:
        return Raise (Emulate, Vector, 0, 0);
      default:
        return HvEmulateRefused;
    }

    Linear += Place->Size[0];
    if (Insn->Mode != 64) {
      Linear = (UINT32)Linear;
    }
  }

  return HvEmulateDone;
}

STATIC
UINT64
EFIAPI
Load (
  IN HV_EMULATE      *Emulate,
  IN CONST HV_PLACE  *Place
  )
{
  UINT64  Value;

  Value = 0;
  Emulate->Read (Emulate->Context, Place->Gpa[0], &Value, Place->Size[0]);
  if (Place->Size[1] != 0) {
    Emulate->Read (Emulate->Context, Place->Gpa[1], (UINT8 *)&Value + Place->Size[0], Place->Size[1]);
  }

  return Value;
}

STATIC
VOID
EFIAPI
Store (
  IN HV_EMULATE      *Emulate,
  IN CONST HV_PLACE  *Place,
  IN UINT64          Value
  )
{
  Emulate->Write (Emulate->Context, Place->Gpa[0], &Value, Place->Size[0]);
  if (Place->Size[1] != 0) {
    Emulate->Write (Emulate->Context, Place->Gpa[1], (UINT8 *)&Value + Place->Size[0], Place->Size[1]);
  }
}

STATIC
VOID
EFIAPI
SetFlags (
  IN OUT HV_REGS  *Regs,
  IN     UINT64   Changed,
  IN     UINT64   Value
  )
{
  Regs->Rflags = (Regs->Rflags & ~Changed) | (Value & Changed);
}

///
/// SF, ZF and PF of a result.
///
STATIC
UINT64
EFIAPI
ResultFlags (
  IN UINT64  Result,
  IN UINT8   Size
  )
{
  UINT64  Flags;
  UINT8   Low;

  Low   = (UINT8)Result;
  Low  ^= Low >> 4;
  Low  ^= Low >> 2;
  Low  ^= Low >> 1;
  Flags = ((Low & 1) == 0) ? HV_RFLAGS_PF : 0;
  if (Result == 0) {
    Flags |= HV_RFLAGS_ZF;
  }

  if ((Result >> (8 * Size - 1)) != 0) {
    Flags |= HV_RFLAGS_SF;
  }

  return Flags;
}

///
/// A + B + Carry, with the flags in Changed.
///
STATIC
UINT64
EFIAPI
Add (
  IN OUT HV_REGS  *Regs,
  IN     UINT64   A,
  IN     UINT64   B,
  IN     BOOLEAN  Carry,
  IN     UINT8    Size,
  IN     UINT64   Changed
  )
{
  UINT64  Result;
  UINT64  Carries;
  UINT64  Flags;
  UINT8   Sign;

  Sign    = 8 * Size - 1;
  Result  = Cut (A + B + Carry, Size);
  Carries = (A & B) | ((A | B) & ~Result); // out of each bit
  Flags   = ResultFlags (Result, Size);
  Flags  |= ((Carries >> Sign & 1) != 0) ? HV_RFLAGS_CF : 0;
  Flags  |= ((Carries & BIT3) != 0) ? HV_RFLAGS_AF : 0;
  Flags  |= (((A ^ Result) & (B ^ Result)) >> Sign & 1) != 0 ? HV_RFLAGS_OF : 0;
  SetFlags (Regs, Changed, Flags);
  return Result;
}

///
/// A - B - Borrow, with the flags in Changed.
///
STATIC
UINT64
EFIAPI
Subtract (
  IN OUT HV_REGS  *Regs,
  IN     UINT64   A,
  IN     UINT64   B,
  IN     BOOLEAN  Borrow,
  IN     UINT8    Size,
  IN     UINT64   Changed
  )
{
  UINT64  Result;
  UINT64  Borrows;
  UINT64  Flags;
  UINT8   Sign;

  Sign    = 8 * Size - 1;
  Result  = Cut (A - B - Borrow, Size);
  Borrows = (~A & B) | ((~A | B) & Result); // into each bit's neighbour
  Flags   = ResultFlags (Result, Size);
  Flags  |= ((Borrows >> Sign & 1) != 0) ? HV_RFLAGS_CF : 0;
  Flags  |= ((Borrows & BIT3) != 0) ? HV_RFLAGS_AF : 0;
  Flags  |= (((A ^ B) & (A ^ Result)) >> Sign & 1) != 0 ? HV_RFLAGS_OF : 0;
  SetFlags (Regs, Changed, Flags);
  return Result;
}

///
/// A shift or a rotation, bit by bit. What the manuals leave undefined (AF; OF unless it is by 1; CF if all bits are
/// shifted out) comes out of the same rules.
///
STATIC
UINT64
EFIAPI
Shift (
  IN OUT HV_REGS  *Regs,
  IN     HV_OP    Op,
  IN     UINT64   Value,
  IN     UINT64   Count,
  IN     UINT8    Size
  )
{
  UINT64   Flags;
  UINT64   Low;
  UINT64   High;
  UINT64   Carry;
  UINT8    Sign;
  BOOLEAN  Left;

  Sign   = 8 * Size - 1;
  Left   = (BOOLEAN)((Op == HvOpRol) || (Op == HvOpRcl) || (Op == HvOpShl));
  Carry  = ((Regs->Rflags & HV_RFLAGS_CF) != 0) ? 1 : 0;
  Count &= (Size == 8) ? 63 : 31;
  if (Count == 0) {
    return Value;
  }

  for ( ; Count > 0; Count--) {
    Low  = Value & 1;
    High = Value >> Sign;
    switch (Op) {
      case HvOpRol:
        Value = (Value << 1) | High;
        break;
      case HvOpRcl:
        Value = (Value << 1) | Carry;
        break;
      case HvOpShl:
        Value = Value << 1;
        break;
      case HvOpRor:
        Value = (Value >> 1) | (Low << Sign);
        break;
      case HvOpRcr:
        Value = (Value >> 1) | (Carry << Sign);
        break;
      case HvOpSar:
        Value = (Value >> 1) | (High << Sign);
        break;
      default: // SHR
        Value = Value >> 1;
    }

    Value = Cut (Value, Size);
    Carry = Left ? High : Low;
  }

  High  = Value >> Sign;
  Flags = (Carry != 0) ? HV_RFLAGS_CF : 0;
  if (High != (Left ? Carry : (Value >> (Sign - 1) & 1))) {
    Flags |= HV_RFLAGS_OF;
  }

  if (Op >= HvOpShl) {
    SetFlags (Regs, ARITHMETIC_FLAGS, Flags | ResultFlags (Value, Size));
  } else {
    SetFlags (Regs, HV_RFLAGS_CF | HV_RFLAGS_OF, Flags);
  }

  return Value;
}

///
/// Whether a condition of SETcc holds: bits 3:1 say which, bit 0 turns it round (SDM volume 1, B.1).
///
STATIC
BOOLEAN
EFIAPI
ConditionHolds (
  IN CONST HV_REGS  *Regs,
  IN UINT8          Condition
  )
{
  STATIC CONST UINT16  Any[8] = {
    HV_RFLAGS_OF, HV_RFLAGS_CF, HV_RFLAGS_ZF, HV_RFLAGS_CF | HV_RFLAGS_ZF, HV_RFLAGS_SF, HV_RFLAGS_PF, 0, HV_RFLAGS_ZF
  };
  BOOLEAN              Holds;

  Holds = (BOOLEAN)((Regs->Rflags & Any[Condition >> 1]) != 0);
  if ((Condition >> 1) >= 6) {
    Holds |= (BOOLEAN)(((Regs->Rflags & HV_RFLAGS_SF) != 0) != ((Regs->Rflags & HV_RFLAGS_OF) != 0));
  }

  return Holds ^ (Condition & 1);
}

///
/// The result of an operation on two operands, and its flags. What the manuals leave undefined is as most processors
/// have it: AF is 0 after a logical operation, and a bit test changes CF alone.
///
STATIC
UINT64
EFIAPI
Compute (
  IN OUT HV_REGS  *Regs,
  IN     HV_OP    Op,
  IN     UINT64   A,
  IN     UINT64   B,
  IN     UINT8    Size
  )
{
  BOOLEAN  Carry;
  UINT64   Bit;

  Carry = (BOOLEAN)((Regs->Rflags & HV_RFLAGS_CF) != 0);
  Bit   = 1ull << (B & (8 * Size - 1));
  switch (Op) {
    case HvOpAdd:
    case HvOpXadd:
      return Add (Regs, A, B, FALSE, Size, ARITHMETIC_FLAGS);
    case HvOpAdc:
      return Add (Regs, A, B, Carry, Size, ARITHMETIC_FLAGS);
    case HvOpInc:
      return Add (Regs, A, 1, FALSE, Size, ARITHMETIC_FLAGS & ~HV_RFLAGS_CF);
    case HvOpSub:
    case HvOpCmp:
    case HvOpCmpxchg:
      return Subtract (Regs, A, B, FALSE, Size, ARITHMETIC_FLAGS);
    case HvOpSbb:
      return Subtract (Regs, A, B, Carry, Size, ARITHMETIC_FLAGS);
    case HvOpDec:
      return Subtract (Regs, A, 1, FALSE, Size, ARITHMETIC_FLAGS & ~HV_RFLAGS_CF);
    case HvOpNeg:
      return Subtract (Regs, 0, A, FALSE, Size, ARITHMETIC_FLAGS);
    case HvOpNot:
      return Cut (~A, Size);
    case HvOpOr:
      A |= B;
      break;
    case HvOpAnd:
    case HvOpTest:
      A &= B;
      break;
    case HvOpXor:
      A ^= B;
      break;
    case HvOpRol:
    case HvOpRor:
    case HvOpRcl:
    case HvOpRcr:
    case HvOpShl:
    case HvOpShr:
    case HvOpSar:
      return Shift (Regs, Op, A, B, Size);
    default: // the bit tests
      SetFlags (Regs, HV_RFLAGS_CF, ((A & Bit) != 0) ? HV_RFLAGS_CF : 0);
      switch (Op) {
        case HvOpBts:
          return A | Bit;
        case HvOpBtr:
          return A & ~Bit;
        default:
          return A ^ Bit;
      }
  }

  SetFlags (Regs, ARITHMETIC_FLAGS, ResultFlags (A, Size));
  return A;
}

///
/// How far from its effective address a bit test with a register reaches: its bit offset has a sign.
///
STATIC
UINT64
EFIAPI
BitAddend (
  IN CONST HV_INSN  *Insn,
  IN CONST HV_REGS  *Regs
  )
{
  INT64  Offset;

  if ((Insn->Form != HvFormRmReg) || (Insn->Op < HvOpBt) || (Insn->Op > HvOpBtc)) {
    return 0;
  }

  Offset = (INT64)SignExtend (Regs->Index[Insn->Reg], Insn->OperandSize);
  return (UINT64)((Offset >> 3) & ~(INT64)(Insn->OperandSize - 1));
}

///
/// An instruction with one memory operand.
///
STATIC
HV_EMULATE_RESULT
EFIAPI
OneOperand (
  IN     CONST HV_INSN  *Insn,
  IN OUT HV_EMULATE     *Emulate
  )
{
  HV_REGS            *Regs;
  HV_EMULATE_RESULT  Result;
  HV_PLACE           Place;
  UINT64             Memory;
  UINT64             Other;
  UINT64             Value;
  UINT8              Size;
  UINT8              Does;

  Regs   = Emulate->Regs;
  Size   = Insn->SourceSize;
  Does   = (Insn->Form == HvFormRegRm) ? READS : mOps[Insn->Op];
  Result = Locate (
             Emulate,
             Insn,
             &Insn->Memory,
             BitAddend (Insn, Regs),
             Size,
             ((Does & WRITES) != 0) ? HV_ACCESS_WRITE : HV_ACCESS_READ,
             &Place
             );
  if (Result != HvEmulateDone) {
    return Result;
  }

  Memory = ((Does & READS) != 0) ? Load (Emulate, &Place) : 0;
  Other  = Insn->HasReg ? HvInsnReadRegister (Regs->Index, Insn->Reg, Insn->RegHigh, Insn->OperandSize)
                        : Cut (Insn->Immediate, Insn->OperandSize);
  switch (Insn->Op) {
    case HvOpMovStoreReg:
    case HvOpMovStoreImm:
      Store (Emulate, &Place, Other);
      break;
    case HvOpSetcc:
      Store (Emulate, &Place, ConditionHolds (Regs, Insn->Condition));
      break;
    case HvOpMovLoad:
    case HvOpMovzx:
      HvInsnWriteRegister (Regs->Index, Insn->Reg, Insn->RegHigh, Insn->OperandSize, Memory);
      break;
    case HvOpMovsx:
      HvInsnWriteRegister (Regs->Index, Insn->Reg, FALSE, Insn->OperandSize, SignExtend (Memory, Size));
      break;
    case HvOpXchg:
      Store (Emulate, &Place, Other);
      HvInsnWriteRegister (Regs->Index, Insn->Reg, Insn->RegHigh, Size, Memory);
      break;
    case HvOpXadd:
      Store (Emulate, &Place, Compute (Regs, Insn->Op, Memory, Other, Size));
      HvInsnWriteRegister (Regs->Index, Insn->Reg, Insn->RegHigh, Size, Memory);
      break;
    case HvOpCmpxchg:
      // It writes in both cases.
      if (Compute (Regs, Insn->Op, HvInsnReadRegister (Regs->Index, 0, FALSE, Size), Memory, Size) == 0) {
        Store (Emulate, &Place, Other);
      } else {
        Store (Emulate, &Place, Memory);
        HvInsnWriteRegister (Regs->Index, 0, FALSE, Size, Memory);
      }

      break;
    default:
      if (Insn->Form == HvFormRegRm) {
        Value = Compute (Regs, Insn->Op, Other, Memory, Size);
        if ((mOps[Insn->Op] & WRITES) != 0) {
          HvInsnWriteRegister (Regs->Index, Insn->Reg, Insn->RegHigh, Size, Value);
        }
      } else {
        Value = Compute (Regs, Insn->Op, Memory, Other, Size);
        if ((Does & WRITES) != 0) {
          Store (Emulate, &Place, Value);
        }
      }
  }

  return HvEmulateDone;
}

///
/// One element of STOS, MOVS or LODS, with the steps of rSI and rDI. Stays TRUE while it is on the pages of the element
/// before.
///
STATIC
HV_EMULATE_RESULT
EFIAPI
Element (
  IN     CONST HV_INSN  *Insn,
  IN OUT HV_EMULATE     *Emulate,
  IN     BOOLEAN        First,
  IN OUT UINT64         Page[2]
  )
{
  HV_REGS            *Regs;
  HV_EMULATE_RESULT  Result;
  HV_PLACE           From;
  HV_PLACE           To;
  UINT64             Value;
  UINT64             Step;

  Regs        = Emulate->Regs;
  From.Gpa[0] = 0;
  To.Gpa[0]   = 0;
  if (Insn->HasSource) {
    Result = Locate (Emulate, Insn, &Insn->Source, 0, Insn->OperandSize, HV_ACCESS_READ, &From);
    if (Result != HvEmulateDone) {
      return Result;
    }
  }

  if (Insn->HasMemory) {
    Result = Locate (Emulate, Insn, &Insn->Memory, 0, Insn->OperandSize, HV_ACCESS_WRITE, &To);
    if (Result != HvEmulateDone) {
      return Result;
    }
  }

  // What the processor would not have stopped at is its own to do: it marks the pages as accessed and dirty.
  if (!First && (((From.Gpa[0] ^ Page[0]) | (To.Gpa[0] ^ Page[1])) >= PAGE_SIZE)) {
    return HvEmulateAgain;
  }

  Page[0] = From.Gpa[0];
  Page[1] = To.Gpa[0];
  Value   = Insn->HasSource ? Load (Emulate, &From) : Regs->Rax;
  if (Insn->HasMemory) {
    Store (Emulate, &To, Value);
  } else {
    HvInsnWriteRegister (Regs->Index, 0, FALSE, Insn->OperandSize, Value);
  }

  Step = ((Regs->Rflags & HV_RFLAGS_DF) != 0) ? 0 - (UINT64)Insn->OperandSize : Insn->OperandSize;
  if (Insn->HasSource) {
    HvInsnWriteRegister (Regs->Index, REG_SI, FALSE, Insn->AddressSize, Regs->Rsi + Step);
  }

  if (Insn->HasMemory) {
    HvInsnWriteRegister (Regs->Index, REG_DI, FALSE, Insn->AddressSize, Regs->Rdi + Step);
  }

  return HvEmulateDone;
}

///
/// A string instruction, repeated or not.
///
STATIC
HV_EMULATE_RESULT
EFIAPI
String (
  IN     CONST HV_INSN  *Insn,
  IN OUT HV_EMULATE     *Emulate
  )
{
  HV_REGS            *Regs;
  HV_EMULATE_RESULT  Result;
  UINT64             Page[2];
  UINT32             Done;

  Regs = Emulate->Regs;
  for (Done = 0; Done < Emulate->Repeats; Done++) {
    if ((Insn->Rep != HV_REP_NONE) && (Cut (Regs->Rcx, Insn->AddressSize) == 0)) {
      return HvEmulateDone;
    }

    Result = Element (Insn, Emulate, (BOOLEAN)(Done == 0), Page);
    if ((Result != HvEmulateDone) || (Insn->Rep == HV_REP_NONE)) {
      return Result;
    }

    HvInsnWriteRegister (Regs->Index, REG_CX, FALSE, Insn->AddressSize, Regs->Rcx - 1);
  }

  return (Cut (Regs->Rcx, Insn->AddressSize) == 0) ? HvEmulateDone : HvEmulateAgain;
}

BOOLEAN
EFIAPI
HvEmulateStoredValue (
  IN  CONST HV_INSN  *Insn,
  IN  CONST HV_REGS  *Regs,
  OUT UINT64         *Value
  )
{
  if (!Insn->HasMemory) {
    return FALSE;
  }

  switch (Insn->Op) {
    case HvOpMovStoreReg:
      *Value = HvInsnReadRegister (Regs->Index, Insn->Reg, Insn->RegHigh, Insn->OperandSize);
      return TRUE;
    case HvOpMovStoreImm:
      *Value = Cut (Insn->Immediate, Insn->OperandSize);
      return TRUE;
    default:
      return FALSE;
  }
}

HV_EMULATE_RESULT
EFIAPI
HvEmulate (
  IN     CONST HV_INSN  *Insn,
  IN OUT HV_EMULATE     *Emulate
  )
{
  if (Insn->Form == HvFormString) {
    return String (Insn, Emulate);
  }

  if (!Insn->HasMemory || (mOps[Insn->Op] == 0)) {
    return HvEmulateRefused;
  }

  return OneOperand (Insn, Emulate);
}
