/** @file
  What the parts of HvDxe share. All of it is boot life.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_DXE_H_
#define HV_DXE_H_

#include <PiDxe.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/DebugLib.h>
#include <Library/DxeServicesTableLib.h>
#include <Library/HvConsoleLib.h>
#include <Library/HvCoreLib.h>
#include <Library/HvHostLib.h>
#include <Library/HvSleepLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/PeCoffLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Library/UefiRuntimeServicesTableLib.h>
#include <Protocol/Cpu.h>
#include <Protocol/LoadedImage.h>
#include <Protocol/MpService.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvHypercall.h>
#include <Generated/HvMsr.h>
#include <Generated/HvOptions.h>

#define HV_VERSION     "0.1"
#define HV_RING_BYTES  SIZE_64KB

///
/// Values of the options, in the order of HV_OPTION.
///
typedef struct {
  UINT64    Value[HvOptionCount];
} HV_OPTIONS;

///
/// The image as the firmware loaded it, and its copy.
///
typedef struct {
  UINT64    Base;
  UINT64    Bytes;
  UINT64    TextBase;
  UINT64    TextEnd;
  UINT64    CopyBase;
} HV_IMAGE;

/**
  Reads the variable `HvOptions`. What is wrong in it is logged and ignored.

  @param[out] Options  Every option has a value.

  @par Context: Boot
**/
VOID
HvOptionsRead (
  OUT HV_OPTIONS  *Options
  );

/**
  Finds the driver's image in memory.

  @param[in]  ImageHandle  Of the driver.
  @param[out] Image        All but CopyBase.

  @retval EFI_SUCCESS      Found.
  @retval EFI_LOAD_ERROR   Its headers are not as they should be.

  @par Context: Boot
**/
EFI_STATUS
HvImageFind (
  IN  EFI_HANDLE  ImageHandle,
  OUT HV_IMAGE    *Image
  );

/**
  Copies the image to Image->CopyBase, relocates the copy, and makes its code executable for the firmware's tables.

  @param[in] Image  The image.

  @retval EFI_SUCCESS     The copy can run.
  @retval EFI_LOAD_ERROR  A relocation is not possible.

  @par Context: Boot
**/
EFI_STATUS
HvImageCopy (
  IN CONST HV_IMAGE  *Image
  );

/**
  Maps the copy into the host's tables, each section with its rights.

  @param[in]     Image   The image.
  @param[in,out] Paging  The host's tables.

  @retval EFI_SUCCESS  Mapped.
  @retval Others       As HvPagingMap says.

  @par Context: Boot
**/
EFI_STATUS
HvImageMap (
  IN     CONST HV_IMAGE  *Image,
  IN OUT HV_PAGING       *Paging
  );

///
/// Something in the image, where it is in the copy.
///
#define HV_IN_COPY(Image, Address)  ((VOID *)((UINTN)(Address) - (UINTN)(Image)->Base + (UINTN)(Image)->CopyBase))

/**
  Takes the reserved memory and builds everything in it: host, processors, tables, status page.

  @param[in]     Ops      The backend.
  @param[in]     Probe    What the backend needs.
  @param[in]     Options  The options.
  @param[in,out] Image    CopyBase is set.
  @param[in]     Mp       MP services.
  @param[out]    Host     The host.

  @retval EFI_SUCCESS           Built.
  @retval EFI_OUT_OF_RESOURCES  There is no memory.
  @retval Others                Logged.

  @par Context: Boot
**/
EFI_STATUS
HvMemoryBuild (
  IN     CONST HV_BACKEND_OPS      *Ops,
  IN     CONST HV_PROBE            *Probe,
  IN     CONST HV_OPTIONS          *Options,
  IN OUT HV_IMAGE                  *Image,
  IN     EFI_MP_SERVICES_PROTOCOL  *Mp,
  OUT    HV_HOST                   **Host
  );

/**
  Gets the firmware's memory map.

  @param[out] Map        The caller frees it.
  @param[out] Size       Its bytes.
  @param[out] EntrySize  Bytes of an entry.

  @retval EFI_SUCCESS           There it is.
  @retval EFI_OUT_OF_RESOURCES  There is no memory.
  @retval Others                As the firmware says.

  @par Context: Boot
**/
EFI_STATUS
HvMemoryMap (
  OUT EFI_MEMORY_DESCRIPTOR  **Map,
  OUT UINTN                  *Size,
  OUT UINTN                  *EntrySize
  );

/**
  Logs what a crash of the run before this one left in memory, once.

  @par Context: Boot
**/
VOID
HvCrashReport (
  VOID
  );

/**
  Keeps devices from the host's memory, where there is an IOMMU that can do it, and says in the log and the status page
  what came of it. All processors are native.

  @param[in,out] Host     With the block and the nested tables.
  @param[in]     Options  The options.

  @par Context: Boot
**/
VOID
HvDmaProtect (
  IN OUT HV_HOST           *Host,
  IN     CONST HV_OPTIONS  *Options
  );

/**
  Takes back what HvDmaProtect did. All processors are native.

  @par Context: Boot
**/
VOID
HvDmaRelease (
  VOID
  );

/**
  How many pages HvDmaProtect needs at most.

  @param[in] Options  The options.
  @param[in] End      Devices may reach what is below.

  @return  The pages, 0 without an IOMMU.

  @par Context: Boot
**/
UINTN
HvDmaPages (
  IN CONST HV_OPTIONS  *Options,
  IN UINT64            End
  );

/**
  Prepares the record for a crash of this run, and leaves its address for the next boot.

  @param[in] Host   The host.
  @param[in] Image  The image.

  @par Context: Boot
**/
VOID
HvCrashPrepare (
  IN HV_HOST         *Host,
  IN CONST HV_IMAGE  *Image
  );

/**
  Where the log ring is, HV_RING_BYTES long.

  @par Context: Boot
**/
HV_LOG_RING *
HvMemoryRing (
  IN CONST HV_HOST  *Host
  );

/**
  Gives the reserved memory back.

  @par Context: Boot
**/
VOID
HvMemoryFree (
  VOID
  );

/**
  Launches every processor, or none.

  @param[in] Host   The host.
  @param[in] Image  The image with its copy.
  @param[in] Mp     MP services.

  @retval EFI_SUCCESS       All processors are guests.
  @retval EFI_DEVICE_ERROR  None is; the log names the processor and the reason.

  @par Context: Boot
**/
EFI_STATUS
HvLaunchAll (
  IN HV_HOST                   *Host,
  IN CONST HV_IMAGE            *Image,
  IN EFI_MP_SERVICES_PROTOCOL  *Mp
  );

/**
  Takes every processor that is a guest back to native mode.

  @retval EFI_SUCCESS       No processor is a guest any more.
  @retval EFI_DEVICE_ERROR  At least one still is.

  @par Context: Boot
**/
EFI_STATUS
HvLaunchUndo (
  VOID
  );

/**
  How many processors the last launch was for.

  @par Context: Boot
**/
UINT32
HvLaunchCount (
  VOID
  );

/**
  Finds the ports by which an operating system asks for a sleep state, and what may pass there. Logs them, or why none
  is guarded. For the time before the launch.

  @param[in]  Always  Also where neither tables nor firmware know of a sleep that an operating system comes back from.
  @param[out] Sleep   The ports.

  @par Context: Boot
**/
VOID
HvSleepFind (
  IN  BOOLEAN   Always,
  OUT HV_SLEEP  *Sleep
  );

/**
  As HvSleepFind, if that found nothing: in a firmware volume the driver starts before there are ACPI tables. For the
  time behind the launch.

  @param[in] Backend  HV_CPUID_BACKEND_*.

  @par Context: Boot
**/
VOID
HvSleepFindLate (
  IN UINT64  Backend
  );

/**
  Hides the sleep states in the ACPI tables from which a processor comes back without a hypervisor (S1 to S3).

  @par Context: Boot
**/
VOID
HvSleepHideStates (
  VOID
  );

/**
  Makes a hypercall by the instruction of the backend (VMCALL or VMMCALL).

  @param[in] Call     HV_HC_*.
  @param[in] Backend  HV_CPUID_BACKEND_*.
  @param[in] First    In R8, which the calling convention puts it in.
  @param[in] Second   In R9.

  @return  HV_HC_OK or what the call says.

  @par Context: Boot
**/
UINT64
EFIAPI
HvHypercall (
  IN UINT64  Call,
  IN UINT64  Backend,
  IN UINT64  First,
  IN UINT64  Second
  );

/**
  Goes into the hypervisor and comes back as its guest.

  @param[in] Cpu    This processor's block.
  @param[in] Entry  HvCoreLaunch in the copy.

  @retval RETURN_SUCCESS  This processor is a guest.
  @retval Others          It is not; Cpu->LaunchReason says why.

  @par Context: Boot
**/
RETURN_STATUS
EFIAPI
HvLaunchThunk (
  IN OUT HV_CPU  *Cpu,
  IN     VOID    *Entry
  );

#endif // HV_DXE_H_
