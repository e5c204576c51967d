/** @file
  What an IOMMU is told, as functions of their inputs: where its units are, and the tables by which it keeps devices
  from one piece of memory. One table serves all devices: identity without that piece.

  Two kinds: Intel's VT-d (VT-d specification 3.7) and AMD-Vi (AMD I/O Virtualization Technology specification 3.08).

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_IOMMU_LIB_H_
#define HV_IOMMU_LIB_H_

#include <Base.h>
#include <Library/HvPagingLib.h>

typedef enum {
  HvIommuVtd,    ///< ACPI table DMAR
  HvIommuAmdVi,  ///< ACPI table IVRS
  HvIommuKindMax
} HV_IOMMU_KIND;

#define HV_IOMMU_UNITS_MAX            16
#define HV_IOMMU_LEVELS               4          ///< of the tables that are made
#define HV_IOMMU_DEVICES              0x10000    ///< bus, device and function of a PCI segment
#define HV_IOMMU_DEVICE_ENTRY_BYTES   32
#define HV_IOMMU_DEVICE_TABLE_PAGES   (HV_IOMMU_DEVICES * HV_IOMMU_DEVICE_ENTRY_BYTES / SIZE_4KB)

/**
  Finds the units that an ACPI table describes, each once.

  @param[in]     Kind   Which table it is.
  @param[in]     Table  The whole table. Its content need not make sense.
  @param[in]     Bytes  Its length.
  @param[out]    Units  Physical addresses of the units' registers, HV_IOMMU_UNITS_MAX entries.
  @param[out]    Count  How many there are.

  @retval RETURN_SUCCESS            One or more.
  @retval RETURN_NOT_FOUND          None.
  @retval RETURN_BUFFER_TOO_SMALL   More than HV_IOMMU_UNITS_MAX.
  @retval RETURN_COMPROMISED_DATA   The table is cut off, or an entry has a length or an address that cannot be.

  @par Context: Any
**/
RETURN_STATUS
EFIAPI
HvIommuFind (
  IN  HV_IOMMU_KIND  Kind,
  IN  CONST UINT8    *Table,
  IN  UINTN          Bytes,
  OUT UINT64         Units[HV_IOMMU_UNITS_MAX],
  OUT UINT32         *Count
  );

/**
  How many pages HvIommuMap takes at most.

  @param[in] End     What devices may reach.
  @param[in] Pages1G TRUE if leaves of 1 GiB may be used.

  @return  The pages.

  @par Context: Any
**/
UINT64
EFIAPI
HvIommuMapPages (
  IN UINT64   End,
  IN BOOLEAN  Pages1G
  );

/**
  Makes the table of all devices: [0, End) is mapped to itself, readable and writable, but for [HoleBase, HoleEnd).

  @param[in]     Kind      Format of the entries.
  @param[in,out] Pool      Where pages come from.
  @param[in]     End       A multiple of 1 GiB, at most 1 << 48.
  @param[in]     HoleBase  A multiple of 4 KiB.
  @param[in]     HoleEnd   A multiple of 4 KiB.
  @param[in]     Pages1G   TRUE if leaves of 1 GiB may be used.

  @return  The table of level HV_IOMMU_LEVELS, 0 if the pool has not enough pages.

  @par Context: Any
**/
UINT64
EFIAPI
HvIommuMap (
  IN     HV_IOMMU_KIND  Kind,
  IN OUT HV_PAGE_POOL   *Pool,
  IN     UINT64         End,
  IN     UINT64         HoleBase,
  IN     UINT64         HoleEnd,
  IN     BOOLEAN        Pages1G
  );

/**
  Makes the root table and the context table of VT-d, which lead all devices to one table (9.1, 9.3).

  @param[out] Root     A page.
  @param[out] Context  A page.
  @param[in]  Map      What HvIommuMap made.
  @param[in]  Levels   3, for units that have no more, or 4.

  @par Context: Any
**/
VOID
EFIAPI
HvIommuVtdDevices (
  OUT UINT64  *Root,
  OUT UINT64  *Context,
  IN  UINT64  Map,
  IN  UINT8   Levels
  );

/**
  Makes the device table of AMD-Vi, which leads all devices to one table (2.2.2.1). Interrupts are not remapped.

  @param[out] Table  HV_IOMMU_DEVICE_TABLE_PAGES pages.
  @param[in]  Map    What HvIommuMap made.

  @par Context: Any
**/
VOID
EFIAPI
HvIommuAmdViDevices (
  OUT UINT64  *Table,
  IN  UINT64  Map
  );

#endif // HV_IOMMU_LIB_H_
