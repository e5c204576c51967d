/** @file
  Mailboxes for INIT, SIPI and requests of the host, and the multiprocessor state machine.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/SynchronizationLib.h>
#include <Library/HvMailboxLib.h>

//
// The word: SIPI vector in bits 7:0, these two, and HV_MAIL_FLAGS.
//
#define HV_WORD_VECTOR  0x000000FFu
#define HV_WORD_SIPI    0x00000100u
#define HV_WORD_INIT    0x00000200u

/**
  Changes a mailbox: clears some bits, then sets some.

  @param[in,out] Mailbox  The mailbox.
  @param[in]     Clear    Bits to clear.
  @param[in]     Set      Bits to set.
  @param[in]     Unless   If one of these bits is set in the word, nothing is changed.

  @return The word as it was before.
**/
STATIC
UINT32
HvMailboxChange (
  IN OUT HV_MAILBOX  *Mailbox,
  IN     UINT32      Clear,
  IN     UINT32      Set,
  IN     UINT32      Unless
  )
{
  UINT32  Word;

  do {
    Word = Mailbox->Word;
    if ((Word & Unless) != 0) {
      break;
    }
  } while (InterlockedCompareExchange32 (&Mailbox->Word, Word, (Word & ~Clear) | Set) != Word);

  return Word;
}

/**
  Takes a word apart.

  @param[in]  Word  The word.
  @param[out] Mail  What it means.
**/
STATIC
VOID
HvMailboxUnpack (
  IN  UINT32   Word,
  OUT HV_MAIL  *Mail
  )
{
  Mail->Init   = (BOOLEAN)((Word & HV_WORD_INIT) != 0);
  Mail->Sipi   = (BOOLEAN)((Word & HV_WORD_SIPI) != 0);
  Mail->Vector = (UINT8)(Word & HV_WORD_VECTOR);
  Mail->Flags  = Word & HV_MAIL_FLAGS;
}

BOOLEAN
EFIAPI
HvMailboxPostInit (
  IN OUT HV_MAILBOX  *Mailbox
  )
{
  return (BOOLEAN)(HvMailboxChange (Mailbox, HV_WORD_SIPI | HV_WORD_VECTOR, HV_WORD_INIT, 0) == 0);
}

BOOLEAN
EFIAPI
HvMailboxPostSipi (
  IN OUT HV_MAILBOX  *Mailbox,
  IN     UINT8       Vector
  )
{
  return (BOOLEAN)(HvMailboxChange (Mailbox, HV_WORD_VECTOR, HV_WORD_SIPI | Vector, HV_WORD_SIPI) == 0);
}

BOOLEAN
EFIAPI
HvMailboxPost (
  IN OUT HV_MAILBOX  *Mailbox,
  IN     UINT32      Flags
  )
{
  UINT32  Clear;

  Flags &= HV_MAIL_FLAGS;
  Clear  = 0;
  if ((Flags & HV_MAIL_PAUSE) != 0) {
    Flags &= ~HV_MAIL_RUN;
    Clear  = HV_MAIL_RUN;
  } else if ((Flags & HV_MAIL_RUN) != 0) {
    Clear = HV_MAIL_PAUSE;
  }

  return (BOOLEAN)((Flags != 0) && (HvMailboxChange (Mailbox, Clear, Flags, 0) == 0));
}

BOOLEAN
EFIAPI
HvMailboxTake (
  IN OUT HV_MAILBOX  *Mailbox,
  OUT    HV_MAIL     *Mail
  )
{
  UINT32  Word;

  Word = HvMailboxChange (Mailbox, MAX_UINT32, 0, 0);
  HvMailboxUnpack (Word, Mail);
  return (BOOLEAN)(Word != 0);
}

BOOLEAN
EFIAPI
HvMailboxPeek (
  IN  CONST HV_MAILBOX  *Mailbox,
  OUT HV_MAIL           *Mail     OPTIONAL
  )
{
  UINT32  Word;

  Word = Mailbox->Word;
  if (Mail != NULL) {
    HvMailboxUnpack (Word, Mail);
  }

  return (BOOLEAN)(Word != 0);
}

HV_MP_STATE
EFIAPI
HvMpStateNext (
  IN  HV_MP_STATE    State,
  IN  BOOLEAN        BootProcessor,
  IN  CONST HV_MAIL  *Mail,
  OUT HV_MP_ACTION   *Action
  )
{
  Action->Actions = 0;
  Action->Vector  = 0;
  if ((State == HvMpNative) || ((UINT32)State >= HvMpStateMax)) {
    return State;
  }

  if (Mail->Init) {
    Action->Actions = HV_MP_ACTION_RESET;
    State           = HvMpWaitForSipi;
    if (BootProcessor) {
      Action->Actions |= HV_MP_ACTION_BOOT;
      State            = HvMpRunning;
    }
  }

  if (Mail->Sipi && (State == HvMpWaitForSipi)) {
    Action->Actions |= HV_MP_ACTION_START;
    Action->Vector   = Mail->Vector;
    State            = HvMpRunning;
  }

  return State;
}
