/** @file
  The VMX backend: VMX operation on and off, entry, exit, events.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "VmxInternal.h"

#include <Library/HvMailboxLib.h>

#define BITMAP_HIGH_FIRST   0xC0000000 // the four parts of the MSR bitmaps (SDM 25.6.9)
#define BITMAP_RANGE_MSRS   0x2000
#define BITMAP_READ_LOW     0x000
#define BITMAP_READ_HIGH    0x400
#define BITMAP_WRITE_LOW    0x800
#define BITMAP_WRITE_HIGH   0xC00

#define INTERRUPTION_DF     8

#define BITMAP_ROW(Msr, SvmRead, SvmWrite, SvmRule, Read, Write, Rule, Text)  { Msr, Read, Write },

STATIC CONST struct {
  UINT32     Msr;
  BOOLEAN    Read;
  BOOLEAN    Write;
} mMsrPolicy[] = {
  HV_MSR_ROOT_POLICY_LIST (BITMAP_ROW)
};

#define EXIT_ROW(Code, Kind, Text)  { Code, Kind },

STATIC CONST struct {
  UINT32          Code;
  HV_EXIT_KIND    Kind;
} mExitKinds[] = {
  HV_VMX_EXIT_LIST (EXIT_ROW)
};

///
/// The exits whose instruction length is the way to the next one (SDM 28.2.5).
///
STATIC CONST BOOLEAN  mIsInstruction[HvExitKindCount] = {
  [HvExitCpuid]           = TRUE,
  [HvExitRdmsr]           = TRUE,
  [HvExitWrmsr]           = TRUE,
  [HvExitXsetbv]          = TRUE,
  [HvExitHypercall]       = TRUE,
  [HvExitInvd]            = TRUE,
  [HvExitIo]              = TRUE,
  [HvExitCrAccess]        = TRUE,
  [HvExitVirtInstruction] = TRUE,
};

STATIC
VOID
VmxVmInit (
  IN     HV_HOST  *Host,
  IN OUT HV_VM    *Vm
  )
{
  UINTN   Row;
  UINT32  Msr;
  UINT8   *Bitmaps;
  UINT8   *Unseen;
  UINT32  Part;

  // All MSRs that no row names pass; outside the two ranges every access exits (SDM 25.6.9).
  Bitmaps = Vm->Shared;
  ZeroMem (Bitmaps, EFI_PAGES_TO_SIZE (VMX_SHARED_PAGES));
  for (Row = 0; Row < ARRAY_SIZE (mMsrPolicy); Row++) {
    Msr  = mMsrPolicy[Row].Msr;
    Part = 0;
    if (Msr - BITMAP_HIGH_FIRST < BITMAP_RANGE_MSRS) {
      Msr -= BITMAP_HIGH_FIRST;
      Part = BITMAP_READ_HIGH - BITMAP_READ_LOW;
    } else if (Msr >= BITMAP_RANGE_MSRS) {
      continue;
    }

    Bitmaps[BITMAP_READ_LOW + Part + Msr / 8]  |= (UINT8)((mMsrPolicy[Row].Read ? 1 : 0) << (Msr % 8));
    Bitmaps[BITMAP_WRITE_LOW + Part + Msr / 8] |= (UINT8)((mMsrPolicy[Row].Write ? 1 : 0) << (Msr % 8));
  }

  Unseen = Bitmaps + EFI_PAGES_TO_SIZE (VMX_PAGE_MSR_UNSEEN);
  CopyMem (Unseen, Bitmaps, EFI_PAGE_SIZE);
  Unseen[BITMAP_WRITE_LOW + HV_MSR_MTRR_DEF_TYPE / 8] &= (UINT8) ~(1 << (HV_MSR_MTRR_DEF_TYPE % 8));
}

///
/// VMX operation on, with its region. FALSE: VMfailInvalid or VMfailValid (SDM 31.2).
///
STATIC
BOOLEAN
VmxOn (
  IN VOID  *Page
  )
{
  UINT64   Address;
  BOOLEAN  Done;

  Address = (UINTN)Page;
  __asm__ __volatile__ ("vmxon %1; seta %0" : "=qm" (Done) : "m" (Address) : "cc", "memory");
  return Done;
}

///
/// Writes a VMCS back to its page and makes it clear.
///
STATIC
BOOLEAN
VmcsClear (
  IN VOID  *Page
  )
{
  UINT64   Address;
  BOOLEAN  Done;

  Address = (UINTN)Page;
  __asm__ __volatile__ ("vmclear %1; seta %0" : "=qm" (Done) : "m" (Address) : "cc", "memory");
  return Done;
}

///
/// Makes a VMCS current.
///
STATIC
BOOLEAN
VmcsLoad (
  IN VOID  *Page
  )
{
  UINT64   Address;
  BOOLEAN  Done;

  Address = (UINTN)Page;
  __asm__ __volatile__ ("vmptrld %1; seta %0" : "=qm" (Done) : "m" (Address) : "cc", "memory");
  return Done;
}

STATIC
RETURN_STATUS
Refuse (
  IN OUT HV_CPU         *Cpu,
  IN     CONST CHAR8    *Reason,
  IN     UINT64         Detail,
  IN     RETURN_STATUS  Status
  )
{
  Cpu->LaunchReason = Reason;
  Cpu->LaunchDetail = Detail;
  return Status;
}

STATIC
RETURN_STATUS
VmxCpuOn (
  IN OUT HV_CPU  *Cpu
  )
{
  VMX_CONTROLS  Controls;
  CONST CHAR8   *Missing;
  UINT64        FeatureControl;
  UINTN         Cr0;
  UINTN         Cr4;
  UINT32        Revision;
  UINT32        Ecx;

  AsmCpuid (HV_CPUID_1, NULL, NULL, &Ecx, NULL);
  if ((Ecx & HV_CPUID_1_ECX_VMX) == 0) {
    return Refuse (Cpu, "this processor has no VMX", Ecx, RETURN_UNSUPPORTED);
  }

  Cr0 = AsmReadCr0 ();
  Cr4 = AsmReadCr4 ();
  if ((Cr4 & HV_CR4_VMXE) != 0) {
    return Refuse (Cpu, "CR4.VMXE is set already", Cr4, RETURN_ALREADY_STARTED);
  }

  // The probe looked at the boot processor.
  Missing = VmxControls (&Controls);
  if (Missing != NULL) {
    return Refuse (Cpu, Missing, AsmReadMsr64 (HV_MSR_VMX_BASIC), RETURN_UNSUPPORTED);
  }

  if (((AsmReadMsr64 (HV_MSR_VMX_CR0_FIXED0) & ~Cpu->Host->RootCr0) != 0) ||
      ((AsmReadMsr64 (HV_MSR_VMX_CR4_FIXED0) & ~Cpu->Host->RootCr4) != 0))
  {
    return Refuse (Cpu, "CR0 and CR4 have other fixed bits than on the boot processor", Cr4, RETURN_UNSUPPORTED);
  }

  // Every processor has its own (SDM 24.7). A lock that the firmware left open is closed as it would have to be.
  FeatureControl = AsmReadMsr64 (HV_MSR_FEATURE_CONTROL);
  if ((FeatureControl & HV_FEATURE_CONTROL_LOCK) == 0) {
    FeatureControl |= HV_FEATURE_CONTROL_LOCK | HV_FEATURE_CONTROL_VMX_OUTSIDE_SMX;
    AsmWriteMsr64 (HV_MSR_FEATURE_CONTROL, FeatureControl);
  } else if ((FeatureControl & HV_FEATURE_CONTROL_VMX_OUTSIDE_SMX) == 0) {
    return Refuse (Cpu, "IA32_FEATURE_CONTROL is locked with VMX off", FeatureControl, RETURN_UNSUPPORTED);
  }

  Revision                                    = (UINT32)(AsmReadMsr64 (HV_MSR_VMX_BASIC) & HV_VMX_BASIC_REVISION_MASK);
  *(UINT32 *)VmxCpuPage (Cpu, VMX_PAGE_VMXON) = Revision ^ (Cpu->SpoilRootMode ? 1 : 0); // a test: VMXON refuses it
  *(UINT32 *)VmxCpuPage (Cpu, VMX_PAGE_VMCS)  = Revision;

  AsmWriteCr0 (Cr0 | (UINTN)Cpu->Host->RootCr0);
  AsmWriteCr4 (Cr4 | (UINTN)Cpu->Host->RootCr4);
  if (!VmxOn (VmxCpuPage (Cpu, VMX_PAGE_VMXON))) {
    AsmWriteCr4 (Cr4);
    AsmWriteCr0 (Cr0);
    return Refuse (Cpu, "VMXON failed", FeatureControl, RETURN_DEVICE_ERROR);
  }

  if (!VmcsClear (VmxCpuPage (Cpu, VMX_PAGE_VMCS)) || !VmcsLoad (VmxCpuPage (Cpu, VMX_PAGE_VMCS))) {
    __asm__ __volatile__ ("vmxoff" : : : "cc");
    AsmWriteCr4 (Cr4);
    AsmWriteCr0 (Cr0);
    return Refuse (Cpu, "the VMCS was refused", Revision, RETURN_DEVICE_ERROR);
  }

  HvHostNmiGuard (HvVmxGuardBegin, HvVmxGuardEnd, HvVmxGuardTarget);
  return RETURN_SUCCESS;
}

///
/// Gives TR the hidden part of a reset, which is what firmware with a null TR has. LTR does not take a null selector,
/// so it gets one behind the end of the firmware's table: EDK2 leaves such a TR alone, and HvHostCapture takes it for
/// null.
///
STATIC
VOID
ResetTr (
  IN VOID  *Scratch ///< a page
  )
{
  IA32_DESCRIPTOR  Gdtr;
  IA32_DESCRIPTOR  Own;
  UINT64           *Entry;

  // A copy of the firmware's table, so that an NMI finds its segments.
  AsmReadGdtr (&Gdtr);
  ZeroMem (Scratch, EFI_PAGE_SIZE);
  CopyMem (Scratch, (VOID *)Gdtr.Base, MIN ((UINTN)Gdtr.Limit + 1, EFI_PAGE_SIZE - 2 * sizeof (*Entry)));
  Entry     = (UINT64 *)((UINTN)Scratch + EFI_PAGE_SIZE) - 2;
  Entry[0]  = 0x0000890000000000ULL | 0xFFFF; // available TSS, base 0, limit FFFFh
  Entry[1]  = 0;
  Own.Base  = (UINTN)Scratch;
  Own.Limit = EFI_PAGE_SIZE - 1;
  AsmWriteGdtr (&Own);
  AsmWriteTr ((UINT16)((UINTN)Entry - (UINTN)Scratch));
  AsmWriteGdtr (&Gdtr);
}

STATIC
VOID
VmxCpuOff (
  IN OUT HV_CPU               *Cpu,
  IN     CONST HV_VCPU_STATE  *State
  )
{
  UINT64  DebugCtl;

  DebugCtl = VmxRead (HV_VMCS_GUEST_DEBUGCTL);
  VmcsClear (VmxCpuPage (Cpu, VMX_PAGE_VMCS));
  __asm__ __volatile__ ("vmxoff" : : : "cc");
  AsmWriteCr4 ((UINTN)State->Cr4);
  AsmWriteCr0 ((UINTN)State->Cr0);

  // An exit, and a failed entry, leave the host's values in these (SDM 28.5.1).
  AsmWriteMsr64 (HV_MSR_SYSENTER_CS, State->SysenterCs);
  AsmWriteMsr64 (HV_MSR_SYSENTER_ESP, State->SysenterEsp);
  AsmWriteMsr64 (HV_MSR_SYSENTER_EIP, State->SysenterEip);
  AsmWriteMsr64 (HV_MSR_PAT, State->Pat);
  AsmWriteMsr64 (HV_MSR_DEBUGCTL, DebugCtl);
  AsmWriteDr7 ((UINTN)State->Dr7);
  if ((State->Segment[HvSegmentTr].Selector & ~7U) == 0) {
    ResetTr (VmxCpuPage (Cpu, VMX_PAGE_VMXON));
  }
}

STATIC
HV_EXIT_KIND
ExitKind (
  IN UINT32  Reason
  )
{
  UINTN  Row;

  if (Reason == HV_VMX_EXIT_CPUID) {
    return HvExitCpuid;
  }

  for (Row = 0; Row < ARRAY_SIZE (mExitKinds); Row++) {
    if (mExitKinds[Row].Code == Reason) {
      return mExitKinds[Row].Kind;
    }
  }

  return HvExitUnknown;
}

///
/// An IRET that had lifted the blocking by NMI and then met an exit is executed again: NMIs are blocked till then
/// (SDM 28.2.3).
///
STATIC
VOID
BlockNmi (
  VOID
  )
{
  VmxWrite (HV_VMCS_GUEST_INTERRUPTIBILITY, VmxRead (HV_VMCS_GUEST_INTERRUPTIBILITY) | HV_VMX_BLOCKING_NMI);
}

///
/// An event whose delivery the exit cut off goes again. INT n, INT1, INT3 and INTO are executed again instead: RIP is
/// still at them (SDM 28.2.4, 28.3.3).
///
STATIC
BOOLEAN
Redeliver (
  VOID
  )
{
  UINT64  Event;

  Event = VmxRead (HV_VMCS_IDT_VECTORING_INFO);
  if ((Event & HV_VMX_EVENT_VALID) == 0) {
    return FALSE;
  }

  switch (Event & HV_VMX_EVENT_TYPE_MASK) {
    case HV_VMX_EVENT_TYPE_NMI:
      // The entry blocks NMIs by itself, and refuses one that finds them blocked (SDM 27.3.1.5).
      VmxWrite (
        HV_VMCS_GUEST_INTERRUPTIBILITY,
        VmxRead (HV_VMCS_GUEST_INTERRUPTIBILITY) & ~(UINT64)HV_VMX_BLOCKING_NMI
        );
    case HV_VMX_EVENT_TYPE_EXTERNAL:
    case HV_VMX_EVENT_TYPE_EXCEPTION:
      VmxWrite (HV_VMCS_ENTRY_EXCEPTION_ERROR, VmxRead (HV_VMCS_IDT_VECTORING_ERROR));
      VmxWrite (HV_VMCS_ENTRY_INTERRUPTION_INFO, Event & ~(UINT64)HV_VMX_EVENT_NMI_UNBLOCKING);
      break;
    default:
      break;
  }

  return TRUE;
}

STATIC
VOID
OnException (
  IN OUT HV_EXIT  *Exit,
  IN     BOOLEAN  Redelivered
  )
{
  UINT64  Event;

  Event       = VmxRead (HV_VMCS_EXIT_INTERRUPTION_INFO);
  Exit->Info2 = Event;
  if ((Event & HV_VMX_EVENT_TYPE_MASK) == HV_VMX_EVENT_TYPE_NMI) {
    Exit->Kind = HvExitNmi;
    return;
  }

  if (((Event & HV_VMX_EVENT_NMI_UNBLOCKING) != 0) && !Redelivered &&
      ((Event & HV_VMX_EVENT_VECTOR_MASK) != INTERRUPTION_DF))
  {
    BlockNmi ();
  }

  if ((Event & HV_VMX_EVENT_VECTOR_MASK) == HV_VECTOR_DB) {
    // The exit comes before DR6 is written: the qualification has the bits (SDM 28.1, 28.2.1).
    Exit->Kind = HvExitDb;
    AsmWriteDr6 (
      (AsmReadDr6 () & ~(UINTN)HV_DR6_B_MASK) | (UINTN)(Exit->Info1 & (HV_DR6_B_MASK | HV_DR6_BD | HV_DR6_BS))
      );
  }
}

STATIC
VOID
OnEpt (
  IN     UINT32   Reason,
  IN OUT HV_EXIT  *Exit,
  IN     BOOLEAN  Redelivered
  )
{
  Exit->Gpa = VmxRead (HV_VMCS_GUEST_PHYSICAL_ADDRESS);
  if (Reason == HV_VMX_EXIT_EPT_MISCONFIG) {
    Exit->FaultFlags = HV_FAULT_MALFORMED;
    return;
  }

  Exit->Info2 = VmxRead (HV_VMCS_GUEST_LINEAR_ADDRESS);
  if (((Exit->Info1 & HV_EPT_VIOLATION_NMI_UNBLOCKING) != 0) && !Redelivered) {
    BlockNmi ();
  }

  Exit->FaultFlags = 0;
  if ((Exit->Info1 & (HV_EPT_VIOLATION_READABLE | HV_EPT_VIOLATION_WRITABLE | HV_EPT_VIOLATION_EXECUTABLE)) != 0) {
    Exit->FaultFlags |= HV_FAULT_PRESENT;
  }

  if ((Exit->Info1 & HV_EPT_VIOLATION_WRITE) != 0) {
    Exit->FaultFlags |= HV_FAULT_WRITE;
  }

  if ((Exit->Info1 & HV_EPT_VIOLATION_FETCH) != 0) {
    Exit->FaultFlags |= HV_FAULT_FETCH;
  }

  if ((Exit->Info1 & (HV_EPT_VIOLATION_LINEAR_VALID | HV_EPT_VIOLATION_FINAL)) == HV_EPT_VIOLATION_LINEAR_VALID) {
    Exit->FaultFlags |= HV_FAULT_TABLE;
  }
}

STATIC
VOID
OnCrAccess (
  IN     HV_VCPU  *Vcpu,
  IN OUT HV_EXIT  *Exit
  )
{
  HV_VCPU_STATE  State;
  UINT64         Rights;

  Exit->CrNumber = (UINT8)(Exit->Info1 & HV_VMX_CR_EXIT_NUMBER_MASK);
  switch (Exit->Info1 & HV_VMX_CR_EXIT_ACCESS_MASK) {
    case HV_VMX_CR_EXIT_ACCESS_WRITE:
      Exit->CrValue = Vcpu->Regs.Index[(Exit->Info1 & HV_VMX_CR_EXIT_REGISTER_MASK) >> HV_VMX_CR_EXIT_REGISTER_SHIFT];
      Rights        = VmxRead (HV_VMCS_GUEST_CS_ACCESS_RIGHTS);
      if (((Rights & HV_VMX_SEGMENT_L) == 0) || ((VmxRead (HV_VMCS_GUEST_EFER) & HV_EFER_LMA) == 0)) {
        Exit->CrValue = (UINT32)Exit->CrValue;
      }

      return;
    case HV_VMX_CR_EXIT_ACCESS_CLTS:
      VmxStateGet (Vcpu, HV_STATE_CONTROL, &State);
      Exit->CrValue = State.Cr0 & ~HV_CR0_TS;
      return;
    case HV_VMX_CR_EXIT_ACCESS_LMSW:
      // PE can be set by it, not cleared (SDM volume 2, LMSW).
      VmxStateGet (Vcpu, HV_STATE_CONTROL, &State);
      Exit->CrValue  = State.Cr0 & ~(HV_CR0_MP | HV_CR0_EM | HV_CR0_TS);
      Exit->CrValue |= ((Exit->Info1 & HV_VMX_CR_EXIT_LMSW_SOURCE_MASK) >> HV_VMX_CR_EXIT_LMSW_SOURCE_SHIFT) &
                       (HV_CR0_PE | HV_CR0_MP | HV_CR0_EM | HV_CR0_TS);
      return;
    default:
      Exit->Kind = HvExitUnknown; // no control asks for exits of reads
  }
}

STATIC
VOID
OnIo (
  IN OUT HV_EXIT  *Exit
  )
{
  Exit->IoPort  = (UINT16)((Exit->Info1 & HV_VMX_IO_EXIT_PORT_MASK) >> HV_VMX_IO_EXIT_PORT_SHIFT);
  Exit->IoSize  = (UINT8)(Exit->Info1 & HV_VMX_IO_EXIT_SIZE_MASK) + 1;
  Exit->IoFlags = (((Exit->Info1 & HV_VMX_IO_EXIT_IN) != 0) ? HV_IO_IN : 0) |
                  (((Exit->Info1 & HV_VMX_IO_EXIT_STRING) != 0) ? HV_IO_STRING : 0);
}

#define TASK_SOURCE(Source)  (HV_VMX_TASK_EXIT_SOURCE_##Source >> HV_VMX_TASK_EXIT_SOURCE_SHIFT)

STATIC_ASSERT (TASK_SOURCE (CALL) == HvTaskCall, "SDM table 28-2");
STATIC_ASSERT (TASK_SOURCE (IRET) == HvTaskIret, "SDM table 28-2");
STATIC_ASSERT (TASK_SOURCE (JMP) == HvTaskJmp, "SDM table 28-2");
STATIC_ASSERT (TASK_SOURCE (GATE) == HvTaskGate, "SDM table 28-2");

STATIC
VOID
OnTaskSwitch (
  IN     CONST HV_VCPU  *Vcpu,
  IN OUT HV_EXIT        *Exit
  )
{
  UINT64   Event;
  BOOLEAN  Instruction;

  Exit->TaskSelector = (UINT16)(Exit->Info1 & HV_VMX_TASK_EXIT_SELECTOR_MASK);
  Exit->TaskSource   = (UINT8)((Exit->Info1 & HV_VMX_TASK_EXIT_SOURCE_MASK) >> HV_VMX_TASK_EXIT_SOURCE_SHIFT);
  Instruction        = (BOOLEAN)(Exit->TaskSource != HvTaskGate);
  Event              = VmxRead (HV_VMCS_IDT_VECTORING_INFO);
  if (!Instruction && ((Event & HV_VMX_EVENT_VALID) != 0)) {
    switch (Event & HV_VMX_EVENT_TYPE_MASK) {
      case HV_VMX_EVENT_TYPE_SOFTWARE:
      case HV_VMX_EVENT_TYPE_PRIVILEGED_EXCEPTION:
      case HV_VMX_EVENT_TYPE_SOFTWARE_EXCEPTION:
        Instruction = TRUE;
        break;
    }
  }

  // The length is there for what an instruction asked for (SDM 28.2.5).
  Exit->NextRip = Vcpu->Regs.Rip + (Instruction ? VmxRead (HV_VMCS_EXIT_INSTRUCTION_LENGTH) : 0);
}

///
/// Whether nothing but RIP changes behind the instruction that made the exit; the rest is left to HvCoreRetire. RF was
/// saved as 0 (SDM 28.3.3).
///
STATIC HV_INLINE
BOOLEAN
IsOrdinary (
  VOID
  )
{
  return (BOOLEAN)(((VmxReadBasic (HV_VMCS_GUEST_INTERRUPTIBILITY) &
                     (HV_VMX_BLOCKING_STI | HV_VMX_BLOCKING_MOV_SS)) == 0) &&
                   ((VmxReadBasic (HV_VMCS_GUEST_RFLAGS) & HV_RFLAGS_TF) == 0));
}

///
/// Goes behind an instruction. FALSE: not here, also where EIP may have to wrap.
///
STATIC HV_INLINE
BOOLEAN
MoveOn (
  VOID
  )
{
  UINT64  Length;
  UINT64  Next;

  if (!IsOrdinary ()) {
    return FALSE;
  }

  Length = VmxReadBasic (HV_VMCS_EXIT_INSTRUCTION_LENGTH);
  Next   = VmxReadBasic (HV_VMCS_GUEST_RIP) + Length;
  if ((UINT32)Next < (UINT32)Length) {
    return FALSE;
  }

  VmxWrite (HV_VMCS_GUEST_RIP, Next);
  return TRUE;
}

///
/// The privilege level.
///
STATIC HV_INLINE
UINT8
Cpl (
  VOID
  )
{
  return (UINT8)((VmxReadBasic (HV_VMCS_GUEST_SS_ACCESS_RIGHTS) & HV_VMX_SEGMENT_DPL_MASK) >> HV_VMX_SEGMENT_DPL_SHIFT);
}

///
/// All but the registers that a C function may change is still the guest's here.
///
STATIC
BOOLEAN
VmxQuick (
  IN OUT HV_VCPU  *Vcpu
  )
{
  UINT64  Reason;
  UINT64  Cr4;

  Reason = VmxReadBasic (HV_VMCS_EXIT_REASON);
  if (Reason == HV_VMX_EXIT_CPUID) {
    // The bits that CPUID mirrors are never others in the register than the guest has written.
    Cr4 = HvCoreCpuidMirrorsCr4 ((UINT32)Vcpu->Regs.Rax) ? VmxReadBasic (HV_VMCS_GUEST_CR4) : 0;
    return MoveOn () ? HvCoreQuickCpuid (Vcpu, Cr4) : FALSE;
  }

  if (Reason == HV_VMX_EXIT_VMCALL) {
    return (HvCoreIsQuickCall (Vcpu, Cpl ()) && MoveOn ()) ? HvCoreQuickCall (Vcpu) : FALSE;
  }

  return ((Reason == HV_VMX_EXIT_WRMSR) && HvCoreIsQuickWrmsr (Vcpu) && MoveOn ()) ? HvCoreQuickWrmsr (Vcpu) : FALSE;
}

STATIC
RETURN_STATUS
VmxEnter (
  IN OUT HV_VCPU  *Vcpu,
  OUT    HV_EXIT  *Exit
  )
{
  UINT64   Result;
  UINT32   Reason;
  BOOLEAN  Redelivered;

  VmxWrite (HV_VMCS_GUEST_RSP, Vcpu->Regs.Rsp);
  VmxWrite (HV_VMCS_GUEST_RIP, Vcpu->Regs.Rip);
  VmxWrite (HV_VMCS_GUEST_RFLAGS, Vcpu->Regs.Rflags);

  Exit->Info1        = 0;
  Exit->Info2        = 0;
  Exit->NextRip      = 0;
  Exit->FetchedCount = 0;
 #ifndef MDEPKG_NDEBUG
  if ((Vcpu->Cpu->Entered != HV_ENTERED_RAN) && VmxRefuses (Vcpu)) {
    Exit->Kind = HvExitEntryFailed;
    Exit->Code = 0;
    return RETURN_COMPROMISED_DATA;
  }

 #endif

  Result = HvVmxSwitch (Vcpu);
  if (Result != VMX_SWITCH_EXIT) {
    if (Result == VMX_SWITCH_NMI) {
      // The host has taken and counted it already; what is queued for the guest stays queued. VmxQuick may have
      // dealt with exits before.
      VmxVcpu (Vcpu)->Launched |= (BOOLEAN)(Vcpu->Cpu->Entered != HV_ENTERED_NEVER);
      Vcpu->Regs.Rsp    = VmxRead (HV_VMCS_GUEST_RSP);
      Vcpu->Regs.Rip    = VmxRead (HV_VMCS_GUEST_RIP);
      Vcpu->Regs.Rflags = VmxRead (HV_VMCS_GUEST_RFLAGS);
      Exit->Code = HV_VMX_EXIT_EXCEPTION_NMI;
      Exit->Kind = HvExitNmi;
      return RETURN_SUCCESS;
    }

    // The VM-instruction error, 0 without a current VMCS. Bit 31 tells it from an exit reason.
    Exit->Kind = HvExitEntryFailed;
    Exit->Code = (Result == VMX_SWITCH_FAIL_VALID) ? VmxRead (HV_VMCS_INSTRUCTION_ERROR) : 0;
    VmxExplain (Vcpu);
    return RETURN_ABORTED;
  }

  Reason      = (UINT32)VmxRead (HV_VMCS_EXIT_REASON);
  Exit->Code  = Reason;
  Exit->Info1 = VmxRead (HV_VMCS_EXIT_QUALIFICATION);
  if ((Reason & HV_VMX_REASON_ENTRY_FAILURE) != 0) {
    Exit->Kind = HvExitEntryFailed;
    VmxExplain (Vcpu);
    return RETURN_ABORTED;
  }

  VmxVcpu (Vcpu)->Launched = TRUE;
  Vcpu->Cpu->Entered       = HV_ENTERED_RAN;
  Vcpu->Regs.Rsp           = VmxRead (HV_VMCS_GUEST_RSP);
  Vcpu->Regs.Rip           = VmxRead (HV_VMCS_GUEST_RIP);
  Vcpu->Regs.Rflags        = VmxRead (HV_VMCS_GUEST_RFLAGS);

  Reason    &= HV_VMX_REASON_BASIC_MASK;
  Exit->Kind = ExitKind (Reason);
  if (mIsInstruction[Exit->Kind]) {
    Exit->NextRip = Vcpu->Regs.Rip + VmxRead (HV_VMCS_EXIT_INSTRUCTION_LENGTH);
    if (Exit->Kind == HvExitCrAccess) {
      OnCrAccess (Vcpu, Exit);
    } else if (Exit->Kind == HvExitIo) {
      OnIo (Exit);
    }

    return RETURN_SUCCESS;
  }

  Redelivered = Redeliver ();
  switch (Exit->Kind) {
    case HvExitException:
      OnException (Exit, Redelivered);
      break;
    case HvExitNestedFault:
      OnEpt (Reason, Exit, Redelivered);
      break;
    case HvExitTaskSwitch:
      OnTaskSwitch (Vcpu, Exit);
      break;
    default:
      break;
  }

  return RETURN_SUCCESS;
}

STATIC
BOOLEAN
VmxEventQueued (
  IN  HV_VCPU   *Vcpu,
  OUT HV_EVENT  *Event
  )
{
  UINT64  Queued;

  Queued = VmxRead (HV_VMCS_ENTRY_INTERRUPTION_INFO);
  if ((Queued & HV_VMX_EVENT_VALID) == 0) {
    return FALSE;
  }

  switch (Queued & HV_VMX_EVENT_TYPE_MASK) {
    case HV_VMX_EVENT_TYPE_NMI:
      Event->Type = HvEventNmi;
      break;
    case HV_VMX_EVENT_TYPE_EXCEPTION:
      Event->Type = HvEventException;
      break;
    default:
      Event->Type = HvEventInterrupt;
  }

  Event->Vector       = (UINT8)(Queued & HV_VMX_EVENT_VECTOR_MASK);
  Event->HasErrorCode = (BOOLEAN)((Queued & HV_VMX_EVENT_ERROR_VALID) != 0);
  Event->ErrorCode    = (UINT32)VmxRead (HV_VMCS_ENTRY_EXCEPTION_ERROR);
  return TRUE;
}

STATIC
VOID
VmxInject (
  IN OUT HV_VCPU         *Vcpu,
  IN     CONST HV_EVENT  *Event
  )
{
  HV_EVENT  Queued;
  UINT64    Info;

  Info = 0;
  switch (Event->Type) {
    case HvEventNone:
      VmxWrite (HV_VMCS_GUEST_PENDING_DEBUG, 0);
      break;
    case HvEventNmi:
      Info = HV_VMX_EVENT_VALID | HV_VMX_EVENT_TYPE_NMI | HV_VECTOR_NMI;
      // A processor that opens the window behind STI may refuse the entry with its shadow (SDM 25.3, 27.3.1.5).
      VmxWrite (
        HV_VMCS_GUEST_INTERRUPTIBILITY,
        VmxRead (HV_VMCS_GUEST_INTERRUPTIBILITY) & ~(UINT64)HV_VMX_BLOCKING_STI
        );
      break;
    case HvEventInterrupt:
      Info = HV_VMX_EVENT_VALID | HV_VMX_EVENT_TYPE_EXTERNAL | Event->Vector;
      break;
    case HvEventException:
      if (VmxEventQueued (Vcpu, &Queued) && (Queued.Type == HvEventNmi)) {
        // Its delivery failed, but had begun: NMIs are blocked up to the next IRET (SDM volume 3, 6.7.1).
        BlockNmi ();
      }

      Info = HV_VMX_EVENT_VALID | HV_VMX_EVENT_TYPE_EXCEPTION | Event->Vector;
      // There are no error codes in real mode (SDM 27.2.1.3).
      if (Event->HasErrorCode && ((VmxRead (HV_VMCS_GUEST_CR0) & HV_CR0_PE) != 0)) {
        Info |= HV_VMX_EVENT_ERROR_VALID;
        VmxWrite (HV_VMCS_ENTRY_EXCEPTION_ERROR, Event->ErrorCode);
      }

      break;
  }

  VmxWrite (HV_VMCS_ENTRY_INTERRUPTION_INFO, Info);
  VmxChanged (Vcpu);
}

STATIC
VOID
VmxStepTrap (
  IN OUT HV_VCPU  *Vcpu
  )
{
  // The entry delivers it, together with breakpoints that MOV SS held back (SDM 27.7.3).
  if ((VmxRead (HV_VMCS_GUEST_DEBUGCTL) & HV_DEBUGCTL_BTF) == 0) {
    VmxWrite (HV_VMCS_GUEST_PENDING_DEBUG, VmxRead (HV_VMCS_GUEST_PENDING_DEBUG) | HV_DR6_BS);
    VmxChanged (Vcpu);
  }
}

STATIC
VOID
VmxInterceptIret (
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  On
  )
{
  // VMX has no such exit; NmiWindow tells what it would be for.
}

STATIC
VOID
VmxInterceptDebug (
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  On
  )
{
  VmxWrite (HV_VMCS_EXCEPTION_BITMAP, On ? BIT1 : 0);
}

STATIC
VOID
VmxGuardPorts (
  IN OUT HV_VCPU  *Vcpu
  )
{
  VMX_VCPU  *Vmx;

  HvCoreMarkPorts (&Vcpu->Cpu->Host->Sleep, (UINT8 *)Vcpu->Vm->Shared + EFI_PAGES_TO_SIZE (VMX_PAGE_IO_BITMAPS));
  Vmx        = VmxVcpu (Vcpu);
  Vmx->Proc |= HV_VMX_PROC_IO_BITMAPS;
  VmxWrite (HV_VMCS_PROCBASED_CTLS, Vmx->Proc);
}

STATIC
VOID
VmxNmiWindow (
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  On
  )
{
  VMX_VCPU  *Vmx;
  UINT32    Proc;

  Vmx  = VmxVcpu (Vcpu);
  Proc = (Vmx->Proc & ~(UINT32)HV_VMX_PROC_NMI_WINDOW) | (On ? HV_VMX_PROC_NMI_WINDOW : 0);
  if (Proc != Vmx->Proc) {
    Vmx->Proc = Proc;
    VmxWrite (HV_VMCS_PROCBASED_CTLS, Proc);
  }
}

STATIC
BOOLEAN
VmxPassDefType (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT32   Ticks
  )
{
  VMX_VCPU  *Vmx;
  UINT32    Shift;

  Vmx = VmxVcpu (Vcpu);
  if (!Vmx->HasTimer) {
    return FALSE;
  }

  // An exit does not save the count, so that every entry begins with all of it; there is only one (SDM 26.5.1, A.6).
  Shift = (UINT32)(AsmReadMsr64 (HV_MSR_VMX_MISC) & HV_VMX_MISC_TIMER_SHIFT_MASK);
  VmxWrite (HV_VMCS_PREEMPTION_TIMER, Ticks >> Shift);
  VmxWrite (HV_VMCS_PINBASED_CTLS, Vmx->Pin | ((Ticks != 0) ? HV_VMX_PIN_PREEMPTION_TIMER : 0));
  VmxWrite (
    HV_VMCS_MSR_BITMAP,
    (UINTN)Vcpu->Vm->Shared + EFI_PAGES_TO_SIZE ((Ticks != 0) ? VMX_PAGE_MSR_UNSEEN : VMX_PAGE_MSR_BITMAPS)
    );
  VmxChanged (Vcpu);
  return TRUE;
}

STATIC
VOID
VmxTakeSignal (
  IN OUT HV_CPU         *Cpu,
  IN     CONST HV_EXIT  *Exit
  )
{
  switch ((UINT32)Exit->Code & HV_VMX_REASON_BASIC_MASK) {
    case HV_VMX_EXIT_INIT:
      HvMailboxPostInit (&Cpu->Mailbox);
      break;
    case HV_VMX_EXIT_SIPI:
      HvMailboxPostSipi (&Cpu->Mailbox, (UINT8)Exit->Info1);
      break;
    case HV_VMX_EXIT_EXCEPTION_NMI:
      if (Exit->Info2 != 0) {
        // The exit took the NMI and left NMIs blocked (SDM 28.5.5). Our own gate counts it, and its IRET unblocks them.
        __asm__ __volatile__ ("int $2" : : : "memory");
      }

      break;
  }
}

STATIC
VOID
VmxWaitMail (
  IN OUT HV_CPU  *Cpu
  )
{
  HvHostWaitNmi (&Cpu->Mailbox.Word);
}

STATIC
VOID
VmxLeave (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_VCPU_STATE  State;

  VmxStateGet (Vcpu, HV_STATE_ALL, &State);
  HvHostRestore (Vcpu->Cpu, &State);
  VmxCpuOff (Vcpu->Cpu, &State);
  HvHostJump (&Vcpu->Regs, State.Segment[HvSegmentCs].Selector, State.Segment[HvSegmentSs].Selector);
}

STATIC CONST HV_BACKEND_OPS  mVmxOps = {
  .Name           = "vmx",
  .Vendor         = "Intel",
  .Id             = HV_CPUID_BACKEND_VMX,
  .Probe          = VmxProbe,
  .VmInit         = VmxVmInit,
  .CpuOn          = VmxCpuOn,
  .CpuOff         = VmxCpuOff,
  .VcpuInit       = VmxVcpuInit,
  .Enter          = VmxEnter,
  .Quick          = VmxQuick,
  .StateGet       = VmxStateGet,
  .StateSet       = VmxStateSet,
  .Inject         = VmxInject,
  .EventQueued    = VmxEventQueued,
  .StepTrap       = VmxStepTrap,
  .InterceptIret  = VmxInterceptIret,
  .InterceptDebug = VmxInterceptDebug,
  .GuardPorts     = VmxGuardPorts,
  .NmiWindow      = VmxNmiWindow,
  .PassDefType    = VmxPassDefType,
  .Flush          = VmxFlushNested,
  .TakeSignal     = VmxTakeSignal,
  .WaitMail       = VmxWaitMail,
  .Leave          = VmxLeave,
};

/**
  Registers the backend.

  @retval RETURN_SUCCESS           Registered.
  @retval RETURN_OUT_OF_RESOURCES  The registry is full.

  @par Context: Boot
**/
RETURN_STATUS
EFIAPI
HvVmxConstructor (
  VOID
  )
{
  return HvBackendRegister (&mVmxOps);
}
