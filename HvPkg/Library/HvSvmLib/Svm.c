/** @file
  The SVM backend: VMCB in, VMCB out.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "SvmInternal.h"

#define MSRPM_ROW(Msr, Read, Write, Rule, VmxRead, VmxWrite, VmxRule, Text)  { Msr, Read, Write },

STATIC CONST struct {
  UINT32     Msr;
  BOOLEAN    Read;
  BOOLEAN    Write;
} mMsrPolicy[] = {
  HV_MSR_ROOT_POLICY_LIST (MSRPM_ROW)
};

// The parts of the state that rules of VMRUN look at.
#define STATE_WITH_RULES  (HV_STATE_SEGMENTS | HV_STATE_CONTROL | HV_STATE_DEBUG | HV_STATE_PAT)

#define EXIT_ROW(Code, Kind, KindIfInfo, Text)  { Code, Kind, KindIfInfo },

STATIC CONST struct {
  UINT64          Code;
  HV_EXIT_KIND    Kind;
  HV_EXIT_KIND    KindIfInfo; ///< EXITINFO1 is not 0
} mExitKinds[] = {
  HV_SVM_EXIT_LIST (EXIT_ROW)
};

STATIC
HV_VMCB *
Vmcb (
  IN CONST HV_VCPU  *Vcpu
  )
{
  return (HV_VMCB *)Vcpu->Hw;
}

///
/// Says that the host changed fields since the last exit: the processor may keep the others from then. The switch sets
/// all bits behind an entry (APM2 15.15).
///
STATIC
VOID
Changed (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT32   Clean  ///< HV_SVM_CLEAN_*
  )
{
  Vmcb (Vcpu)->Control.CleanBits &= ~Clean;
}

STATIC
VOID *
CpuPage (
  IN CONST HV_CPU  *Cpu,
  IN UINTN         Page
  )
{
  return (UINT8 *)Cpu->BackendPages + EFI_PAGES_TO_SIZE (Page);
}

STATIC
VOID
SvmVmInit (
  IN     HV_HOST  *Host,
  IN OUT HV_VM    *Vm
  )
{
  STATIC CONST UINT32  Ranges[] = {
    HV_SVM_MSRPM_RANGE0_FIRST, HV_SVM_MSRPM_RANGE1_FIRST, HV_SVM_MSRPM_RANGE2_FIRST
  };
  UINTN                Row;
  UINTN                Range;
  UINTN                Byte;
  UINT32               Msr;
  UINT32               Bit;
  UINT8                *Map;

  // All MSRs that no row names pass; outside the map every access exits (APM2 15.11).
  Map = Vm->Shared;
  ZeroMem (Map, EFI_PAGES_TO_SIZE (SVM_SHARED_PAGES));
  for (Row = 0; Row < ARRAY_SIZE (mMsrPolicy); Row++) {
    Msr = mMsrPolicy[Row].Msr;
    for (Range = 0; Range < ARRAY_SIZE (Ranges); Range++) {
      if (Msr - Ranges[Range] < HV_SVM_MSRPM_RANGE_MSRS) {
        Bit        = (Msr - Ranges[Range]) * 2;
        Byte       = Range * HV_SVM_MSRPM_RANGE_BYTES + Bit / 8;
        Map[Byte] |= (UINT8)((mMsrPolicy[Row].Read ? HV_SVM_MSRPM_READ : 0) << (Bit % 8));
        Map[Byte] |= (UINT8)((mMsrPolicy[Row].Write ? HV_SVM_MSRPM_WRITE : 0) << (Bit % 8));
      }
    }
  }
}

STATIC
RETURN_STATUS
SvmCpuOn (
  IN OUT HV_CPU  *Cpu
  )
{
  UINT64  VmCr;
  UINT64  Efer;

  VmCr              = AsmReadMsr64 (HV_MSR_VM_CR);
  Cpu->LaunchDetail = VmCr;
  if ((VmCr & HV_VM_CR_SVMDIS) != 0) {
    Cpu->LaunchReason = "VM_CR.SVMDIS is set";
    return RETURN_UNSUPPORTED;
  }

  if (Cpu->SpoilRootMode) {
    Cpu->LaunchReason = "root mode, by option fail_at";
    return RETURN_DEVICE_ERROR;
  }

  Efer = AsmReadMsr64 (HV_MSR_EFER);
  if ((Efer & HV_EFER_SVME) != 0) {
    Cpu->LaunchReason = "EFER.SVME is set already";
    Cpu->LaunchDetail = Efer;
    return RETURN_ALREADY_STARTED;
  }

  // INIT that reaches the processor becomes #SX, where the processor can do that (APM2 15.30.1). Our own INITs do not
  // need it.
  HvHostWriteMsr (HV_MSR_VM_CR, VmCr | HV_VM_CR_R_INIT);

  AsmWriteMsr64 (HV_MSR_EFER, Efer | HV_EFER_SVME);
  AsmWriteMsr64 (HV_MSR_VM_HSAVE_PA, (UINTN)CpuPage (Cpu, SVM_PAGE_HSAVE));
  __asm__ __volatile__ ("clgi" : : : "memory");
  __asm__ __volatile__ ("vmsave" : : "a" (CpuPage (Cpu, SVM_PAGE_NATIVE)) : "memory");
  return RETURN_SUCCESS;
}

STATIC
VOID
SvmCpuOff (
  IN OUT HV_CPU               *Cpu,
  IN     CONST HV_VCPU_STATE  *State
  )
{
  // A null TR, as firmware may have it, cannot be loaded by any other instruction.
  __asm__ __volatile__ ("vmload" : : "a" (CpuPage (Cpu, SVM_PAGE_NATIVE)) : "memory");
  __asm__ __volatile__ ("stgi" : : : "memory");
  AsmWriteMsr64 (HV_MSR_VM_HSAVE_PA, 0);
  AsmWriteMsr64 (HV_MSR_EFER, AsmReadMsr64 (HV_MSR_EFER) & ~HV_EFER_SVME);
  HvHostWriteMsr (HV_MSR_VM_CR, AsmReadMsr64 (HV_MSR_VM_CR) & ~HV_VM_CR_R_INIT);
}

STATIC
VOID
SvmStateGet (
  IN  HV_VCPU        *Vcpu,
  IN  UINT32         Mask,
  OUT HV_VCPU_STATE  *State
  )
{
  CONST HV_VMCB_SAVE  *Save;

  Save = &Vmcb (Vcpu)->Save;
  if ((Mask & (HV_STATE_CR4 | HV_STATE_CPL | HV_STATE_CONTROL)) != 0) {
    State->Cr4 = Save->Cr4;
    State->Cpl = Save->Cpl;
  }

  if ((Mask & HV_STATE_SEGMENTS) != 0) {
    // ES CS SS DS stand in the VMCB as in HV_SEGMENT_NAME, and an entry has the same fields.
    CopyMem (&State->Segment[HvSegmentEs], &Save->Es, 4 * sizeof (HV_SEGMENT));
  }

  if ((Mask & HV_STATE_CODE) != 0) {
    State->Segment[HvSegmentCs].Selector   = Save->Cs.Selector;
    State->Segment[HvSegmentCs].Attributes = Save->Cs.Attributes;
    State->Segment[HvSegmentCs].Limit      = Save->Cs.Limit;
    State->Segment[HvSegmentCs].Base       = Save->Cs.Base;
  }

  if ((Mask & HV_STATE_SYSTEM) != 0) {
    CopyMem (&State->Segment[HvSegmentFs], &Save->Fs, 2 * sizeof (HV_SEGMENT));
    CopyMem (&State->Segment[HvSegmentLdtr], &Save->Ldtr, sizeof (HV_SEGMENT));
    CopyMem (&State->Segment[HvSegmentTr], &Save->Tr, sizeof (HV_SEGMENT));
    State->Star         = Save->Star;
    State->Lstar        = Save->Lstar;
    State->Cstar        = Save->Cstar;
    State->SfMask       = Save->SfMask;
    State->KernelGsBase = Save->KernelGsBase;
    State->SysenterCs   = Save->SysenterCs;
    State->SysenterEsp  = Save->SysenterEsp;
    State->SysenterEip  = Save->SysenterEip;
  }

  if ((Mask & HV_STATE_TABLES) != 0) {
    State->GdtBase  = Save->Gdtr.Base;
    State->GdtLimit = (UINT16)Save->Gdtr.Limit;
    State->IdtBase  = Save->Idtr.Base;
    State->IdtLimit = (UINT16)Save->Idtr.Limit;
  }

  if ((Mask & HV_STATE_CONTROL) != 0) {
    State->Cr0  = Save->Cr0;
    State->Cr3  = Save->Cr3;
    State->Efer = Save->Efer & ~HV_EFER_SVME;
  }

  if ((Mask & HV_STATE_CR2) != 0) {
    State->Cr2 = Save->Cr2;
  }

  if ((Mask & HV_STATE_DEBUG) != 0) {
    State->Dr6 = Save->Dr6;
    State->Dr7 = Save->Dr7;
  }

  if ((Mask & HV_STATE_PAT) != 0) {
    State->Pat = Save->GPat;
  }

  if ((Mask & HV_STATE_EVENTS) != 0) {
    State->InterruptShadow = (BOOLEAN)((Vmcb (Vcpu)->Control.InterruptShadow & BIT0) != 0);
    State->NmiBlocked      = FALSE;
    State->Activity        = HvActivityRunning;
  }

  if ((Mask & HV_STATE_PDPTE) != 0) {
    State->PdpteLoaded = FALSE;
  }
}

///
/// Whether the VMM has to flush the guest's translations for a change that it makes (APM2 15.16, Software Rule).
///
STATIC
BOOLEAN
ChangesPaging (
  IN CONST HV_VMCB_SAVE   *Save,
  IN CONST HV_VCPU_STATE  *State
  )
{
  CONST UINT64  Cr0  = HV_CR0_PG | HV_CR0_WP | HV_CR0_CD | HV_CR0_NW;
  CONST UINT64  Cr4  = HV_CR4_PGE | HV_CR4_PAE | HV_CR4_PSE;
  CONST UINT64  Efer = HV_EFER_NXE | HV_EFER_LMA | HV_EFER_LME;

  return (BOOLEAN)((((Save->Cr0 ^ State->Cr0) & Cr0) != 0) || (Save->Cr3 != State->Cr3) ||
                   (((Save->Cr4 ^ State->Cr4) & Cr4) != 0) || (((Save->Efer ^ State->Efer) & Efer) != 0));
}

STATIC
VOID
SvmFlush (
  IN OUT HV_VCPU  *Vcpu
  )
{
  Vmcb (Vcpu)->Control.TlbControl = HV_SVM_TLB_FLUSH_ALL;
}

STATIC
VOID
SvmStateSet (
  IN HV_VCPU              *Vcpu,
  IN UINT32               Mask,
  IN CONST HV_VCPU_STATE  *State
  )
{
  HV_VMCB_SAVE  *Save;

  Save = &Vmcb (Vcpu)->Save;
  if ((Mask & HV_STATE_SEGMENTS) != 0) {
    CopyMem (&Save->Es, &State->Segment[HvSegmentEs], 4 * sizeof (HV_SEGMENT));
    Changed (Vcpu, HV_SVM_CLEAN_SEG);
  }

  if ((Mask & HV_STATE_SYSTEM) != 0) {
    CopyMem (&Save->Fs, &State->Segment[HvSegmentFs], 2 * sizeof (HV_SEGMENT));
    CopyMem (&Save->Ldtr, &State->Segment[HvSegmentLdtr], sizeof (HV_SEGMENT));
    CopyMem (&Save->Tr, &State->Segment[HvSegmentTr], sizeof (HV_SEGMENT));
    Save->Star         = State->Star;
    Save->Lstar        = State->Lstar;
    Save->Cstar        = State->Cstar;
    Save->SfMask       = State->SfMask;
    Save->KernelGsBase = State->KernelGsBase;
    Save->SysenterCs   = State->SysenterCs;
    Save->SysenterEsp  = State->SysenterEsp;
    Save->SysenterEip  = State->SysenterEip;
  }

  if ((Mask & HV_STATE_TABLES) != 0) {
    Save->Gdtr.Base  = State->GdtBase;
    Save->Gdtr.Limit = State->GdtLimit;
    Save->Idtr.Base  = State->IdtBase;
    Save->Idtr.Limit = State->IdtLimit;
    Changed (Vcpu, HV_SVM_CLEAN_DT);
  }

  if ((Mask & HV_STATE_CONTROL) != 0) {
    if (ChangesPaging (Save, State)) {
      SvmFlush (Vcpu);
    }

    Save->Cr0  = State->Cr0;
    Save->Cr3  = State->Cr3;
    Save->Cr4  = State->Cr4;
    Save->Efer = State->Efer | HV_EFER_SVME; // APM2 15.5.1: VMRUN refuses a guest without it
    Save->Cpl  = State->Cpl;
    Changed (Vcpu, HV_SVM_CLEAN_CR | HV_SVM_CLEAN_SEG);
  }

  if ((Mask & HV_STATE_CR2) != 0) {
    Save->Cr2 = State->Cr2;
    Changed (Vcpu, HV_SVM_CLEAN_CR2);
  }

  if ((Mask & HV_STATE_DEBUG) != 0) {
    Save->Dr6 = State->Dr6;
    Save->Dr7 = State->Dr7;
    Changed (Vcpu, HV_SVM_CLEAN_DR);
  }

  if ((Mask & HV_STATE_PAT) != 0) {
    Save->GPat = State->Pat;
    Changed (Vcpu, HV_SVM_CLEAN_NP);
  }

  if ((Mask & HV_STATE_EVENTS) != 0) {
    Vmcb (Vcpu)->Control.InterruptShadow = State->InterruptShadow ? BIT0 : 0;
  }

  if ((Mask & STATE_WITH_RULES) != 0) {
    SvmRemember (Vcpu);
  }
}

///
/// A processor leaves the guest for system management mode and comes back by itself (APM2 15.13.3). QEMU's emulation runs
/// the SMI handler under the guest's intercepts and nested tables. There the host has to take the SMI.
///
STATIC
BOOLEAN
IsQemuEmulation (
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
  return (BOOLEAN)((Ebx == SIGNATURE_32 ('T', 'C', 'G', 'T')) &&
                   (Ecx == SIGNATURE_32 ('C', 'G', 'T', 'C')) &&
                   (Edx == SIGNATURE_32 ('G', 'T', 'C', 'G')));
}

STATIC
VOID
SvmVcpuInit (
  IN OUT HV_VCPU              *Vcpu,
  IN     CONST HV_VCPU_STATE  *State
  )
{
  HV_VMCB_CONTROL  *Control;

  Vcpu->Hw     = CpuPage (Vcpu->Cpu, SVM_PAGE_GUEST);
  Vcpu->HostHw = CpuPage (Vcpu->Cpu, SVM_PAGE_HOST);
  ZeroMem (Vcpu->Hw, sizeof (HV_VMCB));
  __asm__ __volatile__ ("vmsave" : : "a" (Vcpu->HostHw) : "memory");

  Control = &Vmcb (Vcpu)->Control;
  // INVD would lose what the host has in its caches. The SVM instructions do not exist for the root: they raise #UD
  // by themselves only while EFER.SVME is 0.
  Control->Intercept3    = (HV_SVM_ROOT_INTERCEPT3 & ~(UINT32)HV_SVM_INTERCEPT3_IOIO_PROT) |
                           (IsQemuEmulation () ? HV_SVM_INTERCEPT3_SMI : 0);
  Control->Intercept4    = HV_SVM_ROOT_INTERCEPT4;
  Control->Intercept5    = HV_SVM_ROOT_INTERCEPT5;
  Control->MsrpmBase     = (UINTN)Vcpu->Vm->Shared + EFI_PAGES_TO_SIZE (SVM_PAGE_MSRPM);
  Control->IopmBase      = (UINTN)Vcpu->Vm->Shared + EFI_PAGES_TO_SIZE (SVM_PAGE_IOPM);
  Control->GuestAsid     = SVM_ROOT_ASID;
  Control->TlbControl    = HV_SVM_TLB_FLUSH_ALL;
  Control->NestedControl = HV_SVM_NP_ENABLE;
  Control->NCr3          = Vcpu->Vm->Nested.Root;
  SvmStateSet (Vcpu, HV_STATE_ALL, State);
}

STATIC
VOID
SvmGuardPorts (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_VMCB_CONTROL  *Control;

  Control = &Vmcb (Vcpu)->Control;
  HvCoreMarkPorts (&Vcpu->Cpu->Host->Sleep, (UINT8 *)(UINTN)Control->IopmBase);
  Control->Intercept3 |= HV_SVM_INTERCEPT3_IOIO_PROT;
  Changed (Vcpu, HV_SVM_CLEAN_INTERCEPTS | HV_SVM_CLEAN_PERMISSION_MAPS);
}

STATIC
HV_EXIT_KIND
ExitKind (
  IN UINT64  Code,
  IN UINT64  Info1
  )
{
  UINTN  Row;

  switch (Code) {
    case HV_SVM_EXIT_CPUID:
      return HvExitCpuid;
    case HV_SVM_EXIT_NPF:
      return HvExitNestedFault;
  }

  for (Row = 0; Row < ARRAY_SIZE (mExitKinds); Row++) {
    if (mExitKinds[Row].Code == Code) {
      return (Info1 == 0) ? mExitKinds[Row].Kind : mExitKinds[Row].KindIfInfo;
    }
  }

  return HvExitUnknown;
}

///
/// Whether nothing but RIP changes behind the instruction that made the exit; the rest is left to HvCoreRetire.
///
STATIC HV_INLINE
BOOLEAN
IsOrdinary (
  IN CONST HV_VMCB  *Block
  )
{
  return (BOOLEAN)(((Block->Save.Rflags & (HV_RFLAGS_TF | HV_RFLAGS_RF)) == 0) &&
                   ((Block->Control.InterruptShadow & BIT0) == 0));
}

STATIC HV_INLINE
CONST HV_INSN *
KnownInsn (
  IN CONST HV_VCPU       *Vcpu,
  IN CONST HV_VMCB_SAVE  *Save
  )
{
  return HvCoreKnownInsn (Vcpu, Save->Rip, Save->Cr3, Save->Cr4, Save->Efer, Save->Cs.Attributes);
}

///
/// Goes behind an instruction: as far as the processor says, else as it was decoded before. FALSE: not here.
///
STATIC HV_INLINE
BOOLEAN
MoveOn (
  IN     CONST HV_VCPU  *Vcpu,
  IN OUT HV_VMCB        *Block
  )
{
  CONST HV_INSN  *Insn;
  UINT64         Rip;

  if (!IsOrdinary (Block)) {
    return FALSE;
  }

  Rip = Block->Control.NextRip;
  if (Rip == 0) {
    Insn = KnownInsn (Vcpu, &Block->Save);
    if (Insn == NULL) {
      return FALSE;
    }

    Rip = Block->Save.Rip + Insn->Length;
  }

  Block->Save.Rip = Rip;
  return TRUE;
}

///
/// A write to a page that is mapped read-only.
///
STATIC
HV_NOINLINE
BOOLEAN
QuickFault (
  IN OUT HV_VCPU  *Vcpu,
  IN OUT HV_VMCB  *Block
  )
{
  CONST HV_INSN  *Insn;

  if (((Block->Control.ExitInfo1 & (HV_NPF_WRITE | HV_NPF_TABLE)) != HV_NPF_WRITE) ||
      ((Block->Control.ExitIntInfo & HV_SVM_EVENT_VALID) != 0) || !IsOrdinary (Block))
  {
    return FALSE;
  }

  // NextRip is not defined for a fault.
  Insn = KnownInsn (Vcpu, &Block->Save);
  if ((Insn == NULL) || !HvCoreQuickStore (Vcpu, Block->Control.ExitInfo2, Insn)) {
    return FALSE;
  }

  Block->Save.Rip += Insn->Length;
  return TRUE;
}

///
/// All but the registers that a C function may change is still the guest's here.
///
STATIC
BOOLEAN
SvmQuick (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_VMCB  *Block;
  UINT64   Code;

  Block = Vmcb (Vcpu);
  Code  = Block->Control.ExitCode;
  if (Code == HV_SVM_EXIT_CPUID) {
    return MoveOn (Vcpu, Block) ? HvCoreQuickCpuid (Vcpu, Block->Save.Cr4) : FALSE;
  }

  if (Code == HV_SVM_EXIT_VMMCALL) {
    return (HvCoreIsQuickCall (Vcpu, Block->Save.Cpl) && MoveOn (Vcpu, Block)) ? HvCoreQuickCall (Vcpu) : FALSE;
  }

  if (Code == HV_SVM_EXIT_NPF) {
    return QuickFault (Vcpu, Block);
  }

  return ((Code == HV_SVM_EXIT_MSR) && (Block->Control.ExitInfo1 != 0) && HvCoreIsQuickWrmsr (Vcpu) &&
          MoveOn (Vcpu, Block)) ? HvCoreQuickWrmsr (Vcpu) : FALSE;
}

///
/// What goes again of an event whose delivery the exit cut off. INT n, INT3 and INTO are executed again instead: RIP is
/// still at them (APM2 15.7.2, 15.20).
///
STATIC
UINT64
Redelivered (
  IN UINT64  Event
  )
{
  UINT8  Vector;

  Vector = (UINT8)(Event & HV_SVM_EVENT_VECTOR_MASK);
  switch (Event & HV_SVM_EVENT_TYPE_MASK) {
    case HV_SVM_EVENT_TYPE_SOFTWARE:
      return 0;
    case HV_SVM_EVENT_TYPE_EXCEPTION:
      if ((Vector == HV_VECTOR_BP) || (Vector == HV_VECTOR_OF)) {
        return 0;
      }

      // QEMU gives an external interrupt as an exception, which VMRUN refuses (APM2 15.20).
      if (Vector >= 32) {
        return (Event & ~(UINT64)HV_SVM_EVENT_TYPE_MASK) | HV_SVM_EVENT_TYPE_INTR;
      }

    default:
      return Event;
  }
}

STATIC
VOID
TakeRegisters (
  IN OUT HV_VCPU  *Vcpu
  )
{
  CONST HV_VMCB_SAVE  *Save;

  Save              = &Vmcb (Vcpu)->Save;
  Vcpu->Regs.Rax    = Save->Rax;
  Vcpu->Regs.Rsp    = Save->Rsp;
  Vcpu->Regs.Rip    = Save->Rip;
  Vcpu->Regs.Rflags = Save->Rflags;
}

///
/// QEMU leaves a guest with the code of a refused entry at a MOV to CR4 with bits that are reserved, where a processor
/// raises #GP (APM2 3.1.3). After an entry that it did refuse, the save area has the host's CR3, which no guest can use.
///
STATIC
BOOLEAN
IsRefusedCr4Write (
  IN OUT HV_VCPU  *Vcpu,
  IN OUT HV_EXIT  *Exit
  )
{
  HV_REGS  Regs;

  if (Vmcb (Vcpu)->Save.Cr3 == AsmReadCr3 ()) {
    return FALSE;
  }

  CopyMem (&Regs, &Vcpu->Regs, sizeof (Regs));
  TakeRegisters (Vcpu);
  Vmcb (Vcpu)->Control.EventInj = 0;
  Exit->NextRip                 = 0;
  Exit->FetchedCount            = 0;
  if (!HvCoreAtCr4Write (Vcpu, Exit)) {
    CopyMem (&Vcpu->Regs, &Regs, sizeof (Regs));
    return FALSE;
  }

  Exit->Kind     = HvExitCrAccess;
  Exit->CrNumber = 4;
  Exit->CrValue  = 0;
  return TRUE;
}

STATIC
RETURN_STATUS
SvmEnter (
  IN OUT HV_VCPU  *Vcpu,
  OUT    HV_EXIT  *Exit
  )
{
  HV_VMCB_CONTROL  *Control;
  HV_VMCB_SAVE     *Save;
  UINT64           Event;

  Control      = &Vmcb (Vcpu)->Control;
  Save         = &Vmcb (Vcpu)->Save;
  Save->Rax    = Vcpu->Regs.Rax;
  Save->Rsp    = Vcpu->Regs.Rsp;
  Save->Rip    = Vcpu->Regs.Rip;
  Save->Rflags = Vcpu->Regs.Rflags;

 #ifndef MDEPKG_NDEBUG
  if ((Vcpu->Cpu->Entered != HV_ENTERED_RAN) && SvmRefuses (Vcpu)) {
    Exit->Kind  = HvExitEntryFailed;
    Exit->Code  = HV_SVM_EXIT_INVALID;
    Exit->Info1 = 0;
    Exit->Info2 = 0;
    return RETURN_COMPROMISED_DATA;
  }

 #endif

  HvSvmSwitch (Vcpu);

  Exit->Code  = Control->ExitCode;
  Exit->Info1 = Control->ExitInfo1;
  Exit->Info2 = Control->ExitInfo2;
  if ((UINT32)Exit->Code == (UINT32)HV_SVM_EXIT_INVALID) {
    // 64 bits of ones by the manual, 32 in QEMU. The save area may have been overwritten: the registers stay as they were.
    if ((Vcpu->Cpu->Entered != HV_ENTERED_NEVER) && IsRefusedCr4Write (Vcpu, Exit)) {
      return RETURN_SUCCESS;
    }

    Exit->Kind = HvExitEntryFailed;
    SvmExplain (Vcpu);
    return RETURN_ABORTED;
  }

  TakeRegisters (Vcpu);

  Event             = Control->ExitIntInfo;
  Control->EventInj = ((Event & HV_SVM_EVENT_VALID) != 0) ? Redelivered (Event) : 0;

  Exit->Kind         = ExitKind (Exit->Code, Exit->Info1);
  Exit->NextRip      = Control->NextRip;
  Exit->FetchedCount = 0;
  if (Exit->Kind == HvExitNestedFault) {
    Exit->Gpa        = Exit->Info2;
    Exit->FaultFlags = (((Exit->Info1 & HV_NPF_PRESENT) != 0) ? HV_FAULT_PRESENT : 0) |
                       (((Exit->Info1 & HV_NPF_WRITE) != 0) ? HV_FAULT_WRITE : 0) |
                       (((Exit->Info1 & HV_NPF_FETCH) != 0) ? HV_FAULT_FETCH : 0) |
                       (((Exit->Info1 & HV_NPF_TABLE) != 0) ? HV_FAULT_TABLE : 0);
    Exit->NextRip    = 0; // not defined for a fault
    if (Control->FetchedBytes <= sizeof (Exit->Fetched)) {
      Exit->FetchedCount = Control->FetchedBytes;
      CopyMem (Exit->Fetched, Control->InstructionBytes, Exit->FetchedCount);
    }
  } else if (Exit->Kind == HvExitIo) {
    Exit->NextRip = Exit->Info2; // on all processors (APM2 15.10.2)
    Exit->IoPort  = (UINT16)((Exit->Info1 & HV_SVM_IOIO_PORT_MASK) >> HV_SVM_IOIO_PORT_SHIFT);
    Exit->IoSize  = (UINT8)((Exit->Info1 & HV_SVM_IOIO_SIZE_MASK) >> HV_SVM_IOIO_SIZE_SHIFT);
    Exit->IoFlags = (((Exit->Info1 & HV_SVM_IOIO_IN) != 0) ? HV_IO_IN : 0) |
                    (((Exit->Info1 & HV_SVM_IOIO_STRING) != 0) ? HV_IO_STRING : 0);
  }

  return RETURN_SUCCESS;
}

STATIC
VOID
SvmInject (
  IN OUT HV_VCPU         *Vcpu,
  IN     CONST HV_EVENT  *Event
  )
{
  HV_VMCB_CONTROL  *Control;

  Control = &Vmcb (Vcpu)->Control;
  switch (Event->Type) {
    case HvEventNone:
      Control->EventInj = 0;
      break;
    case HvEventNmi:
      Control->EventInj = HV_SVM_EVENT_VALID | HV_SVM_EVENT_TYPE_NMI | 2;
      break;
    case HvEventException:
      Control->EventInj = HV_SVM_EVENT_VALID | HV_SVM_EVENT_TYPE_EXCEPTION | Event->Vector;
      if (Event->HasErrorCode) {
        Control->EventInj |= HV_SVM_EVENT_ERROR_VALID | LShiftU64 (Event->ErrorCode, 32);
      }

      break;
    case HvEventInterrupt:
      Control->EventInj = HV_SVM_EVENT_VALID | HV_SVM_EVENT_TYPE_INTR | Event->Vector;
      break;
  }

  SvmRemember (Vcpu);
}

STATIC
BOOLEAN
SvmEventQueued (
  IN  HV_VCPU   *Vcpu,
  OUT HV_EVENT  *Event
  )
{
  UINT64  Queued;

  Queued = Vmcb (Vcpu)->Control.EventInj;
  if ((Queued & HV_SVM_EVENT_VALID) == 0) {
    return FALSE;
  }

  switch (Queued & HV_SVM_EVENT_TYPE_MASK) {
    case HV_SVM_EVENT_TYPE_NMI:
      Event->Type = HvEventNmi;
      break;
    case HV_SVM_EVENT_TYPE_EXCEPTION:
      Event->Type = HvEventException;
      break;
    default:
      Event->Type = HvEventInterrupt;
  }

  Event->Vector       = (UINT8)(Queued & HV_SVM_EVENT_VECTOR_MASK);
  Event->HasErrorCode = (BOOLEAN)((Queued & HV_SVM_EVENT_ERROR_VALID) != 0);
  Event->ErrorCode    = (UINT32)RShiftU64 (Queued, HV_SVM_EVENT_ERROR_SHIFT);
  return TRUE;
}

STATIC
VOID
SvmStepTrap (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_VMCB_SAVE  *Save;
  HV_EVENT      Event;
  UINT64        DebugCtl;

  // Without virtual LBRs the MSR is the guest's all the time.
  DebugCtl = AsmReadMsr64 (HV_MSR_DEBUGCTL);
  if ((DebugCtl & HV_DEBUGCTL_BTF) != 0) {
    return;
  }

  // EVENTINJ delivers and does nothing else: these are the processor's steps before it (APM2 13.1.1.3, 13.1.1.4,
  // 13.1.1.6).
  Save       = &Vmcb (Vcpu)->Save;
  Save->Dr6 |= HV_DR6_BS;
  Save->Dr7 &= ~HV_DR7_GD;
  Changed (Vcpu, HV_SVM_CLEAN_DR);
  if ((DebugCtl & HV_DEBUGCTL_LBR) != 0) {
    AsmWriteMsr64 (HV_MSR_DEBUGCTL, DebugCtl & ~HV_DEBUGCTL_LBR);
  }

  Event.Type         = HvEventException;
  Event.Vector       = HV_VECTOR_DB;
  Event.HasErrorCode = FALSE;
  Event.ErrorCode    = 0;
  SvmInject (Vcpu, &Event);
}

STATIC
VOID
SvmInterceptIret (
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  On
  )
{
  if (On) {
    Vmcb (Vcpu)->Control.Intercept3 |= HV_SVM_INTERCEPT3_IRET;
  } else {
    Vmcb (Vcpu)->Control.Intercept3 &= ~(UINT32)HV_SVM_INTERCEPT3_IRET;
  }

  Changed (Vcpu, HV_SVM_CLEAN_INTERCEPTS);
}

STATIC
VOID
SvmInterceptDebug (
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  On
  )
{
  if (On) {
    Vmcb (Vcpu)->Control.InterceptExceptions |= BIT1;
  } else {
    Vmcb (Vcpu)->Control.InterceptExceptions &= ~(UINT32)BIT1;
  }

  Changed (Vcpu, HV_SVM_CLEAN_INTERCEPTS);
}

STATIC
VOID
SvmTakeSignal (
  IN OUT HV_CPU         *Cpu,
  IN     CONST HV_EXIT  *Exit
  )
{
  // What the exit announced is still pending: an NMI, or an INIT that comes as #SX (APM2 15.21.8, 15.30.1).
  __asm__ __volatile__ ("stgi; nop; nop; clgi" : : : "memory");
}

STATIC
VOID
SvmWaitMail (
  IN OUT HV_CPU  *Cpu
  )
{
  __asm__ __volatile__ ("stgi" : : : "memory");
  HvHostWaitNmi (&Cpu->Mailbox.Word);
  __asm__ __volatile__ ("clgi" : : : "memory");
}

STATIC
VOID
SvmLeave (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_VCPU_STATE  State;

  SvmStateGet (Vcpu, HV_STATE_ALL, &State);
  HvHostRestore (Vcpu->Cpu, &State);

  AsmWriteMsr64 (HV_MSR_PAT, State.Pat);
  AsmWriteDr6 (State.Dr6);
  AsmWriteDr7 (State.Dr7);
  CopyMem (CpuPage (Vcpu->Cpu, SVM_PAGE_NATIVE), Vcpu->Hw, sizeof (HV_VMCB));
  SvmCpuOff (Vcpu->Cpu, &State);
  HvHostJump (&Vcpu->Regs, State.Segment[HvSegmentCs].Selector, State.Segment[HvSegmentSs].Selector);
}

STATIC CONST HV_BACKEND_OPS  mSvmOps = {
  .Name           = "svm",
  .Vendor         = "AMD",
  .Id             = HV_CPUID_BACKEND_SVM,
  .Probe          = SvmProbe,
  .VmInit         = SvmVmInit,
  .CpuOn          = SvmCpuOn,
  .CpuOff         = SvmCpuOff,
  .VcpuInit       = SvmVcpuInit,
  .Enter          = SvmEnter,
  .Quick          = SvmQuick,
  .StateGet       = SvmStateGet,
  .StateSet       = SvmStateSet,
  .Inject         = SvmInject,
  .EventQueued    = SvmEventQueued,
  .StepTrap       = SvmStepTrap,
  .InterceptIret  = SvmInterceptIret,
  .InterceptDebug = SvmInterceptDebug,
  .GuardPorts     = SvmGuardPorts,
  .Flush          = SvmFlush,
  .TakeSignal     = SvmTakeSignal,
  .WaitMail       = SvmWaitMail,
  .Leave          = SvmLeave,
};

/**
  Registers the backend.

  @retval RETURN_SUCCESS           Registered.
  @retval RETURN_OUT_OF_RESOURCES  The registry is full.

  @par Context: Boot
**/
RETURN_STATUS
EFIAPI
HvSvmConstructor (
  VOID
  )
{
  return HvBackendRegister (&mSvmOps);
}
