/** @file
  The VMCS: made once, and read and written in the neutral form.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "VmxInternal.h"

// The fields of ES, CS, SS, DS, FS, GS, LDTR and TR follow each other in the order of HV_SEGMENT_NAME.
#define SEGMENT_SELECTOR(Index)  (HV_VMCS_GUEST_ES_SELECTOR + 2 * (Index))
#define SEGMENT_LIMIT(Index)     (HV_VMCS_GUEST_ES_LIMIT + 2 * (Index))
#define SEGMENT_RIGHTS(Index)    (HV_VMCS_GUEST_ES_ACCESS_RIGHTS + 2 * (Index))
#define SEGMENT_BASE(Index)      (HV_VMCS_GUEST_ES_BASE + 2 * (Index))

STATIC_ASSERT (SEGMENT_SELECTOR (HvSegmentTr) == HV_VMCS_GUEST_TR_SELECTOR, "SDM B.1.2");
STATIC_ASSERT (SEGMENT_LIMIT (HvSegmentTr) == HV_VMCS_GUEST_TR_LIMIT, "SDM B.3.3");
STATIC_ASSERT (SEGMENT_RIGHTS (HvSegmentTr) == HV_VMCS_GUEST_TR_ACCESS_RIGHTS, "SDM B.3.3");
STATIC_ASSERT (SEGMENT_BASE (HvSegmentTr) == HV_VMCS_GUEST_TR_BASE, "SDM B.4.3");

#define RIGHTS_ACCESSED  BIT0                                             // of a code or data segment
#define RIGHTS_TSS       (HV_VMX_SEGMENT_P | HV_VMX_SEGMENT_TYPE_TSS_BUSY)

#define VPID_INVALIDATE_SINGLE  1 // types of INVVPID and INVEPT (SDM volume 3, 31.3)
#define VPID_INVALIDATE_ALL     2
#define EPT_INVALIDATE_SINGLE   1
#define EPT_INVALIDATE_ALL      2

#define DR7_RESERVED_1  BIT10

typedef struct {
  UINT64    Context;
  UINT64    Address;
} INVALIDATE_DESCRIPTOR;

VOID
VmxChanged (
  IN HV_VCPU  *Vcpu
  )
{
  if (Vcpu->Cpu->Entered != HV_ENTERED_NEVER) {
    Vcpu->Cpu->Entered = HV_ENTERED_CHANGED;
  }
}

VOID
VmxFlushLinear (
  IN HV_VCPU  *Vcpu
  )
{
  INVALIDATE_DESCRIPTOR  Descriptor;
  UINT64                 Type;

  Descriptor.Context = VmxVcpu (Vcpu)->Vpid;
  Descriptor.Address = 0;
  Type               = ((VmxVcpu (Vcpu)->Caps & HV_VMX_EPT_VPID_CAP_INVVPID_SINGLE) != 0) ? VPID_INVALIDATE_SINGLE
                                                                                         : VPID_INVALIDATE_ALL;
  __asm__ __volatile__ ("invvpid %0, %1" : : "m" (Descriptor), "r" (Type) : "cc", "memory");
}

VOID
VmxFlushNested (
  IN HV_VCPU  *Vcpu
  )
{
  INVALIDATE_DESCRIPTOR  Descriptor;
  UINT64                 Type;

  Descriptor.Context = VmxVcpu (Vcpu)->EptPointer;
  Descriptor.Address = 0;
  Type               = ((VmxVcpu (Vcpu)->Caps & HV_VMX_EPT_VPID_CAP_INVEPT_SINGLE) != 0) ? EPT_INVALIDATE_SINGLE
                                                                                        : EPT_INVALIDATE_ALL;
  __asm__ __volatile__ ("invept %0, %1" : : "m" (Descriptor), "r" (Type) : "cc", "memory");
}

///
/// Bits 15:12 of the access rights are bits 11:8 of the neutral form (SDM 25.4.1).
///
STATIC
VOID
SegmentGet (
  IN  UINTN       Index,
  OUT HV_SEGMENT  *Segment
  )
{
  UINT32  Rights;

  Rights              = (UINT32)VmxRead (SEGMENT_RIGHTS ((UINT32)Index));
  Segment->Selector   = (UINT16)VmxRead (SEGMENT_SELECTOR ((UINT32)Index));
  Segment->Limit      = (UINT32)VmxRead (SEGMENT_LIMIT ((UINT32)Index));
  Segment->Base       = VmxRead (SEGMENT_BASE ((UINT32)Index));
  Segment->Attributes = (UINT16)((Rights & 0xFF) | ((Rights >> 4) & 0xF00));
  if ((Rights & HV_VMX_SEGMENT_UNUSABLE) != 0) {
    Segment->Attributes &= ~(UINT16)HV_SEGMENT_PRESENT;
  }
}

STATIC
VOID
SegmentSet (
  IN UINTN             Index,
  IN CONST HV_SEGMENT  *Segment
  )
{
  UINT32  Rights;
  UINT32  Limit;
  UINT64  Base;

  Limit  = Segment->Limit;
  Base   = Segment->Base;
  Rights = (Segment->Attributes & 0xFF) | ((UINT32)(Segment->Attributes & 0xF00) << 4);
  if ((Segment->Attributes & HV_SEGMENT_PRESENT) == 0) {
    Rights = HV_VMX_SEGMENT_UNUSABLE;
    if (Index == HvSegmentTr) {
      // TR is always usable (SDM 27.3.1.2). A null one has what a reset leaves in its hidden part (SDM table 10-1).
      Rights = RIGHTS_TSS;
      Limit  = 0xFFFF;
      Base   = 0;
    }
  } else if ((Rights & HV_VMX_SEGMENT_S) != 0) {
    // The descriptor in memory may be read-only; the register's copy has it set.
    Rights |= RIGHTS_ACCESSED;
  } else if (Index == HvSegmentTr) {
    Rights |= HV_VMX_SEGMENT_TYPE_TSS_BUSY;
  }

  VmxWrite (SEGMENT_SELECTOR ((UINT32)Index), Segment->Selector);
  VmxWrite (SEGMENT_LIMIT ((UINT32)Index), Limit);
  VmxWrite (SEGMENT_RIGHTS ((UINT32)Index), Rights);
  VmxWrite (SEGMENT_BASE ((UINT32)Index), Base);
}

STATIC CONST UINT32  mActivity[] = {
  [HvActivityRunning]     = HV_VMX_ACTIVITY_ACTIVE,
  [HvActivityHalted]      = HV_VMX_ACTIVITY_HLT,
  [HvActivityWaitForSipi] = HV_VMX_ACTIVITY_WAIT_FOR_SIPI,
};

STATIC
HV_ACTIVITY
ActivityGet (
  VOID
  )
{
  switch (VmxRead (HV_VMCS_GUEST_ACTIVITY)) {
    case HV_VMX_ACTIVITY_HLT:
      return HvActivityHalted;
    case HV_VMX_ACTIVITY_WAIT_FOR_SIPI:
      return HvActivityWaitForSipi;
    default:
      return HvActivityRunning;
  }
}

VOID
VmxStateGet (
  IN  HV_VCPU        *Vcpu,
  IN  UINT32         Mask,
  OUT HV_VCPU_STATE  *State
  )
{
  VMX_VCPU  *Vmx;
  UINTN     Index;
  UINT64    Value;

  Vmx = VmxVcpu (Vcpu);
  if ((Mask & (HV_STATE_CR4 | HV_STATE_CONTROL)) != 0) {
    State->Cr4 = VmxCr4 (Vcpu);
  }

  if ((Mask & (HV_STATE_CPL | HV_STATE_CONTROL)) != 0) {
    // The privilege level of the processor is that of SS (SDM 25.4.1).
    Value      = VmxRead (HV_VMCS_GUEST_SS_ACCESS_RIGHTS);
    State->Cpl = (UINT8)((Value & HV_VMX_SEGMENT_DPL_MASK) >> HV_VMX_SEGMENT_DPL_SHIFT);
  }

  if ((Mask & HV_STATE_SEGMENTS) != 0) {
    for (Index = HvSegmentEs; Index <= HvSegmentDs; Index++) {
      SegmentGet (Index, &State->Segment[Index]);
    }
  }

  if ((Mask & HV_STATE_CODE) != 0) {
    SegmentGet (HvSegmentCs, &State->Segment[HvSegmentCs]);
  }

  if ((Mask & HV_STATE_SYSTEM) != 0) {
    for (Index = HvSegmentFs; Index <= HvSegmentTr; Index++) {
      SegmentGet (Index, &State->Segment[Index]);
    }

    // The host has no use for the SYSCALL MSRs: the processor holds the guest's.
    State->Star         = AsmReadMsr64 (HV_MSR_STAR);
    State->Lstar        = AsmReadMsr64 (HV_MSR_LSTAR);
    State->Cstar        = AsmReadMsr64 (HV_MSR_CSTAR);
    State->SfMask       = AsmReadMsr64 (HV_MSR_SFMASK);
    State->KernelGsBase = AsmReadMsr64 (HV_MSR_KERNEL_GS_BASE);
    State->SysenterCs   = VmxRead (HV_VMCS_GUEST_SYSENTER_CS);
    State->SysenterEsp  = VmxRead (HV_VMCS_GUEST_SYSENTER_ESP);
    State->SysenterEip  = VmxRead (HV_VMCS_GUEST_SYSENTER_EIP);
  }

  if ((Mask & HV_STATE_TABLES) != 0) {
    State->GdtBase  = VmxRead (HV_VMCS_GUEST_GDTR_BASE);
    State->GdtLimit = (UINT16)VmxRead (HV_VMCS_GUEST_GDTR_LIMIT);
    State->IdtBase  = VmxRead (HV_VMCS_GUEST_IDTR_BASE);
    State->IdtLimit = (UINT16)VmxRead (HV_VMCS_GUEST_IDTR_LIMIT);
  }

  if ((Mask & HV_STATE_CONTROL) != 0) {
    State->Cr0  = (VmxRead (HV_VMCS_GUEST_CR0) & ~Vmx->Cr0Mask) | (VmxRead (HV_VMCS_CR0_SHADOW) & Vmx->Cr0Mask);
    State->Cr3  = VmxRead (HV_VMCS_GUEST_CR3);
    State->Efer = VmxRead (HV_VMCS_GUEST_EFER);
  }

  if ((Mask & HV_STATE_CR2) != 0) {
    State->Cr2 = AsmReadCr2 ();
  }

  if ((Mask & HV_STATE_DEBUG) != 0) {
    State->Dr6 = AsmReadDr6 ();
    State->Dr7 = VmxRead (HV_VMCS_GUEST_DR7);
  }

  if ((Mask & HV_STATE_PAT) != 0) {
    State->Pat = VmxRead (HV_VMCS_GUEST_PAT);
  }

  if ((Mask & HV_STATE_EVENTS) != 0) {
    Value                  = VmxRead (HV_VMCS_GUEST_INTERRUPTIBILITY);
    State->InterruptShadow = (BOOLEAN)((Value & (HV_VMX_BLOCKING_STI | HV_VMX_BLOCKING_MOV_SS)) != 0);
    State->NmiBlocked      = (BOOLEAN)((Value & HV_VMX_BLOCKING_NMI) != 0);
    State->Activity        = ActivityGet ();
  }

  if ((Mask & HV_STATE_PDPTE) != 0) {
    State->PdpteLoaded = TRUE;
    for (Index = 0; Index < ARRAY_SIZE (State->Pdpte); Index++) {
      State->Pdpte[Index] = VmxRead (HV_VMCS_GUEST_PDPTE0 + 2 * (UINT32)Index);
    }
  }
}

VOID
VmxStateSet (
  IN OUT HV_VCPU              *Vcpu,
  IN     UINT32               Mask,
  IN     CONST HV_VCPU_STATE  *State
  )
{
  VMX_VCPU  *Vmx;
  UINTN     Index;
  UINT64    Value;

  Vmx = VmxVcpu (Vcpu);
  if ((Mask & HV_STATE_SEGMENTS) != 0) {
    for (Index = HvSegmentEs; Index <= HvSegmentDs; Index++) {
      SegmentSet (Index, &State->Segment[Index]);
    }
  }

  if ((Mask & HV_STATE_SYSTEM) != 0) {
    for (Index = HvSegmentFs; Index <= HvSegmentTr; Index++) {
      SegmentSet (Index, &State->Segment[Index]);
    }

    AsmWriteMsr64 (HV_MSR_STAR, State->Star);
    AsmWriteMsr64 (HV_MSR_LSTAR, State->Lstar);
    AsmWriteMsr64 (HV_MSR_CSTAR, State->Cstar);
    AsmWriteMsr64 (HV_MSR_SFMASK, State->SfMask);
    AsmWriteMsr64 (HV_MSR_KERNEL_GS_BASE, State->KernelGsBase);
    VmxWrite (HV_VMCS_GUEST_SYSENTER_CS, State->SysenterCs);
    VmxWrite (HV_VMCS_GUEST_SYSENTER_ESP, State->SysenterEsp);
    VmxWrite (HV_VMCS_GUEST_SYSENTER_EIP, State->SysenterEip);
  }

  if ((Mask & HV_STATE_TABLES) != 0) {
    VmxWrite (HV_VMCS_GUEST_GDTR_BASE, State->GdtBase);
    VmxWrite (HV_VMCS_GUEST_GDTR_LIMIT, State->GdtLimit);
    VmxWrite (HV_VMCS_GUEST_IDTR_BASE, State->IdtBase);
    VmxWrite (HV_VMCS_GUEST_IDTR_LIMIT, State->IdtLimit);
  }

  if ((Mask & HV_STATE_CONTROL) != 0) {
    VmxWrite (HV_VMCS_GUEST_CR0, State->Cr0 | Vmx->Cr0Mask);
    VmxWrite (HV_VMCS_CR0_SHADOW, State->Cr0);
    VmxWrite (HV_VMCS_GUEST_CR3, State->Cr3);
    VmxWrite (HV_VMCS_GUEST_CR4, State->Cr4 | Vmx->Cr4Must);
    VmxWrite (HV_VMCS_CR4_SHADOW, State->Cr4);
    VmxWrite (HV_VMCS_GUEST_EFER, State->Efer);
    Value = VmxRead (HV_VMCS_ENTRY_CTLS) & ~(UINT64)HV_VMX_ENTRY_CTL_GUEST_64;
    if ((State->Efer & HV_EFER_LMA) != 0) {
      Value |= HV_VMX_ENTRY_CTL_GUEST_64;
    }

    VmxWrite (HV_VMCS_ENTRY_CTLS, Value);
    // With VPID an entry keeps the translations that a change of these registers ends.
    VmxFlushLinear (Vcpu);
  }

  if ((Mask & HV_STATE_CR2) != 0) {
    AsmWriteCr2 (State->Cr2);
  }

  if ((Mask & HV_STATE_DEBUG) != 0) {
    AsmWriteDr6 (State->Dr6);
    VmxWrite (HV_VMCS_GUEST_DR7, State->Dr7 | DR7_RESERVED_1);
  }

  if ((Mask & HV_STATE_PAT) != 0) {
    VmxWrite (HV_VMCS_GUEST_PAT, State->Pat);
  }

  if ((Mask & HV_STATE_EVENTS) != 0) {
    Value = VmxRead (HV_VMCS_GUEST_INTERRUPTIBILITY);
    if (!State->InterruptShadow) {
      Value &= ~(UINT64)(HV_VMX_BLOCKING_STI | HV_VMX_BLOCKING_MOV_SS);
    } else if ((Value & (HV_VMX_BLOCKING_STI | HV_VMX_BLOCKING_MOV_SS)) == 0) {
      Value |= HV_VMX_BLOCKING_STI;
    }

    Value &= ~(UINT64)HV_VMX_BLOCKING_NMI;
    Value |= State->NmiBlocked ? HV_VMX_BLOCKING_NMI : 0;
    VmxWrite (HV_VMCS_GUEST_INTERRUPTIBILITY, Value);
    VmxWrite (HV_VMCS_GUEST_ACTIVITY, mActivity[State->Activity]);
  }

  if ((Mask & HV_STATE_PDPTE) != 0) {
    for (Index = 0; Index < ARRAY_SIZE (State->Pdpte); Index++) {
      VmxWrite (HV_VMCS_GUEST_PDPTE0 + 2 * (UINT32)Index, State->Pdpte[Index]);
    }
  }

  VmxChanged (Vcpu);
}

///
/// Puts what an MSR holds into the VMCS; 0 where the processor has the control, but not the MSR.
///
STATIC
VOID
WriteFromMsr (
  IN UINT32  Field,
  IN UINT32  Msr
  )
{
  UINT64  Value;

  VmxWrite (Field, HvHostReadMsr (Msr, &Value) ? Value : 0);
}

STATIC
VOID
WriteControls (
  IN HV_VCPU             *Vcpu,
  IN CONST VMX_CONTROLS  *Controls
  )
{
  VMX_VCPU  *Vmx;
  UINT64    Shared;

  Vmx       = VmxVcpu (Vcpu);
  Vmx->Pin  = (UINT32)Controls->Word[VmxWordPin];
  Vmx->Proc = (UINT32)Controls->Word[VmxWordProc] & ~(UINT32)HV_VMX_PROC_IO_BITMAPS;
  VmxWrite (HV_VMCS_PINBASED_CTLS, Vmx->Pin);
  VmxWrite (HV_VMCS_PROCBASED_CTLS, Vmx->Proc);
  VmxWrite (HV_VMCS_PROCBASED_CTLS2, Controls->Word[VmxWordProc2]);
  if (Controls->Word[VmxWordProc3] != 0) {
    VmxWrite (HV_VMCS_PROCBASED_CTLS3, Controls->Word[VmxWordProc3]);
  }

  VmxWrite (HV_VMCS_EXIT_CTLS, Controls->Word[VmxWordExit]);
  VmxWrite (HV_VMCS_ENTRY_CTLS, Controls->Word[VmxWordEntry]);

  VmxWrite (HV_VMCS_EXCEPTION_BITMAP, 0);
  VmxWrite (HV_VMCS_PAGE_FAULT_ERROR_MASK, 0);
  VmxWrite (HV_VMCS_PAGE_FAULT_ERROR_MATCH, 0);
  VmxWrite (HV_VMCS_CR3_TARGET_COUNT, 0);
  VmxWrite (HV_VMCS_EXIT_MSR_STORE_COUNT, 0);
  VmxWrite (HV_VMCS_EXIT_MSR_LOAD_COUNT, 0);
  VmxWrite (HV_VMCS_ENTRY_MSR_LOAD_COUNT, 0);
  VmxWrite (HV_VMCS_ENTRY_INTERRUPTION_INFO, 0);
  Shared = (UINTN)Vcpu->Vm->Shared;
  VmxWrite (HV_VMCS_MSR_BITMAP, Shared + EFI_PAGES_TO_SIZE (VMX_PAGE_MSR_BITMAPS));
  VmxWrite (HV_VMCS_IO_BITMAP_A, Shared + EFI_PAGES_TO_SIZE (VMX_PAGE_IO_BITMAPS));
  VmxWrite (HV_VMCS_IO_BITMAP_B, Shared + EFI_PAGES_TO_SIZE (VMX_PAGE_IO_BITMAPS + 1));
  VmxWrite (HV_VMCS_EPT_POINTER, Vmx->EptPointer);
  VmxWrite (HV_VMCS_VPID, Vmx->Vpid);
  VmxWrite (HV_VMCS_LINK_POINTER, MAX_UINT64);
  if ((Controls->Word[VmxWordProc2] & HV_VMX_PROC2_XSAVES) != 0) {
    // XRSTORS of the processor trace's component would load its MSRs past the MSR bitmap, and with them an output
    // address past the nested tables (SDM volume 1, 13.5.6).
    VmxWrite (HV_VMCS_XSS_EXITING_BITMAP, HV_XSS_PT);
  }

  if ((Controls->Word[VmxWordProc2] & HV_VMX_PROC2_PCONFIG) != 0) {
    VmxWrite (HV_VMCS_PCONFIG_EXITING_BITMAP, 0);
  }

  // What an exit clears an entry gives back.
  if ((Controls->Word[VmxWordEntry] & HV_VMX_ENTRY_CTL_LOAD_BNDCFGS) != 0) {
    WriteFromMsr (HV_VMCS_GUEST_BNDCFGS, HV_MSR_BNDCFGS);
  }

  if ((Controls->Word[VmxWordEntry] & HV_VMX_ENTRY_CTL_LOAD_RTIT_CTL) != 0) {
    WriteFromMsr (HV_VMCS_GUEST_RTIT_CTL, HV_MSR_RTIT_CTL);
  }

  if ((Controls->Word[VmxWordEntry] & HV_VMX_ENTRY_CTL_LOAD_LBR_CTL) != 0) {
    WriteFromMsr (HV_VMCS_GUEST_LBR_CTL, HV_MSR_LBR_CTL);
  }

  VmxWrite (HV_VMCS_CR0_MASK, Vmx->Cr0Mask);
  VmxWrite (HV_VMCS_CR4_MASK, Vmx->Cr4Mask);
}

///
/// The host as HvHostLoad made it, which has to have run.
///
STATIC
VOID
WriteHost (
  IN CONST HV_CPU  *Cpu
  )
{
  IA32_DESCRIPTOR  Gdtr;
  IA32_DESCRIPTOR  Idtr;

  AsmReadGdtr (&Gdtr);
  AsmReadIdtr (&Idtr);
  VmxWrite (HV_VMCS_HOST_CR0, AsmReadCr0 ());
  VmxWrite (HV_VMCS_HOST_CR3, Cpu->Host->Cr3);
  VmxWrite (HV_VMCS_HOST_CR4, Cpu->Host->Cr4);
  VmxWrite (HV_VMCS_HOST_ES_SELECTOR, HV_HOST_DS);
  VmxWrite (HV_VMCS_HOST_CS_SELECTOR, HV_HOST_CS);
  VmxWrite (HV_VMCS_HOST_SS_SELECTOR, HV_HOST_DS);
  VmxWrite (HV_VMCS_HOST_DS_SELECTOR, HV_HOST_DS);
  VmxWrite (HV_VMCS_HOST_FS_SELECTOR, 0);
  VmxWrite (HV_VMCS_HOST_GS_SELECTOR, 0);
  VmxWrite (HV_VMCS_HOST_TR_SELECTOR, HV_HOST_TSS);
  VmxWrite (HV_VMCS_HOST_FS_BASE, 0);
  VmxWrite (HV_VMCS_HOST_GS_BASE, (UINTN)Cpu);
  VmxWrite (HV_VMCS_HOST_TR_BASE, (UINTN)Cpu->Tss);
  VmxWrite (HV_VMCS_HOST_GDTR_BASE, Gdtr.Base);
  VmxWrite (HV_VMCS_HOST_IDTR_BASE, Idtr.Base);
  VmxWrite (HV_VMCS_HOST_SYSENTER_CS, 0);
  VmxWrite (HV_VMCS_HOST_SYSENTER_ESP, 0);
  VmxWrite (HV_VMCS_HOST_SYSENTER_EIP, 0);
  VmxWrite (HV_VMCS_HOST_PAT, AsmReadMsr64 (HV_MSR_PAT));
  VmxWrite (HV_VMCS_HOST_EFER, AsmReadMsr64 (HV_MSR_EFER));
  VmxWrite (HV_VMCS_HOST_RIP, (UINTN)HvVmxExited);
}

VOID
VmxVcpuInit (
  IN OUT HV_VCPU              *Vcpu,
  IN     CONST HV_VCPU_STATE  *State
  )
{
  VMX_VCPU        *Vmx;
  VMX_CONTROLS    Controls;
  VMX_CAPABILITY  Pin;

  Vcpu->Hw     = VmxCpuPage (Vcpu->Cpu, VMX_PAGE_VCPU);
  Vcpu->HostHw = VmxCpuPage (Vcpu->Cpu, VMX_PAGE_VMCS);
  Vmx          = VmxVcpu (Vcpu);
  ZeroMem (Vmx, sizeof (*Vmx));
  Vmx->Vpid       = (UINT16)(Vcpu->Index + 1);
  Vmx->Caps       = AsmReadMsr64 (HV_MSR_VMX_EPT_VPID_CAP);
  Vmx->EptPointer = Vcpu->Vm->Nested.Root | HV_VMX_EPTP_MEMORY_TYPE_WB |
                    ((Vcpu->Vm->Nested.Format == HvPagingEpt5) ? HV_VMX_EPTP_WALK_LENGTH_5 : HV_VMX_EPTP_WALK_LENGTH_4);
  // An unrestricted guest has PE and PG as it likes (SDM 27.3.1.1). The root sees neither VMX nor SMX.
  Vmx->Cr0Mask = Vcpu->Cpu->Host->RootCr0 & ~(UINT64)(HV_CR0_PE | HV_CR0_PG);
  Vmx->Cr4Must = Vcpu->Cpu->Host->RootCr4;
  Vmx->Cr4Mask = Vmx->Cr4Must | HV_CR4_SMXE;

  VmxCapability (VmxWordPin, &Pin);
  Vmx->HasTimer = (BOOLEAN)((Pin.May & HV_VMX_PIN_PREEMPTION_TIMER) != 0);
  VmxControls (&Controls);
  WriteControls (Vcpu, &Controls);
  WriteHost (Vcpu->Cpu);

  VmxWrite (HV_VMCS_GUEST_DEBUGCTL, AsmReadMsr64 (HV_MSR_DEBUGCTL));
  VmxWrite (HV_VMCS_GUEST_PENDING_DEBUG, 0);
  VmxWrite (HV_VMCS_GUEST_INTERRUPTIBILITY, 0);
  VmxStateSet (Vcpu, HV_STATE_ALL, State);
  VmxFlushNested (Vcpu);
}
