/** @file
  The run loop and the table of handlers.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"
#include <Generated/HvOptions.h>

STATIC
VOID
OnVirtInstruction (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  // The root's CPUID says that there is neither VMX nor SVM.
  HvCoreRaise (Vcpu, HV_VECTOR_UD);
}

STATIC
VOID
OnInvd (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  // INVD without write-back would lose what the host has in its caches.
  AsmWbinvd ();
  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}

///
/// INIT and SIPI that came by the wire.
///
STATIC
VOID
OnSignal (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  Cpu->Host->Ops->TakeSignal (Cpu, Exit);
  HvCoreSettleNmis (Cpu, Vcpu);
  HvCoreMail (Cpu, Vcpu);
}

STATIC
VOID
OnShutdown (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  HvCoreShutdown (Vcpu);
}

STATIC
VOID
OnTimer (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  // That there was an exit is all that it is for (HvCoreMtrrsUnseen).
}

STATIC
VOID
LogGuestState (
  IN HV_CPU   *Cpu,
  IN HV_VCPU  *Vcpu
  )
{
  HV_VCPU_STATE  State;

  Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_CONTROL | HV_STATE_SEGMENTS, &State);
  HV_LOG (
    Cpu->Index,
    GuestState,
    Vcpu->Regs.Rip,
    Vcpu->Regs.Rsp,
    Vcpu->Regs.Rflags,
    State.Cr0,
    State.Cr3,
    State.Cr4,
    State.Efer,
    State.Segment[HvSegmentCs].Selector
    );
}

STATIC
VOID
OnUnknown (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  if (Cpu->Logged[HvLogEventExitUnknown] < HV_LOG_LIMIT) {
    HV_LOG_GUEST (Cpu, ExitUnknown, Exit->Code, Exit->Info1, Exit->Info2, Vcpu->Regs.Rip);
    LogGuestState (Cpu, Vcpu);
  }

  HvCoreRaise (Vcpu, HV_VECTOR_GP);
}

VOID
HvCoreLogFindings (
  IN HV_CPU            *Cpu,
  IN CONST HV_FINDING  *Findings,
  IN UINTN             Count
  )
{
  UINTN  Index;

  for (Index = 0; Index < Count; Index++) {
    HV_LOG (
      Cpu->Index,
      EntryRule,
      HV_STR (Findings[Index].Name),
      HV_STR (Findings[Index].Section),
      HV_STR (Findings[Index].FieldName),
      Findings[Index].Value,
      HV_STR (Findings[Index].Expected)
      );
  }
}

STATIC
VOID
OnEntryFailed (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  HV_LOG (Cpu->Index, EntryFailed, Exit->Code, HV_STR ("the processor refused the guest's state"));
  LogGuestState (Cpu, Vcpu);
  HvHostPark (Cpu, "entry failed");
}

///
/// Every kind has its handler; a kind that no backend asks for ends in OnUnknown, which says so.
///
STATIC CONST HV_EXIT_HANDLER  mHandlers[HvExitKindCount] = {
  [HvExitNone]            = OnUnknown,
  [HvExitCpuid]           = HvOnCpuid,
  [HvExitRdmsr]           = HvOnRdmsr,
  [HvExitWrmsr]           = HvOnWrmsr,
  [HvExitXsetbv]          = HvOnXsetbv,
  [HvExitHypercall]       = HvOnHypercall,
  [HvExitNestedFault]     = HvOnNestedFault,
  [HvExitApicWrite]       = HvOnApicWrite,
  [HvExitHostMemory]      = HvOnHostMemory,
  [HvExitNmi]             = HvOnNmi,
  [HvExitKick]            = HvOnNmi,
  [HvExitInit]            = OnSignal,
  [HvExitSipi]            = OnSignal,
  [HvExitIret]            = HvOnIret,
  [HvExitHlt]             = OnUnknown,     // not intercepted for the root
  [HvExitPause]           = OnUnknown,     // not intercepted for the root
  [HvExitIo]              = HvOnIo,
  [HvExitCrAccess]        = HvOnCrAccess,
  [HvExitDrAccess]        = OnUnknown,     // not intercepted
  [HvExitException]       = OnUnknown,     // only #DB is intercepted
  [HvExitDb]              = HvOnDebug,
  [HvExitVirtInstruction] = OnVirtInstruction,
  [HvExitInvd]            = OnInvd,
  [HvExitTaskSwitch]      = HvOnTaskSwitch, // VMX, from 32-bit code alone
  [HvExitShutdown]        = OnShutdown,
  [HvExitSmi]             = OnSignal,      // SVM, in QEMU's emulation alone
  [HvExitWindow]          = HvOnWindow,
  [HvExitTimer]           = OnTimer,       // VMX
  [HvExitEntryFailed]     = OnEntryFailed,
  [HvExitUnknown]         = OnUnknown,
};

///
/// What one hardware exit can mean in several ways is settled here, before it is counted.
///
STATIC
HV_EXIT_KIND
Classify (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  UINT64  Page;

  switch (Exit->Kind) {
    case HvExitNestedFault:
      Page = Exit->Gpa & ~(UINT64)EFI_PAGE_MASK;
      if (HvCoreIsHostMemory (Cpu->Host, Page)) {
        return HvExitHostMemory;
      }

      if ((Page == Cpu->Host->ApicPage) && ((Exit->FaultFlags & HV_FAULT_WRITE) != 0)) {
        return HvExitApicWrite;
      }

      return HvExitNestedFault;

    case HvExitNmi:
      Cpu->Host->Ops->TakeSignal (Cpu, Exit);
      return HvCoreSettleNmis (Cpu, Vcpu) ? HvExitKick : HvExitNmi;

    default:
      return Exit->Kind;
  }
}

RETURN_STATUS
HvCoreRun (
  IN OUT HV_CPU  *Cpu
  )
{
  CONST HV_BACKEND_OPS  *Ops;
  HV_VCPU               *Vcpu;
  HV_EXIT               Exit;
  RETURN_STATUS         Status;

  Ops  = Cpu->Host->Ops;
  Vcpu = Cpu->Vcpu;
  for ( ; ;) {
    Status = Ops->Enter (Vcpu, &Exit);
    if (RETURN_ERROR (Status) && !Cpu->Entered) {
      Cpu->LaunchReason = (Status == RETURN_COMPROMISED_DATA) ? "the state for the first entry breaks a rule" :
                          "the first entry was refused";
      Cpu->LaunchDetail = Exit.Code;
      return Status;
    }

    // An NMI may have come before the guest did. TRUE is HV_ENTERED_RAN.
    Cpu->Entered = (BOOLEAN)(Cpu->Entered || (Exit.Kind != HvExitNmi));
    if (Vcpu->UnseenDefType != 0) {
      HvCoreMtrrsUnseen (Cpu, Vcpu);
    }

    Exit.Kind = Classify (Cpu, Vcpu, &Exit);
    Cpu->Exits[Exit.Kind]++;
    mHandlers[Exit.Kind](Cpu, Vcpu, &Exit);
  }
}

VOID
HvCoreStart (
  VOID
  )
{
  // The sink is boot life's.
  HvConsoleSetSink (NULL);
  HvHostInit ();
}

RETURN_STATUS
HvCoreLaunch (
  IN OUT HV_CPU  *Cpu
  )
{
  HV_HOST               *Host;
  CONST HV_BACKEND_OPS  *Ops;
  HV_VCPU               *Vcpu;
  HV_VCPU_STATE         State;
  RETURN_STATUS         Status;
  UINT64                ApicBase;
  BOOLEAN               Fails;

  Host = Cpu->Host;
  Ops  = Host->Ops;
  Vcpu = Cpu->Vcpu;

  ApicBase = AsmReadMsr64 (HV_MSR_APIC_BASE);
  if (((ApicBase & HV_APIC_BASE_ADDRESS_MASK) != Host->ApicPage) || ((ApicBase & HV_APIC_BASE_EN) == 0)) {
    Cpu->LaunchReason = "the local APIC is off or not where the boot processor's is";
    Cpu->LaunchDetail = ApicBase;
    return RETURN_UNSUPPORTED;
  }

  Cpu->X2Apic = (BOOLEAN)((ApicBase & HV_APIC_BASE_EXTD) != 0);
  Cpu->Bsp    = (BOOLEAN)((ApicBase & HV_APIC_BASE_BSP) != 0);

  Fails              = (BOOLEAN)(Cpu->Index == Host->FailCpu);
  Cpu->SpoilRootMode = (BOOLEAN)(Fails && (Host->FailAt == HV_OPTION_FAIL_AT_ROOT_MODE));
  HvHostCapture (&State);
  Status = Ops->CpuOn (Cpu);
  if (RETURN_ERROR (Status)) {
    return Status;
  }

  HvHostLoad (Cpu);
  if (!Cpu->X2Apic) {
    Cpu->Apic.Ldr = HvHostApicRead (Cpu, HV_APIC_REG_LDR);
    Cpu->Apic.Dfr = HvHostApicRead (Cpu, HV_APIC_REG_DFR);
  }

  ZeroMem (&Vcpu->Regs, sizeof (Vcpu->Regs));
  Vcpu->Regs.Rip    = Cpu->LaunchRip;
  Vcpu->Regs.Rsp    = Cpu->LaunchRsp;
  Vcpu->Regs.Rflags = HV_RFLAGS_ONE;
  Vcpu->Quick       = Ops->Quick;
  Ops->VcpuInit (Vcpu, &State);
  if (Host->Sleep.Count != 0) {
    Ops->GuardPorts (Vcpu);
  }

  if (Fails) {
    Cpu->LaunchReason = "option fail_cpu";
    Cpu->LaunchDetail = Host->FailCpu;
    Status            = RETURN_ABORTED;
  } else {
    Cpu->State = HvMpRunning;
    InterlockedIncrement (&Host->Status->Virtualised);
    Status = HvCoreRun (Cpu);
    InterlockedDecrement (&Host->Status->Virtualised);
    Cpu->State = HvMpNative;
  }

  HvHostRestore (Cpu, &State);
  Ops->CpuOff (Cpu, &State);
  return Status;
}
