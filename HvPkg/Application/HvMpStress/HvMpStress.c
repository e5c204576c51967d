/** @file
  Calls every processor through MP services, again and again, and looks that none escapes.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <PiDxe.h>
#include <Library/BaseLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Protocol/MpService.h>
#include <Generated/HvCpuid.h>

#define ROUNDS      100
#define TIMEOUT_US  10000000

///
/// What a processor saw, by its number.
///
typedef struct {
  UINTN    Calls;
  UINTN    Escapes; ///< calls in which CPUID did not have the signature
} SEEN;

typedef struct {
  EFI_MP_SERVICES_PROTOCOL    *Mp;
  SEEN                        *Seen;
} CONTEXT;

STATIC
BOOLEAN
UnderHvPkg (
  VOID
  )
{
  UINT32  Ebx;
  UINT32  Ecx;
  UINT32  Edx;

  AsmCpuid (HV_CPUID_40000000, NULL, &Ebx, &Ecx, &Edx);
  return (BOOLEAN)((Ebx == HV_CPUID_SIGNATURE_EBX) && (Ecx == HV_CPUID_SIGNATURE_ECX) && (Edx == HV_CPUID_SIGNATURE_EDX));
}

STATIC
VOID
EFIAPI
Look (
  IN VOID  *Buffer
  )
{
  CONTEXT  *Context;
  UINTN    Self;

  Context = Buffer;
  if (EFI_ERROR (Context->Mp->WhoAmI (Context->Mp, &Self))) {
    return;
  }

  Context->Seen[Self].Calls++;
  if (!UnderHvPkg ()) {
    Context->Seen[Self].Escapes++;
  }
}

/**
  Calls all application processors together, and each by itself, and looks at what they saw.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS       Each processor was called every time and was a guest every time.
  @retval EFI_DEVICE_ERROR  A call was lost, or a processor was no guest: its line says which.
  @retval Others            The firmware refused a call.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvMpStressMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  CONTEXT     Context;
  EFI_STATUS  Status;
  EFI_STATUS  Result;
  UINTN       Cpus;
  UINTN       Enabled;
  UINTN       Round;
  UINTN       Index;
  UINTN       Self;

  Status = gBS->LocateProtocol (&gEfiMpServiceProtocolGuid, NULL, (VOID **)&Context.Mp);
  if (!EFI_ERROR (Status)) {
    Status = Context.Mp->GetNumberOfProcessors (Context.Mp, &Cpus, &Enabled);
  }

  if (!EFI_ERROR (Status)) {
    Status = Context.Mp->WhoAmI (Context.Mp, &Self);
  }

  if (EFI_ERROR (Status)) {
    Print (L"HvMpStress: no MP services: %r\n", Status);
    return Status;
  }

  Context.Seen = AllocateZeroPool (Cpus * sizeof (SEEN));
  if (Context.Seen == NULL) {
    return EFI_OUT_OF_RESOURCES;
  }

  for (Round = 0; !EFI_ERROR (Status) && (Round < ROUNDS); Round++) {
    Look (&Context);
    if (Cpus == 1) {
      continue;
    }

    // All at once is a broadcast of INIT and SIPI, one by one is not.
    if ((Round & 1) == 0) {
      Status = Context.Mp->StartupAllAPs (Context.Mp, Look, FALSE, NULL, TIMEOUT_US, &Context, NULL);
    } else {
      for (Index = 0; !EFI_ERROR (Status) && (Index < Cpus); Index++) {
        if (Index != Self) {
          Status = Context.Mp->StartupThisAP (Context.Mp, Look, Index, NULL, TIMEOUT_US, &Context, NULL);
        }
      }
    }
  }

  if (EFI_ERROR (Status)) {
    Print (L"HvMpStress: round %d: %r\n", Round, Status);
    return Status;
  }

  Result = EFI_SUCCESS;
  for (Index = 0; Index < Cpus; Index++) {
    Print (L"HvMpStress: cpu=%d calls=%d escapes=%d\n", Index, Context.Seen[Index].Calls, Context.Seen[Index].Escapes);
    if ((Context.Seen[Index].Calls != ROUNDS) || (Context.Seen[Index].Escapes != 0)) {
      Result = EFI_DEVICE_ERROR;
    }
  }

  Print (L"HvMpStress: rounds=%d cpus=%d result=%r\n", ROUNDS, Cpus, Result);
  FreePool (Context.Seen);
  return Result;
}
