/** @file
  The registry of backends.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

STATIC CONST HV_BACKEND_OPS  *mBackends[2];
STATIC UINTN                 mBackendCount;

RETURN_STATUS
EFIAPI
HvBackendRegister (
  IN CONST HV_BACKEND_OPS  *Ops
  )
{
  if (mBackendCount == ARRAY_SIZE (mBackends)) {
    return RETURN_OUT_OF_RESOURCES;
  }

  mBackends[mBackendCount++] = Ops;
  return RETURN_SUCCESS;
}

CONST HV_BACKEND_OPS *
HvBackendGet (
  IN UINTN  Index
  )
{
  return (Index < mBackendCount) ? mBackends[Index] : NULL;
}
