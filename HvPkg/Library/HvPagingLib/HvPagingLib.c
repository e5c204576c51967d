/** @file
  Page table walker for NPT, EPT and the host's own tables.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/SynchronizationLib.h>
#include <Library/HvPagingLib.h>

#define HV_ENTRIES         512
#define HV_LEVELS_MAX      5
#define HV_ADDRESS_MASK    0x000FFFFFFFFFF000ull
#define HV_ADDRESS_LIMIT   (1ull << 52)
#define HV_ADDRESS_BITS_MIN  32

//
// Long-mode and NPT entries (SDM 4.5, APM2 5.4 and 15.25.5).
//
#define HV_LM_PRESENT   BIT0
#define HV_LM_WRITE     BIT1
#define HV_LM_USER      BIT2
#define HV_LM_UNCACHED  (BIT3 | BIT4)  // PWT and PCD: PAT entry 3
#define HV_LM_ACCESSED  BIT5
#define HV_LM_DIRTY     BIT6
#define HV_LM_NX        BIT63

//
// EPT entries (SDM Volume 3C, "EPT Translation Mechanism").
//
#define HV_EPT_READ        BIT0
#define HV_EPT_WRITE       BIT1
#define HV_EPT_EXECUTE     BIT2
#define HV_EPT_RWX         (HV_EPT_READ | HV_EPT_WRITE | HV_EPT_EXECUTE)
#define HV_EPT_TYPE_SHIFT  3
#define HV_EPT_TYPE_MASK   (BIT3 | BIT4 | BIT5)

#define HV_LARGE  BIT7  // The same bit in all formats, in entries of levels 2 and 3

///
/// What a format is.
///
typedef struct {
  UINT8      Levels;
  UINT8      AddressBits;
  BOOLEAN    Ept;          ///< The memory type is in the entry and a mapping can be execute-only
  UINT64     PresentMask;  ///< Present if any of these bits is set
  UINT64     TableBits;    ///< In an entry that points to a table
  UINT64     LeafBits;     ///< In every leaf
  UINT64     ReadBit;
  UINT64     WriteBit;
  UINT64     ExecuteBit;
  UINT64     NoExecuteBit;
} HV_PAGING_ROW;

//
// A nested table's entries need the U bit: the processor takes the nested walk for a user access (APM2 15.25.5).
// Accessed and dirty are set from the start, so that the processor has nothing to write.
//
#define HV_LM_ROW(LevelCount, Bits, User) \
  { \
    .Levels       = (LevelCount), \
    .AddressBits  = (Bits), \
    .Ept          = FALSE, \
    .PresentMask  = HV_LM_PRESENT, \
    .TableBits    = HV_LM_PRESENT | HV_LM_WRITE | HV_LM_ACCESSED | (User), \
    .LeafBits     = HV_LM_PRESENT | HV_LM_ACCESSED | HV_LM_DIRTY | (User), \
    .ReadBit      = HV_LM_PRESENT, \
    .WriteBit     = HV_LM_WRITE, \
    .ExecuteBit   = 0, \
    .NoExecuteBit = HV_LM_NX \
  }

#define HV_EPT_ROW(LevelCount, Bits) \
  { \
    .Levels       = (LevelCount), \
    .AddressBits  = (Bits), \
    .Ept          = TRUE, \
    .PresentMask  = HV_EPT_RWX, \
    .TableBits    = HV_EPT_RWX, \
    .LeafBits     = 0, \
    .ReadBit      = HV_EPT_READ, \
    .WriteBit     = HV_EPT_WRITE, \
    .ExecuteBit   = HV_EPT_EXECUTE, \
    .NoExecuteBit = 0 \
  }

STATIC CONST HV_PAGING_ROW  mRows[HvPagingFormatMax] = {
  [HvPagingNpt4]  = HV_LM_ROW (4, 48, HV_LM_USER),
  [HvPagingNpt5]  = HV_LM_ROW (5, 52, HV_LM_USER),
  [HvPagingEpt4]  = HV_EPT_ROW (4, 48),
  [HvPagingEpt5]  = HV_EPT_ROW (5, 52),
  [HvPagingHost4] = HV_LM_ROW (4, 47, 0),
  [HvPagingHost5] = HV_LM_ROW (5, 52, 0)
};

typedef enum {
  HvPagingOpMap,
  HvPagingOpUnmap,
  HvPagingOpProtect
} HV_PAGING_OP;

typedef enum {
  HvPagingKeep,      ///< The entry stays
  HvPagingWrite,     ///< A leaf, or nothing, is written
  HvPagingDescend,   ///< The entry points to a table
  HvPagingNewTable   ///< The entry has to become a table first
} HV_PAGING_STEP;

typedef struct {
  HV_PAGING              *Paging;
  CONST HV_PAGING_ROW    *Row;
  HV_PAGING_OP           Op;
  UINT64                 Start;
  UINT64                 End;                ///< Exclusive
  UINT64                 Delta;              ///< Host address - guest address, modulo 2^64
  UINT64                 Attributes;         ///< Bits of a 4 KiB leaf, without address
  BOOLEAN                DryRun;             ///< Only count table pages
  UINT64                 Needed;             ///< New table pages
  UINT64                 Reserved;           ///< Address of the next page that was taken for this call
} HV_PAGING_WALK;

RETURN_STATUS
EFIAPI
HvPagePoolInit (
  OUT HV_PAGE_POOL  *Pool,
  IN  UINT64        Base,
  IN  UINT32        Pages
  )
{
  if ((Pool == NULL) || ((Base & ~HV_ADDRESS_MASK) != 0) ||
      ((UINT64)Pages * SIZE_4KB > HV_ADDRESS_LIMIT - Base))
  {
    return RETURN_INVALID_PARAMETER;
  }

  Pool->Base  = Base;
  Pool->Pages = Pages;
  Pool->Used  = 0;
  return RETURN_SUCCESS;
}

/**
  Takes several pages that follow each other. Their content is not cleared.

  @par Context: Any

  @param[in,out] Pool   The pool.
  @param[in]     Count  Number of pages.
  @param[out]    First  Address of the first page.

  @retval TRUE   The pages are taken.
  @retval FALSE  The pool has not so many.
**/
STATIC
BOOLEAN
HvPagePoolReserve (
  IN OUT HV_PAGE_POOL  *Pool,
  IN     UINT64        Count,
  OUT    UINT64        *First
  )
{
  UINT32  Used;

  do {
    Used = Pool->Used;
    if ((Used > Pool->Pages) || (Count > Pool->Pages - Used)) {
      return FALSE;
    }
  } while (InterlockedCompareExchange32 (&Pool->Used, Used, Used + (UINT32)Count) != Used);

  *First = Pool->Base + (UINT64)Used * SIZE_4KB;
  return TRUE;
}

VOID *
EFIAPI
HvPagePoolTake (
  IN OUT HV_PAGE_POOL  *Pool
  )
{
  UINT64  Page;

  if ((Pool == NULL) || !HvPagePoolReserve (Pool, 1, &Page)) {
    return NULL;
  }

  return ZeroMem ((VOID *)(UINTN)Page, SIZE_4KB);
}

UINT8
EFIAPI
HvPagingFormatBits (
  IN HV_PAGING_FORMAT  Format
  )
{
  return ((UINT32)Format < HvPagingFormatMax) ? mRows[Format].AddressBits : 0;
}

RETURN_STATUS
EFIAPI
HvPagingInit (
  OUT    HV_PAGING         *Paging,
  IN     HV_PAGING_FORMAT  Format,
  IN OUT HV_PAGE_POOL      *Pool,
  IN     UINT8             LargestLevel,
  IN     UINT8             AddressBits
  )
{
  VOID  *Root;

  if ((Paging == NULL) || (Pool == NULL) || ((UINT32)Format >= HvPagingFormatMax) ||
      (LargestLevel < HV_PAGING_LEVEL_4K) || (LargestLevel > HV_PAGING_LEVEL_1G) || (AddressBits < HV_ADDRESS_BITS_MIN))
  {
    return RETURN_INVALID_PARAMETER;
  }

  if (AddressBits > mRows[Format].AddressBits) {
    return RETURN_UNSUPPORTED;
  }

  Root = HvPagePoolTake (Pool);
  if (Root == NULL) {
    return RETURN_OUT_OF_RESOURCES;
  }

  Paging->Format       = Format;
  Paging->Root         = (UINT64)(UINTN)Root;
  Paging->Pool         = Pool;
  Paging->LargestLevel = LargestLevel;
  Paging->AddressBits  = AddressBits;
  Paging->Count[0]     = 0;
  Paging->Count[1]     = 0;
  Paging->Count[2]     = 0;
  return RETURN_SUCCESS;
}

/**
  Translates attributes into the bits of a 4 KiB leaf.

  @param[in]  Row         The format.
  @param[in]  Attributes  HV_PAGE_*.
  @param[out] Bits        The bits.

  @retval RETURN_SUCCESS            Bits is set.
  @retval RETURN_INVALID_PARAMETER  The rights are not possible.
  @retval RETURN_UNSUPPORTED        The format does not have this memory type.
**/
STATIC
RETURN_STATUS
HvPagingEncode (
  IN  CONST HV_PAGING_ROW  *Row,
  IN  UINT32               Attributes,
  OUT UINT64               *Bits
  )
{
  UINT32  Rights;
  UINT32  Type;

  Rights = Attributes & HV_PAGE_RWX;
  Type   = Attributes & HV_PAGE_TYPE_MASK;
  if ((Attributes & ~(UINT32)HV_PAGE_ATTRIBUTES_MASK) != 0) {
    return RETURN_INVALID_PARAMETER;
  }

  if (((Rights & HV_PAGE_READ) == 0) && (!Row->Ept || (Rights != HV_PAGE_EXECUTE))) {
    return RETURN_INVALID_PARAMETER;
  }

  *Bits  = Row->LeafBits;
  *Bits |= ((Rights & HV_PAGE_READ) != 0) ? Row->ReadBit : 0;
  *Bits |= ((Rights & HV_PAGE_WRITE) != 0) ? Row->WriteBit : 0;
  *Bits |= ((Rights & HV_PAGE_EXECUTE) != 0) ? Row->ExecuteBit : Row->NoExecuteBit;

  switch (Type) {
    case HV_PAGE_TYPE_WB:
    case HV_PAGE_TYPE_UC:
      break;
    case HV_PAGE_TYPE_WC:
    case HV_PAGE_TYPE_WT:
    case HV_PAGE_TYPE_WP:
      //
      // Which PAT entry has this type, if any, is the operating system's choice.
      //
      if (!Row->Ept) {
        return RETURN_UNSUPPORTED;
      }

      break;
    default:
      return RETURN_UNSUPPORTED;
  }

  if (Row->Ept) {
    *Bits |= (UINT64)(Type >> HV_PAGE_TYPE_SHIFT) << HV_EPT_TYPE_SHIFT;
  } else if (Type == HV_PAGE_TYPE_UC) {
    *Bits |= HV_LM_UNCACHED;
  }

  return RETURN_SUCCESS;
}

/**
  Translates a present leaf into attributes.

  @param[in] Row    The format.
  @param[in] Entry  The leaf.

  @return HV_PAGE_*.
**/
STATIC
UINT32
HvPagingDecode (
  IN CONST HV_PAGING_ROW  *Row,
  IN UINT64               Entry
  )
{
  UINT32  Attributes;

  Attributes  = ((Entry & Row->ReadBit) != 0) ? HV_PAGE_READ : 0;
  Attributes |= ((Entry & Row->WriteBit) != 0) ? HV_PAGE_WRITE : 0;
  if (((Row->ExecuteBit != 0) && ((Entry & Row->ExecuteBit) != 0)) ||
      ((Row->NoExecuteBit != 0) && ((Entry & Row->NoExecuteBit) == 0)))
  {
    Attributes |= HV_PAGE_EXECUTE;
  }

  if (Row->Ept) {
    Attributes |= HV_PAGE_TYPE ((Entry & HV_EPT_TYPE_MASK) >> HV_EPT_TYPE_SHIFT);
  } else {
    Attributes |= ((Entry & HV_LM_UNCACHED) != 0) ? HV_PAGE_TYPE_UC : HV_PAGE_TYPE_WB;
  }

  return Attributes;
}

/**
  Gives a table that an entry points to.

  @param[in] Entry  The entry.

  @return The table.
**/
STATIC
volatile UINT64 *
HvPagingTable (
  IN UINT64  Entry
  )
{
  return (volatile UINT64 *)(UINTN)(Entry & HV_ADDRESS_MASK);
}

/**
  Tells whether an entry points to a table.

  @param[in] Row    The format.
  @param[in] Entry  The entry.
  @param[in] Level  Its level.

  @retval TRUE   It does.
  @retval FALSE  It is a leaf or not present.
**/
STATIC
BOOLEAN
HvPagingIsTable (
  IN CONST HV_PAGING_ROW  *Row,
  IN UINT64               Entry,
  IN UINT8                Level
  )
{
  return (Level > HV_PAGING_LEVEL_4K) && ((Entry & Row->PresentMask) != 0) && ((Entry & HV_LARGE) == 0);
}

/**
  Gives an entry of the table that takes the place of a leaf.

  @param[in] Row     The format.
  @param[in] Parent  The leaf, or an entry that is not present.
  @param[in] Level   Level of the new entry.
  @param[in] Index   Index of the new entry.

  @return The entry, with the rights and the type of Parent.
**/
STATIC
UINT64
HvPagingChild (
  IN CONST HV_PAGING_ROW  *Row,
  IN UINT64               Parent,
  IN UINT8                Level,
  IN UINTN                Index
  )
{
  if ((Parent & Row->PresentMask) == 0) {
    return 0;
  }

  Parent += (UINT64)Index * HV_PAGING_LEVEL_SIZE (Level);
  return (Level == HV_PAGING_LEVEL_4K) ? (Parent & ~(UINT64)HV_LARGE) : Parent;
}

/**
  Decides what happens to an entry.

  @param[in]  Walk     The call.
  @param[in]  Entry    The entry as it is.
  @param[in]  Level    Its level.
  @param[in]  Address  First guest address in the entry's part of the range.
  @param[in]  Whole    TRUE if the range has all that the entry covers.
  @param[out] Wanted   The new entry, for HvPagingWrite.

  @return What to do.
**/
STATIC
HV_PAGING_STEP
HvPagingDecide (
  IN  CONST HV_PAGING_WALK  *Walk,
  IN  UINT64                Entry,
  IN  UINT8                 Level,
  IN  UINT64                Address,
  IN  BOOLEAN               Whole,
  OUT UINT64                *Wanted
  )
{
  BOOLEAN  Present;
  UINT64   Bits;
  UINT64   Host;
  UINT64   Offset;

  if (HvPagingIsTable (Walk->Row, Entry, Level)) {
    return HvPagingDescend;
  }

  Present = (Entry & Walk->Row->PresentMask) != 0;
  Bits    = Walk->Attributes | ((Level > HV_PAGING_LEVEL_4K) ? HV_LARGE : 0);
  Offset  = Address & (HV_PAGING_LEVEL_SIZE (Level) - 1);

  switch (Walk->Op) {
    case HvPagingOpMap:
      Host = Address + Walk->Delta;
      if (Present && (Entry == (Bits | (Host - Offset)))) {
        return HvPagingKeep;
      }

      *Wanted = Bits | Host;
      if (Whole && ((Level == HV_PAGING_LEVEL_4K) ||
                    ((Level <= Walk->Paging->LargestLevel) && ((Host & (HV_PAGING_LEVEL_SIZE (Level) - 1)) == 0))))
      {
        return HvPagingWrite;
      }

      return HvPagingNewTable;

    case HvPagingOpUnmap:
      *Wanted = 0;
      break;

    default:
      *Wanted = Bits | (Entry & HV_ADDRESS_MASK);
      if (Entry == *Wanted) {
        return HvPagingKeep;
      }

      break;
  }

  if (!Present) {
    return HvPagingKeep;
  }

  return Whole ? HvPagingWrite : HvPagingNewTable;
}

/**
  Puts a table in the place of an entry that is a leaf or not present.

  @param[in,out] Walk   The call; one of its reserved pages is used.
  @param[in,out] Slot   Where the entry is.
  @param[in]     Entry  The entry as it was read.
  @param[in]     Level  Its level.

  @retval TRUE   Done.
  @retval FALSE  The entry has changed in the meantime; nothing is done.
**/
STATIC
BOOLEAN
HvPagingLinkTable (
  IN OUT HV_PAGING_WALK   *Walk,
  IN OUT volatile UINT64  *Slot,
  IN     UINT64           Entry,
  IN     UINT8            Level
  )
{
  UINT64  *Table;
  UINTN   Index;

  Table = (UINT64 *)(UINTN)Walk->Reserved;
  for (Index = 0; Index < HV_ENTRIES; Index++) {
    Table[Index] = HvPagingChild (Walk->Row, Entry, Level - 1, Index);
  }

  if (InterlockedCompareExchange64 (Slot, Entry, Walk->Reserved | Walk->Row->TableBits) != Entry) {
    return FALSE;
  }

  Walk->Reserved += SIZE_4KB;
  Walk->Needed--;
  if ((Entry & Walk->Row->PresentMask) != 0) {
    Walk->Paging->Count[Level - 1]--;
    Walk->Paging->Count[Level - 2] += HV_ENTRIES;
  }

  return TRUE;
}

/**
  Goes over the part of the range that lies in one table, and over the tables below it.

  @param[in,out] Walk   The call.
  @param[in,out] Table  The table; in a dry run NULL if it would have to be made.
  @param[in]     Made   For a table that would have to be made: the entry in whose place it would be.
  @param[in]     Level  Level of the table.
  @param[in]     Base   First guest address that the table covers.

  @retval RETURN_SUCCESS           Done.
  @retval RETURN_OUT_OF_RESOURCES  Somebody changed the tables at the same time, and the pages are not enough any more.
**/
STATIC
RETURN_STATUS
HvPagingVisit (
  IN OUT HV_PAGING_WALK   *Walk,
  IN OUT volatile UINT64  *Table  OPTIONAL,
  IN     UINT64           Made,
  IN     UINT8            Level,
  IN     UINT64           Base
  )
{
  RETURN_STATUS   Status;
  HV_PAGING_STEP  Step;
  UINTN           Index;
  UINT64          Size;
  UINT64          Address;
  UINT64          Start;
  UINT64          End;
  UINT64          Entry;
  UINT64          Wanted;

  if (Walk->DryRun && (Level == HV_PAGING_LEVEL_4K)) {
    return RETURN_SUCCESS;
  }

  Size    = HV_PAGING_LEVEL_SIZE (Level);
  Index   = (Walk->Start > Base) ? (UINTN)((Walk->Start - Base) / Size) : 0;
  Address = Base + Index * Size;

  while ((Index < HV_ENTRIES) && (Address < Walk->End)) {
    Start = MAX (Address, Walk->Start);
    End   = MIN (Address + Size, Walk->End);
    Entry = (Table != NULL) ? Table[Index] : HvPagingChild (Walk->Row, Made, Level, Index);
    Step  = HvPagingDecide (Walk, Entry, Level, Start, (BOOLEAN)(End - Start == Size), &Wanted);

    if (!Walk->DryRun && (Step == HvPagingWrite)) {
      if (InterlockedCompareExchange64 (&Table[Index], Entry, Wanted) != Entry) {
        continue;
      }

      if ((Entry & Walk->Row->PresentMask) != 0) {
        Walk->Paging->Count[Level - 1]--;
      }

      if ((Wanted & Walk->Row->PresentMask) != 0) {
        Walk->Paging->Count[Level - 1]++;
      }
    } else if (!Walk->DryRun && (Step == HvPagingNewTable)) {
      if (Walk->Needed == 0) {
        return RETURN_OUT_OF_RESOURCES;
      }

      //
      // Whether it is linked or has changed meanwhile: look at the entry again.
      //
      HvPagingLinkTable (Walk, &Table[Index], Entry, Level);
      continue;
    } else if (Step == HvPagingNewTable) {
      Walk->Needed++;
      HvPagingVisit (Walk, NULL, Entry, Level - 1, Address);
    } else if (Step == HvPagingDescend) {
      Status = HvPagingVisit (Walk, HvPagingTable (Entry), 0, Level - 1, Address);
      if (RETURN_ERROR (Status)) {
        return Status;
      }
    }

    Index++;
    Address += Size;
  }

  return RETURN_SUCCESS;
}

/**
  Checks and carries out a change: counts the pages that it needs, takes them, then changes the entries.

  @param[in,out] Paging        The tables.
  @param[in]     Op            What to do.
  @param[in]     GuestAddress  Start of the range.
  @param[in]     HostAddress   For HvPagingOpMap.
  @param[in]     Length        Length of the range.
  @param[in]     Attributes    For HvPagingOpMap and HvPagingOpProtect.

  @retval RETURN_SUCCESS  Done.
  @retval Others          As HvPagingMap().
**/
STATIC
RETURN_STATUS
HvPagingChange (
  IN OUT HV_PAGING     *Paging,
  IN     HV_PAGING_OP  Op,
  IN     UINT64        GuestAddress,
  IN     UINT64        HostAddress,
  IN     UINT64        Length,
  IN     UINT32        Attributes
  )
{
  RETURN_STATUS   Status;
  HV_PAGING_WALK  Walk;
  UINT64          Limit;

  if ((Paging == NULL) || (((GuestAddress | HostAddress | Length) & (SIZE_4KB - 1)) != 0)) {
    return RETURN_INVALID_PARAMETER;
  }

  ZeroMem (&Walk, sizeof (Walk));
  Walk.Row = &mRows[Paging->Format];
  if (Op != HvPagingOpUnmap) {
    Status = HvPagingEncode (Walk.Row, Attributes, &Walk.Attributes);
    if (RETURN_ERROR (Status)) {
      return Status;
    }
  }

  Limit = 1ull << Paging->AddressBits;
  if ((GuestAddress > Limit) || (Length > Limit - GuestAddress) ||
      (HostAddress > HV_ADDRESS_LIMIT) || (Length > HV_ADDRESS_LIMIT - HostAddress))
  {
    return RETURN_UNSUPPORTED;
  }

  if (Length == 0) {
    return RETURN_SUCCESS;
  }

  Walk.Paging = Paging;
  Walk.Op     = Op;
  Walk.Start  = GuestAddress;
  Walk.End    = GuestAddress + Length;
  Walk.Delta  = HostAddress - GuestAddress;
  Walk.DryRun = TRUE;
  HvPagingVisit (&Walk, HvPagingTable (Paging->Root), 0, Walk.Row->Levels, 0);

  if ((Walk.Needed != 0) && !HvPagePoolReserve (Paging->Pool, Walk.Needed, &Walk.Reserved)) {
    return RETURN_OUT_OF_RESOURCES;
  }

  Walk.DryRun = FALSE;
  return HvPagingVisit (&Walk, HvPagingTable (Paging->Root), 0, Walk.Row->Levels, 0);
}

RETURN_STATUS
EFIAPI
HvPagingMap (
  IN OUT HV_PAGING  *Paging,
  IN     UINT64     GuestAddress,
  IN     UINT64     HostAddress,
  IN     UINT64     Length,
  IN     UINT32     Attributes
  )
{
  return HvPagingChange (Paging, HvPagingOpMap, GuestAddress, HostAddress, Length, Attributes);
}

RETURN_STATUS
EFIAPI
HvPagingUnmap (
  IN OUT HV_PAGING  *Paging,
  IN     UINT64     GuestAddress,
  IN     UINT64     Length
  )
{
  return HvPagingChange (Paging, HvPagingOpUnmap, GuestAddress, 0, Length, 0);
}

RETURN_STATUS
EFIAPI
HvPagingProtect (
  IN OUT HV_PAGING  *Paging,
  IN     UINT64     GuestAddress,
  IN     UINT64     Length,
  IN     UINT32     Attributes
  )
{
  return HvPagingChange (Paging, HvPagingOpProtect, GuestAddress, 0, Length, Attributes);
}

RETURN_STATUS
EFIAPI
HvPagingQuery (
  IN  CONST HV_PAGING  *Paging,
  IN  UINT64           GuestAddress,
  OUT HV_PAGING_LEAF   *Leaf
  )
{
  CONST HV_PAGING_ROW  *Row;
  UINT64               Entry;
  UINT64               Mask;
  UINT8                Level;

  if ((Paging == NULL) || (Leaf == NULL)) {
    return RETURN_INVALID_PARAMETER;
  }

  Row = &mRows[Paging->Format];
  ZeroMem (Leaf, sizeof (*Leaf));
  Leaf->Level = Row->Levels;
  if ((GuestAddress >> Paging->AddressBits) != 0) {
    return RETURN_UNSUPPORTED;
  }

  Entry = Paging->Root;
  Level = Row->Levels;
  while (TRUE) {
    Entry = HvPagingTable (Entry)[(GuestAddress / HV_PAGING_LEVEL_SIZE (Level)) % HV_ENTRIES];
    if (!HvPagingIsTable (Row, Entry, Level)) {
      break;
    }

    Level--;
  }

  Leaf->Level = Level;
  if ((Entry & Row->PresentMask) != 0) {
    Mask              = HV_PAGING_LEVEL_SIZE (Level) - 1;
    Leaf->Present     = TRUE;
    Leaf->Attributes  = HvPagingDecode (Row, Entry);
    Leaf->HostAddress = (Entry & HV_ADDRESS_MASK & ~Mask) | (GuestAddress & Mask);
  }

  return RETURN_SUCCESS;
}

/**
  Counts the tables of one level that a range needs, from a given one on.

  @param[in]     Range     The range, not empty.
  @param[in]     Size      Bytes that one table of the level covers.
  @param[in]     LeafFits  TRUE if a leaf may take the place of such a table.
  @param[in,out] Next      Tables with a lower number are counted already.

  @return Number of tables.
**/
STATIC
UINT64
HvPagingCountTables (
  IN     CONST HV_PAGING_RANGE  *Range,
  IN     UINT64                 Size,
  IN     BOOLEAN                LeafFits,
  IN OUT UINT64                 *Next
  )
{
  UINT64  First;
  UINT64  Last;
  UINT64  End;
  UINT64  Count;

  End   = Range->GuestAddress + Range->Length;
  First = Range->GuestAddress / Size;
  Last  = (End - 1) / Size;
  Count = 0;

  if (!LeafFits) {
    First = MAX (First, *Next);
    if (First <= Last) {
      Count = Last - First + 1;
      *Next = Last + 1;
    }

    return Count;
  }

  //
  // Only the two ends can be parts of what a leaf covers.
  //
  if (((Range->GuestAddress % Size != 0) || (End - Range->GuestAddress < Size)) && (First >= *Next)) {
    Count++;
    *Next = First + 1;
  }

  if ((End % Size != 0) && (Last >= *Next)) {
    Count++;
    *Next = Last + 1;
  }

  return Count;
}

RETURN_STATUS
EFIAPI
HvPagingEstimate (
  IN  HV_PAGING_FORMAT       Format,
  IN  UINT8                  LargestLevel,
  IN  CONST HV_PAGING_RANGE  *Ranges,
  IN  UINTN                  RangeCount,
  OUT UINT64                 *Pages
  )
{
  UINT64                 Next[HV_LEVELS_MAX];
  UINT64                 Size;
  UINT64                 Total;
  UINT64                 Limit;
  UINT64                 PreviousEnd;
  UINTN                  Index;
  UINT8                  Level;
  CONST HV_PAGING_RANGE  *Range;

  if (((Ranges == NULL) && (RangeCount != 0)) || (Pages == NULL) || ((UINT32)Format >= HvPagingFormatMax) ||
      (LargestLevel < HV_PAGING_LEVEL_4K) || (LargestLevel > HV_PAGING_LEVEL_1G))
  {
    return RETURN_INVALID_PARAMETER;
  }

  ZeroMem (Next, sizeof (Next));
  Limit       = 1ull << mRows[Format].AddressBits;
  Total       = 1;
  PreviousEnd = 0;
  for (Index = 0; Index < RangeCount; Index++) {
    Range = &Ranges[Index];
    if (((Range->GuestAddress | Range->HostAddress | Range->Length) & (SIZE_4KB - 1)) != 0) {
      return RETURN_INVALID_PARAMETER;
    }

    if ((Range->GuestAddress > Limit) || (Range->Length > Limit - Range->GuestAddress) ||
        (Range->HostAddress > HV_ADDRESS_LIMIT) || (Range->Length > HV_ADDRESS_LIMIT - Range->HostAddress))
    {
      return RETURN_UNSUPPORTED;
    }

    if (Range->Length == 0) {
      continue;
    }

    if (Range->GuestAddress < PreviousEnd) {
      ZeroMem (Next, sizeof (Next));
    }

    PreviousEnd = Range->GuestAddress + Range->Length;
    for (Level = HV_PAGING_LEVEL_4K; Level < mRows[Format].Levels; Level++) {
      Size   = HV_PAGING_LEVEL_SIZE (Level + 1);
      Total += HvPagingCountTables (
                 Range,
                 Size,
                 (BOOLEAN)((Level + 1 <= LargestLevel) &&
                           (((Range->HostAddress - Range->GuestAddress) & (Size - 1)) == 0)),
                 &Next[Level]
                 );
    }
  }

  *Pages = Total;
  return RETURN_SUCCESS;
}
