/** @file
  The kinds of IOMMU that HvDxe drives, each by the registers of its units.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_DXE_DMA_H_
#define HV_DXE_DMA_H_

#include "HvDxe.h"
#include <Library/HvIommuLib.h>
#include <Library/IoLib.h>

///
/// What all units of a machine have.
///
typedef struct {
  BOOLEAN    Levels3;   ///< tables of 3 levels
  BOOLEAN    Levels4;
  BOOLEAN    Pages1G;
} DMA_COMMON;

typedef struct {
  HV_IOMMU_KIND    Kind;
  UINT32           Signature;   ///< of the ACPI table
  CONST CHAR8      *Name;
  UINTN            DevicePages; ///< for the tables of devices and what else the units need

  ///
  /// Says why a unit cannot be used, or gives NULL and its registers, and takes from Common what it does not have.
  ///
  CONST CHAR8      *(*Examine)(IN UINT64 Base, OUT HV_RANGE *Registers, IN OUT DMA_COMMON *Common);

  ///
  /// Makes the tables of devices in DevicePages pages, all 0.
  ///
  VOID             (*Build)(OUT VOID *Pages, IN UINT64 Map, IN UINT8 Levels);

  ///
  /// Makes a unit use them. FALSE: it does not answer.
  ///
  BOOLEAN          (*SwitchOn)(IN UINT64 Base, IN VOID *Pages);

  VOID             (*SwitchOff)(IN UINT64 Base);
} DMA_IOMMU;

extern CONST DMA_IOMMU  mDmaVtd;
extern CONST DMA_IOMMU  mDmaAmdVi;

/**
  Waits until bits of a register have a value.

  @param[in] Register  Where.
  @param[in] Mask      The bits.
  @param[in] Value     The value.

  @retval TRUE   They have.
  @retval FALSE  Not in time.

  @par Context: Boot
**/
BOOLEAN
HvDmaWait (
  IN UINT64  Register,
  IN UINT32  Mask,
  IN UINT32  Value
  );

#endif // HV_DXE_DMA_H_
