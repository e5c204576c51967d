/** @file
  DMA: what keeps devices from the host's memory.

  An IOMMU that the firmware does not use gets one table for all devices: identity without the host's block. Its registers
  and its ACPI table are hidden from the root then.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "Dma.h"
#include <IndustryStandard/Acpi.h>

#define SPIN_MAX      10000000
#define APIC_IDS_MAX  255 // without remapping, an interrupt reaches no processor from here on
#define HIDDEN        'X' // takes the place of the first letter of a table's signature

STATIC CONST DMA_IOMMU  *CONST         mKinds[] = { &mDmaVtd, &mDmaAmdVi };
STATIC CONST DMA_IOMMU                 *mActive;
STATIC EFI_ACPI_DESCRIPTION_HEADER     *mHidden;
STATIC HV_HOST                         *mHost;

BOOLEAN
HvDmaWait (
  IN UINT64  Register,
  IN UINT32  Mask,
  IN UINT32  Value
  )
{
  UINTN  Spin;

  for (Spin = 0; Spin < SPIN_MAX; Spin++) {
    if ((MmioRead32 (Register) & Mask) == Value) {
      return TRUE;
    }

    CpuPause ();
  }

  return FALSE;
}

///
/// The kind whose ACPI table there is, or NULL.
///
STATIC
CONST DMA_IOMMU *
FindKind (
  OUT EFI_ACPI_DESCRIPTION_HEADER  **Table
  )
{
  UINTN  Index;

  for (Index = 0; Index < ARRAY_SIZE (mKinds); Index++) {
    *Table = (EFI_ACPI_DESCRIPTION_HEADER *)EfiLocateFirstAcpiTable (mKinds[Index]->Signature);
    if (*Table != NULL) {
      return mKinds[Index];
    }
  }

  return NULL;
}

///
/// The root would need the units for itself where there are more processors than an interrupt's address has room for.
///
STATIC
BOOLEAN
NeedsRemapping (
  IN CONST HV_HOST  *Host
  )
{
  UINT32  Index;

  for (Index = 0; Index < Host->CpuCount; Index++) {
    if (HvHostCpu ((HV_HOST *)Host, Index)->Apic.ApicId >= APIC_IDS_MAX) {
      return TRUE;
    }
  }

  return FALSE;
}

///
/// The table under another name: the operating system must not find units that it cannot reach.
///
STATIC
VOID
Rename (
  IN OUT EFI_ACPI_DESCRIPTION_HEADER  *Table,
  IN     UINT8                        First
  )
{
  *(UINT8 *)&Table->Signature = First;
  Table->Checksum             = 0;
  Table->Checksum             = CalculateCheckSum8 ((CONST UINT8 *)Table, Table->Length);
}

STATIC
EFI_STATUS
HideUnits (
  IN OUT HV_HOST  *Host
  )
{
  CONST HV_RANGE  *Unit;
  EFI_STATUS      Status;
  UINT64          Page;
  UINT32          Index;

  Status = EFI_SUCCESS;
  for (Index = 0; Index < Host->IommuCount; Index++) {
    Unit = &Host->Iommu[Index];
    for (Page = Unit->Base; !EFI_ERROR (Status) && (Page < Unit->End); Page += EFI_PAGE_SIZE) {
      Status = HvPagingMap (
                 &Host->Root.Nested,
                 Page,
                 Host->OnesPage,
                 EFI_PAGE_SIZE,
                 HV_PAGE_READ | HV_PAGE_EXECUTE | HV_PAGE_TYPE_WB
                 );
    }
  }

  return Status;
}

STATIC
CONST CHAR8 *
FindUnits (
  IN     CONST DMA_IOMMU                    *Iommu,
  IN     CONST EFI_ACPI_DESCRIPTION_HEADER  *Table,
  OUT    HV_RANGE                           *Units,
  OUT    UINT32                             *Count,
  IN OUT DMA_COMMON                         *Common
  )
{
  CONST CHAR8  *Reason;
  UINT64       Bases[HV_IOMMU_UNITS_MAX];
  UINT32       Index;

  switch (HvIommuFind (Iommu->Kind, (CONST UINT8 *)Table, Table->Length, Bases, Count)) {
    case RETURN_SUCCESS:
      break;
    case RETURN_NOT_FOUND:
      return "ACPI describes no unit";
    case RETURN_BUFFER_TOO_SMALL:
      return "more units than HvDxe holds";
    default:
      return "its ACPI table makes no sense";
  }

  Reason = NULL;
  for (Index = 0; (Reason == NULL) && (Index < *Count); Index++) {
    Reason = Iommu->Examine (Bases[Index], &Units[Index], Common);
  }

  return Reason;
}

///
/// Why there is no protection, or NULL.
///
STATIC
CONST CHAR8 *
Protect (
  IN OUT HV_HOST                      *Host,
  IN     CONST DMA_IOMMU              *Iommu,
  IN OUT EFI_ACPI_DESCRIPTION_HEADER  *Table
  )
{
  CONST CHAR8   *Reason;
  DMA_COMMON    Common;
  HV_PAGE_POOL  Pool;
  UINT64        End;
  UINT64        Map;
  UINT32        Count;
  UINT32        Index;

  if (NeedsRemapping (Host)) {
    return "processors with large APIC ids need it for their interrupts";
  }

  Common.Levels3 = TRUE;
  Common.Levels4 = TRUE;
  Common.Pages1G = TRUE;
  Reason         = FindUnits (Iommu, Table, Host->Iommu, &Count, &Common);
  if (Reason != NULL) {
    return Reason;
  }

  End = ALIGN_VALUE (MAX (SIZE_4GB, Host->Ram[Host->RamCount - 1].End), SIZE_1GB);
  if (!Common.Levels4 && (!Common.Levels3 || (End > SIZE_512GB))) {
    return "its units have no tables in common that reach all memory";
  }

  HvPagePoolInit (
    &Pool,
    Host->DmaBase + EFI_PAGES_TO_SIZE (Iommu->DevicePages),
    (UINT32)(Host->DmaPages - Iommu->DevicePages)
    );
  Map = HvIommuMap (Iommu->Kind, &Pool, End, Host->Base, Host->Base + Host->Bytes, Common.Pages1G);
  if (Map == 0) {
    return "no memory for its tables";
  }

  Iommu->Build ((VOID *)(UINTN)Host->DmaBase, Map, Common.Levels4 ? HV_IOMMU_LEVELS : HV_IOMMU_LEVELS - 1);
  // Units need not look into the caches.
  AsmWbinvd ();
  Host->IommuCount = Count;
  mHost            = Host;
  mActive          = Iommu;
  for (Index = 0; Index < Count; Index++) {
    if (!Iommu->SwitchOn (Host->Iommu[Index].Base, (VOID *)(UINTN)Host->DmaBase)) {
      HvDmaRelease ();
      return "a unit does not do what it should";
    }
  }

  if (EFI_ERROR (HideUnits (Host))) {
    HvDmaRelease ();
    return "its registers cannot be hidden";
  }

  Rename (Table, HIDDEN);
  mHidden = Table;
  return NULL;
}

VOID
HvDmaRelease (
  VOID
  )
{
  UINT32  Index;

  if (mHost != NULL) {
    for (Index = 0; Index < mHost->IommuCount; Index++) {
      mActive->SwitchOff (mHost->Iommu[Index].Base);
    }

    mHost->IommuCount = 0;
    mHost             = NULL;
  }

  if (mHidden != NULL) {
    Rename (mHidden, (UINT8)mActive->Signature);
    mHidden = NULL;
  }
}

VOID
HvDmaProtect (
  IN OUT HV_HOST           *Host,
  IN     CONST HV_OPTIONS  *Options
  )
{
  EFI_ACPI_DESCRIPTION_HEADER  *Table;
  CONST DMA_IOMMU              *Iommu;
  CONST CHAR8                  *Reason;

  Host->Status->Dma = HV_STATUS_DMA_OS;
  Iommu             = FindKind (&Table);
  if (Iommu != NULL) {
    Reason = (Options->Value[HvOptionDma] == HV_OPTION_DMA_OFF) ? "option dma" : Protect (Host, Iommu, Table);
  } else if (EfiLocateFirstAcpiTable (EFI_ACPI_6_5_FIXED_ACPI_DESCRIPTION_TABLE_SIGNATURE) == NULL) {
    Reason = "there are no ACPI tables yet";
  } else {
    Reason            = "ACPI describes no IOMMU";
    Host->Status->Dma = HV_STATUS_DMA_NO_IOMMU;
  }

  if (Reason == NULL) {
    Reason            = "the operating system does not see it";
    Host->Status->Dma = HV_STATUS_DMA_ON;
  }

  HV_LOG (
    0,
    Dma,
    HV_STR ((Host->Status->Dma == HV_STATUS_DMA_ON) ? "on" : "off"),
    HV_STR ((Iommu == NULL) ? "none" : Iommu->Name),
    HV_STR (Reason)
    );
}

UINTN
HvDmaPages (
  IN CONST HV_OPTIONS  *Options,
  IN UINT64            End
  )
{
  EFI_ACPI_DESCRIPTION_HEADER  *Table;
  CONST DMA_IOMMU              *Iommu;

  Iommu = FindKind (&Table);
  if ((Options->Value[HvOptionDma] == HV_OPTION_DMA_OFF) || (Iommu == NULL)) {
    return 0;
  }

  // Whether a unit of VT-d has pages of 1 GiB is known later.
  return Iommu->DevicePages + (UINTN)HvIommuMapPages (End, (BOOLEAN)(Iommu->Kind == HvIommuAmdVi));
}
