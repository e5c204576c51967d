/** @file
  The local APIC's interrupt command register.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvApicLib.h>

//
// Fields of the ICR (SDM APIC.6.1, APIC.12.9).
//
#define HV_ICR_VECTOR           0xFFu
#define HV_ICR_MODE_SHIFT       8
#define HV_ICR_MODE             7u
#define HV_ICR_LOGICAL          BIT11
#define HV_ICR_ASSERT           BIT14
#define HV_ICR_LEVEL            BIT15
#define HV_ICR_SHORTHAND_SHIFT  18
#define HV_ICR_SHORTHAND        3u
#define HV_ICR_RESERVED         0xFFF32000u
#define HV_ICR_XAPIC_SHIFT      56
#define HV_ICR_X2APIC_SHIFT     32

#define HV_XAPIC_BROADCAST   0xFFu
#define HV_X2APIC_BROADCAST  MAX_UINT32

#define HV_REGISTER_STRIDE  16

RETURN_STATUS
EFIAPI
HvApicDecodeIcr (
  IN  UINT64   Icr,
  IN  BOOLEAN  X2Apic,
  OUT HV_IPI   *Ipi
  )
{
  UINT32  Low;

  Low               = (UINT32)Icr;
  Ipi->Vector       = (UINT8)(Low & HV_ICR_VECTOR);
  Ipi->DeliveryMode = (UINT8)((Low >> HV_ICR_MODE_SHIFT) & HV_ICR_MODE);
  Ipi->Logical      = (BOOLEAN)((Low & HV_ICR_LOGICAL) != 0);
  Ipi->Level        = (BOOLEAN)((Low & HV_ICR_ASSERT) != 0);
  Ipi->Trigger      = (BOOLEAN)((Low & HV_ICR_LEVEL) != 0);
  Ipi->Shorthand    = (UINT8)((Low >> HV_ICR_SHORTHAND_SHIFT) & HV_ICR_SHORTHAND);
  Ipi->Destination  = (UINT32)(Icr >> (X2Apic ? HV_ICR_X2APIC_SHIFT : HV_ICR_XAPIC_SHIFT));

  return (X2Apic && ((Low & HV_ICR_RESERVED) != 0)) ? RETURN_INVALID_PARAMETER : RETURN_SUCCESS;
}

/**
  Compares a logical destination with a processor's logical id.

  @param[in] Destination  The destination, no broadcast.
  @param[in] X2Apic       TRUE in x2APIC mode.
  @param[in] Id           The processor's ids.

  @retval TRUE   They match.
  @retval FALSE  They do not.
**/
STATIC
BOOLEAN
HvApicLogicalMatch (
  IN UINT32            Destination,
  IN BOOLEAN           X2Apic,
  IN CONST HV_APIC_ID  *Id
  )
{
  UINT32  Ldr;

  if (X2Apic) {
    //
    // The logical id follows from the APIC id: cluster in bits 31:16, one bit of 16 below (SDM APIC.12.10.2).
    //
    return (BOOLEAN)(((Destination >> 16) == ((Id->ApicId >> 4) & 0xFFFF)) &&
                     ((Destination & (1u << (Id->ApicId & 0xF))) != 0));
  }

  Ldr = Id->Ldr >> 24;
  switch (Id->Dfr >> 28) {
    case 0xF:  // Flat model
      return (BOOLEAN)((Destination & Ldr) != 0);
    case 0x0:  // Cluster model
      return (BOOLEAN)(((Destination >> 4) == (Ldr >> 4)) && ((Destination & Ldr & 0xF) != 0));
    default:   // Reserved
      return FALSE;
  }
}

BOOLEAN
EFIAPI
HvApicIsTarget (
  IN CONST HV_IPI      *Ipi,
  IN BOOLEAN           X2Apic,
  IN BOOLEAN           IsSelf,
  IN CONST HV_APIC_ID  *Id
  )
{
  switch (Ipi->Shorthand) {
    case HV_IPI_TO_SELF:
      return IsSelf;
    case HV_IPI_TO_ALL:
      return TRUE;
    case HV_IPI_TO_OTHERS:
      return !IsSelf;
    default:
      break;
  }

  //
  // All ones is a broadcast in both destination modes (SDM APIC.6.2.1, APIC.6.2.2, APIC.12.9).
  //
  if (Ipi->Destination == (X2Apic ? HV_X2APIC_BROADCAST : HV_XAPIC_BROADCAST)) {
    return TRUE;
  }

  return Ipi->Logical ? HvApicLogicalMatch (Ipi->Destination, X2Apic, Id) : (BOOLEAN)(Ipi->Destination == Id->ApicId);
}

RETURN_STATUS
EFIAPI
HvApicTargets (
  IN  CONST HV_IPI      *Ipi,
  IN  BOOLEAN           X2Apic,
  IN  UINTN             Self,
  IN  CONST HV_APIC_ID  *Ids,
  IN  UINTN             Count,
  OUT UINT64            *Bitmap,
  IN  UINTN             BitmapWords
  )
{
  UINTN  Index;

  if ((Ipi == NULL) || (Ids == NULL) || (Bitmap == NULL) || (Self >= Count)) {
    return RETURN_INVALID_PARAMETER;
  }

  if (BitmapWords < (Count + 63) / 64) {
    return RETURN_BUFFER_TOO_SMALL;
  }

  ZeroMem (Bitmap, BitmapWords * sizeof (*Bitmap));
  for (Index = 0; Index < Count; Index++) {
    if (HvApicIsTarget (Ipi, X2Apic, (BOOLEAN)(Index == Self), &Ids[Index])) {
      Bitmap[Index / 64] |= 1ull << (Index % 64);
    }
  }

  return RETURN_SUCCESS;
}

BOOLEAN
EFIAPI
HvIpiIsInitDeassert (
  IN CONST HV_IPI  *Ipi
  )
{
  return (BOOLEAN)((Ipi->DeliveryMode == HV_IPI_INIT) && !Ipi->Level && Ipi->Trigger);
}

BOOLEAN
EFIAPI
HvIpiIsInit (
  IN CONST HV_IPI  *Ipi
  )
{
  return (BOOLEAN)((Ipi->DeliveryMode == HV_IPI_INIT) && !HvIpiIsInitDeassert (Ipi));
}

BOOLEAN
EFIAPI
HvIpiIsNmi (
  IN CONST HV_IPI  *Ipi
  )
{
  return (BOOLEAN)(Ipi->DeliveryMode == HV_IPI_NMI);
}

BOOLEAN
EFIAPI
HvIpiIsSipi (
  IN CONST HV_IPI  *Ipi
  )
{
  return (BOOLEAN)(Ipi->DeliveryMode == HV_IPI_STARTUP);
}

UINT32
EFIAPI
HvApicRegisterMsr (
  IN UINT32  Offset
  )
{
  if (Offset % HV_REGISTER_STRIDE != 0) {
    return 0;
  }

  switch (Offset) {
    case HV_APIC_REG_ID:
    case HV_APIC_REG_VERSION:
    case HV_APIC_REG_TPR:
    case HV_APIC_REG_PPR:
    case HV_APIC_REG_EOI:
    case HV_APIC_REG_LDR:
    case HV_APIC_REG_SVR:
    case HV_APIC_REG_ESR:
    case HV_APIC_REG_LVT_CMCI:
    case HV_APIC_REG_ICR_LOW:
    case HV_APIC_REG_LVT_TIMER:
    case HV_APIC_REG_LVT_THERMAL:
    case HV_APIC_REG_LVT_PERFMON:
    case HV_APIC_REG_LVT_LINT0:
    case HV_APIC_REG_LVT_LINT1:
    case HV_APIC_REG_LVT_ERROR:
    case HV_APIC_REG_TIMER_INITIAL:
    case HV_APIC_REG_TIMER_CURRENT:
    case HV_APIC_REG_TIMER_DIVIDE:
    case HV_APIC_REG_SELF_IPI:
      break;
    default:
      if ((Offset < HV_APIC_REG_ISR) || (Offset >= HV_APIC_REG_ESR)) {
        return 0;
      }

      break;
  }

  return HV_X2APIC_MSR_BASE + Offset / HV_REGISTER_STRIDE;
}
