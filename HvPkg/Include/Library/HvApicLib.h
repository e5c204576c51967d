/** @file
  The local APIC's interrupt command register: what an IPI says and which processors it reaches.

  SDM APIC.x is section x of chapter "Advanced Programmable Interrupt Controller (APIC)" of SDM Volume 3A: chapter 10
  in revisions before "User Interrupts" became chapter 7, then 11, 12 in revisions that also have "Linear-Address
  Pre-Processing"; the sections within it kept their numbers. APM2 is AMD 24593, chapter 16.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_APIC_LIB_H_
#define HV_APIC_LIB_H_

//
// Register offsets in the APIC page (SDM APIC.4.1, APM2 16.3.2).
//
///
/// The lower half of an interrupt command that is an ordinary IPI has these bits alone: vector, logical destination,
/// assert, shorthand (SDM APIC.6.1, APIC.12.9).
///
#define HV_APIC_ICR_FIXED  (0xFFu | BIT11 | BIT14 | BIT18 | BIT19)

#define HV_APIC_REG_ID             0x020
#define HV_APIC_REG_VERSION        0x030
#define HV_APIC_REG_TPR            0x080
#define HV_APIC_REG_APR            0x090
#define HV_APIC_REG_PPR            0x0A0
#define HV_APIC_REG_EOI            0x0B0
#define HV_APIC_REG_RRD            0x0C0
#define HV_APIC_REG_LDR            0x0D0
#define HV_APIC_REG_DFR            0x0E0
#define HV_APIC_REG_SVR            0x0F0
#define HV_APIC_REG_ISR            0x100  ///< 8 registers, 16 bytes apart
#define HV_APIC_REG_TMR            0x180  ///< 8 registers
#define HV_APIC_REG_IRR            0x200  ///< 8 registers
#define HV_APIC_REG_ESR            0x280
#define HV_APIC_REG_LVT_CMCI       0x2F0
#define HV_APIC_REG_ICR_LOW        0x300
#define HV_APIC_REG_ICR_HIGH       0x310
#define HV_APIC_REG_LVT_TIMER      0x320
#define HV_APIC_REG_LVT_THERMAL    0x330
#define HV_APIC_REG_LVT_PERFMON    0x340
#define HV_APIC_REG_LVT_LINT0      0x350
#define HV_APIC_REG_LVT_LINT1      0x360
#define HV_APIC_REG_LVT_ERROR      0x370
#define HV_APIC_REG_TIMER_INITIAL  0x380
#define HV_APIC_REG_TIMER_CURRENT  0x390
#define HV_APIC_REG_TIMER_DIVIDE   0x3E0
#define HV_APIC_REG_SELF_IPI       0x3F0  ///< x2APIC only

#define HV_X2APIC_MSR_BASE      0x800
#define HV_X2APIC_MSR_ICR       0x830
#define HV_X2APIC_MSR_SELF_IPI  0x83F

//
// Delivery modes (SDM APIC.6.1).
//
#define HV_IPI_FIXED            0
#define HV_IPI_LOWEST_PRIORITY  1
#define HV_IPI_SMI              2
#define HV_IPI_REMOTE_READ      3
#define HV_IPI_NMI              4
#define HV_IPI_INIT             5
#define HV_IPI_STARTUP          6
#define HV_IPI_EXTINT           7

//
// Destination shorthands.
//
#define HV_IPI_TO_DESTINATION  0
#define HV_IPI_TO_SELF         1
#define HV_IPI_TO_ALL          2
#define HV_IPI_TO_OTHERS       3

typedef struct {
  UINT8      DeliveryMode;  ///< HV_IPI_FIXED ...
  UINT8      Vector;
  BOOLEAN    Level;         ///< TRUE: assert
  BOOLEAN    Trigger;       ///< TRUE: level-triggered
  UINT8      Shorthand;     ///< HV_IPI_TO_*
  BOOLEAN    Logical;       ///< Destination mode
  UINT32     Destination;   ///< 8 bits in xAPIC mode, 32 bits in x2APIC mode
} HV_IPI;

typedef struct {
  UINT32    ApicId;  ///< 32 bits. An id above 254 cannot be reached from xAPIC mode but by a broadcast.
  UINT32    Ldr;     ///< The LDR register as it is read in xAPIC mode (id in bits 31:24); not used in x2APIC mode
  UINT32    Dfr;     ///< The DFR register (model in bits 31:28); not used in x2APIC mode
} HV_APIC_ID;

/**
  Takes a command apart.

  @par Context: Any

  @param[in]  Icr     The 64-bit ICR: the MSR's value, or in xAPIC mode (ICR_HIGH << 32) | ICR_LOW.
  @param[in]  X2Apic  TRUE in x2APIC mode.
  @param[out] Ipi     What it says. Always set.

  @retval RETURN_SUCCESS            The command is well-formed.
  @retval RETURN_INVALID_PARAMETER  x2APIC mode, and one of the reserved bits 13, 17:16, 31:20 is set: WRMSR raises #GP
                                    (SDM APIC.12.9). In xAPIC mode reserved bits are ignored.
**/
RETURN_STATUS
EFIAPI
HvApicDecodeIcr (
  IN  UINT64   Icr,
  IN  BOOLEAN  X2Apic,
  OUT HV_IPI   *Ipi
  );

/**
  Tells whether an interrupt command is an ordinary IPI: fixed delivery, edge-triggered, no reserved bit set.

  @param[in] Low  The lower half of the command.

  @retval TRUE   It is, and so neither INIT nor SIPI.
  @retval FALSE  It may be anything.

  @par Context: Any
**/
STATIC inline BOOLEAN
HvApicIsFixed (
  IN UINT32  Low
  )
{
  return (BOOLEAN)((Low & ~(UINT32)HV_APIC_ICR_FIXED) == 0);
}

/**
  Tells whether one processor is addressed by an IPI.

  The sender's APIC mode decides how the destination is read; all processors are taken to be in that mode. (A physical
  destination below 255 also reaches a processor in the other mode.) For lowest priority, these are the candidates.

  @par Context: Any

  @param[in] Ipi     The IPI.
  @param[in] X2Apic  TRUE in x2APIC mode.
  @param[in] IsSelf  TRUE if the processor is the sender itself.
  @param[in] Id      The processor's ids.

  @retval TRUE   It is.
  @retval FALSE  It is not.
**/
BOOLEAN
EFIAPI
HvApicIsTarget (
  IN CONST HV_IPI      *Ipi,
  IN BOOLEAN           X2Apic,
  IN BOOLEAN           IsSelf,
  IN CONST HV_APIC_ID  *Id
  );

/**
  Gives all processors that are addressed by an IPI, as in HvApicIsTarget().

  Shorthands "self" and "all including self" together with INIT or Start-up are not valid (SDM APIC.6.1, table of valid
  combinations) and what processors do with them is not defined; this function answers what the address says.

  @par Context: Any

  @param[in]  Ipi          The IPI.
  @param[in]  X2Apic       TRUE in x2APIC mode.
  @param[in]  Self         Index of the sender in Ids.
  @param[in]  Ids          The ids of all processors.
  @param[in]  Count        Number of processors.
  @param[out] Bitmap       Bit n of the whole is set if processor n is addressed, all other bits are cleared.
  @param[in]  BitmapWords  Number of 64-bit words in Bitmap.

  @retval RETURN_SUCCESS            Bitmap is set; no bit is set if nobody is addressed.
  @retval RETURN_INVALID_PARAMETER  A pointer is NULL, or Self is not below Count.
  @retval RETURN_BUFFER_TOO_SMALL   Bitmap has fewer than Count bits.
**/
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
  );

/**
  Tells whether an IPI is an INIT that resets its targets.

  @par Context: Any

  @param[in] Ipi  The IPI.

  @retval TRUE   INIT, not the level de-assert.
  @retval FALSE  Anything else.
**/
BOOLEAN
EFIAPI
HvIpiIsInit (
  IN CONST HV_IPI  *Ipi
  );

/**
  Tells whether an IPI is an INIT level de-assert (level 0 and level-triggered). Processors since the Pentium 4 do not
  act on it (SDM APIC.6.1): it is to be dropped.

  @par Context: Any

  @param[in] Ipi  The IPI.

  @retval TRUE   INIT level de-assert.
  @retval FALSE  Anything else.
**/
BOOLEAN
EFIAPI
HvIpiIsInitDeassert (
  IN CONST HV_IPI  *Ipi
  );

/**
  Tells whether an IPI is an NMI.

  @par Context: Any

  @param[in] Ipi  The IPI.

  @retval TRUE   NMI; the vector means nothing.
  @retval FALSE  Anything else.
**/
BOOLEAN
EFIAPI
HvIpiIsNmi (
  IN CONST HV_IPI  *Ipi
  );

/**
  Tells whether an IPI is a Start-up IPI.

  @par Context: Any

  @param[in] Ipi  The IPI.

  @retval TRUE   Start-up; Ipi->Vector is the page it starts in.
  @retval FALSE  Anything else.
**/
BOOLEAN
EFIAPI
HvIpiIsSipi (
  IN CONST HV_IPI  *Ipi
  );

/**
  Gives the x2APIC MSR of a register of the APIC page (SDM APIC.12.1.2).

  @par Context: Any

  @param[in] Offset  Offset in the APIC page.

  @return Number of the MSR, or 0 if Offset is not the start of a register that exists in x2APIC mode (ICR_HIGH and DFR
          do not).
**/
UINT32
EFIAPI
HvApicRegisterMsr (
  IN UINT32  Offset
  );

#endif
