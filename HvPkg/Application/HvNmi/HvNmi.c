/** @file
  Sends NMIs to all processors while they execute CPUID, and counts what arrives: each one once at each processor. The next
  is sent when this one has arrived everywhere, because a processor keeps no more than one.

  HvNmi COUNT: they come from the timer (8254) by the I/O APIC, whose pin sends NMIs to all processors.
  HvNmi wait COUNT: they come from outside, by LINT1. It says where it counts, and ends behind as many.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <PiDxe.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvApicLib.h>
#include <Library/IoLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Protocol/LoadedImage.h>
#include <Protocol/MpService.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>

#define NMIS           10000   // where the command line has no number
#define CPUIDS_MAX     2000000 // behind a shot: then it is lost
#define CPUIDS_A_TURN  16
#define CPUIDS_BEHIND  20000   // behind the last one, for one that comes twice

#define IO_APIC_SELECT  0xFEC00000
#define IO_APIC_WINDOW  0xFEC00010
#define IO_APIC_PIN     2 // of the timer: the interrupt override that every PC has
#define IO_APIC_ROW     (0x10 + 2 * IO_APIC_PIN)

#define DELIVERY_NMI   0x400
#define MASKED         BIT16
#define TO_ALL         0xFF000000

#define PIT_CHANNEL_0     0x40
#define PIT_COMMAND       0x43
#define PIT_ONE_SHOT      0x30 // channel 0, both bytes, mode 0
#define PIC_MASK          0x21
#define PIC_MASK_TIMER    BIT0

typedef struct {
  IA32_IDT_GATE_DESCRIPTOR    Idt[256];
  volatile UINT64             Nmis; ///< NMI_COUNT of Nmi.nasm
  volatile UINT64             Cpuids;
  volatile BOOLEAN            Ready;
} NMI_CPU;

STATIC_ASSERT (OFFSET_OF (NMI_CPU, Nmis) == 4096, "Nmi.nasm");

typedef struct {
  EFI_MP_SERVICES_PROTOCOL    *Mp;
  NMI_CPU                     *Cpus;
  UINTN                       Count;
  UINTN                       Nmis; ///< to be sent
  BOOLEAN                     Wait; ///< they come by LINT1
  volatile BOOLEAN            Stop;
} CONTEXT;

VOID
EFIAPI
HvNmiStub (
  VOID
  );

STATIC
UINTN
Lint1 (
  VOID
  )
{
  return (UINTN)(AsmReadMsr64 (HV_MSR_APIC_BASE) & HV_APIC_BASE_ADDRESS_MASK) + HV_APIC_REG_LVT_LINT1;
}

///
/// What one processor changes to take NMIs, and how it was.
///
typedef struct {
  IA32_DESCRIPTOR    Idtr;
  UINT32             Lint1;
} SAVED;

STATIC
VOID
Begin (
  IN CONST CONTEXT  *Context,
  IN OUT NMI_CPU    *Cpu,
  OUT SAVED         *Saved
  )
{
  IA32_DESCRIPTOR           Own;
  IA32_IDT_GATE_DESCRIPTOR  *Gate;

  AsmReadIdtr (&Saved->Idtr);
  CopyMem (Cpu->Idt, (VOID *)Saved->Idtr.Base, MIN (sizeof (Cpu->Idt), (UINTN)Saved->Idtr.Limit + 1));
  Gate                   = &Cpu->Idt[HV_VECTOR_NMI];
  Gate->Bits.OffsetLow   = (UINT16)(UINTN)HvNmiStub;
  Gate->Bits.OffsetHigh  = (UINT16)((UINTN)HvNmiStub >> 16);
  Gate->Bits.OffsetUpper = (UINT32)((UINTN)HvNmiStub >> 32);
  Gate->Bits.Selector    = AsmReadCs ();
  Own.Base               = (UINTN)Cpu->Idt;
  Own.Limit              = sizeof (Cpu->Idt) - 1;
  AsmWriteIdtr (&Own);
  if (Context->Wait) {
    Saved->Lint1 = MmioRead32 (Lint1 ());
    MmioWrite32 (Lint1 (), DELIVERY_NMI);
  }

  Cpu->Ready = TRUE;
}

STATIC
VOID
End (
  IN CONST CONTEXT  *Context,
  IN CONST SAVED    *Saved
  )
{
  if (Context->Wait) {
    MmioWrite32 (Lint1 (), Saved->Lint1);
  }

  AsmWriteIdtr (&Saved->Idtr);
}

STATIC
VOID
ExecuteCpuid (
  IN OUT NMI_CPU  *Cpu
  )
{
  AsmCpuid (0, NULL, NULL, NULL, NULL);
  Cpu->Cpuids++;
  if ((Cpu->Cpuids % CPUIDS_A_TURN) == 0) {
    // An emulator that runs one processor at a time goes on to the next.
    CpuPause ();
  }
}

///
/// On each processor but the first.
///
STATIC
VOID
EFIAPI
Run (
  IN OUT VOID  *Buffer
  )
{
  CONTEXT  *Context;
  NMI_CPU  *Cpu;
  SAVED    Saved;
  UINTN    Self;

  Context = Buffer;
  if (EFI_ERROR (Context->Mp->WhoAmI (Context->Mp, &Self)) || (Self >= Context->Count)) {
    return;
  }

  Cpu = &Context->Cpus[Self];
  Begin (Context, Cpu, &Saved);
  while (!Context->Stop) {
    ExecuteCpuid (Cpu);
  }

  End (Context, &Saved);
}

STATIC
BOOLEAN
AllReady (
  IN CONST CONTEXT  *Context
  )
{
  UINTN  Index;

  for (Index = 0; Index < Context->Count; Index++) {
    if (!Context->Cpus[Index].Ready) {
      return FALSE;
    }
  }

  return TRUE;
}

STATIC
BOOLEAN
AllHave (
  IN CONST CONTEXT  *Context,
  IN UINT64         Nmis
  )
{
  UINTN  Index;

  for (Index = 0; Index < Context->Count; Index++) {
    if (Context->Cpus[Index].Nmis < Nmis) {
      return FALSE;
    }
  }

  return TRUE;
}

STATIC
VOID
IoApicWrite (
  IN UINT32  Register,
  IN UINT32  Value
  )
{
  MmioWrite32 (IO_APIC_SELECT, Register);
  MmioWrite32 (IO_APIC_WINDOW, Value);
}

STATIC
UINT32
IoApicRead (
  IN UINT32  Register
  )
{
  MmioWrite32 (IO_APIC_SELECT, Register);
  return MmioRead32 (IO_APIC_WINDOW);
}

///
/// The timer's pin rises behind so many of its ticks, once.
///
STATIC
VOID
Shoot (
  IN UINT16  Ticks
  )
{
  IoWrite8 (PIT_COMMAND, PIT_ONE_SHOT);
  IoWrite8 (PIT_CHANNEL_0, (UINT8)Ticks);
  IoWrite8 (PIT_CHANNEL_0, (UINT8)(Ticks >> 8));
}

///
/// Shot by shot, each some ticks later than the one before, so that it finds the processors at another place.
///
STATIC
VOID
FromTimer (
  IN OUT CONTEXT  *Context,
  IN OUT NMI_CPU  *Self
  )
{
  UINT64  Shot;
  UINT64  Limit;
  UINT32  Low;
  UINT32  High;

  Low  = IoApicRead (IO_APIC_ROW);
  High = IoApicRead (IO_APIC_ROW + 1);
  IoApicWrite (IO_APIC_ROW, MASKED);
  IoApicWrite (IO_APIC_ROW + 1, TO_ALL);
  IoWrite8 (PIT_COMMAND, PIT_ONE_SHOT); // its pin is low from here on
  IoApicWrite (IO_APIC_ROW, DELIVERY_NMI);
  for (Shot = 1; Shot <= Context->Nmis; Shot++) {
    Shoot ((UINT16)(10 + Shot % 97));
    for (Limit = Self->Cpuids + CPUIDS_MAX; !AllHave (Context, Shot) && (Self->Cpuids < Limit);) {
      ExecuteCpuid (Self);
    }

    if (!AllHave (Context, Shot)) {
      Print (L"HvNmi: shot %ld is lost\n", Shot);
      break;
    }
  }

  IoApicWrite (IO_APIC_ROW, MASKED);
  IoApicWrite (IO_APIC_ROW + 1, High);
  IoApicWrite (IO_APIC_ROW, Low);
}

STATIC
VOID
FromOutside (
  IN OUT CONTEXT  *Context,
  IN OUT NMI_CPU  *Self
  )
{
  Print (L"HvNmi: first=0x%lx stride=%ld cpus=%d\n", (UINT64)(UINTN)&Context->Cpus[0].Nmis, (UINT64)sizeof (NMI_CPU), Context->Count);
  while (!AllHave (Context, Context->Nmis)) {
    ExecuteCpuid (Self);
  }
}

STATIC
EFI_STATUS
Show (
  IN CONST CONTEXT  *Context
  )
{
  EFI_STATUS  Status;
  UINTN       Index;

  Status = EFI_SUCCESS;
  for (Index = 0; Index < Context->Count; Index++) {
    Print (L"HvNmi: cpu=%d nmis=%ld\n", Index, Context->Cpus[Index].Nmis);
    if ((Context->Cpus[Index].Nmis != Context->Nmis) || (Context->Cpus[Index].Cpuids == 0)) {
      Status = EFI_DEVICE_ERROR;
    }
  }

  Print (L"HvNmi: sent=%d result=%r\n", Context->Nmis, Status);
  return Status;
}

STATIC
EFI_STATUS
RunAll (
  IN OUT CONTEXT  *Context,
  IN OUT NMI_CPU  *Self
  )
{
  SAVED       Saved;
  EFI_EVENT   Done;
  EFI_STATUS  Status;
  UINT64      Limit;
  UINTN       Which;

  Done = NULL;
  if (Context->Count > 1) {
    Status = gBS->CreateEvent (0, 0, NULL, NULL, &Done);
    if (!EFI_ERROR (Status)) {
      Status = Context->Mp->StartupAllAPs (Context->Mp, Run, FALSE, Done, 0, Context, NULL);
    }

    if (EFI_ERROR (Status)) {
      Print (L"HvNmi: StartupAllAPs: %r\n", Status);
      return Status;
    }
  }

  Begin (Context, Self, &Saved);
  while (!AllReady (Context)) {
    CpuPause ();
  }

  if (Context->Wait) {
    FromOutside (Context, Self);
  } else {
    FromTimer (Context, Self);
  }

  for (Limit = Self->Cpuids + CPUIDS_BEHIND; Self->Cpuids < Limit;) {
    ExecuteCpuid (Self);
  }

  End (Context, &Saved);
  Context->Stop = TRUE;
  if (Done != NULL) {
    gBS->WaitForEvent (1, &Done, &Which);
    gBS->CloseEvent (Done);
  }

  return Show (Context);
}

STATIC
VOID
ReadCommandLine (
  IN  EFI_HANDLE  ImageHandle,
  OUT CONTEXT     *Context
  )
{
  EFI_LOADED_IMAGE_PROTOCOL  *Loaded;
  CONST CHAR16               *Word;
  UINTN                      Number;

  Context->Wait = FALSE;
  Context->Nmis = NMIS;
  if (EFI_ERROR (gBS->HandleProtocol (ImageHandle, &gEfiLoadedImageProtocolGuid, (VOID **)&Loaded)) ||
      (Loaded->LoadOptions == NULL))
  {
    return;
  }

  // The shell's command line begins with the program.
  for (Word = StrStr (Loaded->LoadOptions, L" "); Word != NULL; Word = StrStr (Word + 1, L" ")) {
    Number = StrDecimalToUintn (Word + 1);
    if (Number != 0) {
      Context->Nmis = Number;
    } else if (StrnCmp (Word + 1, L"wait", 4) == 0) {
      Context->Wait = TRUE;
    }
  }
}

/**
  Sends NMIs, or waits for them, and counts.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS           Each processor took each NMI once.
  @retval EFI_DEVICE_ERROR      One was lost, or came twice: the lines say how many each had.
  @retval EFI_UNSUPPORTED       The local APIC is in x2APIC mode, or the firmware uses the timer.
  @retval EFI_OUT_OF_RESOURCES  No memory.
  @retval Others                The firmware refused a call.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvNmiMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  CONTEXT     Context;
  EFI_STATUS  Status;
  UINTN       Enabled;
  UINTN       Self;

  ZeroMem (&Context, sizeof (Context));
  ReadCommandLine (ImageHandle, &Context);
  if ((AsmReadMsr64 (HV_MSR_APIC_BASE) & HV_APIC_BASE_EXTD) != 0) {
    Print (L"HvNmi: needs the local APIC in xAPIC mode\n");
    return EFI_UNSUPPORTED;
  }

  if (!Context.Wait && ((IoRead8 (PIC_MASK) & PIC_MASK_TIMER) == 0)) {
    Print (L"HvNmi: the firmware uses the timer\n");
    return EFI_UNSUPPORTED;
  }

  Status = gBS->LocateProtocol (&gEfiMpServiceProtocolGuid, NULL, (VOID **)&Context.Mp);
  if (!EFI_ERROR (Status)) {
    Status = Context.Mp->GetNumberOfProcessors (Context.Mp, &Context.Count, &Enabled);
  }

  if (!EFI_ERROR (Status)) {
    Status = Context.Mp->WhoAmI (Context.Mp, &Self);
  }

  if (EFI_ERROR (Status)) {
    Print (L"HvNmi: no MP services: %r\n", Status);
    return Status;
  }

  Context.Cpus = AllocatePages (EFI_SIZE_TO_PAGES (Context.Count * sizeof (NMI_CPU)));
  if (Context.Cpus == NULL) {
    return EFI_OUT_OF_RESOURCES;
  }

  ZeroMem (Context.Cpus, Context.Count * sizeof (NMI_CPU));
  Status = RunAll (&Context, &Context.Cpus[Self]);
  FreePages (Context.Cpus, EFI_SIZE_TO_PAGES (Context.Count * sizeof (NMI_CPU)));
  return Status;
}
