/** @file
  Runs the mailbox library on real threads.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_STRESS_H_
#define HV_STRESS_H_

extern UINT32  gHvTestFailEvery;

typedef struct {
  UINT64    Kicks;        ///< Posts that said that a kick is needed
  UINT64    Takes;        ///< Takes that found something
  UINT64    Seen[32];     ///< Times that each flag was taken, by bit
  UINT64    Resets;       ///< HV_MP_ACTION_RESET
  UINT64    Starts;       ///< HV_MP_ACTION_START
  UINT64    BadVectors;   ///< Starts at another vector than the one that was sent
  UINT64    Lost;         ///< Senders that waited in vain
} HV_STRESS;

/**
  One owner takes; one thread sends INIT-SIPI-SIPI, one for each flag sends that flag. Each waits until what it sent has
  arrived before it goes on.

  @param[in]  Rounds  Number of times that each sender sends.
  @param[out] Result  What was seen.
**/
VOID
HvStressMailbox (
  IN  UINT64     Rounds,
  OUT HV_STRESS  *Result
  );

/**
  Several threads take pages from one pool until it is empty.

  @param[in,out] Pool     The pool.
  @param[in]     Threads  Number of threads, at most 8.
  @param[out]    Owner    For each page of the pool, by whom it was taken (1...), or 255 if by more than one.

  @return Number of pages that were taken.
**/
UINT64
HvStressPool (
  IN OUT HV_PAGE_POOL  *Pool,
  IN     UINT32        Threads,
  OUT    UINT8         *Owner
  );

#endif
