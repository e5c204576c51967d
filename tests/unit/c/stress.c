/** @file
  Runs the mailbox and the page pool on real threads.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/HvMailboxLib.h>
#include <Library/HvPagingLib.h>
#include "stress.h"
#include <pthread.h>
#include <sched.h>
#include <time.h>

#define FLAG_SENDERS  4
#define THREADS_MAX   8
#define PATIENCE      20  // Seconds

STATIC CONST UINT32  mFlags[FLAG_SENDERS] = { HV_MAIL_FLUSH, HV_MAIL_PAUSE, HV_MAIL_STOP, HV_MAIL_PARK };

typedef struct {
  HV_MAILBOX         Mailbox;
  UINT64             Rounds;
  volatile UINT32    SendersLeft;
  volatile UINT64    Arrived[FLAG_SENDERS + 1];  // The last one: starts
  volatile UINT32    Vector;
  volatile UINT64    Kicks;
  volatile UINT64    Lost;
  HV_STRESS          *Result;
} SHARED;

typedef struct {
  SHARED    *Shared;
  UINT32    Number;
} SENDER;

STATIC
VOID
Wait (
  SHARED  *Shared,
  UINT32  Number,
  UINT64  Count
  )
{
  struct timespec  Start;
  struct timespec  Now;

  clock_gettime (CLOCK_MONOTONIC, &Start);
  while (Shared->Arrived[Number] < Count) {
    clock_gettime (CLOCK_MONOTONIC, &Now);
    if ((Now.tv_sec - Start.tv_sec > PATIENCE) || (Shared->Lost != 0)) {
      __sync_fetch_and_add (&Shared->Lost, 1);
      return;
    }

    sched_yield ();
  }
}

STATIC
void *
SendFlag (
  void  *Argument
  )
{
  SENDER  *Sender;
  UINT64  Round;

  Sender = Argument;
  for (Round = 1; Round <= Sender->Shared->Rounds && Sender->Shared->Lost == 0; Round++) {
    if (HvMailboxPost (&Sender->Shared->Mailbox, mFlags[Sender->Number])) {
      __sync_fetch_and_add (&Sender->Shared->Kicks, 1);
    }

    Wait (Sender->Shared, Sender->Number, Round);
  }

  __sync_fetch_and_sub (&Sender->Shared->SendersLeft, 1);
  return NULL;
}

STATIC
void *
SendInit (
  void  *Argument
  )
{
  SENDER  *Sender;
  SHARED  *Shared;
  UINT64  Round;
  UINT8   Vector;
  UINTN   Kicks;

  Sender = Argument;
  Shared = Sender->Shared;
  for (Round = 1; Round <= Shared->Rounds && Shared->Lost == 0; Round++) {
    Vector         = (UINT8)(Round % 251);
    Shared->Vector = Vector;
    Kicks          = HvMailboxPostInit (&Shared->Mailbox) ? 1 : 0;
    Kicks         += HvMailboxPostSipi (&Shared->Mailbox, Vector) ? 1 : 0;
    Wait (Shared, Sender->Number, Round);

    //
    // The second SIPI meets a processor that runs: nothing may happen.
    //
    Kicks += HvMailboxPostSipi (&Shared->Mailbox, (UINT8)(Vector + 1)) ? 1 : 0;
    __sync_fetch_and_add (&Shared->Kicks, Kicks);
  }

  __sync_fetch_and_sub (&Shared->SendersLeft, 1);
  return NULL;
}

STATIC
void *
Own (
  void  *Argument
  )
{
  SHARED        *Shared;
  HV_STRESS     *Result;
  HV_MP_STATE   State;
  HV_MP_ACTION  Action;
  HV_MAIL       Mail;
  BOOLEAN       Last;
  UINT32        Index;

  Shared = Argument;
  Result = Shared->Result;
  State  = HvMpRunning;
  do {
    Last = (BOOLEAN)(Shared->SendersLeft == 0);
    if (!HvMailboxTake (&Shared->Mailbox, &Mail)) {
      sched_yield ();
      continue;
    }

    Last = FALSE;
    Result->Takes++;
    for (Index = 0; Index < 32; Index++) {
      Result->Seen[Index] += (Mail.Flags >> Index) & 1;
    }

    State           = HvMpStateNext (State, FALSE, &Mail, &Action);
    Result->Resets += ((Action.Actions & HV_MP_ACTION_RESET) != 0) ? 1 : 0;
    if ((Action.Actions & HV_MP_ACTION_START) != 0) {
      Result->Starts++;
      Result->BadVectors += (Action.Vector != Shared->Vector) ? 1 : 0;
      Shared->Arrived[FLAG_SENDERS]++;
    }

    for (Index = 0; Index < FLAG_SENDERS; Index++) {
      Shared->Arrived[Index] += ((Mail.Flags & mFlags[Index]) != 0) ? 1 : 0;
    }
  } while (!Last);

  return NULL;
}

VOID
HvStressMailbox (
  IN  UINT64     Rounds,
  OUT HV_STRESS  *Result
  )
{
  SHARED     Shared;
  SENDER     Senders[FLAG_SENDERS + 1];
  pthread_t  Threads[FLAG_SENDERS + 2];
  UINT32     Index;

  Shared             = (SHARED) { .Rounds = Rounds, .SendersLeft = FLAG_SENDERS + 1, .Result = Result };
  *Result            = (HV_STRESS) { 0 };
  for (Index = 0; Index <= FLAG_SENDERS; Index++) {
    Senders[Index] = (SENDER) { &Shared, Index };
    pthread_create (&Threads[Index], NULL, (Index == FLAG_SENDERS) ? SendInit : SendFlag, &Senders[Index]);
  }

  pthread_create (&Threads[FLAG_SENDERS + 1], NULL, Own, &Shared);
  for (Index = 0; Index < FLAG_SENDERS + 2; Index++) {
    pthread_join (Threads[Index], NULL);
  }

  Result->Kicks = Shared.Kicks;
  Result->Lost  = Shared.Lost;
}

typedef struct {
  HV_PAGE_POOL       *Pool;
  UINT8              Number;
  UINT8              *Owner;
  volatile UINT64    *Taken;
} TAKER;

STATIC
void *
TakePages (
  void  *Argument
  )
{
  TAKER   *Taker;
  UINT64  Page;

  Taker = Argument;
  while ((Page = (UINT64)(UINTN)HvPagePoolTake (Taker->Pool)) != 0) {
    if (!__sync_bool_compare_and_swap (&Taker->Owner[(Page - Taker->Pool->Base) / 4096], 0, Taker->Number)) {
      Taker->Owner[(Page - Taker->Pool->Base) / 4096] = 255;
    }

    __sync_fetch_and_add (Taker->Taken, 1);
  }

  return NULL;
}

UINT64
HvStressPool (
  IN OUT HV_PAGE_POOL  *Pool,
  IN     UINT32        Threads,
  OUT    UINT8         *Owner
  )
{
  TAKER            Takers[THREADS_MAX];
  pthread_t        Ids[THREADS_MAX];
  volatile UINT64  Taken;
  UINT32           Index;

  Taken = 0;
  for (Index = 0; Index < Threads && Index < THREADS_MAX; Index++) {
    Takers[Index] = (TAKER) { Pool, (UINT8)(Index + 1), Owner, &Taken };
    pthread_create (&Ids[Index], NULL, TakePages, &Takers[Index]);
  }

  for (Index = 0; Index < Threads && Index < THREADS_MAX; Index++) {
    pthread_join (Ids[Index], NULL);
  }

  return Taken;
}
