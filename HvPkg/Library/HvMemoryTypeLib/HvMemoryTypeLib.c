/** @file
  Memory type that the MTRRs give to a physical address.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/HvMemoryTypeLib.h>

#define HV_DEF_TYPE_MASK       0xFFu
#define HV_VARIABLE_TYPE_MASK  0xFFu
#define HV_FIXED_TYPE_MASK     0x07u  // AMD has RdMem and WrMem in bits 4:3 (APM2 7.9.1)
#define HV_FIXED_TYPES         8      // Ranges in one register
#define HV_FIXED_END           SIZE_1MB

//
// More boundaries than the 88 fixed ranges and the two ends of each variable range can make together. Only a mask with
// gaps has more.
//
#define HV_MERGE_LIMIT  256

#define HV_TYPE_BIT(Type)  (1u << (Type))
#define HV_RESERVED_TYPE   BIT31

#define HV_ADDRESS_BITS_MIN  32
#define HV_ADDRESS_BITS_MAX  52

///
/// Registers of one range size (SDM 11.11.2.2, APM2 7.7.2).
///
typedef struct {
  UINT32    Start;
  UINT32    End;
  UINT32    Size;           ///< Of one range
  UINT32    FirstRegister;  ///< Index in HV_MTRRS.Fixed
} HV_FIXED_ROW;

STATIC CONST HV_FIXED_ROW  mFixed[] = {
  { 0x00000, 0x80000,  SIZE_64KB, 0 },
  { 0x80000, 0xC0000,  SIZE_16KB, 1 },
  { 0xC0000, 0x100000, SIZE_4KB,  3 }
};

///
/// The type at one address, and the next address where it can be another one.
///
typedef struct {
  UINT8      Type;
  BOOLEAN    Defined;  ///< FALSE: the manuals do not say what the type is; Type is UC
  UINT64     End;
} HV_TYPE_SPAN;

/**
  Tells whether a value is a memory type that MTRRs can have.

  @param[in] Type  The value.

  @retval TRUE   It is.
  @retval FALSE  It is reserved.
**/
STATIC
BOOLEAN
HvIsMemoryType (
  IN UINT8  Type
  )
{
  switch (Type) {
    case HV_MEMORY_UC:
    case HV_MEMORY_WC:
    case HV_MEMORY_WT:
    case HV_MEMORY_WP:
    case HV_MEMORY_WB:
      return TRUE;
    default:
      return FALSE;
  }
}

/**
  Sets the type of a span; a reserved one becomes UC.

  @param[in,out] Span  The span.
  @param[in]     Type  The type in the register.
**/
STATIC
VOID
HvSetType (
  IN OUT HV_TYPE_SPAN  *Span,
  IN     UINT8         Type
  )
{
  Span->Defined = HvIsMemoryType (Type);
  Span->Type    = Span->Defined ? Type : HV_MEMORY_UC;
}

/**
  Finds the next address at which a variable range begins or ends to match. The mask may have gaps.

  @param[in] Base     Base, masked.
  @param[in] Mask     Mask, not 0.
  @param[in] Address  Where to start.

  @return The smallest address above Address that matches if Address does not, or does not match if Address does;
          MAX_UINT64 if there is none.
**/
STATIC
UINT64
HvNextChange (
  IN UINT64  Base,
  IN UINT64  Mask,
  IN UINT64  Address
  )
{
  UINT64  Different;
  UINT64  Candidate;
  UINT64  Bit;
  UINT64  Below;

  Different = (Address ^ Base) & Mask;
  if (Different == 0) {
    //
    // The lowest bit of the mask changes first.
    //
    return (Address | ((Mask & (~Mask + 1)) - 1)) + 1;
  }

  for (Bit = BIT63; (Bit & Different) == 0; Bit >>= 1) {
  }

  Below     = Bit - 1;
  Candidate = (Address & ~Mask & ~Below) | (Base & Mask);
  if ((Base & Bit) != 0) {
    return Candidate;
  }

  //
  // The highest wrong bit is 1 and has to be 0: a free bit above it has to go from 0 to 1.
  //
  for (Bit <<= 1; Bit != 0; Bit <<= 1) {
    if (((Bit & Mask) == 0) && ((Bit & Address) == 0)) {
      return (Address & ~Mask & ~(Bit - 1)) | Bit | (Base & Mask);
    }
  }

  return MAX_UINT64;
}

/**
  Gives the type where variable ranges overlap (SDM 11.11.4.1, APM2 7.7.4).

  @param[in]     Types  Bit n is set if a range has type n; HV_RESERVED_TYPE if one has a reserved type. Not 0.
  @param[in,out] Span   The span whose type is set.
**/
STATIC
VOID
HvCombine (
  IN     UINT32        Types,
  IN OUT HV_TYPE_SPAN  *Span
  )
{
  Span->Defined = TRUE;
  switch (Types) {
    case HV_TYPE_BIT (HV_MEMORY_WC):
      Span->Type = HV_MEMORY_WC;
      break;
    case HV_TYPE_BIT (HV_MEMORY_WP):
      Span->Type = HV_MEMORY_WP;
      break;
    case HV_TYPE_BIT (HV_MEMORY_WB):
      Span->Type = HV_MEMORY_WB;
      break;
    case HV_TYPE_BIT (HV_MEMORY_WT):
    case HV_TYPE_BIT (HV_MEMORY_WT) | HV_TYPE_BIT (HV_MEMORY_WB):
      Span->Type = HV_MEMORY_WT;
      break;
    default:
      Span->Type    = HV_MEMORY_UC;
      Span->Defined = (BOOLEAN)(((Types & HV_TYPE_BIT (HV_MEMORY_UC)) != 0) && ((Types & HV_RESERVED_TYPE) == 0));
      break;
  }
}

/**
  Gives the type at an address and the nearest address where a register can change it.

  @param[in]  Mtrrs    The registers.
  @param[in]  Limit    End of the physical address space.
  @param[in]  Address  The address.
  @param[out] Span     The result.
**/
STATIC
VOID
HvSpanAt (
  IN  CONST HV_MTRRS  *Mtrrs,
  IN  UINT64          Limit,
  IN  UINT64          Address,
  OUT HV_TYPE_SPAN    *Span
  )
{
  UINT64  AddressMask;
  UINT64  Mask;
  UINT64  Base;
  UINTN   Index;
  UINT32  Range;
  UINT32  Types;
  UINT8   Type;

  Span->End = Limit;
  if ((Mtrrs->DefType & HV_MTRR_DEF_TYPE_ENABLE) == 0) {
    HvSetType (Span, HV_MEMORY_UC);
    return;
  }

  if ((Address < HV_FIXED_END) && ((Mtrrs->DefType & HV_MTRR_DEF_TYPE_FIXED_ENABLE) != 0)) {
    for (Index = 0; Address >= mFixed[Index].End; Index++) {
    }

    Range = (UINT32)(Address - mFixed[Index].Start) / mFixed[Index].Size;
    HvSetType (
      Span,
      (UINT8)(Mtrrs->Fixed[mFixed[Index].FirstRegister + Range / HV_FIXED_TYPES] >> (8 * (Range % HV_FIXED_TYPES))) &
      HV_FIXED_TYPE_MASK
      );
    Span->End = mFixed[Index].Start + (UINT64)(Range + 1) * mFixed[Index].Size;
    return;
  }

  Types       = 0;
  AddressMask = (Limit - 1) & ~(UINT64)(SIZE_4KB - 1);
  for (Index = 0; Index < Mtrrs->VariableCount; Index++) {
    if ((Mtrrs->Mask[Index] & HV_MTRR_MASK_VALID) == 0) {
      continue;
    }

    Mask = Mtrrs->Mask[Index] & AddressMask;
    Base = Mtrrs->Base[Index] & Mask;
    if (Mask != 0) {
      Span->End = MIN (Span->End, HvNextChange (Base, Mask, Address));
    }

    if ((Address & Mask) == Base) {
      Type   = (UINT8)(Mtrrs->Base[Index] & HV_VARIABLE_TYPE_MASK);
      Types |= HvIsMemoryType (Type) ? HV_TYPE_BIT (Type) : HV_RESERVED_TYPE;
    }
  }

  if (Types != 0) {
    HvCombine (Types, Span);
  } else {
    HvSetType (Span, (UINT8)(Mtrrs->DefType & HV_DEF_TYPE_MASK));
  }
}

RETURN_STATUS
EFIAPI
HvMemoryTypeGet (
  IN  CONST HV_MTRRS  *Mtrrs,
  IN  UINT8           AddressBits,
  IN  UINT64          Address,
  OUT UINT8           *Type,
  OUT UINT64          *UniformEnd
  )
{
  HV_TYPE_SPAN  Span;
  HV_TYPE_SPAN  Next;
  UINT64        Limit;
  UINTN         Merged;

  if ((Mtrrs == NULL) || (Type == NULL) || (UniformEnd == NULL) ||
      (AddressBits < HV_ADDRESS_BITS_MIN) || (AddressBits > HV_ADDRESS_BITS_MAX) ||
      (Mtrrs->VariableCount > HV_MTRR_VARIABLE_MAX) || ((Address >> AddressBits) != 0))
  {
    return RETURN_INVALID_PARAMETER;
  }

  Limit = 1ull << AddressBits;
  HvSpanAt (Mtrrs, Limit, Address, &Span);
  for (Merged = 0; (Merged < HV_MERGE_LIMIT) && (Span.End < Limit); Merged++) {
    HvSpanAt (Mtrrs, Limit, Span.End, &Next);
    if ((Next.Type != Span.Type) || (Next.Defined != Span.Defined)) {
      break;
    }

    Span.End = Next.End;
  }

  *Type       = Span.Type;
  *UniformEnd = Span.End;
  return Span.Defined ? RETURN_SUCCESS : RETURN_COMPROMISED_DATA;
}
