/** @file
  What the pure libraries take from MdePkg, for tests on the build machine.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseMemoryLib.h>
#include <Library/SynchronizationLib.h>
#include <Library/HvMailboxLib.h>
#include <Library/HvPagingLib.h>
#include "stress.h"

//
// Every n-th compare-exchange fails, as if another processor had been faster. 0: none.
//
UINT32         gHvTestFailEvery;
STATIC UINT32  mExchanges;

STATIC
BOOLEAN
Fails (
  VOID
  )
{
  return (BOOLEAN)((gHvTestFailEvery != 0) && (++mExchanges % gHvTestFailEvery == 0));
}

VOID *
EFIAPI
ZeroMem (
  OUT VOID   *Buffer,
  IN  UINTN  Length
  )
{
  return __builtin_memset (Buffer, 0, Length);
}

UINT32
EFIAPI
InterlockedCompareExchange32 (
  IN OUT volatile UINT32  *Value,
  IN     UINT32           CompareValue,
  IN     UINT32           ExchangeValue
  )
{
  if (Fails ()) {
    return ~CompareValue;
  }

  return __sync_val_compare_and_swap (Value, CompareValue, ExchangeValue);
}

UINT64
EFIAPI
InterlockedCompareExchange64 (
  IN OUT volatile UINT64  *Value,
  IN     UINT64           CompareValue,
  IN     UINT64           ExchangeValue
  )
{
  if (Fails ()) {
    return ~CompareValue;
  }

  return __sync_val_compare_and_swap (Value, CompareValue, ExchangeValue);
}
