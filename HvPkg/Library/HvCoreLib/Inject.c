/** @file
  The test option inject: exceptions in host life.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define NOT_MAPPED     0x00007FFFFFFFF000ULL
#define NOT_CANONICAL  0x8000000000000000ULL

///
/// A quarter of a page of stack for each call, and no end that is ever reached.
///
STATIC
UINT64
Overflow (
  IN UINT64  Depth
  )
{
  volatile UINT8  Page[EFI_PAGE_SIZE / 4];

  Page[0] = (UINT8)Depth;
  return (Depth == MAX_UINT64) ? 0 : Overflow (Depth + 1) + Page[0];
}

UINT64
HvCoreInject (
  IN CONST HV_HOST  *Host,
  IN UINT64         Vector
  )
{
  if (!Host->Inject) {
    return HV_HC_UNKNOWN;
  }

  switch (Vector) {
    case HV_VECTOR_DE:
      __asm__ __volatile__ ("xorl %%ecx, %%ecx; movl $1, %%eax; cdq; idivl %%ecx" : : : "eax", "ecx", "edx", "cc");
      return HV_HC_OK;
    case HV_VECTOR_UD:
      __asm__ __volatile__ ("ud2");
      return HV_HC_OK;
    case HV_VECTOR_DF:
      return (Overflow (0) == 0) ? HV_HC_OK : HV_HC_BAD_ARGUMENT;
    case HV_VECTOR_GP:
      *(volatile UINT64 *)(UINTN)NOT_CANONICAL = 0;
      return HV_HC_OK;
    case HV_VECTOR_PF:
      *(volatile UINT64 *)(UINTN)NOT_MAPPED = 0;
      return HV_HC_OK;
    default:
      return HV_HC_BAD_ARGUMENT;
  }
}
