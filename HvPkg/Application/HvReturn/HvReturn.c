/** @file
  An application that returns: the least that a boot through the shell has to survive.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Library/UefiLib.h>

/**
  Prints a line and returns.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS  Always.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvReturnMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  Print (L"HvReturn: here and back\n");
  return EFI_SUCCESS;
}
