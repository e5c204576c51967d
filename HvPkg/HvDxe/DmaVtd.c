/** @file
  Registers of Intel's VT-d (VT-d specification 3.7, chapter 11).

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "Dma.h"

#define CAP               0x08
#define CAP_RWBF          BIT4  // the write buffer has to be flushed
#define CAP_LEVELS3       BIT9
#define CAP_LEVELS4       BIT10
#define CAP_FRO(Cap)      (RShiftU64 ((Cap), 24) & 0x3FF)
#define CAP_2M            BIT34
#define CAP_1G            BIT35
#define CAP_NFR(Cap)      (RShiftU64 ((Cap), 40) & 0xFF)
#define ECAP              0x10
#define ECAP_IRO(Ecap)    (RShiftU64 ((Ecap), 8) & 0x3FF)
#define GCMD              0x18
#define GSTS              0x1C
#define TRANSLATION       BIT31
#define ROOT_TABLE        BIT30
#define WRITE_BUFFER      BIT27
#define QUEUE             BIT26
#define REMAP_INTERRUPTS  BIT25
#define GSTS_KEPT         0x96FFFFFF // the bits that a command has to repeat (11.4.4.1)
#define RTADDR            0x20
#define CCMD              0x28
#define CCMD_GLOBAL       (BIT63 | BIT61)
#define IOTLB_GLOBAL      (BIT63 | BIT60 | BIT49 | BIT48) // and drain reads and writes
#define INVALIDATE        BIT63
#define PMEN              0x64
#define PMEN_ON           BIT0 // of its status: a protected range of memory is on
#define GONE              MAX_UINT32

STATIC
BOOLEAN
Command (
  IN UINT64   Base,
  IN UINT32   Bit,
  IN BOOLEAN  On
  )
{
  UINT32  Kept;

  Kept = MmioRead32 (Base + GSTS) & GSTS_KEPT & ~Bit;
  MmioWrite32 (Base + GCMD, Kept | (On ? Bit : 0));
  return HvDmaWait (Base + GSTS, Bit, ((Bit == WRITE_BUFFER) || !On) ? 0 : Bit);
}

STATIC
BOOLEAN
Invalidate (
  IN UINT64  Register,
  IN UINT64  Value
  )
{
  MmioWrite64 (Register, Value);
  return HvDmaWait (Register + sizeof (UINT32), (UINT32)RShiftU64 (INVALIDATE, 32), 0);
}

STATIC
CONST CHAR8 *
Examine (
  IN     UINT64      Base,
  OUT    HV_RANGE    *Registers,
  IN OUT DMA_COMMON  *Common
  )
{
  UINT64  Cap;
  UINT64  Last;
  UINT32  Status;

  Status = MmioRead32 (Base + GSTS);
  if (Status == GONE) {
    return "a unit does not answer";
  }

  if (((Status & (TRANSLATION | REMAP_INTERRUPTS | QUEUE)) != 0) || ((MmioRead32 (Base + PMEN) & PMEN_ON) != 0)) {
    return "the firmware uses it";
  }

  Cap = MmioRead64 (Base + CAP);
  if ((Cap & CAP_2M) == 0) {
    return "a unit has no pages of 2 MiB";
  }

  Common->Levels3 &= (BOOLEAN)((Cap & CAP_LEVELS3) != 0);
  Common->Levels4 &= (BOOLEAN)((Cap & CAP_LEVELS4) != 0);
  Common->Pages1G &= (BOOLEAN)((Cap & CAP_1G) != 0);
  Last             = MAX (CAP_FRO (Cap) + CAP_NFR (Cap), ECAP_IRO (MmioRead64 (Base + ECAP)));
  Registers->Base  = Base;
  Registers->End   = Base + ALIGN_VALUE ((Last + 1) * 16, EFI_PAGE_SIZE);
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
  HvIommuVtdDevices (Pages, (UINT64 *)((UINT8 *)Pages + EFI_PAGE_SIZE), Map, Levels);
}

STATIC
BOOLEAN
SwitchOn (
  IN UINT64  Base,
  IN VOID    *Pages
  )
{
  UINT64  Iotlb;

  // 6.6: the root table, then what may be cached of an older one, then translation.
  if (((MmioRead64 (Base + CAP) & CAP_RWBF) != 0) && !Command (Base, WRITE_BUFFER, TRUE)) {
    return FALSE;
  }

  MmioWrite64 (Base + RTADDR, (UINTN)Pages);
  Iotlb = Base + ECAP_IRO (MmioRead64 (Base + ECAP)) * 16 + 8;
  return (BOOLEAN)(Command (Base, ROOT_TABLE, TRUE) && Invalidate (Base + CCMD, CCMD_GLOBAL) &&
                   Invalidate (Iotlb, IOTLB_GLOBAL) && Command (Base, TRANSLATION, TRUE));
}

STATIC
VOID
SwitchOff (
  IN UINT64  Base
  )
{
  Command (Base, TRANSLATION, FALSE);
}

CONST DMA_IOMMU  mDmaVtd = {
  .Kind        = HvIommuVtd,
  .Signature   = SIGNATURE_32 ('D', 'M', 'A', 'R'),
  .Name        = "vt-d",
  .DevicePages = 2,
  .Examine     = Examine,
  .Build       = Build,
  .SwitchOn    = SwitchOn,
  .SwitchOff   = SwitchOff
};
