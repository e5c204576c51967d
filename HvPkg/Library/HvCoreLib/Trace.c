/** @file
  Every exit for who asks for it: a record of each, or each in its handler. Without the options trace and wait nothing
  here is ever on the path of an exit: the backend's own table of functions is used, and with them one with ours in it.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"
#include <Generated/HvTrace.h>

STATIC HV_BACKEND_OPS        mChangedOps;
STATIC CONST HV_BACKEND_OPS  *mOwnOps;

UINT64
HvCoreTraceBytes (
  IN UINT64  Records
  )
{
  return sizeof (HV_TRACE_HEAD) + Records * sizeof (HV_TRACE_RECORD);
}

STATIC
HV_TRACE_HEAD *
RingOf (
  IN CONST HV_HOST  *Host,
  IN UINT32         Index
  )
{
  return (HV_TRACE_HEAD *)(UINTN)(Host->TraceBase + Index * Host->TraceStride);
}

STATIC
RETURN_STATUS
TracedEnter (
  IN OUT HV_VCPU  *Vcpu,
  OUT    HV_EXIT  *Exit
  )
{
  RETURN_STATUS    Status;
  HV_TRACE_HEAD    *Ring;
  HV_TRACE_RECORD  *Record;

  Status = mOwnOps->Enter (Vcpu, Exit);
  if (!RETURN_ERROR (Status)) {
    // Only this processor writes here.
    Ring          = RingOf (Vcpu->Cpu->Host, Vcpu->Cpu->Index);
    Record        = (HV_TRACE_RECORD *)(Ring + 1) + Ring->Written % Ring->Records;
    Record->Tsc   = AsmReadTsc ();
    Record->Rip   = Vcpu->Regs.Rip;
    Record->Info1 = Exit->Info1;
    Record->Info2 = (Exit->Kind == HvExitNestedFault) ? Exit->Gpa : Exit->Info2;
    Record->Code  = (UINT32)Exit->Code;
    Record->Kind  = Exit->Kind;
    Ring->Written++;
  }

  return Status;
}

VOID
HvCoreNoQuick (
  IN OUT HV_HOST  *Host
  )
{
  if (Host->Ops != &mChangedOps) {
    CopyMem (&mChangedOps, Host->Ops, sizeof (mChangedOps));
    Host->Ops = &mChangedOps;
  }

  mChangedOps.Quick = HvCoreQuickNone;
}

VOID
HvCoreTrace (
  IN OUT HV_HOST  *Host,
  IN     UINT32   Records
  )
{
  HV_TRACE_HEAD  *Ring;
  UINT32         Index;

  for (Index = 0; Index < Host->CpuCount; Index++) {
    Ring            = RingOf (Host, Index);
    Ring->Signature = HV_TRACE_SIGNATURE;
    Ring->Index     = Index;
    Ring->Records   = Records;
    Ring->Written   = 0;
  }

  mOwnOps = Host->Ops;
  HvCoreNoQuick (Host);
  mChangedOps.Enter = TracedEnter;
}
