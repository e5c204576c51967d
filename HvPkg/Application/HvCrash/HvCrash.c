/** @file
  Raises an exception in the host by the hypercall crash, for which the test option inject has to be on:

    HvCrash.efi VECTOR PROCESSOR

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <PiDxe.h>
#include <Library/BaseLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Protocol/MpService.h>
#include <Protocol/ShellParameters.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvHypercall.h>

typedef struct {
  UINT32    Backend;
  UINT64    Vector;
  UINT64    Result;
} CRASH;

STATIC
VOID
EFIAPI
Crash (
  IN OUT VOID  *Buffer
  )
{
  CRASH  *Wanted;

  Wanted         = Buffer;
  Wanted->Result = HV_HC_CRASH;
  if (Wanted->Backend == HV_CPUID_BACKEND_VMX) {
    __asm__ __volatile__ ("vmcall" : "+a" (Wanted->Result) : "b" (Wanted->Vector) : "memory");
  } else {
    __asm__ __volatile__ ("vmmcall" : "+a" (Wanted->Result) : "b" (Wanted->Vector) : "memory");
  }
}

/**
  Crashes the hypervisor, if it was told to.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_NOT_STARTED        There is no hypervisor.
  @retval EFI_INVALID_PARAMETER  Two numbers are needed, and the hypervisor takes the first for a vector.
  @retval Others                 As the MP services say.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvCrashMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  EFI_SHELL_PARAMETERS_PROTOCOL  *Parameters;
  EFI_MP_SERVICES_PROTOCOL       *Mp;
  EFI_STATUS                     Status;
  CRASH                          Wanted;
  UINTN                          Processor;
  UINTN                          Self;
  UINT32                         Ebx;
  UINT32                         Ecx;
  UINT32                         Edx;

  AsmCpuid (HV_CPUID_40000000, NULL, &Ebx, &Ecx, &Edx);
  if ((Ebx != HV_CPUID_SIGNATURE_EBX) || (Ecx != HV_CPUID_SIGNATURE_ECX) || (Edx != HV_CPUID_SIGNATURE_EDX)) {
    Print (L"HvCrash: no hypervisor\n");
    return EFI_NOT_STARTED;
  }

  Status = gBS->HandleProtocol (ImageHandle, &gEfiShellParametersProtocolGuid, (VOID **)&Parameters);
  if (EFI_ERROR (Status) || (Parameters->Argc != 3)) {
    Print (L"HvCrash: a vector and a processor are needed\n");
    return EFI_INVALID_PARAMETER;
  }

  AsmCpuid (HV_CPUID_40000001, NULL, NULL, &Wanted.Backend, NULL);
  Wanted.Vector = StrDecimalToUintn (Parameters->Argv[1]);
  Processor     = StrDecimalToUintn (Parameters->Argv[2]);
  Status        = gBS->LocateProtocol (&gEfiMpServiceProtocolGuid, NULL, (VOID **)&Mp);
  if (!EFI_ERROR (Status)) {
    Status = Mp->WhoAmI (Mp, &Self);
  }

  if (EFI_ERROR (Status)) {
    return Status;
  }

  if (Processor == Self) {
    Crash (&Wanted);
  } else {
    Status = Mp->StartupThisAP (Mp, Crash, Processor, NULL, 0, &Wanted, NULL);
  }

  Print (L"HvCrash: still here: %r, %lx\n", Status, Wanted.Result);
  return EFI_ERROR (Status) ? Status : EFI_INVALID_PARAMETER;
}
