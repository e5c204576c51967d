/** @file
  Lets a device read and write the hypervisor's memory, past the processors. The device is QEMU's edu: a buffer of its
  own, and DMA between that and any address.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Protocol/PciIo.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvStatus.h>

#define EDU_ID            0x11E81234 // device and vendor
#define EDU_DMA_SOURCE    0x80
#define EDU_DMA_TARGET    0x88
#define EDU_DMA_COUNT     0x90
#define EDU_DMA_COMMAND   0x98
#define EDU_DMA_START     BIT0
#define EDU_DMA_TO_MEMORY BIT1
#define EDU_BUFFER        0x40000
#define LOOK_EVERY_100NS  200000 // 20 ms, for a device that needs 100
#define LOOKS_MAX         3000
#define BYTES             16

STATIC EFI_PCI_IO_PROTOCOL  *mEdu;
STATIC EFI_EVENT            mTimer;

STATIC
EFI_STATUS
FindEdu (
  VOID
  )
{
  EFI_HANDLE  *Handles;
  UINTN       Count;
  UINTN       Index;
  UINT32      Id;
  EFI_STATUS  Status;

  Status = gBS->LocateHandleBuffer (ByProtocol, &gEfiPciIoProtocolGuid, NULL, &Count, &Handles);
  for (Index = 0; !EFI_ERROR (Status) && (Index < Count); Index++) {
    if (!EFI_ERROR (gBS->HandleProtocol (Handles[Index], &gEfiPciIoProtocolGuid, (VOID **)&mEdu)) &&
        !EFI_ERROR (mEdu->Pci.Read (mEdu, EfiPciIoWidthUint32, 0, 1, &Id)) && (Id == EDU_ID))
    {
      return mEdu->Attributes (
                     mEdu,
                     EfiPciIoAttributeOperationEnable,
                     EFI_PCI_IO_ATTRIBUTE_MEMORY | EFI_PCI_IO_ATTRIBUTE_BUS_MASTER,
                     NULL
                     );
    }
  }

  return EFI_NOT_FOUND;
}

STATIC
VOID
WriteRegister (
  IN UINT64  Offset,
  IN UINT64  Value
  )
{
  mEdu->Mem.Write (mEdu, EfiPciIoWidthUint64, 0, Offset, 1, &Value);
}

///
/// Moves BYTES between memory and the device's buffer, and waits until that is done or given up.
///
STATIC
EFI_STATUS
Dma (
  IN UINTN    Memory,
  IN BOOLEAN  ToMemory
  )
{
  EFI_STATUS  Status;
  UINT64      Command;
  UINTN       Looks;
  UINTN       Index;

  WriteRegister (EDU_DMA_SOURCE, ToMemory ? EDU_BUFFER : Memory);
  WriteRegister (EDU_DMA_TARGET, ToMemory ? Memory : EDU_BUFFER);
  WriteRegister (EDU_DMA_COUNT, BYTES);
  WriteRegister (EDU_DMA_COMMAND, EDU_DMA_START | (ToMemory ? EDU_DMA_TO_MEMORY : 0));
  // Processors that sleep meanwhile: one that polls keeps QEMU from its devices.
  for (Looks = 0; Looks < LOOKS_MAX; Looks++) {
    Status = gBS->SetTimer (mTimer, TimerRelative, LOOK_EVERY_100NS);
    if (!EFI_ERROR (Status)) {
      Status = gBS->WaitForEvent (1, &mTimer, &Index);
    }

    if (!EFI_ERROR (Status)) {
      Status = mEdu->Mem.Read (mEdu, EfiPciIoWidthUint64, 0, EDU_DMA_COMMAND, 1, &Command);
    }

    if (EFI_ERROR (Status) || ((Command & EDU_DMA_START) == 0)) {
      return Status;
    }
  }

  return EFI_TIMEOUT;
}

/**
  Tries the device on memory of our own, then on the hypervisor's.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS       It was tried; a line says what arrived.
  @retval EFI_NOT_STARTED   There is no hypervisor.
  @retval EFI_NOT_FOUND     There is no such device.
  @retval EFI_DEVICE_ERROR  The device does not do what it should with our own memory.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvDmaProbeMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  UINT8       *Own;
  UINT8       Before[BYTES];
  UINT32      Eax;
  UINT32      Ebx;
  UINT32      Ecx;
  UINT32      Edx;
  UINTN       SharedEnd;
  BOOLEAN     WriteArrived;
  BOOLEAN     ReadArrived;
  EFI_STATUS  Status;

  AsmCpuid (HV_CPUID_40000000, NULL, &Ebx, &Ecx, &Edx);
  if ((Ebx != HV_CPUID_SIGNATURE_EBX) || (Ecx != HV_CPUID_SIGNATURE_ECX) || (Edx != HV_CPUID_SIGNATURE_EDX)) {
    Print (L"HvDmaProbe: no hypervisor\n");
    return EFI_NOT_STARTED;
  }

  AsmCpuid (HV_CPUID_40000002, &Eax, &Ebx, &Ecx, NULL);
  SharedEnd = (UINTN)(LShiftU64 (Ebx, 32) | Eax) + Ecx;
  Status    = FindEdu ();
  if (EFI_ERROR (Status)) {
    Print (L"HvDmaProbe: no device 1234:11e8: %r\n", Status);
    return Status;
  }

  Own    = AllocatePages (1);
  Status = gBS->CreateEvent (EVT_TIMER, 0, NULL, NULL, &mTimer);
  if ((Own == NULL) || EFI_ERROR (Status)) {
    return EFI_OUT_OF_RESOURCES;
  }

  // Our own memory, there and back: the device works.
  SetMem (Own, BYTES, 0x5A);
  Status = Dma ((UINTN)Own, FALSE);
  SetMem (Own, BYTES, 0);
  if (!EFI_ERROR (Status)) {
    Status = Dma ((UINTN)Own, TRUE);
  }

  if (EFI_ERROR (Status) || (Own[0] != 0x5A) || (Own[BYTES - 1] != 0x5A)) {
    Print (L"HvDmaProbe: the device does not work: %r, %x\n", Status, Own[0]);
    FreePages (Own, 1);
    gBS->CloseEvent (mTimer);
    return EFI_DEVICE_ERROR;
  }

  // The last bytes of the shared pages: host memory that nothing uses, and that the processors can at least read.
  CopyMem (Before, (VOID *)(SharedEnd - BYTES), BYTES);
  Status = Dma (SharedEnd - BYTES, TRUE);
  WriteArrived = (BOOLEAN)(CompareMem (Before, (VOID *)(SharedEnd - BYTES), BYTES) != 0);

  // The page behind them, which processors read as ones. What the device got is looked at in our own memory: a refused
  // read leaves its buffer alone, or fills it with one value (QEMU: 0), and what is there begins with pointers.
  SetMem (Own, BYTES, 0);
  if (!EFI_ERROR (Status)) {
    Status = Dma (SharedEnd, FALSE);
  }

  if (!EFI_ERROR (Status)) {
    Status = Dma ((UINTN)Own, TRUE);
  }

  ReadArrived = (BOOLEAN)(CompareMem (Own, Own + 1, BYTES - 1) != 0);

  FreePages (Own, 1);
  gBS->CloseEvent (mTimer);
  if (EFI_ERROR (Status)) {
    Print (L"HvDmaProbe: the device does not come to an end: %r\n", Status);
    return EFI_DEVICE_ERROR;
  }

  Print (L"HvDmaProbe: write-arrived=%d read-arrived=%d\n", WriteArrived, ReadArrived);
  return EFI_SUCCESS;
}
