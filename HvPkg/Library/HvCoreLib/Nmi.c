/** @file
  NMIs: kicks are told apart from the guest's, which get theirs once, in their window.

  A processor with virtual NMIs keeps account of an injected one and exits when it can take the next (SDM volume 3,
  25.3). Without them, until its IRET retires the next one has to wait here (APM2 15.20, 15.21.9).

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

STATIC
VOID
StartStepping (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  Iret
  )
{
  if (!Vcpu->NmiStepping) {
    Vcpu->NmiStepping = TRUE;
    Vcpu->StepIret    = Iret;
    Vcpu->StepGuestTf = (BOOLEAN)((Vcpu->Regs.Rflags & HV_RFLAGS_TF) != 0);
    Vcpu->Regs.Rflags |= HV_RFLAGS_TF;
    Cpu->Host->Ops->InterceptDebug (Vcpu, TRUE);
  }
}

STATIC
VOID
StopStepping (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  // After an IRET the flags are those that it brought.
  if (!Vcpu->StepGuestTf && !Vcpu->StepIret) {
    Vcpu->Regs.Rflags &= ~(UINT64)HV_RFLAGS_TF;
  }

  Vcpu->NmiStepping = FALSE;
  Cpu->Host->Ops->InterceptDebug (Vcpu, FALSE);
}

STATIC
VOID
TryInject (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  CONST HV_BACKEND_OPS  *Ops;
  HV_VCPU_STATE         State;
  HV_EVENT              Event;

  Ops = Cpu->Host->Ops;
  if (Ops->NmiWindow != NULL) {
    Ops->NmiWindow (Vcpu, Vcpu->NmiPending);
    return;
  }

  if (Vcpu->NmiBlocked && Vcpu->NmiIretSeen && (Vcpu->Regs.Rip != Vcpu->NmiIretRip)) {
    Vcpu->NmiBlocked = FALSE;
  }

  if (!Vcpu->NmiPending) {
    return;
  }

  if (Vcpu->NmiBlocked) {
    if (Vcpu->NmiIretSeen) {
      StartStepping (Cpu, Vcpu, TRUE);
    }

    return;
  }

  Ops->StateGet (Vcpu, HV_STATE_EVENTS, &State);
  if (Ops->EventQueued (Vcpu, &Event) || State.InterruptShadow) {
    StartStepping (Cpu, Vcpu, FALSE);
    return;
  }

  if (Vcpu->NmiStepping && ((Vcpu->Regs.Rflags & HV_RFLAGS_TF) != 0)) {
    // The handler's frame must not have our TF in it.
    StopStepping (Cpu, Vcpu);
  }

  ZeroMem (&Event, sizeof (Event));
  Event.Type = HvEventNmi;
  Ops->Inject (Vcpu, &Event);
  Vcpu->NmiPending  = FALSE;
  Vcpu->NmiBlocked  = TRUE;
  Vcpu->NmiIretSeen = FALSE;
  Ops->InterceptIret (Vcpu, TRUE);
}

VOID
HvCoreTakeNmi (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  Vcpu->NmiPending = TRUE;
  TryInject (Cpu, Vcpu);
}

BOOLEAN
HvCoreSettleNmis (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  BOOLEAN  Kicked;

  // An NMI that comes while another is pending is lost in the processor too, so one bit each is enough.
  Kicked = FALSE;
  while (Cpu->NmiSettled != Cpu->NmiCount) {
    Cpu->NmiSettled++;
    if (InterlockedCompareExchange32 ((UINT32 *)&Cpu->KickPending, 1, 0) == 1) {
      Kicked = TRUE;
    } else {
      Vcpu->NmiPending = TRUE;
    }
  }

  return Kicked;
}

VOID
HvOnNmi (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  // Also without a kick: a redirected INIT that came with this NMI has posted into the own mailbox, and who finds mail
  // there does not kick.
  HvCoreMail (Cpu, Vcpu);
  TryInject (Cpu, Vcpu);
}

VOID
HvOnWindow (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  HV_EVENT  Event;

  Cpu->Host->Ops->NmiWindow (Vcpu, FALSE);
  if (Vcpu->NmiPending) {
    ZeroMem (&Event, sizeof (Event));
    Event.Type       = HvEventNmi;
    Vcpu->NmiPending = FALSE;
    Cpu->Host->Ops->Inject (Vcpu, &Event);
  }
}

VOID
HvOnIret (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  // The exit comes before the IRET: NMIs stay blocked until RIP has moved.
  Cpu->Host->Ops->InterceptIret (Vcpu, FALSE);
  Vcpu->NmiIretSeen = TRUE;
  Vcpu->NmiIretRip  = Vcpu->Regs.Rip;
  TryInject (Cpu, Vcpu);
}

VOID
HvOnDebug (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  CONST HV_BACKEND_OPS  *Ops;
  HV_VCPU_STATE         State;
  BOOLEAN               Ours;

  Ops  = Cpu->Host->Ops;
  Ours = FALSE;
  if (Vcpu->NmiStepping) {
    Ops->StateGet (Vcpu, HV_STATE_DEBUG, &State);
    Ours = (BOOLEAN)(!Vcpu->StepGuestTf && ((State.Dr6 & (HV_DR6_BS | 0xF)) == HV_DR6_BS));
    StopStepping (Cpu, Vcpu);
    if (Ours) {
      State.Dr6 &= ~(UINT64)HV_DR6_BS;
      Ops->StateSet (Vcpu, HV_STATE_DEBUG, &State);
    }
  }

  if (!Ours) {
    HvCoreRaise (Vcpu, HV_VECTOR_DB);
  }

  TryInject (Cpu, Vcpu);
}
