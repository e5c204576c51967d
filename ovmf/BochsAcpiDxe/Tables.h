/** @file
  ACPI tables of Bochs' i440FX machine, made in memory that the caller frees.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_TABLES_H_
#define HV_TABLES_H_

#include <Uefi.h>
#include <IndustryStandard/Acpi.h>
#include <Protocol/MpService.h>

//
// The reset of the processors alone. That of the devices as well (BIT1) leaves Bochs' power management enabled without
// its base address, and OVMF then waits for ever for the timer behind it.
//
#define BOCHS_RESET_PORT   0xCF9
#define BOCHS_RESET_VALUE  BIT2

/**
  Tells whether this is the machine that the tables describe.

  @retval TRUE   It has the i440FX's host bridge, and the PIIX4's power management with a base address.
  @retval FALSE  It is another one.

  @par Context: Boot
**/
BOOLEAN
BochsIsI440Fx (
  VOID
  );

/**
  Makes the FADT.

  @return The table; NULL without memory.

  @par Context: Boot
**/
EFI_ACPI_DESCRIPTION_HEADER *
BochsMakeFadt (
  VOID
  );

/**
  Makes the FACS.

  @return The table; NULL without memory.

  @par Context: Boot
**/
EFI_ACPI_DESCRIPTION_HEADER *
BochsMakeFacs (
  VOID
  );

/**
  Makes the MADT: every processor of the MP services, the I/O APIC and its overrides.

  @param[in] Mp  The MP services.

  @return The table; NULL without memory, or when the MP services fail.

  @par Context: Boot
**/
EFI_ACPI_DESCRIPTION_HEADER *
BochsMakeMadt (
  IN EFI_MP_SERVICES_PROTOCOL  *Mp
  );

/**
  Makes the DSDT, with the window for PCI devices' memory behind the machine's RAM.

  @return The table; NULL without memory, or when the compiled table has no such window.

  @par Context: Boot
**/
EFI_ACPI_DESCRIPTION_HEADER *
BochsMakeDsdt (
  VOID
  );

#endif
