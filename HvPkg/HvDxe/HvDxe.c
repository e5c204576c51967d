/** @file
  Entry and unload.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HvDxe.h"

STATIC EFI_EVENT  mExitBootServices;
STATIC EFI_EVENT  mFirmwareDone;
STATIC EFI_EVENT  mAcpiTables;
STATIC UINT64     mBackend;
STATIC BOOLEAN    mPrintAll; ///< option log=debug

///
/// The lines that matter to who sits at the firmware's console, which takes longer for one than all else that is done for
/// it. Other prefix: the firmware may also print to the port that the log has.
///
STATIC
VOID
PrintLine (
  IN HV_LOG_EVENT  Event,
  IN HV_LOG_LEVEL  Level,
  IN CONST CHAR8   *Line
  )
{
  switch (Event) {
    case HvLogEventStart:
    case HvLogEventWait:
    case HvLogEventLaunchDone:
    case HvLogEventUnload:
      break;
    default:
      if ((Level > HvLogWarn) && !mPrintAll) {
        return;
      }
  }

  Print (L"HvDxe: %a\n", Line + sizeof ("hv: ") - 1);
}

STATIC
VOID
EFIAPI
OnExitBootServices (
  IN EFI_EVENT  Event,
  IN VOID       *Context
  )
{
  // Now all tables are there, nobody has read their AML, and the driver stays.
  HvSleepFindLate (mBackend);
  HvSleepHideStates ();
  HvHypercall (HV_HC_BOOT_DONE, mBackend, 0, 0);
  if (HvLaunchCount () > 1) {
    // Lowest level, last in its queue: behind what the firmware itself does now, which starts all processors once more.
    gBS->SignalEvent (mFirmwareDone);
  }
}

STATIC
VOID
EFIAPI
OnFirmwareDone (
  IN EFI_EVENT  Event,
  IN VOID       *Context
  )
{
  HvHypercall (HV_HC_FIRMWARE_DONE, mBackend, 0, 0);
}

///
/// The configuration table of ACPI was installed or updated (UEFI, InstallConfigurationTable).
///
STATIC
VOID
EFIAPI
OnAcpiTables (
  IN EFI_EVENT  Event,
  IN VOID       *Context
  )
{
  HvSleepFindLate (mBackend);
}

STATIC
VOID
CloseEvents (
  VOID
  )
{
  if (mExitBootServices != NULL) {
    gBS->CloseEvent (mExitBootServices);
  }

  if (mFirmwareDone != NULL) {
    gBS->CloseEvent (mFirmwareDone);
  }

  if (mAcpiTables != NULL) {
    gBS->CloseEvent (mAcpiTables);
  }
}

STATIC
CONST CHAR8 *
ApicHint (
  IN CONST HV_HOST  *Host
  )
{
  if (Host->CpuCount == 1) {
    return "none";
  }

  return Host->LiftApicTrap ? "the trap ends when the operating system has started every processor" :
         "x2APIC would save an exit for each EOI and timer write";
}

STATIC
BOOLEAN
IsRunning (
  VOID
  )
{
  UINT32  Ebx;
  UINT32  Ecx;
  UINT32  Edx;

  AsmCpuid (HV_CPUID_1, NULL, NULL, &Ecx, NULL);
  if ((Ecx & HV_CPUID_1_ECX_HYPERVISOR) == 0) {
    return FALSE;
  }

  AsmCpuid (HV_CPUID_40000000, NULL, &Ebx, &Ecx, &Edx);
  return (BOOLEAN)((Ebx == HV_CPUID_SIGNATURE_EBX) && (Ecx == HV_CPUID_SIGNATURE_ECX) && (Edx == HV_CPUID_SIGNATURE_EDX));
}

///
/// The first requirement of a backend that is not met, or NULL.
///
STATIC
CONST HV_REQUIREMENT *
FirstUnmet (
  IN CONST HV_PROBE  *Probe
  )
{
  UINT32  Row;

  for (Row = 0; Row < Probe->Count; Row++) {
    if (!Probe->Requirement[Row].Met) {
      return &Probe->Requirement[Row];
    }
  }

  return NULL;
}

STATIC
VOID
LogRequirements (
  IN CONST HV_BACKEND_OPS  *Ops,
  IN CONST HV_PROBE        *Probe,
  IN BOOLEAN               UnmetOnly
  )
{
  CONST HV_REQUIREMENT  *Requirement;
  UINT32                Row;

  for (Row = 0; Row < Probe->Count; Row++) {
    Requirement = &Probe->Requirement[Row];
    if (!UnmetOnly) {
      HV_LOG (
        0,
        Requirement,
        HV_STR (Ops->Name),
        HV_STR (Requirement->Name),
        HV_STR (Requirement->Source),
        Requirement->Value,
        Requirement->Met,
        HV_STR (Requirement->Expected)
        );
    } else if (!Requirement->Met) {
      HV_LOG (
        0,
        RequirementUnmet,
        HV_STR (Ops->Name),
        HV_STR (Requirement->Name),
        HV_STR (Requirement->Source),
        Requirement->Value,
        HV_STR (Requirement->Expected)
        );
    }
  }
}

///
/// The first backend all of whose requirements are met. When there is none, everything that is missing is an error.
///
STATIC
CONST HV_BACKEND_OPS *
ChooseBackend (
  OUT HV_PROBE  *Probe
  )
{
  CONST HV_BACKEND_OPS  *Ops;
  CONST HV_BACKEND_OPS  *Chosen;
  CONST HV_REQUIREMENT  *Unmet;
  HV_PROBE              Candidate;
  UINTN                 Index;

  Chosen = NULL;
  for (Index = 0; (Ops = HvBackendGet (Index)) != NULL; Index++) {
    Ops->Probe (&Candidate);
    LogRequirements (Ops, &Candidate, FALSE);
    Unmet = FirstUnmet (&Candidate);
    if (Unmet != NULL) {
      HV_LOG (0, BackendSkip, HV_STR (Ops->Name), HV_STR (Unmet->Name));
    } else if (Chosen == NULL) {
      HV_LOG (0, Backend, HV_STR (Ops->Name), HV_STR (Ops->Vendor));
      Chosen = Ops;
      CopyMem (Probe, &Candidate, sizeof (*Probe));
    }
  }

  for (Index = 0; (Chosen == NULL) && ((Ops = HvBackendGet (Index)) != NULL); Index++) {
    Ops->Probe (&Candidate);
    LogRequirements (Ops, &Candidate, TRUE);
  }

  return Chosen;
}

///
/// Everything is built and nothing was launched: a debugger can set its breakpoints in the copy.
///
STATIC
VOID
WaitForDebugger (
  VOID
  )
{
  volatile BOOLEAN  Gate;

  Gate = FALSE;
  HV_LOG (0, Wait, (UINT64)(UINTN)&Gate);
  while (!Gate) {
    CpuPause ();
  }
}

/**
  Checks, builds, launches.

  @param[in] ImageHandle  Of the driver.
  @param[in] Early        Ring of HV_RING_BYTES for the lines before there is one in reserved memory, or NULL.

  @retval EFI_SUCCESS          Every processor is a guest.
  @retval EFI_ALREADY_STARTED  It runs already.
  @retval EFI_UNSUPPORTED      A requirement is not met; the log names it. Nothing was changed.
  @retval Others               The launch failed; the log says where. Nothing is different from before.

  @par Context: Boot
**/
STATIC
EFI_STATUS
CheckAndLaunch (
  IN EFI_HANDLE   ImageHandle,
  IN HV_LOG_RING  *Early  OPTIONAL
  )
{
  EFI_MP_SERVICES_PROTOCOL  *Mp;
  CONST HV_BACKEND_OPS      *Ops;
  HV_OPTIONS                Options;
  HV_PROBE                  Probe;
  HV_IMAGE                  Image;
  HV_HOST                   *Host;
  HV_LOG_LEVEL              Level;
  EFI_STATUS                Status;
  UINT64                    ApicBase;

  HvConsoleInit (HvLogInfo, Early, HV_RING_BYTES, PrintLine);
 #ifdef MDEPKG_NDEBUG
  HV_LOG (0, Start, HV_STR (HV_VERSION), HV_STR ("RELEASE"));
 #else
  HV_LOG (0, Start, HV_STR (HV_VERSION), HV_STR ("DEBUG"));
 #endif
  if (IsRunning ()) {
    HV_LOG (0, LaunchFailed, 0, HV_STR ("HvPkg runs already"));
    return EFI_ALREADY_STARTED;
  }

  HvOptionsRead (&Options);
  Level     = (HV_LOG_LEVEL)Options.Value[HvOptionLog];
  mPrintAll = (BOOLEAN)(Level == HvLogDebug);
  HvConsoleInit (Level, Early, HV_RING_BYTES, PrintLine);
  HvCrashReport ();
  Ops = ChooseBackend (&Probe);
  if (Ops == NULL) {
    return EFI_UNSUPPORTED;
  }

  Status = gBS->LocateProtocol (&gEfiMpServiceProtocolGuid, NULL, (VOID **)&Mp);
  if (EFI_ERROR (Status)) {
    HV_LOG (0, LaunchFailed, 0, HV_STR ("the firmware has no MP services"));
    return EFI_UNSUPPORTED;
  }

  Status = HvImageFind (ImageHandle, &Image);
  if (!EFI_ERROR (Status)) {
    Status = HvMemoryBuild (Ops, &Probe, &Options, &Image, Mp, &Host);
  }

  if (EFI_ERROR (Status)) {
    HV_LOG (0, LaunchFailed, 0, HV_STR ((Status == EFI_OUT_OF_RESOURCES) ? "not enough memory" : "the host could not be built"));
    return Status;
  }

  ApicBase = AsmReadMsr64 (HV_MSR_APIC_BASE);
  HV_LOG (0, Kick, HV_STR (Probe.KickMethod));
  if ((ApicBase & HV_APIC_BASE_EXTD) != 0) {
    HV_LOG (0, Apic, HV_STR ("x2apic"), 0, HV_STR ("none"));
  } else {
    HV_LOG (
      0,
      Apic,
      HV_STR ("xapic"),
      Host->CpuCount > 1,
      HV_STR (ApicHint (Host))
      );
  }

  Status = gBS->InstallConfigurationTable (&gHvStatusTableGuid, Host->Status);
  if (!EFI_ERROR (Status)) {
    Status = gBS->CreateEvent (EVT_NOTIFY_SIGNAL, TPL_CALLBACK, OnFirmwareDone, NULL, &mFirmwareDone);
  }

  if (!EFI_ERROR (Status)) {
    Status = gBS->CreateEventEx (
                    EVT_NOTIFY_SIGNAL,
                    TPL_NOTIFY,
                    OnExitBootServices,
                    NULL,
                    &gEfiEventExitBootServicesGuid,
                    &mExitBootServices
                    );
  }

  if (!EFI_ERROR (Status)) {
    mBackend = Ops->Id;
    HvCrashPrepare (Host, &Image);
    HvDmaProtect (Host, &Options);
    HvConsoleInit (Level, HvMemoryRing (Host), HV_RING_BYTES, PrintLine);
    if (Early != NULL) {
      CopyMem (HvMemoryRing (Host), Early, HV_RING_BYTES);
    }

    Status = HvImageCopy (&Image);
    if (!EFI_ERROR (Status)) {
      if (Options.Value[HvOptionTrace] != 0) {
        ((VOID (*)(HV_HOST *, UINT32))HV_IN_COPY (&Image, HvCoreTrace))(Host, (UINT32)Options.Value[HvOptionTrace]);
        HV_LOG (0, Trace, Host->TraceBase, Host->TraceStride, Options.Value[HvOptionTrace]);
      }

      if (Options.Value[HvOptionWait] == HV_OPTION_WAIT_DEBUGGER) {
        ((VOID (*)(HV_HOST *))HV_IN_COPY (&Image, HvCoreNoQuick))(Host);
        WaitForDebugger ();
      }

      // Boot life cannot write to the ring when it is a guest.
      HvConsoleInit (Level, NULL, 0, PrintLine);
      ((VOID (*)(VOID))HV_IN_COPY (&Image, HvCoreStart))();
      Status = HvLaunchAll (Host, &Image, Mp);
    }
  }

  if (Status == EFI_ABORTED) {
    // Some processor still is a guest: host and driver have to stay, and the firmware unloads what returns an error.
    return EFI_SUCCESS;
  }

  if (!EFI_ERROR (Status) &&
      EFI_ERROR (gBS->CreateEventEx (EVT_NOTIFY_SIGNAL, TPL_CALLBACK, OnAcpiTables, NULL, &gEfiAcpi20TableGuid, &mAcpiTables)))
  {
    mAcpiTables = NULL; // ExitBootServices looks, too
  }

  if (EFI_ERROR (Status)) {
    CloseEvents ();
    gBS->InstallConfigurationTable (&gHvStatusTableGuid, NULL);
    HvDmaRelease ();
    HvMemoryFree ();
  }

  return Status;
}

/**
  The driver was loaded.

  @param[in] ImageHandle  Of the driver.
  @param[in] SystemTable  The system table.

  @return  As CheckAndLaunch.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvDxeEntry (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  HV_LOG_RING  *Early;
  EFI_STATUS   Status;

  Early  = AllocatePool (HV_RING_BYTES);
  Status = CheckAndLaunch (ImageHandle, Early);
  if (Early != NULL) {
    // Nobody writes to it any more: the log has its ring in reserved memory, or the image goes.
    FreePool (Early);
  }

  return Status;
}

/**
  Takes every processor back to native mode and gives the memory back.

  @param[in] ImageHandle  Of the driver.

  @retval EFI_SUCCESS       As if it had never been loaded.
  @retval EFI_DEVICE_ERROR  A processor did not leave; the driver has to stay.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvDxeUnload (
  IN EFI_HANDLE  ImageHandle
  )
{
  EFI_STATUS  Status;

  Status = HvLaunchUndo ();
  if (EFI_ERROR (Status)) {
    return Status;
  }

  CloseEvents ();
  gBS->InstallConfigurationTable (&gHvStatusTableGuid, NULL);
  HvDmaRelease ();
  HvMemoryFree ();
  HV_LOG (0, Unload, HvLaunchCount ());
  return EFI_SUCCESS;
}
