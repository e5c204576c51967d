/** @file
  Reads and writes the reserved memory of the hypervisor, which must read as ones and keep nothing.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/UefiLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvStatus.h>

#define PATTERN  0x5AA5A55A0FF0F00FULL

STATIC
BOOLEAN
AllOnes (
  IN UINTN  Address
  )
{
  return (BOOLEAN)((*(volatile UINT8 *)Address == MAX_UINT8) && (*(volatile UINT16 *)Address == MAX_UINT16) &&
                   (*(volatile UINT32 *)Address == MAX_UINT32) && (*(volatile UINT64 *)Address == MAX_UINT64));
}

STATIC
VOID
WriteAll (
  IN UINTN  Address
  )
{
  *(volatile UINT8 *)Address  = (UINT8)PATTERN;
  *(volatile UINT16 *)Address = (UINT16)PATTERN;
  *(volatile UINT32 *)Address = (UINT32)PATTERN;
  *(volatile UINT64 *)Address = PATTERN;
}

/**
  Looks at every page of the reserved block.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS             Host memory reads as ones and keeps nothing; what is shared is not writable.
  @retval EFI_NOT_STARTED         There is no hypervisor.
  @retval EFI_SECURITY_VIOLATION  Something else was read: a line says where.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvReservedProbeMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  CONST HV_STATUS_HEADER  *Status;
  HV_STATUS_HEADER        Before;
  UINT32                  Eax;
  UINT32                  Ebx;
  UINT32                  Ecx;
  UINT32                  Edx;
  UINTN                   Address;
  UINTN                   End;
  UINTN                   Pages;
  UINTN                   Bad;

  AsmCpuid (HV_CPUID_40000000, NULL, &Ebx, &Ecx, &Edx);
  if ((Ebx != HV_CPUID_SIGNATURE_EBX) || (Ecx != HV_CPUID_SIGNATURE_ECX) || (Edx != HV_CPUID_SIGNATURE_EDX)) {
    Print (L"HvReservedProbe: no hypervisor\n");
    return EFI_NOT_STARTED;
  }

  // The shared part comes first in the block.
  AsmCpuid (HV_CPUID_40000002, &Eax, &Ebx, &Ecx, NULL);
  Status = (CONST HV_STATUS_HEADER *)(UINTN)(LShiftU64 (Ebx, 32) | Eax);
  End    = (UINTN)Status + (UINTN)Status->ReservedBytes;
  Pages  = 0;
  Bad    = 0;
  for (Address = (UINTN)Status + Ecx; Address < End; Address += EFI_PAGE_SIZE) {
    Pages++;
    if (!AllOnes (Address) || !AllOnes (Address + EFI_PAGE_SIZE - sizeof (UINT64))) {
      Bad++;
      Print (L"HvReservedProbe: %lx reads %lx\n", Address, *(volatile UINT64 *)Address);
      continue;
    }

    WriteAll (Address);
    WriteAll (Address + EFI_PAGE_SIZE - sizeof (UINT64));
    if (!AllOnes (Address) || !AllOnes (Address + EFI_PAGE_SIZE - sizeof (UINT64))) {
      Bad++;
      Print (L"HvReservedProbe: %lx keeps %lx\n", Address, *(volatile UINT64 *)Address);
    }
  }

  CopyMem (&Before, Status, sizeof (Before));
  WriteAll ((UINTN)Status);
  if (CompareMem (&Before, Status, sizeof (Before)) != 0) {
    Bad++;
    Print (L"HvReservedProbe: the status page is writable\n");
  }

  Print (L"HvReservedProbe: pages=%d bad=%d\n", Pages, Bad);
  return ((Bad == 0) && (Pages > 0)) ? EFI_SUCCESS : EFI_SECURITY_VIOLATION;
}
