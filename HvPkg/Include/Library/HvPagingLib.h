/** @file
  One page table walker for several formats: AMD nested tables, Intel EPT and the host's own long-mode tables.

  The library keeps no state of its own. Table pages come from a pool that the caller hands in; table pages and
  the pool are addressed by their physical address, which the host maps at the same virtual address.

  Rules that hold for every function that changes tables:
  - The caller holds the lock of the tables. Processors may walk them at the same time: an entry changes by one
    compare-exchange, and a new table is complete before the entry that points to it is written.
  - Nothing is flushed. After a change of a present entry the caller flushes on every processor that uses the tables.
  - A table page, once linked, stays linked: another processor may hold a pointer to it until it is flushed. So a later
    mapping over a range that already has smaller tables fills these tables; it does not join leaves.
  - An entry that already says what is wanted is left as it is: a range that is mapped again as it was splits nothing.
  - Before the first entry changes, the pages that the call needs are counted. If the pool has fewer, nothing changes.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_PAGING_LIB_H_
#define HV_PAGING_LIB_H_

typedef enum {
  HvPagingNpt4,   ///< AMD nested paging, 4 levels (APM2 15.25)
  HvPagingNpt5,   ///< AMD nested paging, 5 levels (host CR4.LA57 = 1)
  HvPagingEpt4,   ///< Intel EPT, page-walk length 4 (SDM Volume 3, "The Extended Page Table Mechanism (EPT)")
  HvPagingEpt5,   ///< Intel EPT, page-walk length 5
  HvPagingHost4,  ///< The host's own tables, 4 levels; supervisor pages, lower half only
  HvPagingHost5,  ///< The host's own tables, 5 levels
  HvPagingFormatMax
} HV_PAGING_FORMAT;

//
// Attributes of a mapping: rights, and a memory type.
//
#define HV_PAGE_READ     0x0001u
#define HV_PAGE_WRITE    0x0002u
#define HV_PAGE_EXECUTE  0x0004u
#define HV_PAGE_RWX      (HV_PAGE_READ | HV_PAGE_WRITE | HV_PAGE_EXECUTE)

//
// The memory type has the architectural encoding of the MTRRs. EPT takes each of the five. NPT and host tables
// take WB (PAT entry 0) and UC (PAT entry 3): the two entries that have the same meaning in the reset value of the
// PAT MSR and in the values of common operating systems.
//
#define HV_PAGE_TYPE_SHIFT       8
#define HV_PAGE_TYPE_MASK        0x0700u
#define HV_PAGE_TYPE(Type)       ((UINT32)(Type) << HV_PAGE_TYPE_SHIFT)
#define HV_PAGE_TYPE_UC          HV_PAGE_TYPE (0)
#define HV_PAGE_TYPE_WC          HV_PAGE_TYPE (1)
#define HV_PAGE_TYPE_WT          HV_PAGE_TYPE (4)
#define HV_PAGE_TYPE_WP          HV_PAGE_TYPE (5)
#define HV_PAGE_TYPE_WB          HV_PAGE_TYPE (6)
#define HV_PAGE_ATTRIBUTES_MASK  (HV_PAGE_RWX | HV_PAGE_TYPE_MASK)

#define HV_PAGING_LEVEL_4K  1
#define HV_PAGING_LEVEL_2M  2
#define HV_PAGING_LEVEL_1G  3

///
/// Size of a leaf of a level (1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB).
///
#define HV_PAGING_LEVEL_SIZE(Level)  (1ull << (3 + 9 * (Level)))

///
/// Pages that are handed out once and never come back. Several tables may share one pool without a common lock.
///
typedef struct {
  UINT64             Base;   ///< Physical address of the first page, equal to its virtual address
  UINT32             Pages;  ///< Number of pages
  volatile UINT32    Used;   ///< Number of pages that were taken
} HV_PAGE_POOL;

typedef struct {
  HV_PAGING_FORMAT    Format;
  UINT64              Root;          ///< Physical address of the top table
  HV_PAGE_POOL        *Pool;
  UINT8               LargestLevel;  ///< Largest leaf that a mapping may use: HV_PAGING_LEVEL_*
  UINT8               AddressBits;   ///< Addresses below 1 << AddressBits can be mapped
  UINT64              Count[3];      ///< Present leaves: [0] 4 KiB, [1] 2 MiB, [2] 1 GiB
} HV_PAGING;

typedef struct {
  UINT64    GuestAddress;
  UINT64    HostAddress;
  UINT64    Length;
} HV_PAGING_RANGE;

typedef struct {
  BOOLEAN    Present;
  UINT8      Level;        ///< Level of the entry that ended the walk; if not present, the hole is at least this large
  UINT32     Attributes;   ///< HV_PAGE_*; 0 if not present
  UINT64     HostAddress;  ///< Host address of the queried address itself, offset included; 0 if not present
} HV_PAGING_LEAF;

/**
  Makes a pool of pages.

  @par Context: Any

  @param[out] Pool   The pool.
  @param[in]  Base   Address of the first page, a multiple of 4096, below 1 << 52.
  @param[in]  Pages  Number of pages.

  @retval RETURN_SUCCESS            The pool is ready, no page is taken.
  @retval RETURN_INVALID_PARAMETER  Pool is NULL, Base is not a multiple of 4096, or the pages reach beyond 52 bits.
**/
RETURN_STATUS
EFIAPI
HvPagePoolInit (
  OUT HV_PAGE_POOL  *Pool,
  IN  UINT64        Base,
  IN  UINT32        Pages
  );

/**
  Takes a page from a pool. Safe on several processors at once.

  @par Context: Any

  @param[in,out] Pool  The pool.

  @return The page, filled with zeros, or NULL if all pages are taken.
**/
VOID *
EFIAPI
HvPagePoolTake (
  IN OUT HV_PAGE_POOL  *Pool
  );

/**
  Tells how many address bits a format can map: 48 for NPT and EPT with 4 levels, 47 for the host's lower half with
  4 levels, 52 with 5 levels (the largest physical address width).

  @par Context: Any

  @param[in] Format  The format.

  @return Number of bits, or 0 for an unknown format.
**/
UINT8
EFIAPI
HvPagingFormatBits (
  IN HV_PAGING_FORMAT  Format
  );

/**
  Starts empty tables. Takes the root page from the pool.

  @par Context: Any

  @param[out] Paging        The tables.
  @param[in]  Format        Format of the entries.
  @param[in]  Pool          Where table pages come from.
  @param[in]  LargestLevel  Largest leaf to use: HV_PAGING_LEVEL_*.
  @param[in]  AddressBits   Width of the addresses that may be mapped, 32 or more.

  @retval RETURN_SUCCESS            Nothing is mapped yet.
  @retval RETURN_INVALID_PARAMETER  A pointer is NULL, or Format, LargestLevel or AddressBits is out of range.
  @retval RETURN_UNSUPPORTED        AddressBits is more than HvPagingFormatBits (Format).
  @retval RETURN_OUT_OF_RESOURCES   The pool is empty.
**/
RETURN_STATUS
EFIAPI
HvPagingInit (
  OUT    HV_PAGING         *Paging,
  IN     HV_PAGING_FORMAT  Format,
  IN OUT HV_PAGE_POOL      *Pool,
  IN     UINT8             LargestLevel,
  IN     UINT8             AddressBits
  );

/**
  Maps a range, over whatever was mapped there, with the largest leaves that the alignment of both addresses,
  LargestLevel and the tables that exist already allow.

  NPT and host entries cannot be made unreadable, and EPT calls an entry that is writable but not readable a
  misconfiguration: such rights are refused. Whether execute-only EPT entries are supported is for the caller to know.

  @par Context: Any

  @param[in,out] Paging        The tables.
  @param[in]     GuestAddress  Start of the range: guest-physical, or the host's virtual address.
  @param[in]     HostAddress   Physical address that it is mapped to, below 1 << 52.
  @param[in]     Length        Length in bytes. 0 maps nothing.
  @param[in]     Attributes    HV_PAGE_READ | WRITE | EXECUTE, and HV_PAGE_TYPE_*.

  @retval RETURN_SUCCESS            The range is mapped.
  @retval RETURN_INVALID_PARAMETER  An address or the length is not a multiple of 4096, or the rights are not possible.
  @retval RETURN_UNSUPPORTED        An address is out of range, or the format does not have this memory type.
  @retval RETURN_OUT_OF_RESOURCES   The pool has not enough pages. Nothing was changed.
**/
RETURN_STATUS
EFIAPI
HvPagingMap (
  IN OUT HV_PAGING  *Paging,
  IN     UINT64     GuestAddress,
  IN     UINT64     HostAddress,
  IN     UINT64     Length,
  IN     UINT32     Attributes
  );

/**
  Removes a range. What is not mapped is no error.

  @par Context: Any

  @param[in,out] Paging        The tables.
  @param[in]     GuestAddress  Start of the range.
  @param[in]     Length        Length in bytes.

  @retval RETURN_SUCCESS            Nothing in the range is mapped.
  @retval RETURN_INVALID_PARAMETER  The address or the length is not a multiple of 4096.
  @retval RETURN_UNSUPPORTED        The range is beyond AddressBits.
  @retval RETURN_OUT_OF_RESOURCES   A larger leaf must be split and the pool has not enough pages. Nothing was changed.
**/
RETURN_STATUS
EFIAPI
HvPagingUnmap (
  IN OUT HV_PAGING  *Paging,
  IN     UINT64     GuestAddress,
  IN     UINT64     Length
  );

/**
  Gives everything that is mapped in a range new attributes. Holes stay holes.

  @par Context: Any

  @param[in,out] Paging        The tables.
  @param[in]     GuestAddress  Start of the range.
  @param[in]     Length        Length in bytes.
  @param[in]     Attributes    As in HvPagingMap(); rights and memory type are both replaced.

  @retval RETURN_SUCCESS            Done.
  @retval RETURN_INVALID_PARAMETER  The address or the length is not a multiple of 4096, or the rights are not possible.
  @retval RETURN_UNSUPPORTED        The range is beyond AddressBits, or the format does not have this memory type.
  @retval RETURN_OUT_OF_RESOURCES   A larger leaf must be split and the pool has not enough pages. Nothing was changed.
**/
RETURN_STATUS
EFIAPI
HvPagingProtect (
  IN OUT HV_PAGING  *Paging,
  IN     UINT64     GuestAddress,
  IN     UINT64     Length,
  IN     UINT32     Attributes
  );

/**
  Walks the tables for one address. Needs no lock.

  @par Context: Any

  @param[in]  Paging        The tables.
  @param[in]  GuestAddress  Any address, with or without an offset in its page.
  @param[out] Leaf          What was found.

  @retval RETURN_SUCCESS            Leaf is set; Leaf->Present tells whether the address is mapped.
  @retval RETURN_INVALID_PARAMETER  A pointer is NULL.
  @retval RETURN_UNSUPPORTED        The address is beyond AddressBits. Leaf says "not present".
**/
RETURN_STATUS
EFIAPI
HvPagingQuery (
  IN  CONST HV_PAGING  *Paging,
  IN  UINT64           GuestAddress,
  OUT HV_PAGING_LEAF   *Leaf
  );

/**
  Counts the table pages, root included, that empty tables need in order to map a list of ranges.

  Exact if the ranges are sorted by guest address and do not overlap; else it may be too large, never too small.
  Parts of ranges that are unmapped or protected later can need, for each of the two ends of such a part, one page for
  each level between the largest leaf and 4 KiB.

  @par Context: Any

  @param[in]  Format        Format of the tables.
  @param[in]  LargestLevel  Largest leaf to use.
  @param[in]  Ranges        The ranges.
  @param[in]  RangeCount    Number of ranges; 0 is possible.
  @param[out] Pages         Number of pages.

  @retval RETURN_SUCCESS            Pages is set.
  @retval RETURN_INVALID_PARAMETER  A pointer is NULL, Format or LargestLevel is out of range, or an address or a length
                                    is not a multiple of 4096.
  @retval RETURN_UNSUPPORTED        A range is beyond what the format can map.
**/
RETURN_STATUS
EFIAPI
HvPagingEstimate (
  IN  HV_PAGING_FORMAT       Format,
  IN  UINT8                  LargestLevel,
  IN  CONST HV_PAGING_RANGE  *Ranges,
  IN  UINTN                  RangeCount,
  OUT UINT64                 *Pages
  );

#endif
