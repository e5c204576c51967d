/** @file
  Prints what each processor sees of the hypervisor, and its counters, in the lines of the Linux self-check hvcheck.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <PiDxe.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/PrintLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Protocol/MpService.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvExitKind.h>
#include <Generated/HvStatus.h>

#define WHEN        L"shell"
#define TIMEOUT_US  10000000
#define LINE_MAX    1024

#define KIND_NAME(Kind, Name)  Name,

STATIC CONST CHAR8  *CONST  mKinds[HvExitKindCount] = {
  HV_EXIT_KIND_LIST (KIND_NAME)
};

///
/// CPUID as a processor sees it.
///
typedef struct {
  BOOLEAN    Seen;
  UINT32     ApicId;
  CHAR8      Signature[13];
  UINT32     Interface;
  UINT32     Features;
  UINT32     Backend;
  UINT32     Index;
  BOOLEAN    Svm;
  BOOLEAN    Vmx;
} VIEW;

typedef struct {
  EFI_MP_SERVICES_PROTOCOL    *Mp;
  VIEW                        *Views;
} CONTEXT;

STATIC
CONST CHAR8 *
BackendName (
  IN UINT32  Backend
  )
{
  switch (Backend) {
    case HV_CPUID_BACKEND_VMX:
      return "vmx";
    case HV_CPUID_BACKEND_SVM:
      return "svm";
    case 0:
      return "none";
    default:
      return "unknown";
  }
}

STATIC
VOID
EFIAPI
Look (
  IN VOID  *Buffer
  )
{
  CONTEXT  *Context;
  VIEW     *View;
  UINTN    Self;
  UINTN    Byte;
  UINT32   Max;
  UINT32   Ebx;
  UINT32   Ecx;
  UINT32   Words[3];

  Context = Buffer;
  if (EFI_ERROR (Context->Mp->WhoAmI (Context->Mp, &Self))) {
    return;
  }

  View = &Context->Views[Self];
  AsmCpuid (HV_CPUID_1, NULL, &Ebx, &Ecx, NULL);
  View->ApicId = Ebx >> HV_CPUID_1_EBX_APIC_ID_SHIFT;
  View->Vmx    = (BOOLEAN)((Ecx & HV_CPUID_1_ECX_VMX) != 0);
  AsmCpuid (HV_CPUID_0, &Max, NULL, NULL, NULL);
  if (Max >= HV_CPUID_B) {
    AsmCpuidEx (HV_CPUID_B, 0, NULL, &Ebx, NULL, &Words[0]);
    if (Ebx != 0) {
      View->ApicId = Words[0];
    }
  }

  AsmCpuid (HV_CPUID_80000001, NULL, NULL, &Ecx, NULL);
  View->Svm = (BOOLEAN)((Ecx & HV_CPUID_80000001_ECX_SVM) != 0);
  AsmCpuid (HV_CPUID_40000000, NULL, &Words[0], &Words[1], &Words[2]);
  CopyMem (View->Signature, Words, sizeof (Words));
  for (Byte = 0; Byte < sizeof (Words); Byte++) {
    if ((View->Signature[Byte] <= ' ') || (View->Signature[Byte] > '~')) {
      View->Signature[Byte] = '.';
    }
  }

  if (CompareMem (Words, HV_CPUID_SIGNATURE, sizeof (Words)) == 0) {
    AsmCpuid (HV_CPUID_40000001, &View->Interface, &View->Features, &View->Backend, &View->Index);
  }

  View->Seen = TRUE;
}

STATIC
VOID
PrintRows (
  IN CONST HV_STATUS_HEADER  *Status,
  IN UINTN                   Offset
  )
{
  CONST UINT64  *Row;
  CHAR8         Line[LINE_MAX];
  UINTN         Used;
  UINT64        Total;
  UINT32        Cpu;
  UINT32        Kind;

  Row = (CONST UINT64 *)((UINTN)Status + Offset);
  for (Cpu = 0; Cpu < Status->CpuCount; Cpu++, Row += HV_EXIT_KIND_MAX) {
    Line[0] = '\0';
    Used    = 0;
    Total   = 0;
    for (Kind = 0; Kind < MIN (Status->KindCount, HvExitKindCount); Kind++) {
      if (Row[Kind] != 0) {
        Total += Row[Kind];
        Used  += AsciiSPrint (Line + Used, sizeof (Line) - Used, " %a=%lu", mKinds[Kind], Row[Kind]);
      }
    }

    Print (L"hvcheck: exits when=" WHEN L" cpu=%d%a total=%lu\n", Cpu, Line, Total);
  }
}

STATIC
VOID
PrintStatus (
  IN CONST HV_STATUS_HEADER  *Status
  )
{
  STATIC CONST CHAR8  *CONST  Sizes[8] = { "none", "4k", "2m", "4k,2m", "1g", "4k,1g", "2m,1g", "4k,2m,1g" };

  Print (
    L"hvcheck: status version=%d vendor=%a cpus=%d kinds=%d virtualised=%d reserved=%lu nested=%lu page_sizes=%a dma=%d boot_done=%lu\n",
    Status->Version,
    BackendName (Status->Vendor),
    Status->CpuCount,
    Status->KindCount,
    Status->Virtualised,
    Status->ReservedBytes,
    Status->NestedBytes,
    Sizes[Status->NestedPageSizes & 7],
    Status->Dma,
    Status->BootDone
    );
  PrintRows (Status, HV_STATUS_EXITS_OFFSET (Status->CpuCount));
}

/**
  Prints the view of each processor, then the status page.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS       Printed.
  @retval EFI_NOT_STARTED   There is no hypervisor; the views are printed all the same.
  @retval EFI_DEVICE_ERROR  A processor did not answer.
  @retval Others            The firmware refused a call.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvStatusMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  CONTEXT                 Context;
  CONST HV_STATUS_HEADER  *Page;
  CONST VIEW              *View;
  EFI_STATUS              Status;
  UINTN                   Cpus;
  UINTN                   Enabled;
  UINTN                   Index;
  UINT32                  Low;
  UINT32                  High;

  Status = gBS->LocateProtocol (&gEfiMpServiceProtocolGuid, NULL, (VOID **)&Context.Mp);
  if (!EFI_ERROR (Status)) {
    Status = Context.Mp->GetNumberOfProcessors (Context.Mp, &Cpus, &Enabled);
  }

  if (EFI_ERROR (Status)) {
    Print (L"HvStatus: no MP services: %r\n", Status);
    return Status;
  }

  Context.Views = AllocateZeroPool (Cpus * sizeof (VIEW));
  if (Context.Views == NULL) {
    return EFI_OUT_OF_RESOURCES;
  }

  Look (&Context);
  if (Cpus > 1) {
    Status = Context.Mp->StartupAllAPs (Context.Mp, Look, FALSE, NULL, TIMEOUT_US, &Context, NULL);
  }

  Page = NULL;
  for (Index = 0; Index < Cpus; Index++) {
    View = &Context.Views[Index];
    if (!View->Seen) {
      Print (L"HvStatus: cpu %d did not answer\n", Index);
      Status = EFI_DEVICE_ERROR;
      continue;
    }

    Print (
      L"hvcheck: cpu when=" WHEN L" id=%d apic=%d signature=%a interface=%d features=0x%x backend=%a index=%d svm=%d vmx=%d\n",
      Index,
      View->ApicId,
      View->Signature,
      View->Interface,
      View->Features,
      BackendName (View->Backend),
      View->Index,
      View->Svm,
      View->Vmx
      );
    if (View->Interface != 0) {
      AsmCpuid (HV_CPUID_40000002, &Low, &High, NULL, NULL);
      Page = (CONST HV_STATUS_HEADER *)(UINTN)(LShiftU64 (High, 32) | Low);
    }
  }

  FreePool (Context.Views);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  if (Page == NULL) {
    Print (L"HvStatus: no hypervisor\n");
    return EFI_NOT_STARTED;
  }

  PrintStatus (Page);
  return EFI_SUCCESS;
}
