/** @file
  INIT, SIPI and the guest's NMIs: posted into mailboxes by the sender's processor, carried out by the target's. When the
  trap of the xAPIC page is lifted they come by the wire and exit at the target; INIT and SIPI go into its own mailbox.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

///
/// An interrupt command for one processor alone, by its local APIC. Delivery mode and vector stay.
///
STATIC
VOID
SendWire (
  IN HV_CPU  *Cpu,
  IN HV_CPU  *Target,
  IN UINT64  Icr
  )
{
  HvHostSendIcr (Cpu, (Icr & 0x7FF) | BIT14 | LShiftU64 (Target->Apic.ApicId, Cpu->X2Apic ? 32 : 56));
}

///
/// To all other processors that are guests.
///
STATIC
VOID
PostAll (
  IN OUT HV_CPU  *Cpu,
  IN     UINT32  Mail
  )
{
  HV_CPU  *Target;
  UINT32  Index;

  for (Index = 0; Index < Cpu->Host->CpuCount; Index++) {
    Target = HvHostCpu (Cpu->Host, Index);
    if ((Target != Cpu) && (Target->State != HvMpNative) && HvMailboxPost (&Target->Mailbox, Mail)) {
      HvHostKick (Cpu, Target);
    }
  }
}

VOID
HvCoreFlushAll (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  Cpu->Host->Ops->Flush (Vcpu);
  PostAll (Cpu, HV_MAIL_FLUSH);
}

VOID
HvCoreGuardAll (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  Cpu->Host->Ops->GuardPorts (Vcpu);
  PostAll (Cpu, HV_MAIL_PORTS);
}

BOOLEAN
HvCoreInterruptCommand (
  IN OUT HV_CPU  *Cpu,
  IN     UINT64  Icr
  )
{
  HV_HOST  *Host;
  HV_CPU   *Target;
  HV_IPI   Ipi;
  UINT32   Index;
  BOOLEAN  Init;
  BOOLEAN  Nmi;
  BOOLEAN  MustKick;

  Host = Cpu->Host;
  HvApicDecodeIcr (Icr, Cpu->X2Apic, &Ipi);
  if (HvIpiIsInitDeassert (&Ipi)) {
    return TRUE;
  }

  Init = HvIpiIsInit (&Ipi);
  Nmi  = HvIpiIsNmi (&Ipi);
  if (!Init && !Nmi && !HvIpiIsSipi (&Ipi)) {
    return FALSE;
  }

  for (Index = 0; Index < Host->CpuCount; Index++) {
    Target = HvHostCpu (Host, Index);
    if (!HvApicIsTarget (&Ipi, Cpu->X2Apic, (BOOLEAN)(Target == Cpu), &Target->Apic)) {
      continue;
    }

    if (Target->State == HvMpNative) {
      // Not launched yet, or left: it gets the real thing.
      SendWire (Cpu, Target, Icr);
      continue;
    }

    if (Nmi) {
      // By mail it cannot merge with a kick, which is an NMI too.
      MustKick = HvMailboxPost (&Target->Mailbox, HV_MAIL_NMI);
    } else if (Init) {
      HV_LOG (Cpu->Index, Init, Index);
      MustKick = HvMailboxPostInit (&Target->Mailbox);
    } else {
      HV_LOG (Cpu->Index, Sipi, Index, Ipi.Vector);
      MustKick = HvMailboxPostSipi (&Target->Mailbox, Ipi.Vector);
    }

    if (MustKick && (Target != Cpu)) {
      HvHostKick (Cpu, Target);
    }

    if (!Init && !Nmi && (Target->SipiWait != 0)) {
      // NMIs are blocked there, a SIPI is not. It goes behind the kick: one of the two arrives.
      SendWire (Cpu, Target, Icr);
    }
  }

  return TRUE;
}

STATIC
VOID
Reset (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  CONST HV_BACKEND_OPS  *Ops;
  HV_VCPU_STATE         State;
  HV_EVENT              Event;
  UINT32                Model;

  Ops = Cpu->Host->Ops;
  HV_LOG (Cpu->Index, InitTaken);
  AsmCpuid (HV_CPUID_1, &Model, NULL, NULL, NULL);
  Ops->StateGet (Vcpu, HV_STATE_ALL, &State);
  HvCoreInitState (&State, &Vcpu->Regs, Model);
  Ops->StateSet (Vcpu, HV_STATE_ALL, &State);
  AsmWriteDr0 (0);
  AsmWriteDr1 (0);
  AsmWriteDr2 (0);
  AsmWriteDr3 (0);

  ZeroMem (&Event, sizeof (Event));
  Ops->Inject (Vcpu, &Event);
  if (Ops->NmiWindow != NULL) {
    Ops->NmiWindow (Vcpu, FALSE);
  }

  Ops->InterceptIret (Vcpu, FALSE);
  Ops->InterceptDebug (Vcpu, FALSE);
  Vcpu->NmiPending  = FALSE;
  Vcpu->NmiBlocked  = FALSE;
  Vcpu->NmiStepping = FALSE;
  Vcpu->NmiIretSeen = FALSE;
  Cpu->SipiWait     = FALSE;
  HvHostApicReset (Cpu);
}

STATIC
VOID
Start (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT8    Vector
  )
{
  HV_VCPU_STATE  State;

  // SDM volume 3, 8.4.3: CS base = vector x 1000h, IP = 0.
  HV_LOG (Cpu->Index, SipiTaken, Vector);
  Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_SEGMENTS, &State);
  State.Segment[HvSegmentCs].Selector = (UINT16)(Vector << 8);
  State.Segment[HvSegmentCs].Base     = (UINT32)Vector << 12;
  Cpu->Host->Ops->StateSet (Vcpu, HV_STATE_SEGMENTS, &State);
  Vcpu->Regs.Rip    = 0;
  Vcpu->NmiPending  = FALSE; // an NMI does not reach a processor that waits for its SIPI
  if (Cpu->Host->FirmwareDone != 0) {
    HvCoreOsStarted (Cpu);
  }
}

///
/// What a processor that waits for its SIPI does: sleep in its guest, where a SIPI exits, or here, where mail wakes it.
///
STATIC
VOID
SetSipiWait (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  On
  )
{
  HV_VCPU_STATE  State;

  if ((Cpu->SipiWait != 0) != On) {
    Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_EVENTS, &State);
    State.Activity = On ? HvActivityWaitForSipi : HvActivityRunning;
    Cpu->Host->Ops->StateSet (Vcpu, HV_STATE_EVENTS, &State);
    InterlockedCompareExchange32 ((UINT32 *)&Cpu->SipiWait, !On, On);
  }
}

VOID
HvCoreMail (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_MAIL       Mail;
  HV_MP_ACTION  Action;

  for ( ; ;) {
    while (HvMailboxTake (&Cpu->Mailbox, &Mail)) {
      if ((Mail.Flags & HV_MAIL_PARK) != 0) {
        HvHostPark (Cpu, "another processor stopped");
      }

      Cpu->State = HvMpStateNext (Cpu->State, Cpu->Bsp, &Mail, &Action);
      if ((Action.Actions & HV_MP_ACTION_RESET) != 0) {
        Reset (Cpu, Vcpu);
      }

      if ((Action.Actions & HV_MP_ACTION_START) != 0) {
        Start (Cpu, Vcpu, Action.Vector);
      }

      if (((Mail.Flags & HV_MAIL_NMI) != 0) && !Mail.Init && (Cpu->State == HvMpRunning)) {
        HvCoreTakeNmi (Cpu, Vcpu);
      }

      if ((Mail.Flags & HV_MAIL_FLUSH) != 0) {
        Cpu->Host->Ops->Flush (Vcpu);
      }

      if ((Mail.Flags & HV_MAIL_PORTS) != 0) {
        Cpu->Host->Ops->GuardPorts (Vcpu);
      }
    }

    SetSipiWait (Cpu, Vcpu, (BOOLEAN)((Cpu->State == HvMpWaitForSipi) && (Cpu->Host->ApicTrapLifted != 0)));
    if (Cpu->State != HvMpWaitForSipi) {
      return;
    }

    if (Cpu->SipiWait == 0) {
      Cpu->Host->Ops->WaitMail (Cpu);
    } else if (!HvMailboxPeek (&Cpu->Mailbox, NULL)) {
      // Who posts from here on sees the mark; what came before is taken now.
      Vcpu->NmiPending = FALSE;
      return;
    }

    HvCoreSettleNmis (Cpu, Vcpu);
  }
}
