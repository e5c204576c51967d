/** @file
  Every processor, or none.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HvDxe.h"

#define LAUNCH_TIMEOUT_US  10000000 // for all application processors together

///
/// What became of a processor. It is in boot life's memory: a processor that is a guest cannot see the host's.
///
typedef struct {
  RETURN_STATUS    Status;
  UINT64           Detail;
  CHAR8            Reason[80];
  BOOLEAN          Tried;
  BOOLEAN          Virtualised;
} LAUNCH_RESULT;

STATIC EFI_MP_SERVICES_PROTOCOL  *mMp;
STATIC LAUNCH_RESULT             *mResults;
STATIC UINT64                    mBackend;
STATIC VOID                      *mEntry;
STATIC HV_CPU                    *mCpus;
STATIC UINT64                    mCpuStride;
STATIC UINT32                    mCpuCount;
STATIC UINTN                     mSilent; // test option fail_at=answer: this one never comes back

STATIC
VOID
EFIAPI
LaunchHere (
  IN VOID  *Buffer
  )
{
  HV_CPU         *Cpu;
  LAUNCH_RESULT  *Result;
  UINTN          Index;

  if (EFI_ERROR (mMp->WhoAmI (mMp, &Index))) {
    return;
  }

  if (Index == mSilent) {
    CpuDeadLoop ();
  }

  Result         = &mResults[Index];
  Cpu            = (HV_CPU *)((UINTN)mCpus + Index * mCpuStride);
  Result->Tried  = TRUE;
  Result->Status = HvLaunchThunk (Cpu, mEntry);
  if (RETURN_ERROR (Result->Status)) {
    Result->Detail = Cpu->LaunchDetail;
    AsciiStrnCpyS (
      Result->Reason,
      sizeof (Result->Reason),
      (Cpu->LaunchReason != NULL) ? Cpu->LaunchReason : "unknown",
      sizeof (Result->Reason) - 1
      );
  } else {
    Result->Virtualised = TRUE;
  }
}

STATIC
VOID
EFIAPI
LeaveHere (
  IN VOID  *Buffer
  )
{
  LAUNCH_RESULT  *Result;
  UINTN          Index;

  if (EFI_ERROR (mMp->WhoAmI (mMp, &Index))) {
    return;
  }

  Result = &mResults[Index];
  if (Result->Virtualised && (HvHypercall (HV_HC_LEAVE, mBackend, 0, 0) == HV_HC_OK)) {
    Result->Virtualised = FALSE;
  }
}

///
/// Runs a procedure on every application processor, at once where the firmware can.
///
STATIC
EFI_STATUS
OnApplicationProcessors (
  IN EFI_AP_PROCEDURE  Procedure
  )
{
  EFI_STATUS  Status;
  UINTN       Self;
  UINTN       Index;

  if (mCpuCount == 1) {
    return EFI_SUCCESS;
  }

  Status = mMp->StartupAllAPs (mMp, Procedure, FALSE, NULL, LAUNCH_TIMEOUT_US, NULL, NULL);
  if (!EFI_ERROR (Status) || (Status == EFI_TIMEOUT)) {
    return Status;
  }

  Status = mMp->WhoAmI (mMp, &Self);
  for (Index = 0; !EFI_ERROR (Status) && (Index < mCpuCount); Index++) {
    if (Index != Self) {
      Status = mMp->StartupThisAP (mMp, Procedure, Index, NULL, LAUNCH_TIMEOUT_US, NULL, NULL);
    }
  }

  return Status;
}

STATIC
UINT32
CountVirtualised (
  VOID
  )
{
  UINT32  Index;
  UINT32  Count;

  Count = 0;
  for (Index = 0; Index < mCpuCount; Index++) {
    Count += mResults[Index].Virtualised ? 1 : 0;
  }

  return Count;
}

EFI_STATUS
HvLaunchUndo (
  VOID
  )
{
  UINTN  Self;

  // The boot processor last: until then its own interrupt commands have to reach the others' mailboxes.
  if (CountVirtualised () != 0) {
    OnApplicationProcessors (LeaveHere);
    mMp->WhoAmI (mMp, &Self);
    if (CountVirtualised () > (mResults[Self].Virtualised ? 1 : 0)) {
      return EFI_DEVICE_ERROR;
    }

    LeaveHere (NULL);
  }

  if (CountVirtualised () != 0) {
    return EFI_DEVICE_ERROR;
  }

  FreePool (mResults);
  mResults = NULL;
  return EFI_SUCCESS;
}

EFI_STATUS
HvLaunchAll (
  IN HV_HOST                   *Host,
  IN CONST HV_IMAGE            *Image,
  IN EFI_MP_SERVICES_PROTOCOL  *Mp
  )
{
  LAUNCH_RESULT  *Result;
  EFI_STATUS     Status;
  UINT64         Start;
  UINT32         Index;
  UINT32         First;
  UINT32         *ApicIds;

  mMp        = Mp;
  mBackend   = Host->Status->Vendor;
  mEntry     = HV_IN_COPY (Image, HvCoreLaunch);
  mCpus      = Host->Cpu;
  mCpuStride = Host->CpuStride;
  mCpuCount  = Host->CpuCount;
  ApicIds    = (UINT32 *)((UINT8 *)Host->Status + HV_STATUS_APIC_ID_OFFSET (mCpuCount));
  mResults   = AllocateZeroPool (mCpuCount * sizeof (*mResults));
  if (mResults == NULL) {
    return EFI_OUT_OF_RESOURCES;
  }

  mSilent = MAX_UINTN;
  if (Host->FailAt == HV_OPTION_FAIL_AT_ANSWER) {
    // The boot processor cannot wait for itself.
    Mp->WhoAmI (Mp, &mSilent);
    mSilent = (mSilent == Host->FailCpu) ? MAX_UINTN : Host->FailCpu;
  }

  // The boot processor first: from then on what it sends to the others goes through their mailboxes as soon as they
  // are guests. The status page, which guests may read, is all of the host that this function looks at from here on.
  Start = AsmReadTsc ();
  LaunchHere (NULL);
  Status = EFI_NOT_STARTED;
  if (CountVirtualised () != 0) {
    Status = OnApplicationProcessors (LaunchHere);
  }

  First = MAX_UINT32;
  for (Index = 0; Index < mCpuCount; Index++) {
    Result = &mResults[Index];
    if (Result->Virtualised) {
      HV_LOG (0, CpuUp, Index, ApicIds[Index]);
      continue;
    }

    if (!Result->Tried) {
      if (Status == EFI_NOT_STARTED) {
        continue; // the boot processor failed, so nobody else was asked
      }

      AsciiStrCpyS (
        Result->Reason,
        sizeof (Result->Reason),
        (Status == EFI_TIMEOUT) ? "no answer to MP services in time" : "the firmware did not start the launch on it"
        );
      Result->Detail = Status;
    }

    HV_LOG (0, CpuFailed, Index, ApicIds[Index], HV_STR (Result->Reason), Result->Detail);
    First = MIN (First, Index);
  }

  if (CountVirtualised () == mCpuCount) {
    HV_LOG (0, LaunchDone, mCpuCount, mCpuCount, AsmReadTsc () - Start);
    return EFI_SUCCESS;
  }

  HV_LOG (0, LaunchFailed, First, HV_STR (mResults[First].Reason));
  Status = HvLaunchUndo ();
  return EFI_ERROR (Status) ? EFI_ABORTED : EFI_DEVICE_ERROR;
}

UINT32
HvLaunchCount (
  VOID
  )
{
  return mCpuCount;
}
