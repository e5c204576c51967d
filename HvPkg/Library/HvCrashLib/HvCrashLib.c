/** @file
  The record that a host exception leaves in reserved memory, for the next boot to find.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/HvCrashLib.h>

STATIC
UINT64
Sum (
  IN CONST HV_CRASH_RECORD  *Record
  )
{
  CONST UINT64  *Word;
  UINT64        Total;

  Total = 0;
  for (Word = (CONST UINT64 *)Record; Word < (CONST UINT64 *)(Record + 1); Word++) {
    Total += *Word;
  }

  return Total;
}

UINT64
EFIAPI
HvCrashSeal (
  IN OUT HV_CRASH_RECORD  *Record
  )
{
  Record->Checksum = 0;
  Record->Checksum = 0 - Sum (Record);
  return Record->Checksum;
}

BOOLEAN
EFIAPI
HvCrashIsValid (
  IN CONST HV_CRASH_RECORD  *Record,
  IN UINT64                 Address
  )
{
  return (BOOLEAN)((Record->Signature == HV_CRASH_SIGNATURE) && (Record->Self == Address) && (Record->Claimed == 1) &&
                   (Record->StackWords <= HV_CRASH_STACK_WORDS) && (Sum (Record) == 0));
}
