/** @file
  Registers of AMD-Vi (AMD I/O Virtualization Technology specification 3.08, 3.4).

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "Dma.h"

#define DEVICE_TABLE     0x00
#define COMMAND_BASE     0x08
#define COMMAND_LENGTH   LShiftU64 (8, 56) // 256 entries: a page
#define CONTROL          0x18
#define CONTROL_ON       BIT0
#define CONTROL_SNOOP    BIT10 // Coherent: the device table is read through the caches
#define CONTROL_COMMAND  BIT12
#define EXCLUSION        0x20
#define FEATURES         0x30
#define FEATURES_ALL     BIT6  // INVALIDATE_IOMMU_ALL
#define FEATURES_LEVELS  (BIT10 | BIT11) // how many more than 4; both set: no tables of this kind
#define COMMAND_HEAD     0x2000
#define COMMAND_TAIL     0x2008
#define REGISTER_BYTES   0x4000
#define GONE             MAX_UINT64

//
// Commands (2.4) are two words; the upper four bits of the first are the operation.
//
#define OPERATION(Number)  LShiftU64 ((Number), 60)
#define WAIT               OPERATION (1)
#define WAIT_STORE         BIT0
#define INVALIDATE_ALL     OPERATION (8)
#define DONE               1

///
/// What the units are given: the device table, and a page with the commands and the word that says they are done.
///
#define COMMAND_OFFSET  EFI_PAGES_TO_SIZE (HV_IOMMU_DEVICE_TABLE_PAGES)
#define DONE_OFFSET     (COMMAND_OFFSET + EFI_PAGE_SIZE / 2)

STATIC
CONST CHAR8 *
Examine (
  IN     UINT64      Base,
  OUT    HV_RANGE    *Registers,
  IN OUT DMA_COMMON  *Common
  )
{
  UINT64  Control;

  Control = MmioRead64 (Base + CONTROL);
  if (Control == GONE) {
    return "a unit does not answer";
  }

  if ((Control & CONTROL_ON) != 0) {
    return "the firmware uses it";
  }

  // Units without it are the first ones, of 2006 to 2010.
  if ((MmioRead64 (Base + FEATURES) & FEATURES_ALL) == 0) {
    return "a unit cannot invalidate all at once";
  }

  // All others have tables of 4 levels with all sizes of pages.
  if ((MmioRead64 (Base + FEATURES) & FEATURES_LEVELS) == FEATURES_LEVELS) {
    return "a unit has no tables of 4 levels";
  }

  Registers->Base = Base;
  Registers->End  = Base + REGISTER_BYTES;
  return NULL;
}

STATIC
VOID
Build (
  OUT VOID    *Pages,
  IN  UINT64  Map,
  IN  UINT8   Levels
  )
{
  HvIommuAmdViDevices (Pages, Map);
}

STATIC
BOOLEAN
SwitchOn (
  IN UINT64  Base,
  IN VOID    *Pages
  )
{
  volatile UINT32  *Done;
  UINT64           *Command;

  Command    = (UINT64 *)((UINT8 *)Pages + COMMAND_OFFSET);
  Done       = (volatile UINT32 *)((UINT8 *)Pages + DONE_OFFSET);
  *Done      = 0;
  Command[0] = INVALIDATE_ALL;
  Command[1] = 0;
  Command[2] = WAIT | (UINTN)Done | WAIT_STORE;
  Command[3] = DONE;

  MmioWrite64 (Base + DEVICE_TABLE, (UINTN)Pages | (HV_IOMMU_DEVICE_TABLE_PAGES - 1));
  MmioWrite64 (Base + COMMAND_BASE, (UINTN)Command | COMMAND_LENGTH);
  MmioWrite64 (Base + COMMAND_HEAD, 0);
  MmioWrite64 (Base + COMMAND_TAIL, 0);
  MmioWrite64 (Base + EXCLUSION, 0);
  // From here on devices are translated; what a unit has cached of anything else goes by the commands.
  MmioWrite64 (Base + CONTROL, MmioRead64 (Base + CONTROL) | CONTROL_ON | CONTROL_SNOOP | CONTROL_COMMAND);
  MmioWrite64 (Base + COMMAND_TAIL, 4 * sizeof (*Command));
  return HvDmaWait ((UINTN)Done, MAX_UINT32, DONE);
}

STATIC
VOID
SwitchOff (
  IN UINT64  Base
  )
{
  MmioWrite64 (Base + CONTROL, MmioRead64 (Base + CONTROL) & ~(UINT64)(CONTROL_ON | CONTROL_SNOOP | CONTROL_COMMAND));
}

CONST DMA_IOMMU  mDmaAmdVi = {
  .Kind        = HvIommuAmdVi,
  .Signature   = SIGNATURE_32 ('I', 'V', 'R', 'S'),
  .Name        = "amd-vi",
  .DevicePages = HV_IOMMU_DEVICE_TABLE_PAGES + 1,
  .Examine     = Examine,
  .Build       = Build,
  .SwitchOn    = SwitchOn,
  .SwitchOff   = SwitchOff
};
