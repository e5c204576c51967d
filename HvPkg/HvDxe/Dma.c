/** @file
  DMA: what keeps devices from the host's memory.

  An Intel IOMMU (VT-d specification 3.7) that the firmware does not use gets one second-level table for all devices:
  identity without the host's block. Its registers and its ACPI table are hidden from the root then.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HvDxe.h"
#include <IndustryStandard/Acpi.h>
#include <IndustryStandard/DmaRemappingReportingTable.h>
#include <Library/IoLib.h>

#define DMAR         SIGNATURE_32 ('D', 'M', 'A', 'R')
#define IVRS         SIGNATURE_32 ('I', 'V', 'R', 'S')
#define DMAR_HIDDEN  SIGNATURE_32 ('X', 'M', 'A', 'R')

//
// Registers and their bits (VT-d specification 3.7, 11.4).
//
#define VTD_CAP               0x08
#define VTD_CAP_RWBF          BIT4  // the write buffer has to be flushed
#define VTD_CAP_LEVELS3       BIT9
#define VTD_CAP_LEVELS4       BIT10
#define VTD_CAP_FRO(Cap)      (RShiftU64 ((Cap), 24) & 0x3FF)
#define VTD_CAP_2M            BIT34
#define VTD_CAP_1G            BIT35
#define VTD_CAP_NFR(Cap)      (RShiftU64 ((Cap), 40) & 0xFF)
#define VTD_ECAP              0x10
#define VTD_ECAP_IRO(Ecap)    (RShiftU64 ((Ecap), 8) & 0x3FF)
#define VTD_GCMD              0x18
#define VTD_GSTS              0x1C
#define VTD_TRANSLATION       BIT31
#define VTD_ROOT_TABLE        BIT30
#define VTD_WRITE_BUFFER      BIT27
#define VTD_QUEUE             BIT26
#define VTD_REMAP_INTERRUPTS  BIT25
#define VTD_GSTS_KEPT         0x96FFFFFF // the bits that a command has to repeat (11.4.4.1)
#define VTD_RTADDR            0x20
#define VTD_CCMD              0x28
#define VTD_CCMD_GLOBAL       (BIT63 | BIT61)
#define VTD_IOTLB_GLOBAL      (BIT63 | BIT60 | BIT49 | BIT48) // and drain reads and writes
#define VTD_INVALIDATE        BIT63
#define VTD_SPIN_MAX          10000000

#define ENTRIES          256
#define CONTEXT_PRESENT  BIT0
#define DOMAIN           LShiftU64 (1, 8) // 0 is reserved with caching mode (6.1)
#define LEVELS3          1                // the field AW
#define LEVELS4          2

typedef struct {
  UINT64    Low;
  UINT64    High;
} VTD_ENTRY;

STATIC EFI_ACPI_DMAR_HEADER  *mHidden;
STATIC HV_HOST               *mHost;

STATIC
BOOLEAN
WaitFor32 (
  IN UINT64  Register,
  IN UINT32  Mask,
  IN UINT32  Value
  )
{
  UINTN  Spin;

  for (Spin = 0; Spin < VTD_SPIN_MAX; Spin++) {
    if ((MmioRead32 (Register) & Mask) == Value) {
      return TRUE;
    }

    CpuPause ();
  }

  return FALSE;
}

STATIC
BOOLEAN
Command (
  IN UINT64   Base,
  IN UINT32   Bit,
  IN BOOLEAN  On
  )
{
  UINT32  Kept;

  Kept = MmioRead32 (Base + VTD_GSTS) & VTD_GSTS_KEPT & ~Bit;
  MmioWrite32 (Base + VTD_GCMD, Kept | (On ? Bit : 0));
  return WaitFor32 (Base + VTD_GSTS, Bit, ((Bit == VTD_WRITE_BUFFER) || !On) ? 0 : Bit);
}

STATIC
BOOLEAN
Invalidate (
  IN UINT64  Register,
  IN UINT64  Value
  )
{
  MmioWrite64 (Register, Value);
  return WaitFor32 (Register + sizeof (UINT32), (UINT32)RShiftU64 (VTD_INVALIDATE, 32), 0);
}

///
/// The units that the table describes.
///
STATIC
CONST CHAR8 *
FindUnits (
  IN  CONST EFI_ACPI_DMAR_HEADER  *Dmar,
  OUT HV_RANGE                    *Units,
  OUT UINT32                      *Count
  )
{
  CONST EFI_ACPI_DMAR_STRUCTURE_HEADER  *Item;
  UINTN                                 End;
  UINT64                                Base;
  UINT64                                Cap;
  UINT64                                Bytes;

  *Count = 0;
  End    = (UINTN)Dmar + Dmar->Header.Length;
  for (Item = (CONST EFI_ACPI_DMAR_STRUCTURE_HEADER *)(Dmar + 1);
       ((UINTN)Item + sizeof (*Item) <= End) && (Item->Length >= sizeof (*Item));
       Item = (CONST EFI_ACPI_DMAR_STRUCTURE_HEADER *)((UINTN)Item + Item->Length))
  {
    if (Item->Type != EFI_ACPI_DMAR_TYPE_DRHD) {
      continue;
    }

    if (*Count == HV_IOMMUS_MAX) {
      return "more units than HvDxe holds";
    }

    Base  = ((CONST EFI_ACPI_DMAR_DRHD_HEADER *)Item)->RegisterBaseAddress;
    Cap   = MmioRead64 (Base + VTD_CAP);
    Bytes = MAX (VTD_CAP_FRO (Cap) + VTD_CAP_NFR (Cap) + 1, VTD_ECAP_IRO (MmioRead64 (Base + VTD_ECAP)) + 1) * 16;
    if ((MmioRead32 (Base + VTD_GSTS) & (VTD_TRANSLATION | VTD_REMAP_INTERRUPTS | VTD_QUEUE)) != 0) {
      return "the firmware uses it";
    }

    if (((Cap & (VTD_CAP_LEVELS3 | VTD_CAP_LEVELS4)) == 0) || ((Cap & VTD_CAP_2M) == 0)) {
      return "it has no tables of 3 or 4 levels with 2 MiB pages";
    }

    Units[*Count].Base = Base;
    Units[*Count].End  = Base + ALIGN_VALUE (Bytes, EFI_PAGE_SIZE);
    (*Count)++;
  }

  return (*Count == 0) ? "ACPI describes no unit" : NULL;
}

///
/// One table for all devices behind all units: identity without the block.
///
STATIC
EFI_STATUS
BuildTables (
  IN OUT HV_HOST         *Host,
  IN     CONST HV_RANGE  *Units,
  IN     UINT32          Count,
  IN     UINT64          End,
  OUT    HV_PAGING       *Paging
  )
{
  EFI_STATUS  Status;
  UINT8       Level;
  UINT32      Index;

  Level = HV_PAGING_LEVEL_1G;
  for (Index = 0; Index < Count; Index++) {
    if ((MmioRead64 (Units[Index].Base + VTD_CAP) & VTD_CAP_1G) == 0) {
      Level = HV_PAGING_LEVEL_2M;
    }
  }

  Status = HvPagingInit (Paging, HvPagingVtd4, &Host->Pool, Level, HvPagingFormatBits (HvPagingVtd4));
  if (!EFI_ERROR (Status)) {
    Status = HvPagingMap (Paging, 0, 0, Host->Base, HV_PAGE_READ | HV_PAGE_WRITE | HV_PAGE_TYPE_WB);
  }

  if (!EFI_ERROR (Status)) {
    Status = HvPagingMap (
               Paging,
               Host->Base + Host->Bytes,
               Host->Base + Host->Bytes,
               End - Host->Base - Host->Bytes,
               HV_PAGE_READ | HV_PAGE_WRITE | HV_PAGE_TYPE_WB
               );
  }

  return Status;
}

///
/// A root table whose every bus has the same context table, whose every device has the same second level.
///
STATIC
UINT64
BuildRoot (
  IN OUT HV_HOST          *Host,
  IN     CONST HV_PAGING  *Paging,
  IN     BOOLEAN          Levels4
  )
{
  VTD_ENTRY  *Root;
  VTD_ENTRY  *Context;
  UINT64     Top;
  UINTN      Index;

  Root    = (VTD_ENTRY *)(UINTN)HvPagePoolTake (&Host->Pool);
  Context = (VTD_ENTRY *)(UINTN)HvPagePoolTake (&Host->Pool);
  if ((Root == NULL) || (Context == NULL)) {
    return 0;
  }

  // Three levels are what the first entry of the fourth has: 512 GiB.
  Top = Levels4 ? Paging->Root : *(CONST UINT64 *)(UINTN)Paging->Root & ~(UINT64)EFI_PAGE_MASK;
  for (Index = 0; Index < ENTRIES; Index++) {
    Root[Index].Low     = (UINTN)Context | CONTEXT_PRESENT;
    Root[Index].High    = 0;
    Context[Index].Low  = Top | CONTEXT_PRESENT;
    Context[Index].High = DOMAIN | (Levels4 ? LEVELS4 : LEVELS3);
  }

  return (UINTN)Root;
}

STATIC
BOOLEAN
SwitchOn (
  IN UINT64  Base,
  IN UINT64  Root
  )
{
  UINT64  Iotlb;

  // 6.6: the root table, then what may be cached of an older one, then translation.
  if (((MmioRead64 (Base + VTD_CAP) & VTD_CAP_RWBF) != 0) && !Command (Base, VTD_WRITE_BUFFER, TRUE)) {
    return FALSE;
  }

  MmioWrite64 (Base + VTD_RTADDR, Root);
  Iotlb = Base + VTD_ECAP_IRO (MmioRead64 (Base + VTD_ECAP)) * 16 + 8;
  return (BOOLEAN)(Command (Base, VTD_ROOT_TABLE, TRUE) && Invalidate (Base + VTD_CCMD, VTD_CCMD_GLOBAL) &&
                   Invalidate (Iotlb, VTD_IOTLB_GLOBAL) && Command (Base, VTD_TRANSLATION, TRUE));
}

///
/// The table under another name: the operating system must not find units that it cannot reach.
///
STATIC
VOID
Rename (
  IN OUT EFI_ACPI_DMAR_HEADER  *Dmar,
  IN     UINT32                Signature
  )
{
  Dmar->Header.Signature = Signature;
  Dmar->Header.Checksum  = 0;
  Dmar->Header.Checksum  = CalculateCheckSum8 ((CONST UINT8 *)Dmar, Dmar->Header.Length);
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

///
/// Why there is no protection, or NULL.
///
STATIC
CONST CHAR8 *
Protect (
  IN OUT HV_HOST               *Host,
  IN OUT EFI_ACPI_DMAR_HEADER  *Dmar
  )
{
  CONST CHAR8  *Reason;
  HV_PAGING    Paging;
  UINT64       End;
  UINT64       Cap;
  UINT64       Root;
  UINT32       Index;
  UINT32       Count;

  Reason = FindUnits (Dmar, Host->Iommu, &Count);
  if (Reason != NULL) {
    return Reason;
  }

  End = ALIGN_VALUE (MAX (SIZE_4GB, Host->Ram[Host->RamCount - 1].End), SIZE_1GB);
  Cap = MAX_UINT64;
  for (Index = 0; Index < Count; Index++) {
    Cap &= MmioRead64 (Host->Iommu[Index].Base + VTD_CAP);
  }

  if ((Cap & VTD_CAP_LEVELS4) == 0) {
    if (((Cap & VTD_CAP_LEVELS3) == 0) || (End > SIZE_512GB)) {
      return "its units have no table format in common that reaches all memory";
    }
  }

  if (EFI_ERROR (BuildTables (Host, Host->Iommu, Count, End, &Paging))) {
    return "no memory for its tables";
  }

  Root = BuildRoot (Host, &Paging, (BOOLEAN)((Cap & VTD_CAP_LEVELS4) != 0));
  if (Root == 0) {
    return "no memory for its tables";
  }

  // Units need not look into the caches (ECAP.C).
  AsmWbinvd ();
  Host->IommuCount = Count;
  mHost            = Host;
  for (Index = 0; Index < Count; Index++) {
    if (!SwitchOn (Host->Iommu[Index].Base, Root)) {
      HvDmaRelease ();
      return "a unit does not answer";
    }
  }

  if (EFI_ERROR (HideUnits (Host))) {
    HvDmaRelease ();
    return "its registers cannot be hidden";
  }

  Rename (Dmar, DMAR_HIDDEN);
  mHidden = Dmar;
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
      Command (mHost->Iommu[Index].Base, VTD_TRANSLATION, FALSE);
    }

    mHost->IommuCount = 0;
    mHost             = NULL;
  }

  if (mHidden != NULL) {
    Rename (mHidden, DMAR);
    mHidden = NULL;
  }
}

VOID
HvDmaProtect (
  IN OUT HV_HOST           *Host,
  IN     CONST HV_OPTIONS  *Options
  )
{
  EFI_ACPI_DMAR_HEADER  *Dmar;
  CONST CHAR8           *Reason;

  Host->Status->Dma = HV_STATUS_DMA_OS;
  Dmar              = (EFI_ACPI_DMAR_HEADER *)EfiLocateFirstAcpiTable (DMAR);
  if (Dmar != NULL) {
    Reason = (Options->Value[HvOptionDma] == HV_OPTION_DMA_OFF) ? "option dma" : Protect (Host, Dmar);
    if (Reason == NULL) {
      Host->Status->Dma = HV_STATUS_DMA_ON;
    }

    HV_LOG (
      0,
      Dma,
      HV_STR ((Reason == NULL) ? "on" : "off"),
      HV_STR ("vt-d"),
      HV_STR ((Reason == NULL) ? "the operating system does not see it" : Reason)
      );
  } else if (EfiLocateFirstAcpiTable (IVRS) != NULL) {
    HV_LOG (0, Dma, HV_STR ("off"), HV_STR ("amd-vi"), HV_STR ("it is left to the operating system"));
  } else {
    Host->Status->Dma = HV_STATUS_DMA_NO_IOMMU;
    HV_LOG (0, Dma, HV_STR ("off"), HV_STR ("none"), HV_STR ("ACPI describes no IOMMU"));
  }
}

UINTN
HvDmaPages (
  IN CONST HV_OPTIONS       *Options,
  IN CONST HV_PAGING_RANGE  *Range
  )
{
  UINT64  Pages;

  if ((Options->Value[HvOptionDma] == HV_OPTION_DMA_OFF) || (EfiLocateFirstAcpiTable (DMAR) == NULL)) {
    return 0;
  }

  HvPagingEstimate (HvPagingVtd4, HV_PAGING_LEVEL_2M, Range, 1, &Pages);
  // And what splits around the block and the registers, the root table, the context table.
  return (UINTN)Pages + 2 * HV_IOMMUS_MAX;
}
