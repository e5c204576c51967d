/** @file
  Gives Bochs the ACPI tables that OVMF gets from QEMU's fw_cfg device, and that Bochs before 3.1 does not have.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "Tables.h"

#include <Guid/Acpi.h>
#include <Library/IoLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Protocol/AcpiTable.h>
#include <Protocol/ResetNotification.h>

#define TABLE_COUNT  4

STATIC
EFI_STATUS
InstallAll (
  IN EFI_ACPI_TABLE_PROTOCOL      *Acpi,
  IN EFI_ACPI_DESCRIPTION_HEADER  *Tables[TABLE_COUNT]
  )
{
  EFI_STATUS  Status;
  UINTN       Keys[TABLE_COUNT];
  UINTN       Done;

  for (Done = 0; Done < TABLE_COUNT; Done++) {
    Status = EFI_OUT_OF_RESOURCES;
    if (Tables[Done] != NULL) {
      Status = Acpi->InstallAcpiTable (Acpi, Tables[Done], Tables[Done]->Length, &Keys[Done]);
    }

    if (EFI_ERROR (Status)) {
      // Half a set of tables is worse than none: an operating system would trust it.
      while (Done > 0) {
        Acpi->UninstallAcpiTable (Acpi, Keys[--Done]);
      }

      return Status;
    }
  }

  return EFI_SUCCESS;
}

// The firmware's own reset is the one that does not come back.
STATIC
VOID
EFIAPI
OnReset (
  IN EFI_RESET_TYPE  Type,
  IN EFI_STATUS      Status,
  IN UINTN           Size,
  IN VOID            *Data OPTIONAL
  )
{
  if (Type != EfiResetShutdown) {
    IoWrite8 (BOCHS_RESET_PORT, BOCHS_RESET_VALUE);
  }
}

/**
  Installs the tables where there are none, and a reset that works.

  @param[in] ImageHandle  This driver.
  @param[in] SystemTable  The EFI system table.

  @retval EFI_SUCCESS          The tables are installed.
  @retval EFI_ALREADY_STARTED  The firmware has ACPI tables: nothing was changed.
  @retval EFI_UNSUPPORTED      This is no i440FX machine, so the tables would be wrong.
  @retval other                A protocol is missing, or a table could not be made or installed; none is.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
BochsAcpiEntry (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  EFI_STATUS                       Status;
  EFI_ACPI_TABLE_PROTOCOL          *Acpi;
  EFI_MP_SERVICES_PROTOCOL         *Mp;
  EFI_RESET_NOTIFICATION_PROTOCOL  *Reset;
  EFI_ACPI_DESCRIPTION_HEADER      *Tables[TABLE_COUNT];
  UINTN                            Index;
  VOID                             *Rsdp;

  if (!EFI_ERROR (EfiGetSystemConfigurationTable (&gEfiAcpi20TableGuid, &Rsdp)) ||
      !EFI_ERROR (EfiGetSystemConfigurationTable (&gEfiAcpi10TableGuid, &Rsdp)))
  {
    return EFI_ALREADY_STARTED;
  }

  if (!BochsIsI440Fx ()) {
    return EFI_UNSUPPORTED;
  }

  Status = gBS->LocateProtocol (&gEfiAcpiTableProtocolGuid, NULL, (VOID **)&Acpi);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Status = gBS->LocateProtocol (&gEfiMpServiceProtocolGuid, NULL, (VOID **)&Mp);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Status = gBS->LocateProtocol (&gEfiResetNotificationProtocolGuid, NULL, (VOID **)&Reset);
  if (!EFI_ERROR (Status)) {
    Status = Reset->RegisterResetNotify (Reset, OnReset);
  }

  if (EFI_ERROR (Status)) {
    return Status;
  }

  Tables[0] = BochsMakeFacs ();
  Tables[1] = BochsMakeDsdt ();
  Tables[2] = BochsMakeFadt ();
  Tables[3] = BochsMakeMadt (Mp);
  Status    = InstallAll (Acpi, Tables);
  for (Index = 0; Index < TABLE_COUNT; Index++) {
    if (Tables[Index] != NULL) {
      FreePool (Tables[Index]);
    }
  }

  if (EFI_ERROR (Status)) {
    Reset->UnregisterResetNotify (Reset, OnReset);
  }

  return Status;
}
