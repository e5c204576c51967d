/** @file
  What an IOMMU is told, as functions of their inputs.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvIommuLib.h>

#define ADDRESS_MASK  0x000FFFFFFFFFF000ull
#define ENTRIES       512

//
// The header of an ACPI table, behind which DMAR and IVRS have 12 bytes each (VT-d 8.1, AMD-Vi 5.2.1).
//
#define FIRST_STRUCTURE  48
//
// A structure has its length in the second word; that of a unit, the address of its registers at the same place.
//
#define VTD_DRHD         0     // VT-d 8.3
#define STRUCTURE_MIN    4
#define UNIT_BASE        8
#define UNIT_MIN         16

//
// Entries of VT-d (9.1, 9.3, 9.8).
//
#define VTD_READ         BIT0
#define VTD_WRITE        BIT1
#define VTD_LARGE        BIT7
#define VTD_PRESENT      BIT0
#define VTD_DOMAIN       BIT8  // number 1: caching mode reserves 0 (6.1)
#define VTD_CONTEXTS     256

//
// Entries of AMD-Vi (2.2.3 and 2.2.2.1).
//
#define AMDVI_PRESENT        BIT0
#define AMDVI_LEVEL_SHIFT    9
#define AMDVI_READ           BIT61
#define AMDVI_WRITE          BIT62
#define AMDVI_VALID          BIT0 // with BIT1, the translation is valid, too
#define AMDVI_TRANSLATION    BIT1
#define AMDVI_DOMAIN         1ull
#define AMDVI_MANAGEMENT     BIT40 // SysMgt = 01b: forwarded, as without an IOMMU
// INIT, ExtInt, NMI, LINT0, LINT1 pass, as without an IOMMU.
#define AMDVI_INTERRUPTS     (BIT56 | BIT57 | BIT58 | BIT62 | BIT63)

///
/// A number at any address, lowest byte first.
///
STATIC
UINT64
Number (
  IN CONST UINT8  *At,
  IN UINTN        Bytes
  )
{
  UINT64  Value;

  Value = 0;
  while (Bytes-- > 0) {
    Value = (Value << 8) | At[Bytes];
  }

  return Value;
}

///
/// Whether a structure describes a unit.
///
STATIC
BOOLEAN
IsUnit (
  IN HV_IOMMU_KIND  Kind,
  IN CONST UINT8    *Structure
  )
{
  if (Kind == HvIommuVtd) {
    return (BOOLEAN)(Number (Structure, sizeof (UINT16)) == VTD_DRHD);
  }

  // Blocks of the same unit for older and newer software (5.2.2).
  return (BOOLEAN)((Structure[0] == 0x10) || (Structure[0] == 0x11) || (Structure[0] == 0x40));
}

STATIC
RETURN_STATUS
AddUnit (
  IN OUT UINT64  Units[HV_IOMMU_UNITS_MAX],
  IN OUT UINT32  *Count,
  IN     UINT64  Base
  )
{
  UINT32  Index;

  if ((Base == 0) || ((Base & ~ADDRESS_MASK) != 0)) {
    return RETURN_COMPROMISED_DATA;
  }

  for (Index = 0; Index < *Count; Index++) {
    if (Units[Index] == Base) {
      return RETURN_SUCCESS;
    }
  }

  if (*Count == HV_IOMMU_UNITS_MAX) {
    return RETURN_BUFFER_TOO_SMALL;
  }

  Units[(*Count)++] = Base;
  return RETURN_SUCCESS;
}

RETURN_STATUS
EFIAPI
HvIommuFind (
  IN  HV_IOMMU_KIND  Kind,
  IN  CONST UINT8    *Table,
  IN  UINTN          Bytes,
  OUT UINT64         Units[HV_IOMMU_UNITS_MAX],
  OUT UINT32         *Count
  )
{
  CONST UINT8    *Structure;
  RETURN_STATUS  Status;
  UINTN          Offset;
  UINTN          Length;

  *Count = 0;
  if (Bytes < FIRST_STRUCTURE) {
    return RETURN_COMPROMISED_DATA;
  }

  for (Offset = FIRST_STRUCTURE; Offset < Bytes; Offset += Length) {
    if (Bytes - Offset < STRUCTURE_MIN) {
      return RETURN_COMPROMISED_DATA;
    }

    Structure = Table + Offset;
    Length    = (UINTN)Number (Structure + sizeof (UINT16), sizeof (UINT16));
    if ((Length < STRUCTURE_MIN) || (Length > Bytes - Offset)) {
      return RETURN_COMPROMISED_DATA;
    }

    if (!IsUnit (Kind, Structure)) {
      continue;
    }

    if (Length < UNIT_MIN) {
      return RETURN_COMPROMISED_DATA;
    }

    Status = AddUnit (Units, Count, Number (Structure + UNIT_BASE, sizeof (UINT64)));
    if (RETURN_ERROR (Status)) {
      return Status;
    }
  }

  return (*Count == 0) ? RETURN_NOT_FOUND : RETURN_SUCCESS;
}

UINT64
EFIAPI
HvIommuMapPages (
  IN UINT64   End,
  IN BOOLEAN  Pages1G
  )
{
  UINT64  Tables;

  // The top, one of level 3 for each 512 GiB. Both ends of the hole can split one entry at each of the levels below.
  Tables = 1 + ((End + SIZE_512GB - 1) / SIZE_512GB) + 2;
  return Tables + (Pages1G ? 2 : (End + SIZE_1GB - 1) / SIZE_1GB);
}

STATIC
UINT64
LeafEntry (
  IN HV_IOMMU_KIND  Kind,
  IN UINT8          Level,
  IN UINT64         Address
  )
{
  if (Kind == HvIommuVtd) {
    return Address | VTD_READ | VTD_WRITE | ((Level > 1) ? VTD_LARGE : 0);
  }

  // Next level 0: a leaf of the size of its level.
  return Address | AMDVI_PRESENT | AMDVI_READ | AMDVI_WRITE;
}

STATIC
UINT64
TableEntry (
  IN HV_IOMMU_KIND  Kind,
  IN UINT8          Level,
  IN UINT64         Table
  )
{
  if (Kind == HvIommuVtd) {
    return Table | VTD_READ | VTD_WRITE;
  }

  return Table | AMDVI_PRESENT | AMDVI_READ | AMDVI_WRITE | ((UINT64)(Level - 1) << AMDVI_LEVEL_SHIFT);
}

typedef struct {
  HV_IOMMU_KIND    Kind;
  HV_PAGE_POOL     *Pool;
  UINT64           End;
  UINT64           HoleBase;
  UINT64           HoleEnd;
  UINT8            LeafLevel;   ///< of the largest leaf
} MAP;

///
/// The table of a level for the addresses from Base on; 0 if there is no page for it.
///
STATIC
UINT64
MapLevel (
  IN CONST MAP  *Map,
  IN UINT8      Level,
  IN UINT64     Base
  )
{
  UINT64   *Table;
  UINT64   Next;
  UINT64   Size;
  UINTN    Index;
  BOOLEAN  Outside;

  Table = HvPagePoolTake (Map->Pool);
  if (Table == NULL) {
    return 0;
  }

  Size = HV_PAGING_LEVEL_SIZE (Level);
  for (Index = 0; (Index < ENTRIES) && (Base < Map->End); Index++, Base += Size) {
    Outside = (BOOLEAN)((Base + Size <= Map->HoleBase) || (Base >= Map->HoleEnd));
    if ((Level <= Map->LeafLevel) && Outside) {
      Table[Index] = LeafEntry (Map->Kind, Level, Base);
    } else if ((Base >= Map->HoleBase) && (Base + Size <= Map->HoleEnd)) {
      // All of it is kept from devices. Level 1 is inside or outside.
      Table[Index] = 0;
    } else {
      Next = MapLevel (Map, Level - 1, Base);
      if (Next == 0) {
        return 0;
      }

      Table[Index] = TableEntry (Map->Kind, Level, Next);
    }
  }

  return (UINTN)Table;
}

UINT64
EFIAPI
HvIommuMap (
  IN     HV_IOMMU_KIND  Kind,
  IN OUT HV_PAGE_POOL   *Pool,
  IN     UINT64         End,
  IN     UINT64         HoleBase,
  IN     UINT64         HoleEnd,
  IN     BOOLEAN        Pages1G
  )
{
  MAP  Map;

  Map.Kind      = Kind;
  Map.Pool      = Pool;
  Map.End       = End;
  Map.HoleBase  = HoleBase;
  Map.HoleEnd   = HoleEnd;
  Map.LeafLevel = Pages1G ? HV_PAGING_LEVEL_1G : HV_PAGING_LEVEL_2M;
  return MapLevel (&Map, HV_IOMMU_LEVELS, 0);
}

VOID
EFIAPI
HvIommuVtdDevices (
  OUT UINT64  *Root,
  OUT UINT64  *Context,
  IN  UINT64  Map,
  IN  UINT8   Levels
  )
{
  UINTN  Index;

  // Three levels are what the first entry of the fourth has.
  if (Levels < HV_IOMMU_LEVELS) {
    Map = *(CONST UINT64 *)(UINTN)Map & ADDRESS_MASK;
  }

  for (Index = 0; Index < VTD_CONTEXTS; Index++) {
    Root[2 * Index]        = (UINTN)Context | VTD_PRESENT;
    Root[2 * Index + 1]    = 0;
    Context[2 * Index]     = Map | VTD_PRESENT;
    Context[2 * Index + 1] = VTD_DOMAIN | (Levels - 2u); // the field AW
  }
}

VOID
EFIAPI
HvIommuAmdViDevices (
  OUT UINT64  *Table,
  IN  UINT64  Map
  )
{
  UINTN  Index;

  for (Index = 0; Index < HV_IOMMU_DEVICES; Index++, Table += HV_IOMMU_DEVICE_ENTRY_BYTES / sizeof (UINT64)) {
    Table[0] = Map | AMDVI_VALID | AMDVI_TRANSLATION | ((UINT64)HV_IOMMU_LEVELS << AMDVI_LEVEL_SHIFT) | AMDVI_READ |
               AMDVI_WRITE;
    Table[1] = AMDVI_DOMAIN | AMDVI_MANAGEMENT;
    Table[2] = AMDVI_INTERRUPTS;
    Table[3] = 0;
  }
}
