/** @file
  Mailboxes that carry INIT, SIPI and requests of the host between processors, and the multiprocessor state machine.

  A mailbox belongs to one processor, which alone takes from it; every processor may post. It is one 32-bit word that
  changes by compare-exchange, so no lock is needed, also not in an NMI handler.

  The word keeps no queue. It keeps what a queue would amount to when it is taken:
  - INIT cancels a SIPI that came before it and was not taken: the processor is reset either way.
  - Of several SIPIs that were not taken the first counts: the second one would meet a processor that runs.
  - INIT and SIPI in one mail are INIT, then SIPI.
  - PAUSE and RUN cancel each other: the last one counts.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_MAILBOX_LIB_H_
#define HV_MAILBOX_LIB_H_

typedef struct {
  volatile UINT32    Word;  ///< 0: empty. Written by the functions below only; starts as 0.
} HV_MAILBOX;

//
// Requests of the host for HvMailboxPost().
//
#define HV_MAIL_FLUSH  0x00010000u  ///< Flush the nested translations
#define HV_MAIL_PAUSE  0x00020000u  ///< Stay in the host until RUN
#define HV_MAIL_RUN    0x00040000u  ///< End of PAUSE
#define HV_MAIL_STOP   0x00080000u  ///< Leave virtualization, go on natively (unload, failed launch)
#define HV_MAIL_PARK   0x00100000u  ///< Another processor met a fatal error: stop for good
#define HV_MAIL_NMI    0x00200000u  ///< An NMI that the guest sent
#define HV_MAIL_PORTS  0x00400000u  ///< Ports of sleep registers were found
#define HV_MAIL_FLAGS  0x007F0000u

typedef struct {
  BOOLEAN    Init;
  BOOLEAN    Sipi;
  UINT8      Vector;  ///< Of the SIPI; 0 without one
  UINT32     Flags;   ///< HV_MAIL_FLUSH ...
} HV_MAIL;

typedef enum {
  HvMpNative,       ///< Not virtualised: INIT and SIPI are the hardware's business, mail does not change the state
  HvMpRunning,
  HvMpWaitForSipi,  ///< After INIT. Waits inside the hypervisor.
  HvMpHalted,       ///< In HLT
  HvMpShutdown,     ///< After a triple fault
  HvMpStateMax
} HV_MP_STATE;

//
// What the processor has to do to itself, in this order.
//
#define HV_MP_ACTION_RESET  0x01u  ///< Apply the INIT state (SDM Volume 3, table "IA-32 and Intel 64 Processor States
                                   ///< Following Power-up, Reset, or INIT"; APM2 14.1.3)
#define HV_MP_ACTION_BOOT   0x02u  ///< Boot processor after INIT: from the reset vector, CS base FFFF0000h, IP FFF0h
#define HV_MP_ACTION_START  0x04u  ///< Run from the SIPI vector: CS selector Vector << 8, base Vector << 12, IP 0

typedef struct {
  UINT32    Actions;  ///< HV_MP_ACTION_*
  UINT8     Vector;   ///< For HV_MP_ACTION_START; else 0
} HV_MP_ACTION;

/**
  Posts an INIT. A SIPI that was not taken yet is cancelled.

  @par Context: Host

  @param[in,out] Mailbox  The target's mailbox.

  @retval TRUE   The mailbox was empty: the target has to be kicked.
  @retval FALSE  Something was pending; whoever posted that kicks, or has kicked, the target.
**/
BOOLEAN
EFIAPI
HvMailboxPostInit (
  IN OUT HV_MAILBOX  *Mailbox
  );

/**
  Posts a SIPI. If one is pending already the first one stays.

  @par Context: Host

  @param[in,out] Mailbox  The target's mailbox.
  @param[in]     Vector   The SIPI's vector.

  @retval TRUE   The mailbox was empty: the target has to be kicked.
  @retval FALSE  Something was pending.
**/
BOOLEAN
EFIAPI
HvMailboxPostSipi (
  IN OUT HV_MAILBOX  *Mailbox,
  IN     UINT8       Vector
  );

/**
  Posts requests of the host. Bits outside HV_MAIL_FLAGS are ignored; PAUSE together with RUN counts as PAUSE.

  @par Context: Host

  @param[in,out] Mailbox  The target's mailbox.
  @param[in]     Flags    HV_MAIL_FLUSH ...

  @retval TRUE   The mailbox was empty and no longer is: the target has to be kicked.
  @retval FALSE  Something was pending, or Flags has no request.
**/
BOOLEAN
EFIAPI
HvMailboxPost (
  IN OUT HV_MAILBOX  *Mailbox,
  IN     UINT32      Flags
  );

/**
  Takes everything out of the mailbox, at once. Only the owner calls it.

  @par Context: Host

  @param[in,out] Mailbox  The own mailbox.
  @param[out]    Mail     What was in it.

  @retval TRUE   There was something.
  @retval FALSE  The mailbox was empty; Mail is all zero.
**/
BOOLEAN
EFIAPI
HvMailboxTake (
  IN OUT HV_MAILBOX  *Mailbox,
  OUT    HV_MAIL     *Mail
  );

/**
  Looks into a mailbox and leaves everything there.

  @par Context: Host

  @param[in]  Mailbox  Any mailbox.
  @param[out] Mail     What is in it; may be NULL.

  @retval TRUE   There is something.
  @retval FALSE  The mailbox is empty.
**/
BOOLEAN
EFIAPI
HvMailboxPeek (
  IN  CONST HV_MAILBOX  *Mailbox,
  OUT HV_MAIL           *Mail     OPTIONAL
  );

/**
  Gives the state that a processor enters because of a mail, and what it has to do. Flags of the mail play no part.

  INIT resets a processor from every virtualised state. Then an application processor waits for a SIPI, and the
  boot processor (IA32_APIC_BASE.BSP = 1) runs from the reset vector (SDM Volume 3, "Multiple-Processor (MP)
  Initialization", on INITs after the protocol has completed). A SIPI counts in HvMpWaitForSipi only.

  @par Context: Host

  @param[in]  State          The present state.
  @param[in]  BootProcessor  TRUE if the guest's IA32_APIC_BASE has the BSP flag on this processor.
  @param[in]  Mail           What was taken.
  @param[out] Action         What has to be done.

  @return The new state; State itself, with no actions, if State is not valid.
**/
HV_MP_STATE
EFIAPI
HvMpStateNext (
  IN  HV_MP_STATE    State,
  IN  BOOLEAN        BootProcessor,
  IN  CONST HV_MAIL  *Mail,
  OUT HV_MP_ACTION   *Action
  );

#endif
