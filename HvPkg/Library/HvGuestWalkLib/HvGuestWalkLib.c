/** @file
  Guest-virtual to guest-physical translation in software.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvGuestWalkLib.h>

#define HV_CR0_WP     BIT16
#define HV_CR0_PG     BIT31
#define HV_CR4_PSE    BIT4
#define HV_CR4_PAE    BIT5
#define HV_CR4_LA57   BIT12
#define HV_CR4_SMEP   BIT20
#define HV_CR4_SMAP   BIT21
#define HV_CR4_PKE    BIT22
#define HV_EFER_LMA   BIT10
#define HV_EFER_NXE   BIT11
#define HV_RFLAGS_AC  BIT18

#define HV_ENTRY_PRESENT    BIT0
#define HV_ENTRY_WRITE      BIT1
#define HV_ENTRY_USER       BIT2
#define HV_ENTRY_LARGE      BIT7
#define HV_ENTRY_NX         BIT63
#define HV_ENTRY_KEY_SHIFT  59
#define HV_ENTRY_KEY_MASK   0xFu

#define HV_PKRU_ACCESS_DISABLE  1u
#define HV_PKRU_WRITE_DISABLE   2u

#define HV_LINEAR_32         0xFFFFFFFFull
#define HV_PAGE_SIZE         0x1000ull
#define HV_ADDRESS_BITS_MIN  32
#define HV_ADDRESS_BITS_MAX  52
#define HV_PSE_ADDRESS_BITS  40

///
/// Bits High..Low of a 64-bit word; none if High < Low.
///
#define HV_BITS(High, Low)  (((High) < (Low)) ? 0ull : ((~0ull >> (63 - (High))) & (~0ull << (Low))))

typedef enum {
  HvModeLegacy,  ///< 32-bit paging
  HvModePae,
  HvModeLong
} HV_PAGING_MODE;

typedef struct {
  HV_PAGING_MODE    Mode;
  UINT8             Levels;
  UINT8             EntrySize;
  UINT8             IndexBits;
  UINT64            RootMask;  ///< Bits of CR3 that are the address of the top table
} HV_MODE_ROW;

STATIC CONST HV_MODE_ROW  mLegacy = { HvModeLegacy, 2, 4, 10, HV_BITS (31, 12) };
STATIC CONST HV_MODE_ROW  mPae    = { HvModePae, 3, 8, 9, HV_BITS (31, 5) };
STATIC CONST HV_MODE_ROW  mLong4  = { HvModeLong, 4, 8, 9, HV_BITS (51, 12) };
STATIC CONST HV_MODE_ROW  mLong5  = { HvModeLong, 5, 8, 9, HV_BITS (51, 12) };

/**
  Gives the reserved bits of a present entry (SDM 4.3 to 4.5, APM2 5.2 to 5.4).

  @param[in] State  The guest's control registers.
  @param[in] Row    The paging mode.
  @param[in] Level  Level of the entry, 1 for a page table.
  @param[in] Large  TRUE if the entry maps a large page.

  @return Bits that have to be zero.
**/
STATIC
UINT64
HvReservedBits (
  IN CONST HV_GUEST_PAGING  *State,
  IN CONST HV_MODE_ROW      *Row,
  IN UINT8                  Level,
  IN BOOLEAN                Large
  )
{
  UINT64  Reserved;
  UINT8   Width;

  Width = State->AddressBits;
  switch (Row->Mode) {
    case HvModeLegacy:
      //
      // Bits 20:13 of a 4 MiB entry are bits 39:32 of the address, as far as there are such bits (PSE-36, PSE-40).
      //
      Width = MIN (Width, HV_PSE_ADDRESS_BITS);
      return Large ? HV_BITS (21, Width - 19) : 0;

    case HvModePae:
      if (Level == 3) {
        return HV_BITS (63, Width) | HV_BITS (8, 5) | HV_BITS (2, 1);
      }

      Reserved = HV_BITS (62, Width);
      break;

    default:
      Reserved = HV_BITS (51, Width);
      if ((Level >= 4) || ((Level == 3) && !State->Page1G)) {
        Reserved |= HV_ENTRY_LARGE;
      }

      break;
  }

  if ((State->Efer & HV_EFER_NXE) == 0) {
    Reserved |= HV_ENTRY_NX;
  }

  if (Large) {
    Reserved |= HV_BITS (11 + Row->IndexBits * (Level - 1), 13);
  }

  return Reserved;
}

/**
  Tells whether an entry maps a page by itself.

  @param[in] State  The guest's control registers.
  @param[in] Row    The paging mode.
  @param[in] Level  Level of the entry.
  @param[in] Entry  The entry.

  @retval TRUE   It does, with a page that is larger than 4 KiB.
  @retval FALSE  It is of level 1 or points to a table.
**/
STATIC
BOOLEAN
HvIsLarge (
  IN CONST HV_GUEST_PAGING  *State,
  IN CONST HV_MODE_ROW      *Row,
  IN UINT8                  Level,
  IN UINT64                 Entry
  )
{
  if ((Entry & HV_ENTRY_LARGE) == 0) {
    return FALSE;
  }

  switch (Level) {
    case 2:
      return (BOOLEAN)((Row->Mode != HvModeLegacy) || ((State->Cr4 & HV_CR4_PSE) != 0));
    case 3:
      return (BOOLEAN)(Row->Mode == HvModeLong);
    default:
      return FALSE;
  }
}

/**
  Checks the rights of a translation (SDM 4.6, APM2 5.6).

  @param[in] State   The guest's control registers.
  @param[in] Row     The paging mode.
  @param[in] Access  The access.
  @param[in] User    TRUE for a user-mode access.
  @param[in] Rights  HV_ENTRY_WRITE and HV_ENTRY_USER if all entries have them, HV_ENTRY_NX if one has it.
  @param[in] Leaf    The last entry.

  @return 0 if the access is allowed, else HV_PF_PRESENT, and HV_PF_KEY if the protection key forbids it.
**/
STATIC
UINT32
HvCheckRights (
  IN CONST HV_GUEST_PAGING  *State,
  IN CONST HV_MODE_ROW      *Row,
  IN HV_ACCESS              Access,
  IN BOOLEAN                User,
  IN UINT64                 Rights,
  IN UINT64                 Leaf
  )
{
  BOOLEAN  UserPage;
  BOOLEAN  WriteChecked;
  BOOLEAN  Denied;
  UINT32   Key;
  UINT32   Result;

  UserPage     = (BOOLEAN)((Rights & HV_ENTRY_USER) != 0);
  WriteChecked = (BOOLEAN)(((Access & HV_ACCESS_WRITE) != 0) && (User || ((State->Cr0 & HV_CR0_WP) != 0)));
  Denied       = (BOOLEAN)(User && !UserPage);
  Result       = 0;

  if ((Access & HV_ACCESS_FETCH) != 0) {
    Denied |= (BOOLEAN)(((Rights & HV_ENTRY_NX) != 0) ||
                        (!User && UserPage && ((State->Cr4 & HV_CR4_SMEP) != 0)));
    return Denied ? HV_PF_PRESENT : 0;
  }

  Denied |= (BOOLEAN)(WriteChecked && ((Rights & HV_ENTRY_WRITE) == 0));
  if (!User && UserPage && ((State->Cr4 & HV_CR4_SMAP) != 0)) {
    Denied |= (BOOLEAN)(((Access & HV_ACCESS_SYSTEM) != 0) || ((State->Rflags & HV_RFLAGS_AC) == 0));
  }

  if (Denied) {
    Result = HV_PF_PRESENT;
  }

  if (UserPage && (Row->Mode == HvModeLong) && ((State->Cr4 & HV_CR4_PKE) != 0)) {
    Key = State->Pkru >> (2 * ((Leaf >> HV_ENTRY_KEY_SHIFT) & HV_ENTRY_KEY_MASK));
    if (((Key & HV_PKRU_ACCESS_DISABLE) != 0) || (WriteChecked && ((Key & HV_PKRU_WRITE_DISABLE) != 0))) {
      Result = HV_PF_PRESENT | HV_PF_KEY;
    }
  }

  return Result;
}

/**
  Reads a table entry.

  @param[in]  State    The guest's control registers.
  @param[in]  Row      The paging mode.
  @param[in]  Level    Level of the entry.
  @param[in]  Table    Guest-physical address of its table.
  @param[in]  Index    Index in the table.
  @param[in]  Read     How guest-physical memory is read.
  @param[in]  Context  For Read.
  @param[out] Entry    The entry.

  @retval RETURN_SUCCESS       Entry is set.
  @retval RETURN_DEVICE_ERROR  Not readable.
**/
STATIC
RETURN_STATUS
HvReadEntry (
  IN  CONST HV_GUEST_PAGING  *State,
  IN  CONST HV_MODE_ROW      *Row,
  IN  UINT8                  Level,
  IN  UINT64                 Table,
  IN  UINTN                  Index,
  IN  HV_GUEST_READ          Read,
  IN  VOID                   *Context,
  OUT UINT64                 *Entry
  )
{
  *Entry = 0;
  if ((Row->Mode == HvModePae) && (Level == 3) && State->PdpteLoaded) {
    *Entry = State->Pdpte[Index];
    return RETURN_SUCCESS;
  }

  if (RETURN_ERROR (Read (Context, Table + (UINT64)Index * Row->EntrySize, Entry, Row->EntrySize))) {
    return RETURN_DEVICE_ERROR;
  }

  return RETURN_SUCCESS;
}

RETURN_STATUS
EFIAPI
HvGuestWalk (
  IN  CONST HV_GUEST_PAGING  *State,
  IN  UINT64                 Linear,
  IN  HV_ACCESS              Access,
  IN  HV_GUEST_READ          Read,
  IN  VOID                   *Context,
  OUT UINT64                 *Gpa,
  OUT HV_PAGE_FAULT          *Fault
  )
{
  CONST HV_MODE_ROW  *Row;
  RETURN_STATUS      Status;
  BOOLEAN            User;
  BOOLEAN            Large;
  UINT64             Address;
  UINT64             Entry;
  UINT64             Rights;
  UINT64             OffsetMask;
  UINTN              Index;
  UINT32             ErrorCode;
  UINT32             Denied;
  UINT8              Level;
  UINT8              Shift;

  if ((State == NULL) || (Read == NULL) || (Gpa == NULL) || (Fault == NULL) ||
      (State->AddressBits < HV_ADDRESS_BITS_MIN) || (State->AddressBits > HV_ADDRESS_BITS_MAX) ||
      ((Access & ~(HV_ACCESS_WRITE | HV_ACCESS_FETCH | HV_ACCESS_SYSTEM)) != 0) ||
      ((Access & (HV_ACCESS_WRITE | HV_ACCESS_FETCH)) == (HV_ACCESS_WRITE | HV_ACCESS_FETCH)))
  {
    return RETURN_INVALID_PARAMETER;
  }

  if ((State->Efer & HV_EFER_LMA) == 0) {
    Linear &= HV_LINEAR_32;
    Row     = ((State->Cr4 & HV_CR4_PAE) != 0) ? &mPae : &mLegacy;
  } else {
    Row   = ((State->Cr4 & HV_CR4_LA57) != 0) ? &mLong5 : &mLong4;
    Shift = (UINT8)(64 - (12 + Row->IndexBits * Row->Levels));
    if ((UINT64)((INT64)(Linear << Shift) >> Shift) != Linear) {
      return RETURN_NOT_FOUND;
    }
  }

  if ((State->Cr0 & HV_CR0_PG) == 0) {
    *Gpa = Linear;
    return RETURN_SUCCESS;
  }

  User       = (BOOLEAN)((State->Cpl == 3) && ((Access & HV_ACCESS_SYSTEM) == 0));
  ErrorCode  = ((Access & HV_ACCESS_WRITE) != 0) ? HV_PF_WRITE : 0;
  ErrorCode |= User ? HV_PF_USER : 0;
  if (((Access & HV_ACCESS_FETCH) != 0) &&
      (((State->Cr4 & HV_CR4_SMEP) != 0) ||
       ((Row->Mode != HvModeLegacy) && ((State->Efer & HV_EFER_NXE) != 0))))
  {
    ErrorCode |= HV_PF_FETCH;
  }

  Fault->Cr2 = Linear;
  Address    = State->Cr3 & Row->RootMask;
  Rights     = HV_ENTRY_WRITE | HV_ENTRY_USER;
  Level      = Row->Levels;
  while (TRUE) {
    Shift  = (UINT8)(12 + Row->IndexBits * (Level - 1));
    Index  = (UINTN)(Linear >> Shift) & ((1u << Row->IndexBits) - 1);
    Status = HvReadEntry (State, Row, Level, Address, Index, Read, Context, &Entry);
    if (RETURN_ERROR (Status)) {
      return Status;
    }

    if ((Entry & HV_ENTRY_PRESENT) == 0) {
      Fault->ErrorCode = ErrorCode;
      return RETURN_ACCESS_DENIED;
    }

    Large = HvIsLarge (State, Row, Level, Entry);
    if ((Entry & HvReservedBits (State, Row, Level, Large)) != 0) {
      Fault->ErrorCode = ErrorCode | HV_PF_PRESENT | HV_PF_RESERVED;
      return RETURN_ACCESS_DENIED;
    }

    //
    // PAE's top entries have no rights.
    //
    if ((Row->Mode != HvModePae) || (Level != 3)) {
      Rights &= Entry | HV_ENTRY_NX;
      Rights |= (Row->Mode != HvModeLegacy) ? (Entry & HV_ENTRY_NX) : 0;
    }

    Address = Entry & HV_BITS (51, 12);
    if (Large || (Level == 1)) {
      break;
    }

    Level--;
  }

  Denied = HvCheckRights (State, Row, Access, User, Rights, Entry);
  if (Denied != 0) {
    Fault->ErrorCode = ErrorCode | Denied;
    return RETURN_ACCESS_DENIED;
  }

  OffsetMask = (1ull << Shift) - 1;
  if (Large && (Row->Mode == HvModeLegacy)) {
    Address = (Entry & HV_BITS (31, 22)) | ((Entry & HV_BITS (20, 13)) << 19);
  }

  *Gpa = (Address & ~OffsetMask) | (Linear & OffsetMask);
  return RETURN_SUCCESS;
}

RETURN_STATUS
EFIAPI
HvGuestFetch (
  IN  CONST HV_GUEST_PAGING  *State,
  IN  UINT64                 Linear,
  IN  HV_GUEST_READ          Read,
  IN  VOID                   *Context,
  OUT UINT8                  Buffer[HV_INSTRUCTION_MAX],
  OUT UINTN                  *Count,
  OUT HV_PAGE_FAULT          *Fault
  )
{
  RETURN_STATUS  Status;
  UINT64         Gpa;
  UINTN          Chunk;

  if ((State == NULL) || (Read == NULL) || (Buffer == NULL) || (Count == NULL) || (Fault == NULL)) {
    return RETURN_INVALID_PARAMETER;
  }

  Chunk  = 0;
  *Count = 0;
  ZeroMem (Buffer, HV_INSTRUCTION_MAX);
  ZeroMem (Fault, sizeof (*Fault));

  //
  // 15 bytes touch two pages at most. What comes after the first page is not an error of the first byte.
  //
  while (*Count < HV_INSTRUCTION_MAX) {
    Status = HvGuestWalk (State, Linear + *Count, HV_ACCESS_FETCH, Read, Context, &Gpa, Fault);
    if (Status == RETURN_SUCCESS) {
      Chunk = MIN (HV_INSTRUCTION_MAX - *Count, (UINTN)(HV_PAGE_SIZE - (Gpa & (HV_PAGE_SIZE - 1))));
      if (RETURN_ERROR (Read (Context, Gpa, Buffer + *Count, Chunk))) {
        ZeroMem (Buffer + *Count, Chunk);
        Status = RETURN_DEVICE_ERROR;
      }
    }

    if (RETURN_ERROR (Status)) {
      if (Status != RETURN_ACCESS_DENIED) {
        ZeroMem (Fault, sizeof (*Fault));
      }

      return (*Count != 0) ? RETURN_SUCCESS : Status;
    }

    ZeroMem (Fault, sizeof (*Fault));
    *Count += Chunk;
  }

  return RETURN_SUCCESS;
}
