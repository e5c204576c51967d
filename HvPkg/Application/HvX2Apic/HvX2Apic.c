/** @file
  An application that puts the boot processor's local APIC into x2APIC mode, as firmware of large machines does.

  EDK2 takes the other processors back to the mode of their start with each call of MP services, so those are left to the
  operating system: Linux follows the boot processor.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Library/BaseLib.h>
#include <Library/UefiLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>

/**
  Switches and prints the result.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS       The APIC is in x2APIC mode.
  @retval EFI_UNSUPPORTED   There is no x2APIC.
  @retval EFI_DEVICE_ERROR  The processor did not take it.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvX2ApicMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  EFI_STATUS  Status;
  UINT64      Base;
  UINT32      Ecx;

  AsmCpuid (HV_CPUID_1, NULL, NULL, &Ecx, NULL);
  Base = AsmReadMsr64 (HV_MSR_APIC_BASE);
  if ((Ecx & HV_CPUID_1_ECX_X2APIC) == 0) {
    Status = EFI_UNSUPPORTED;
  } else {
    AsmWriteMsr64 (HV_MSR_APIC_BASE, Base | HV_APIC_BASE_EXTD);
    Base   = AsmReadMsr64 (HV_MSR_APIC_BASE);
    Status = ((Base & HV_APIC_BASE_EXTD) != 0) ? EFI_SUCCESS : EFI_DEVICE_ERROR;
  }

  Print (L"HvX2Apic: apic-base=0x%lx result=%r\n", Base, Status);
  return Status;
}
