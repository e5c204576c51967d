/** @file
  The rules that a VM entry applies to a VMCS, run in software. The functions follow the sections of SDM chapter 27.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/HvVmxCheckLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>
#include <Generated/HvVmxChecks.h>
#include <Generated/HvVmxControls.h>

#define RULE_ROW(Rule, Part, Name, Section, Expected)  { Name, Section, Expected, Part },

STATIC CONST struct {
  CONST CHAR8    *Name;
  CONST CHAR8    *Section;
  CONST CHAR8    *Expected;
  UINT32         Part;
} mRules[HvVmxRuleCount] = {
  HV_VMX_RULE_LIST (RULE_ROW)
};

#define FIELD_ROW(Field, Bytes, Name)  { Name, Field },

STATIC CONST struct {
  CONST CHAR8    *Name;
  UINT32         Encoding;
} mFields[HvVmcsIndexCount] = {
  HV_VMCS_LIST (FIELD_ROW)
};

typedef struct {
  CONST HV_VMCS_IMAGE       *Image;
  CONST HV_VMX_CHECK_ENV    *Env;
  HV_FINDING                *Findings;
  UINTN                     Max;
  UINTN                     Count;
  UINT32                    Parts;
} CHECK;

//
// The fields of the segment registers have consecutive encodings in this order (SDM B.1.2).
//
#define ES        0
#define CS        1
#define SS        2
#define DS        3
#define FS        4
#define GS        5
#define LDTR      6
#define TR        7
#define SELECTOR  HV_VMCS_GUEST_ES_SELECTOR_INDEX
#define LIMIT     HV_VMCS_GUEST_ES_LIMIT_INDEX
#define RIGHTS    HV_VMCS_GUEST_ES_ACCESS_RIGHTS_INDEX
#define BASE      HV_VMCS_GUEST_ES_BASE_INDEX

#define VALUE(Name)  (Check->Image->Value[HV_VMCS_##Name##_INDEX])
#define AT(Index)    (Check->Image->Value[Index])

#define EXPECT(Rule, Name, Kept)       Expect (Check, HvVmxRule##Rule, HV_VMCS_##Name##_INDEX, (BOOLEAN)(Kept))
#define EXPECT_AT(Rule, Index, Kept)   Expect (Check, HvVmxRule##Rule, (Index), (BOOLEAN)(Kept))

#define CR3_TARGETS(Misc)  (((Misc) & HV_VMX_MISC_CR3_TARGETS_MASK) >> HV_VMX_MISC_CR3_TARGETS_SHIFT)

#define ENTRY_SMM  ((UINT64)(HV_VMX_ENTRY_CTL_SMM | HV_VMX_ENTRY_CTL_DEACTIVATE_DUAL_MONITOR))
#define EFER_LONG  (HV_EFER_LME | HV_EFER_LMA)

#define EPT_OR_VPID  (HV_VMX_PROC2_EPT | HV_VMX_PROC2_VPID)

#define SELECTOR_RPL  0x3
#define SELECTOR_TI   0x4

#define RIGHTS_ACCESSED      0x1
#define RIGHTS_READABLE      0x2
#define RIGHTS_CODE          0x8
#define RIGHTS_RESERVED      0xFFFE0F00ULL
#define DPL(Rights)          ((Rights) >> HV_VMX_SEGMENT_DPL_SHIFT & 3)
#define TYPE(Rights)         ((Rights) & HV_VMX_SEGMENT_TYPE_MASK)

#define S_CET_RESERVED       0x3C0
#define S_CET_SUPPRESS_WAIT  0xC00

#define DEBUGCTL_BTF  BIT1
#define DEBUGCTL_ANY  0xFFC3 // SDM 18.4.1: LBR, BTF, TR .. RTM_DEBUG
#define DEBUGCTL_BLD  BIT2

#define PERF_METRICS  BIT48 // SDM 20.3.9.3; reported by an MSR of its own

STATIC
VOID
Expect (
  IN OUT CHECK        *Check,
  IN     HV_VMX_RULE  Rule,
  IN     UINTN        Index,
  IN     BOOLEAN      Kept
  )
{
  HV_FINDING  *Finding;

  if (Kept || ((mRules[Rule].Part & Check->Parts) == 0)) {
    return;
  }

  if (Check->Count++ >= Check->Max) {
    return;
  }

  Finding            = &Check->Findings[Check->Count - 1];
  Finding->Rule      = Rule;
  Finding->Field     = mFields[Index].Encoding;
  Finding->Value     = Check->Image->Value[Index];
  Finding->Name      = mRules[Rule].Name;
  Finding->Section   = mRules[Rule].Section;
  Finding->FieldName = mFields[Index].Name;
  Finding->Expected  = mRules[Rule].Expected;
}

///
/// A value against a capability MSR: bits that must be 1 in its low half, bits that may be 1 in its high half.
///
STATIC
BOOLEAN
Allowed (
  IN UINT64  Value,
  IN UINT64  Msr
  )
{
  return (BOOLEAN)(((~Value & (UINT32)Msr) == 0) && ((Value & ~(Msr >> 32)) == 0));
}

///
/// A value against a pair of fixed-bit MSRs, but for some bits.
///
STATIC
BOOLEAN
Fixed (
  IN UINT64  Value,
  IN UINT64  Fixed0,
  IN UINT64  Fixed1,
  IN UINT64  Free
  )
{
  return (BOOLEAN)((((~Value & Fixed0) | (Value & ~Fixed1)) & ~Free) == 0);
}

STATIC
BOOLEAN
Canonical (
  IN CONST CHECK  *Check,
  IN UINT64       Address
  )
{
  INT64  High;

  High = (INT64)Address >> (Check->Env->LinearBits - 1);
  return (BOOLEAN)((High == 0) || (High == -1));
}

///
/// Whether an address is aligned and below the end of what the VMX structures may use (SDM A.1, bit 48).
///
STATIC
BOOLEAN
Physical (
  IN CONST CHECK  *Check,
  IN UINT64       Address,
  IN UINT64       Alignment
  )
{
  UINT8  Bits;

  Bits = ((Check->Env->Basic & HV_VMX_BASIC_ADDRESS32) != 0) ? 32 : Check->Env->AddressBits;
  return (BOOLEAN)(((Address & (Alignment - 1)) == 0) && (Address >> Bits == 0));
}

STATIC
BOOLEAN
MsrList (
  IN CONST CHECK  *Check,
  IN UINT64       Address,
  IN UINT64       Count
  )
{
  return (BOOLEAN)((Count == 0) || (Physical (Check, Address, 16) && Physical (Check, Address + Count * 16 - 1, 1)));
}

STATIC
BOOLEAN
PatTypes (
  IN UINT64  Pat
  )
{
  UINTN  Entry;
  UINT8  Type;

  for (Entry = 0; Entry < 8; Entry++) {
    Type = (UINT8)(Pat >> 8 * Entry);
    if ((Type > HV_MEMORY_TYPE_UC_MINUS) || (Type == 2) || (Type == 3)) {
      return FALSE;
    }
  }

  return TRUE;
}

STATIC
BOOLEAN
SCet (
  IN CONST CHECK  *Check,
  IN UINT64       Value
  )
{
  return (BOOLEAN)(Canonical (Check, Value) && ((Value & S_CET_RESERVED) == 0) &&
                   ((Value & S_CET_SUPPRESS_WAIT) != S_CET_SUPPRESS_WAIT));
}

STATIC
UINT64
Proc2 (
  IN CONST CHECK  *Check
  )
{
  // The secondary controls count as 0 while they are not activated (SDM 25.6.2).
  return ((VALUE (PROCBASED_CTLS) & HV_VMX_PROC_SECONDARY) != 0) ? VALUE (PROCBASED_CTLS2) : 0;
}

///
/// SDM 27.2.1.1, the controls by themselves and with each other.
///
STATIC
VOID
CheckExecutionControls (
  IN OUT CHECK  *Check
  )
{
  CONST HV_VMX_CHECK_ENV  *Env;
  UINT64                  Pin;
  UINT64                  Proc;
  UINT64                  Second;
  UINT64                  Functions;
  BOOLEAN                 Ept;

  Env    = Check->Env;
  Pin    = VALUE (PINBASED_CTLS);
  Proc   = VALUE (PROCBASED_CTLS);
  Second = Proc2 (Check);
  Ept    = (BOOLEAN)((Second & HV_VMX_PROC2_EPT) != 0);

  EXPECT (PinAllowed, PINBASED_CTLS, Allowed (Pin, Env->Pin));
  EXPECT (ProcAllowed, PROCBASED_CTLS, Allowed (Proc, Env->Proc));
  if ((Proc & HV_VMX_PROC_SECONDARY) != 0) {
    EXPECT (Proc2Allowed, PROCBASED_CTLS2, Allowed (Second, Env->Proc2));
  }

  if ((Proc & HV_VMX_PROC_TERTIARY) != 0) {
    EXPECT (Proc3Allowed, PROCBASED_CTLS3, (VALUE (PROCBASED_CTLS3) & ~Env->Proc3) == 0);
  }

  EXPECT (Cr3TargetCount, CR3_TARGET_COUNT, VALUE (CR3_TARGET_COUNT) <= CR3_TARGETS (Env->Misc));
  if ((Proc & HV_VMX_PROC_IO_BITMAPS) != 0) {
    EXPECT (IoBitmaps, IO_BITMAP_A, Physical (Check, VALUE (IO_BITMAP_A), SIZE_4KB));
    EXPECT (IoBitmaps, IO_BITMAP_B, Physical (Check, VALUE (IO_BITMAP_B), SIZE_4KB));
  }

  if ((Proc & HV_VMX_PROC_MSR_BITMAPS) != 0) {
    EXPECT (MsrBitmap, MSR_BITMAP, Physical (Check, VALUE (MSR_BITMAP), SIZE_4KB));
  }

  if ((Proc & HV_VMX_PROC_TPR_SHADOW) != 0) {
    EXPECT (VirtualApicPage, VIRTUAL_APIC_ADDRESS, Physical (Check, VALUE (VIRTUAL_APIC_ADDRESS), SIZE_4KB));
    EXPECT (
      TprThreshold,
      TPR_THRESHOLD,
      ((Second & HV_VMX_PROC2_VIRTUAL_INTERRUPTS) != 0) || (VALUE (TPR_THRESHOLD) >> 4 == 0)
      );
  } else {
    EXPECT (
      ApicTprShadow,
      PROCBASED_CTLS2,
      (Second & (HV_VMX_PROC2_X2APIC | HV_VMX_PROC2_APIC_REGISTERS | HV_VMX_PROC2_VIRTUAL_INTERRUPTS)) == 0
      );
  }

  EXPECT (
    VirtualNmi,
    PINBASED_CTLS,
    ((Pin & HV_VMX_PIN_VIRTUAL_NMI) == 0) || ((Pin & HV_VMX_PIN_NMI) != 0)
    );
  EXPECT (
    NmiWindow,
    PROCBASED_CTLS,
    ((Proc & HV_VMX_PROC_NMI_WINDOW) == 0) || ((Pin & HV_VMX_PIN_VIRTUAL_NMI) != 0)
    );
  if ((Second & HV_VMX_PROC2_APIC_ACCESSES) != 0) {
    EXPECT (ApicAccessPage, APIC_ACCESS_ADDRESS, Physical (Check, VALUE (APIC_ACCESS_ADDRESS), SIZE_4KB));
    EXPECT (ApicModes, PROCBASED_CTLS2, (Second & HV_VMX_PROC2_X2APIC) == 0);
  }

  EXPECT (
    VirtualInterruptExiting,
    PROCBASED_CTLS2,
    ((Second & HV_VMX_PROC2_VIRTUAL_INTERRUPTS) == 0) || ((Pin & HV_VMX_PIN_EXTERNAL_INTERRUPT) != 0)
    );
  if ((Pin & HV_VMX_PIN_POSTED_INTERRUPTS) != 0) {
    EXPECT (PostedDelivery, PINBASED_CTLS, (Second & HV_VMX_PROC2_VIRTUAL_INTERRUPTS) != 0);
    EXPECT (PostedAcknowledge, EXIT_CTLS, (VALUE (EXIT_CTLS) & HV_VMX_EXIT_CTL_ACKNOWLEDGE) != 0);
    EXPECT (PostedVector, POSTED_INTERRUPT_VECTOR, VALUE (POSTED_INTERRUPT_VECTOR) >> 8 == 0);
    EXPECT (PostedDescriptor, POSTED_INTERRUPT_DESCRIPTOR, Physical (Check, VALUE (POSTED_INTERRUPT_DESCRIPTOR), 64));
  }

  if ((Second & HV_VMX_PROC2_VPID) != 0) {
    EXPECT (VpidZero, VPID, VALUE (VPID) != 0);
  }

  if ((Second & HV_VMX_PROC2_PML) != 0) {
    EXPECT (PmlEpt, PROCBASED_CTLS2, Ept);
    EXPECT (PmlAddress, PML_ADDRESS, Physical (Check, VALUE (PML_ADDRESS), SIZE_4KB));
  }

  EXPECT (UnrestrictedEpt, PROCBASED_CTLS2, Ept || ((Second & HV_VMX_PROC2_UNRESTRICTED_GUEST) == 0));
  EXPECT (ModeBasedExecuteEpt, PROCBASED_CTLS2, Ept || ((Second & HV_VMX_PROC2_MODE_BASED_EXECUTE) == 0));
  if ((Second & HV_VMX_PROC2_SUB_PAGE) != 0) {
    EXPECT (SubPageEpt, PROCBASED_CTLS2, Ept);
    EXPECT (SubPagePointer, SPPT_POINTER, Physical (Check, VALUE (SPPT_POINTER), SIZE_4KB));
  }

  if ((Second & HV_VMX_PROC2_PT_GUEST_PHYSICAL) != 0) {
    EXPECT (
      TraceGuestPhysical,
      PROCBASED_CTLS2,
      Ept && ((VALUE (ENTRY_CTLS) & HV_VMX_ENTRY_CTL_LOAD_RTIT_CTL) != 0) &&
      ((VALUE (EXIT_CTLS) & HV_VMX_EXIT_CTL_CLEAR_RTIT_CTL) != 0)
      );
  }

  if ((Second & HV_VMX_PROC2_VMFUNC) != 0) {
    Functions = VALUE (VM_FUNCTION_CONTROLS);
    EXPECT (VmFunctions, VM_FUNCTION_CONTROLS, (Functions & ~Env->VmFunc) == 0);
    if ((Functions & BIT0) != 0) {
      EXPECT (EptpSwitchingEpt, VM_FUNCTION_CONTROLS, Ept);
      EXPECT (EptpList, EPTP_LIST_ADDRESS, Physical (Check, VALUE (EPTP_LIST_ADDRESS), SIZE_4KB));
    }
  }

  if ((Second & HV_VMX_PROC2_VMCS_SHADOWING) != 0) {
    EXPECT (ShadowBitmaps, VMREAD_BITMAP, Physical (Check, VALUE (VMREAD_BITMAP), SIZE_4KB));
    EXPECT (ShadowBitmaps, VMWRITE_BITMAP, Physical (Check, VALUE (VMWRITE_BITMAP), SIZE_4KB));
  }

  if ((Second & HV_VMX_PROC2_VE) != 0) {
    EXPECT (VeInformation, VE_INFORMATION_ADDRESS, Physical (Check, VALUE (VE_INFORMATION_ADDRESS), SIZE_4KB));
  }

  if ((Second & HV_VMX_PROC2_TSC_SCALING) != 0) {
    EXPECT (TscMultiplier, TSC_MULTIPLIER, VALUE (TSC_MULTIPLIER) != 0);
  }
}

///
/// SDM 27.2.1.1, the EPT pointer (SDM 25.6.11).
///
STATIC
VOID
CheckEptPointer (
  IN OUT CHECK  *Check
  )
{
  UINT64  Pointer;
  UINT64  Cap;
  UINT64  Type;
  UINT64  Length;

  if ((Proc2 (Check) & HV_VMX_PROC2_EPT) == 0) {
    return;
  }

  Pointer = VALUE (EPT_POINTER);
  Cap     = Check->Env->EptVpidCap;
  Type    = Pointer & HV_VMX_EPTP_MEMORY_TYPE_MASK;
  Length  = Pointer & HV_VMX_EPTP_WALK_LENGTH_MASK;
  EXPECT (
    EptMemoryType,
    EPT_POINTER,
    ((Type == HV_VMX_EPTP_MEMORY_TYPE_UC) && ((Cap & HV_VMX_EPT_VPID_CAP_UC) != 0)) ||
    ((Type == HV_VMX_EPTP_MEMORY_TYPE_WB) && ((Cap & HV_VMX_EPT_VPID_CAP_WB) != 0))
    );
  EXPECT (
    EptWalkLength,
    EPT_POINTER,
    ((Length == HV_VMX_EPTP_WALK_LENGTH_4) && ((Cap & HV_VMX_EPT_VPID_CAP_WALK4) != 0)) ||
    ((Length == HV_VMX_EPTP_WALK_LENGTH_5) && ((Cap & HV_VMX_EPT_VPID_CAP_WALK5) != 0))
    );
  EXPECT (
    EptAccessedDirty,
    EPT_POINTER,
    ((Pointer & HV_VMX_EPTP_ACCESSED_DIRTY) == 0) || ((Cap & HV_VMX_EPT_VPID_CAP_ACCESSED_DIRTY) != 0)
    );
  EXPECT (
    EptShadowStack,
    EPT_POINTER,
    ((Pointer & HV_VMX_EPTP_SHADOW_STACK) == 0) || ((Cap & HV_VMX_EPT_VPID_CAP_SHADOW_STACK) != 0)
    );
  EXPECT (EptReserved, EPT_POINTER, ((Pointer & 0xF00) == 0) && (Pointer >> Check->Env->AddressBits == 0));
}

///
/// SDM 27.2.1.2.
///
STATIC
VOID
CheckExitControls (
  IN OUT CHECK  *Check
  )
{
  UINT64  Exit;

  Exit = VALUE (EXIT_CTLS);
  EXPECT (ExitAllowed, EXIT_CTLS, Allowed (Exit, Check->Env->Exit));
  if ((Exit & HV_VMX_EXIT_CTL_SECONDARY) != 0) {
    EXPECT (Exit2Allowed, EXIT_CTLS2, (VALUE (EXIT_CTLS2) & ~Check->Env->Exit2) == 0);
  }

  EXPECT (
    ExitPreemptionTimer,
    EXIT_CTLS,
    ((Exit & HV_VMX_EXIT_CTL_SAVE_PREEMPTION_TIMER) == 0) ||
    ((VALUE (PINBASED_CTLS) & HV_VMX_PIN_PREEMPTION_TIMER) != 0)
    );
  EXPECT (
    ExitMsrStore,
    EXIT_MSR_STORE_ADDRESS,
    MsrList (Check, VALUE (EXIT_MSR_STORE_ADDRESS), VALUE (EXIT_MSR_STORE_COUNT))
    );
  EXPECT (
    ExitMsrLoad,
    EXIT_MSR_LOAD_ADDRESS,
    MsrList (Check, VALUE (EXIT_MSR_LOAD_ADDRESS), VALUE (EXIT_MSR_LOAD_COUNT))
    );
}

///
/// SDM 27.2.1.3, the event to inject (SDM 25.8.3).
///
STATIC
VOID
CheckEvent (
  IN OUT CHECK  *Check
  )
{
  CONST HV_VMX_CHECK_ENV  *Env;
  UINT64                  Event;
  UINT64                  Type;
  UINT64                  Vector;
  UINT32                  WithError;
  BOOLEAN                 Error;
  BOOLEAN                 Real;
  BOOLEAN                 Usual;

  Env   = Check->Env;
  Event = VALUE (ENTRY_INTERRUPTION_INFO);
  if ((Event & HV_VMX_EVENT_VALID) == 0) {
    return;
  }

  Type   = Event & HV_VMX_EVENT_TYPE_MASK;
  Vector = Event & HV_VMX_EVENT_VECTOR_MASK;
  Error  = (BOOLEAN)((Event & HV_VMX_EVENT_ERROR_VALID) != 0);
  EXPECT (
    EventType,
    ENTRY_INTERRUPTION_INFO,
    (Type != (1 << HV_VMX_EVENT_TYPE_SHIFT)) &&
    ((Type != HV_VMX_EVENT_TYPE_OTHER) || ((Env->Proc >> 32 & HV_VMX_PROC_MONITOR_TRAP_FLAG) != 0))
    );
  EXPECT (
    EventVector,
    ENTRY_INTERRUPTION_INFO,
    ((Type != HV_VMX_EVENT_TYPE_NMI) || (Vector == HV_VECTOR_NMI)) &&
    ((Type != HV_VMX_EVENT_TYPE_EXCEPTION) || (Vector < 32)) &&
    ((Type != HV_VMX_EVENT_TYPE_OTHER) || (Vector == 0))
    );

  WithError = (1 << HV_VECTOR_DF) | (1 << HV_VECTOR_TS) | (1 << HV_VECTOR_NP) | (1 << HV_VECTOR_SS) |
              (1 << HV_VECTOR_GP) | (1 << HV_VECTOR_PF) | (1 << HV_VECTOR_AC);
  if ((Env->Cr4Fixed1 & HV_CR4_CET) != 0) {
    WithError |= 1 << HV_VECTOR_CP;
  }

  Real  = (BOOLEAN)(((Proc2 (Check) & HV_VMX_PROC2_UNRESTRICTED_GUEST) != 0) && ((VALUE (GUEST_CR0) & HV_CR0_PE) == 0));
  Usual = (BOOLEAN)((Vector < 32) && ((WithError >> Vector & 1) != 0));
  if ((Type != HV_VMX_EVENT_TYPE_EXCEPTION) || Real) {
    EXPECT (EventError, ENTRY_INTERRUPTION_INFO, !Error);
  } else if ((Env->Basic & HV_VMX_BASIC_ANY_ERROR_CODE) == 0) {
    EXPECT (EventError, ENTRY_INTERRUPTION_INFO, Error == Usual);
  }

  EXPECT (EventReserved, ENTRY_INTERRUPTION_INFO, (Event & 0x7FFFF000) == 0);
  if (Error) {
    EXPECT (EventErrorCode, ENTRY_EXCEPTION_ERROR, VALUE (ENTRY_EXCEPTION_ERROR) >> 16 == 0);
  }

  if ((Type == HV_VMX_EVENT_TYPE_SOFTWARE) || (Type == HV_VMX_EVENT_TYPE_PRIVILEGED_EXCEPTION) ||
      (Type == HV_VMX_EVENT_TYPE_SOFTWARE_EXCEPTION))
  {
    EXPECT (
      EventLength,
      ENTRY_INSTRUCTION_LENGTH,
      (VALUE (ENTRY_INSTRUCTION_LENGTH) <= 15) &&
      ((VALUE (ENTRY_INSTRUCTION_LENGTH) != 0) || ((Env->Misc & HV_VMX_MISC_EVENT_LENGTH_ZERO) != 0))
      );
  }
}

///
/// SDM 27.2.1.3.
///
STATIC
VOID
CheckEntryControls (
  IN OUT CHECK  *Check
  )
{
  // Outside SMM these two are for the second rule, whatever the MSR says.
  EXPECT (EntryAllowed, ENTRY_CTLS, Allowed (VALUE (ENTRY_CTLS) & ~ENTRY_SMM, Check->Env->Entry));
  EXPECT (EntrySmm, ENTRY_CTLS, (VALUE (ENTRY_CTLS) & ENTRY_SMM) == 0);
  EXPECT (
    EntryMsrLoad,
    ENTRY_MSR_LOAD_ADDRESS,
    MsrList (Check, VALUE (ENTRY_MSR_LOAD_ADDRESS), VALUE (ENTRY_MSR_LOAD_COUNT))
    );
  CheckEvent (Check);
}

///
/// SDM 27.2.2 and 27.2.3.
///
STATIC
VOID
CheckHost (
  IN OUT CHECK  *Check
  )
{
  CONST HV_VMX_CHECK_ENV  *Env;
  UINT64                  Exit;
  UINTN                   Index;

  Env  = Check->Env;
  Exit = VALUE (EXIT_CTLS);
  EXPECT (HostCr0, HOST_CR0, Fixed (VALUE (HOST_CR0), Env->Cr0Fixed0, Env->Cr0Fixed1, HV_CR0_NW | HV_CR0_CD));
  EXPECT (HostCr4, HOST_CR4, Fixed (VALUE (HOST_CR4), Env->Cr4Fixed0, Env->Cr4Fixed1, 0));
  EXPECT (HostCet, HOST_CR4, ((VALUE (HOST_CR4) & HV_CR4_CET) == 0) || ((VALUE (HOST_CR0) & HV_CR0_WP) != 0));
  EXPECT (HostCr3, HOST_CR3, (VALUE (HOST_CR3) & ~Env->Cr3Valid) == 0);
  EXPECT (HostSysenter, HOST_SYSENTER_ESP, Canonical (Check, VALUE (HOST_SYSENTER_ESP)));
  EXPECT (HostSysenter, HOST_SYSENTER_EIP, Canonical (Check, VALUE (HOST_SYSENTER_EIP)));
  if ((Exit & HV_VMX_EXIT_CTL_LOAD_PERF_GLOBAL_CTRL) != 0) {
    EXPECT (HostPerfGlobalCtrl, HOST_PERF_GLOBAL_CTRL, (VALUE (HOST_PERF_GLOBAL_CTRL) & ~Env->PerfGlobalValid) == 0);
  }

  if ((Exit & HV_VMX_EXIT_CTL_LOAD_PAT) != 0) {
    EXPECT (HostPat, HOST_PAT, PatTypes (VALUE (HOST_PAT)));
  }

  if ((Exit & HV_VMX_EXIT_CTL_LOAD_EFER) != 0) {
    EXPECT (HostEferReserved, HOST_EFER, (VALUE (HOST_EFER) & ~Env->EferValid) == 0);
  }

  if ((Exit & HV_VMX_EXIT_CTL_LOAD_CET) != 0) {
    EXPECT (HostSCet, HOST_S_CET, SCet (Check, VALUE (HOST_S_CET)));
    EXPECT (HostSsp, HOST_SSP, Canonical (Check, VALUE (HOST_SSP)) && ((VALUE (HOST_SSP) & 3) == 0));
    EXPECT (HostIsst, HOST_ISST_ADDR, Canonical (Check, VALUE (HOST_ISST_ADDR)));
  }

  if ((Exit & HV_VMX_EXIT_CTL_LOAD_PKRS) != 0) {
    EXPECT (HostPkrs, HOST_PKRS, VALUE (HOST_PKRS) >> 32 == 0);
  }

  for (Index = HV_VMCS_HOST_ES_SELECTOR_INDEX; Index <= HV_VMCS_HOST_TR_SELECTOR_INDEX; Index++) {
    EXPECT_AT (HostSelector, Index, (AT (Index) & (SELECTOR_RPL | SELECTOR_TI)) == 0);
  }

  EXPECT (HostSelectorNull, HOST_CS_SELECTOR, VALUE (HOST_CS_SELECTOR) != 0);
  EXPECT (HostSelectorNull, HOST_TR_SELECTOR, VALUE (HOST_TR_SELECTOR) != 0);
  EXPECT (HostBase, HOST_FS_BASE, Canonical (Check, VALUE (HOST_FS_BASE)));
  EXPECT (HostBase, HOST_GS_BASE, Canonical (Check, VALUE (HOST_GS_BASE)));
  EXPECT (HostBase, HOST_GDTR_BASE, Canonical (Check, VALUE (HOST_GDTR_BASE)));
  EXPECT (HostBase, HOST_IDTR_BASE, Canonical (Check, VALUE (HOST_IDTR_BASE)));
  EXPECT (HostBase, HOST_TR_BASE, Canonical (Check, VALUE (HOST_TR_BASE)));
}

///
/// SDM 27.2.4, and what of 27.2.2 and 27.2.3 depends on the size of the host's address space.
///
STATIC
VOID
CheckAddressSpace (
  IN OUT CHECK  *Check
  )
{
  UINT64   Exit;
  BOOLEAN  Host64;

  Exit   = VALUE (EXIT_CTLS);
  Host64 = (BOOLEAN)((Exit & HV_VMX_EXIT_CTL_HOST_64) != 0);
  EXPECT (HostLongMode, EXIT_CTLS, Host64 == Check->Env->HostLong);
  if (Host64 != Check->Env->HostLong) {
    // The rest would only repeat it.
    return;
  }

  if ((Exit & HV_VMX_EXIT_CTL_LOAD_EFER) != 0) {
    EXPECT (HostEferMode, HOST_EFER, (VALUE (HOST_EFER) & EFER_LONG) == (Host64 ? EFER_LONG : 0));
  }

  if (Host64) {
    EXPECT (HostPae, HOST_CR4, (VALUE (HOST_CR4) & HV_CR4_PAE) != 0);
    EXPECT (HostRip, HOST_RIP, Canonical (Check, VALUE (HOST_RIP)));
  } else {
    EXPECT (HostSsNull, HOST_SS_SELECTOR, VALUE (HOST_SS_SELECTOR) != 0);
    EXPECT (GuestLongMode, ENTRY_CTLS, (VALUE (ENTRY_CTLS) & HV_VMX_ENTRY_CTL_GUEST_64) == 0);
    EXPECT (HostPcide, HOST_CR4, (VALUE (HOST_CR4) & HV_CR4_PCIDE) == 0);
    EXPECT (HostRip, HOST_RIP, VALUE (HOST_RIP) >> 32 == 0);
  }
}

///
/// SDM 27.3.1.1.
///
STATIC
VOID
CheckGuestControl (
  IN OUT CHECK  *Check
  )
{
  CONST HV_VMX_CHECK_ENV  *Env;
  UINT64                  Entry;
  UINT64                  Cr0;
  UINT64                  Cr4;
  UINT64                  Efer;
  UINT64                  Free;
  BOOLEAN                 Long;

  Env   = Check->Env;
  Entry = VALUE (ENTRY_CTLS);
  Long  = (BOOLEAN)((Entry & HV_VMX_ENTRY_CTL_GUEST_64) != 0);
  Cr0   = VALUE (GUEST_CR0);
  Cr4   = VALUE (GUEST_CR4);
  Free  = HV_CR0_NW | HV_CR0_CD;
  if ((Proc2 (Check) & HV_VMX_PROC2_UNRESTRICTED_GUEST) != 0) {
    Free |= HV_CR0_PE | HV_CR0_PG;
  }

  EXPECT (GuestCr0, GUEST_CR0, Fixed (Cr0, Env->Cr0Fixed0, Env->Cr0Fixed1, Free));
  EXPECT (GuestCr0Pg, GUEST_CR0, ((Cr0 & HV_CR0_PG) == 0) || ((Cr0 & HV_CR0_PE) != 0));
  EXPECT (GuestCr4, GUEST_CR4, Fixed (Cr4, Env->Cr4Fixed0, Env->Cr4Fixed1, 0));
  EXPECT (GuestCet, GUEST_CR4, ((Cr4 & HV_CR4_CET) == 0) || ((Cr0 & HV_CR0_WP) != 0));
  if ((Entry & HV_VMX_ENTRY_CTL_LOAD_DEBUG) != 0) {
    EXPECT (GuestDebugctl, GUEST_DEBUGCTL, (VALUE (GUEST_DEBUGCTL) & ~Env->DebugCtlValid) == 0);
    EXPECT (GuestDr7, GUEST_DR7, VALUE (GUEST_DR7) >> 32 == 0);
  }

  if (Long) {
    EXPECT (GuestIa32ePaging, GUEST_CR0, (Cr0 & HV_CR0_PG) != 0);
    EXPECT (GuestIa32ePae, GUEST_CR4, (Cr4 & HV_CR4_PAE) != 0);
  } else {
    EXPECT (GuestPcide, GUEST_CR4, (Cr4 & HV_CR4_PCIDE) == 0);
  }

  EXPECT (GuestCr3, GUEST_CR3, (VALUE (GUEST_CR3) & ~Env->Cr3Valid) == 0);
  EXPECT (GuestSysenter, GUEST_SYSENTER_ESP, Canonical (Check, VALUE (GUEST_SYSENTER_ESP)));
  EXPECT (GuestSysenter, GUEST_SYSENTER_EIP, Canonical (Check, VALUE (GUEST_SYSENTER_EIP)));
  if ((Entry & HV_VMX_ENTRY_CTL_LOAD_CET) != 0) {
    EXPECT (GuestSCet, GUEST_S_CET, SCet (Check, VALUE (GUEST_S_CET)));
    EXPECT (GuestSsp, GUEST_SSP, Canonical (Check, VALUE (GUEST_SSP)) && ((VALUE (GUEST_SSP) & 3) == 0));
    EXPECT (GuestIsst, GUEST_ISST_ADDR, Canonical (Check, VALUE (GUEST_ISST_ADDR)));
  }

  if ((Entry & HV_VMX_ENTRY_CTL_LOAD_PERF_GLOBAL_CTRL) != 0) {
    EXPECT (GuestPerfGlobalCtrl, GUEST_PERF_GLOBAL_CTRL, (VALUE (GUEST_PERF_GLOBAL_CTRL) & ~Env->PerfGlobalValid) == 0);
  }

  if ((Entry & HV_VMX_ENTRY_CTL_LOAD_PAT) != 0) {
    EXPECT (GuestPat, GUEST_PAT, PatTypes (VALUE (GUEST_PAT)));
  }

  if ((Entry & HV_VMX_ENTRY_CTL_LOAD_EFER) != 0) {
    Efer = VALUE (GUEST_EFER);
    EXPECT (GuestEferReserved, GUEST_EFER, (Efer & ~Env->EferValid) == 0);
    EXPECT (GuestEferLma, GUEST_EFER, ((Efer & HV_EFER_LMA) != 0) == Long);
    EXPECT (
      GuestEferLme,
      GUEST_EFER,
      ((Cr0 & HV_CR0_PG) == 0) || (((Efer & HV_EFER_LMA) != 0) == ((Efer & HV_EFER_LME) != 0))
      );
  }

  if ((Entry & HV_VMX_ENTRY_CTL_LOAD_BNDCFGS) != 0) {
    EXPECT (
      GuestBndcfgs,
      GUEST_BNDCFGS,
      ((VALUE (GUEST_BNDCFGS) & 0xFFC) == 0) && Canonical (Check, VALUE (GUEST_BNDCFGS) & ~0xFFFULL)
      );
  }

  if ((Entry & HV_VMX_ENTRY_CTL_LOAD_UINV) != 0) {
    EXPECT (GuestUinv, GUEST_UINV, VALUE (GUEST_UINV) >> 8 == 0);
  }

  if ((Entry & HV_VMX_ENTRY_CTL_LOAD_PKRS) != 0) {
    EXPECT (GuestPkrs, GUEST_PKRS, VALUE (GUEST_PKRS) >> 32 == 0);
  }
}

///
/// Whether granularity and limit go together.
///
STATIC
BOOLEAN
Granular (
  IN CONST CHECK  *Check,
  IN UINTN        Segment
  )
{
  UINT64  Limit;

  Limit = AT (LIMIT + Segment);
  if ((AT (RIGHTS + Segment) & HV_VMX_SEGMENT_G) != 0) {
    return (BOOLEAN)((Limit & 0xFFF) == 0xFFF);
  }

  return (BOOLEAN)(Limit >> 20 == 0);
}

///
/// SDM 27.3.1.2, virtual-8086 mode.
///
STATIC
VOID
CheckVirtual8086Segments (
  IN OUT CHECK  *Check
  )
{
  UINTN  Segment;

  for (Segment = ES; Segment <= GS; Segment++) {
    EXPECT_AT (GuestV86Base, BASE + Segment, AT (BASE + Segment) == AT (SELECTOR + Segment) << 4);
    EXPECT_AT (GuestV86Limit, LIMIT + Segment, AT (LIMIT + Segment) == 0xFFFF);
    EXPECT_AT (GuestV86Rights, RIGHTS + Segment, AT (RIGHTS + Segment) == 0xF3);
  }
}

///
/// SDM 27.3.1.2, CS and SS outside virtual-8086 mode.
///
STATIC
VOID
CheckCodeAndStack (
  IN OUT CHECK    *Check,
  IN     BOOLEAN  Unrestricted,
  IN     BOOLEAN  Long
  )
{
  UINT64  Cs;
  UINT64  Ss;
  UINT64  Type;

  Cs   = AT (RIGHTS + CS);
  Ss   = AT (RIGHTS + SS);
  Type = TYPE (Cs);
  if (!Unrestricted) {
    EXPECT (
      GuestSsRpl,
      GUEST_SS_SELECTOR,
      ((VALUE (GUEST_SS_SELECTOR) ^ VALUE (GUEST_CS_SELECTOR)) & SELECTOR_RPL) == 0
      );
  }

  EXPECT_AT (
    GuestCsType,
    RIGHTS + CS,
    ((Type & (RIGHTS_CODE | RIGHTS_ACCESSED)) == (RIGHTS_CODE | RIGHTS_ACCESSED)) || (Unrestricted && (Type == 3))
    );
  if ((Ss & HV_VMX_SEGMENT_UNUSABLE) == 0) {
    EXPECT_AT (GuestSsType, RIGHTS + SS, (TYPE (Ss) == 3) || (TYPE (Ss) == 7));
  }

  switch (Type) {
    case 3:
      EXPECT_AT (GuestCsDpl, RIGHTS + CS, DPL (Cs) == 0);
      break;
    case 9:
    case 11:
      EXPECT_AT (GuestCsDpl, RIGHTS + CS, DPL (Cs) == DPL (Ss));
      break;
    case 13:
    case 15:
      EXPECT_AT (GuestCsDpl, RIGHTS + CS, DPL (Cs) <= DPL (Ss));
      break;
  }

  if (!Unrestricted) {
    EXPECT_AT (GuestSsDpl, RIGHTS + SS, DPL (Ss) == (VALUE (GUEST_SS_SELECTOR) & SELECTOR_RPL));
  }

  if ((Type == 3) || ((VALUE (GUEST_CR0) & HV_CR0_PE) == 0)) {
    EXPECT_AT (GuestSsDplReal, RIGHTS + SS, DPL (Ss) == 0);
  }

  if (Long) {
    EXPECT_AT (GuestCsD, RIGHTS + CS, ((Cs & HV_VMX_SEGMENT_L) == 0) || ((Cs & HV_VMX_SEGMENT_DB) == 0));
  }
}

///
/// SDM 27.3.1.2, outside virtual-8086 mode.
///
STATIC
VOID
CheckSegments (
  IN OUT CHECK    *Check,
  IN     BOOLEAN  Unrestricted,
  IN     BOOLEAN  Long
  )
{
  UINTN    Segment;
  UINT64   Rights;
  BOOLEAN  Usable;

  CheckCodeAndStack (Check, Unrestricted, Long);
  for (Segment = ES; Segment <= GS; Segment++) {
    Rights = AT (RIGHTS + Segment);
    Usable = (BOOLEAN)((Rights & HV_VMX_SEGMENT_UNUSABLE) == 0);
    if (!Usable && (Segment != CS)) {
      continue;
    }

    if ((Segment != CS) && (Segment != SS)) {
      EXPECT_AT (GuestDataAccessed, RIGHTS + Segment, (Rights & RIGHTS_ACCESSED) != 0);
      EXPECT_AT (
        GuestDataReadable,
        RIGHTS + Segment,
        ((Rights & RIGHTS_CODE) == 0) || ((Rights & RIGHTS_READABLE) != 0)
        );
      if (!Unrestricted && (TYPE (Rights) < 12)) {
        EXPECT_AT (GuestDataDpl, RIGHTS + Segment, DPL (Rights) >= (AT (SELECTOR + Segment) & SELECTOR_RPL));
      }
    }

    EXPECT_AT (GuestSegmentS, RIGHTS + Segment, (Rights & HV_VMX_SEGMENT_S) != 0);
    EXPECT_AT (GuestSegmentP, RIGHTS + Segment, (Rights & HV_VMX_SEGMENT_P) != 0);
    EXPECT_AT (GuestSegmentReserved, RIGHTS + Segment, (Rights & RIGHTS_RESERVED) == 0);
    EXPECT_AT (GuestSegmentG, RIGHTS + Segment, Granular (Check, Segment));
  }
}

///
/// SDM 27.3.1.2: selectors of TR and LDTR, bases in any mode, TR and LDTR.
///
STATIC
VOID
CheckSystemSegments (
  IN OUT CHECK    *Check,
  IN     BOOLEAN  Virtual8086,
  IN     BOOLEAN  Long
  )
{
  UINTN    Segment;
  UINT64   Rights;
  BOOLEAN  Usable;

  for (Segment = ES; Segment <= TR; Segment++) {
    Rights = AT (RIGHTS + Segment);
    Usable = (BOOLEAN)((Rights & HV_VMX_SEGMENT_UNUSABLE) == 0);
    switch (Segment) {
      case CS:
        if (!Virtual8086) {
          EXPECT_AT (GuestBaseHigh, BASE + Segment, AT (BASE + Segment) >> 32 == 0);
        }

        break;

      case ES:
      case SS:
      case DS:
        if (!Virtual8086 && Usable) {
          EXPECT_AT (GuestBaseHigh, BASE + Segment, AT (BASE + Segment) >> 32 == 0);
        }

        break;

      case FS:
      case GS:
        if (!Virtual8086) {
          EXPECT_AT (GuestBaseCanonical, BASE + Segment, Canonical (Check, AT (BASE + Segment)));
        }

        break;

      case LDTR:
        if (!Usable) {
          break;
        }

        EXPECT (GuestLdtrSelector, GUEST_LDTR_SELECTOR, (VALUE (GUEST_LDTR_SELECTOR) & SELECTOR_TI) == 0);
        EXPECT_AT (GuestBaseCanonical, BASE + Segment, Canonical (Check, AT (BASE + Segment)));
        EXPECT_AT (GuestLdtrType, RIGHTS + Segment, TYPE (Rights) == HV_VMX_SEGMENT_TYPE_LDT);
        EXPECT_AT (GuestSystemS, RIGHTS + Segment, (Rights & HV_VMX_SEGMENT_S) == 0);
        EXPECT_AT (GuestSystemP, RIGHTS + Segment, (Rights & HV_VMX_SEGMENT_P) != 0);
        EXPECT_AT (GuestSystemReserved, RIGHTS + Segment, (Rights & RIGHTS_RESERVED) == 0);
        EXPECT_AT (GuestSystemG, RIGHTS + Segment, Granular (Check, Segment));
        break;

      case TR:
        EXPECT (GuestTrSelector, GUEST_TR_SELECTOR, (VALUE (GUEST_TR_SELECTOR) & SELECTOR_TI) == 0);
        EXPECT_AT (GuestBaseCanonical, BASE + Segment, Canonical (Check, AT (BASE + Segment)));
        EXPECT_AT (GuestTrType, RIGHTS + Segment, (TYPE (Rights) == 11) || (!Long && (TYPE (Rights) == 3)));
        EXPECT_AT (GuestTrUsable, RIGHTS + Segment, Usable);
        EXPECT_AT (GuestSystemS, RIGHTS + Segment, (Rights & HV_VMX_SEGMENT_S) == 0);
        EXPECT_AT (GuestSystemP, RIGHTS + Segment, (Rights & HV_VMX_SEGMENT_P) != 0);
        EXPECT_AT (GuestSystemReserved, RIGHTS + Segment, (Rights & RIGHTS_RESERVED) == 0);
        EXPECT_AT (GuestSystemG, RIGHTS + Segment, Granular (Check, Segment));
        break;
    }
  }
}

///
/// SDM 27.3.1.3 and 27.3.1.4.
///
STATIC
VOID
CheckTablesAndFlags (
  IN OUT CHECK    *Check,
  IN     BOOLEAN  Long
  )
{
  UINT64  Rflags;
  UINT64  Rip;
  UINT64  Event;
  UINT64  High;

  EXPECT (GuestTableBase, GUEST_GDTR_BASE, Canonical (Check, VALUE (GUEST_GDTR_BASE)));
  EXPECT (GuestTableBase, GUEST_IDTR_BASE, Canonical (Check, VALUE (GUEST_IDTR_BASE)));
  EXPECT (GuestTableLimit, GUEST_GDTR_LIMIT, VALUE (GUEST_GDTR_LIMIT) >> 16 == 0);
  EXPECT (GuestTableLimit, GUEST_IDTR_LIMIT, VALUE (GUEST_IDTR_LIMIT) >> 16 == 0);

  Rip = VALUE (GUEST_RIP);
  if (Long && ((AT (RIGHTS + CS) & HV_VMX_SEGMENT_L) != 0)) {
    // Not canonicality: the bits have to be alike, bit LinearBits - 1 may differ from them.
    High = Rip >> Check->Env->LinearBits;
    EXPECT (GuestRip, GUEST_RIP, (High == 0) || (High == MAX_UINT64 >> Check->Env->LinearBits));
  } else {
    EXPECT (GuestRip, GUEST_RIP, Rip >> 32 == 0);
  }

  Rflags = VALUE (GUEST_RFLAGS);
  EXPECT (GuestRflagsReserved, GUEST_RFLAGS, ((Rflags & ~0x3F7FD7ULL) == 0) && ((Rflags & HV_RFLAGS_ONE) != 0));
  EXPECT (
    GuestRflagsVm,
    GUEST_RFLAGS,
    ((Rflags & HV_RFLAGS_VM) == 0) || (!Long && ((VALUE (GUEST_CR0) & HV_CR0_PE) != 0))
    );
  Event = VALUE (ENTRY_INTERRUPTION_INFO);
  EXPECT (
    GuestRflagsIf,
    GUEST_RFLAGS,
    ((Event & HV_VMX_EVENT_VALID) == 0) || ((Event & HV_VMX_EVENT_TYPE_MASK) != HV_VMX_EVENT_TYPE_EXTERNAL) ||
    ((Rflags & HV_RFLAGS_IF) != 0)
    );
}

///
/// Whether the event can end an activity state (SDM 27.3.1.5).
///
STATIC
BOOLEAN
Wakes (
  IN UINT64  Activity,
  IN UINT64  Event
  )
{
  UINT64  Type;
  UINT64  Vector;

  Type   = Event & HV_VMX_EVENT_TYPE_MASK;
  Vector = Event & HV_VMX_EVENT_VECTOR_MASK;
  switch (Activity) {
    case HV_VMX_ACTIVITY_HLT:
      return (BOOLEAN)((Type == HV_VMX_EVENT_TYPE_EXTERNAL) || (Type == HV_VMX_EVENT_TYPE_NMI) ||
                       ((Type == HV_VMX_EVENT_TYPE_EXCEPTION) &&
                        ((Vector == HV_VECTOR_DB) || (Vector == HV_VECTOR_MC))) ||
                       ((Type == HV_VMX_EVENT_TYPE_OTHER) && (Vector == 0)));
    case HV_VMX_ACTIVITY_SHUTDOWN:
      return (BOOLEAN)((Type == HV_VMX_EVENT_TYPE_NMI) ||
                       ((Type == HV_VMX_EVENT_TYPE_EXCEPTION) && (Vector == HV_VECTOR_MC)));
    case HV_VMX_ACTIVITY_WAIT_FOR_SIPI:
      return FALSE;
    default:
      return TRUE;
  }
}

///
/// SDM 27.3.1.5.
///
STATIC
VOID
CheckNonRegister (
  IN OUT CHECK  *Check
  )
{
  UINT64   Activity;
  UINT64   Blocking;
  UINT64   Event;
  UINT64   Type;
  UINT64   Pending;
  UINT64   Link;
  BOOLEAN  Known;
  BOOLEAN  Injects;
  BOOLEAN  Shadow;
  BOOLEAN  Step;

  Activity = VALUE (GUEST_ACTIVITY);
  Blocking = VALUE (GUEST_INTERRUPTIBILITY);
  Event    = VALUE (ENTRY_INTERRUPTION_INFO);
  Type     = Event & HV_VMX_EVENT_TYPE_MASK;
  Injects  = (BOOLEAN)((Event & HV_VMX_EVENT_VALID) != 0);
  Shadow   = (BOOLEAN)((Blocking & (HV_VMX_BLOCKING_STI | HV_VMX_BLOCKING_MOV_SS)) != 0);
  Known    = (BOOLEAN)((Activity == HV_VMX_ACTIVITY_ACTIVE) ||
                       ((Activity <= HV_VMX_ACTIVITY_WAIT_FOR_SIPI) &&
                        ((Check->Env->Misc & (HV_VMX_MISC_HLT << (Activity - 1))) != 0)));
  EXPECT (ActivityValue, GUEST_ACTIVITY, Known);
  if (Known) {
    EXPECT (ActivityHlt, GUEST_ACTIVITY, (Activity != HV_VMX_ACTIVITY_HLT) || (DPL (AT (RIGHTS + SS)) == 0));
    EXPECT (ActivityBlocking, GUEST_ACTIVITY, (Activity == HV_VMX_ACTIVITY_ACTIVE) || !Shadow);
    EXPECT (ActivityEvent, GUEST_ACTIVITY, !Injects || Wakes (Activity, Event));
  }

  EXPECT (BlockingReserved, GUEST_INTERRUPTIBILITY, Blocking >> 5 == 0);
  EXPECT (
    BlockingBoth,
    GUEST_INTERRUPTIBILITY,
    ((Blocking & HV_VMX_BLOCKING_STI) == 0) || ((Blocking & HV_VMX_BLOCKING_MOV_SS) == 0)
    );
  EXPECT (
    BlockingSti,
    GUEST_INTERRUPTIBILITY,
    ((Blocking & HV_VMX_BLOCKING_STI) == 0) || ((VALUE (GUEST_RFLAGS) & HV_RFLAGS_IF) != 0)
    );
  if (Injects && (Type == HV_VMX_EVENT_TYPE_EXTERNAL)) {
    EXPECT (BlockingExternal, GUEST_INTERRUPTIBILITY, !Shadow);
  }

  if (Injects && (Type == HV_VMX_EVENT_TYPE_NMI)) {
    EXPECT (BlockingNmiEvent, GUEST_INTERRUPTIBILITY, (Blocking & HV_VMX_BLOCKING_MOV_SS) == 0);
    EXPECT (
      BlockingVirtualNmi,
      GUEST_INTERRUPTIBILITY,
      ((VALUE (PINBASED_CTLS) & HV_VMX_PIN_VIRTUAL_NMI) == 0) || ((Blocking & HV_VMX_BLOCKING_NMI) == 0)
      );
  }

  EXPECT (BlockingSmi, GUEST_INTERRUPTIBILITY, (Blocking & HV_VMX_BLOCKING_SMI) == 0);
  EXPECT (
    BlockingEnclave,
    GUEST_INTERRUPTIBILITY,
    ((Blocking & HV_VMX_BLOCKING_ENCLAVE) == 0) ||
    (Check->Env->Sgx && ((Blocking & HV_VMX_BLOCKING_MOV_SS) == 0))
    );

  Pending = VALUE (GUEST_PENDING_DEBUG);
  EXPECT (PendingDebugReserved, GUEST_PENDING_DEBUG, (Pending & ~0x1580FULL) == 0);
  if (Shadow || (Activity == HV_VMX_ACTIVITY_HLT)) {
    Step = (BOOLEAN)(((VALUE (GUEST_RFLAGS) & HV_RFLAGS_TF) != 0) && ((VALUE (GUEST_DEBUGCTL) & DEBUGCTL_BTF) == 0));
    EXPECT (PendingDebugStep, GUEST_PENDING_DEBUG, ((Pending & HV_VMX_PENDING_DEBUG_BS) != 0) == Step);
  }

  Link = VALUE (LINK_POINTER);
  EXPECT (LinkPointer, LINK_POINTER, (Link == MAX_UINT64) || Physical (Check, Link, SIZE_4KB));
}

///
/// SDM 27.3.1.6, with EPT.
///
STATIC
VOID
CheckPdptes (
  IN OUT CHECK    *Check,
  IN     BOOLEAN  Long
  )
{
  UINTN   Index;
  UINT64  Entry;

  if (Long || ((VALUE (GUEST_CR0) & HV_CR0_PG) == 0) || ((VALUE (GUEST_CR4) & HV_CR4_PAE) == 0) ||
      ((Proc2 (Check) & HV_VMX_PROC2_EPT) == 0))
  {
    return;
  }

  for (Index = HV_VMCS_GUEST_PDPTE0_INDEX; Index <= HV_VMCS_GUEST_PDPTE3_INDEX; Index++) {
    Entry = AT (Index);
    EXPECT_AT (
      GuestPdpte,
      Index,
      ((Entry & BIT0) == 0) || (((Entry & 0x1E6) == 0) && (Entry >> Check->Env->AddressBits == 0))
      );
  }
}

STATIC
VOID
CheckGuest (
  IN OUT CHECK  *Check
  )
{
  BOOLEAN  Long;
  BOOLEAN  Unrestricted;
  BOOLEAN  Virtual8086;

  Long         = (BOOLEAN)((VALUE (ENTRY_CTLS) & HV_VMX_ENTRY_CTL_GUEST_64) != 0);
  Unrestricted = (BOOLEAN)((Proc2 (Check) & HV_VMX_PROC2_UNRESTRICTED_GUEST) != 0);
  // RFLAGS.VM where it must not be is a finding of its own, and no reason to look at the segments in another way.
  Virtual8086 = (BOOLEAN)(!Long && ((VALUE (GUEST_CR0) & HV_CR0_PE) != 0) &&
                          ((VALUE (GUEST_RFLAGS) & HV_RFLAGS_VM) != 0));
  CheckGuestControl (Check);
  if (Virtual8086) {
    CheckVirtual8086Segments (Check);
  } else {
    CheckSegments (Check, Unrestricted, Long);
  }

  CheckSystemSegments (Check, Virtual8086, Long);
  CheckTablesAndFlags (Check, Long);
  CheckNonRegister (Check);
  CheckPdptes (Check, Long);
}

RETURN_STATUS
EFIAPI
HvVmxCheckEnv (
  OUT HV_VMX_CHECK_ENV    *Env,
  IN  HV_VMX_CHECK_MSR    Msr,
  IN  HV_VMX_CHECK_CPUID  Cpuid,
  IN  UINT64              HostEfer
  )
{
  UINT32   Leaf[4];
  UINTN    Counter;
  BOOLEAN  True;

  Cpuid (HV_CPUID_1, 0, Leaf);
  if ((Leaf[2] & HV_CPUID_1_ECX_VMX) == 0) {
    return RETURN_UNSUPPORTED;
  }

  Env->Basic      = Msr (HV_MSR_VMX_BASIC);
  True            = (BOOLEAN)((Env->Basic & HV_VMX_BASIC_TRUE_CTLS) != 0);
  Env->Pin        = Msr (True ? HV_MSR_VMX_TRUE_PINBASED_CTLS : HV_MSR_VMX_PINBASED_CTLS);
  Env->Proc       = Msr (True ? HV_MSR_VMX_TRUE_PROCBASED_CTLS : HV_MSR_VMX_PROCBASED_CTLS);
  Env->Exit       = Msr (True ? HV_MSR_VMX_TRUE_EXIT_CTLS : HV_MSR_VMX_EXIT_CTLS);
  Env->Entry      = Msr (True ? HV_MSR_VMX_TRUE_ENTRY_CTLS : HV_MSR_VMX_ENTRY_CTLS);
  Env->Proc2      = ((Env->Proc >> 32 & HV_VMX_PROC_SECONDARY) != 0) ? Msr (HV_MSR_VMX_PROCBASED_CTLS2) : 0;
  Env->Proc3      = ((Env->Proc >> 32 & HV_VMX_PROC_TERTIARY) != 0) ? Msr (HV_MSR_VMX_PROCBASED_CTLS3) : 0;
  Env->Exit2      = ((Env->Exit >> 32 & HV_VMX_EXIT_CTL_SECONDARY) != 0) ? Msr (HV_MSR_VMX_EXIT_CTLS2) : 0;
  Env->EptVpidCap = ((Env->Proc2 >> 32 & EPT_OR_VPID) != 0) ? Msr (HV_MSR_VMX_EPT_VPID_CAP) : 0;
  Env->VmFunc     = ((Env->Proc2 >> 32 & HV_VMX_PROC2_VMFUNC) != 0) ? Msr (HV_MSR_VMX_VMFUNC) : 0;
  Env->Misc       = Msr (HV_MSR_VMX_MISC);
  Env->Cr0Fixed0  = Msr (HV_MSR_VMX_CR0_FIXED0);
  Env->Cr0Fixed1  = Msr (HV_MSR_VMX_CR0_FIXED1);
  Env->Cr4Fixed0  = Msr (HV_MSR_VMX_CR4_FIXED0);
  Env->Cr4Fixed1  = Msr (HV_MSR_VMX_CR4_FIXED1);
  Env->HostLong   = (BOOLEAN)((HostEfer & HV_EFER_LMA) != 0);

  Cpuid (HV_CPUID_80000008, 0, Leaf);
  Env->AddressBits = (UINT8)(Leaf[0] & HV_CPUID_80000008_EAX_PHYSICAL_BITS_MASK);
  Env->LinearBits  = (UINT8)(Leaf[0] >> HV_CPUID_80000008_EAX_LINEAR_BITS_SHIFT);
  Cpuid (HV_CPUID_7, 1, Leaf);
  Env->Cr3Valid = (1ULL << Env->AddressBits) - 1;
  if ((Leaf[0] & BIT26) != 0) {
    Env->Cr3Valid |= BIT61 | BIT62; // linear address masking (SDM 4.5.2)
  }

  Cpuid (HV_CPUID_7, 0, Leaf);
  Env->Sgx           = (BOOLEAN)((Leaf[1] & BIT2) != 0);
  Env->DebugCtlValid = DEBUGCTL_ANY | (((Leaf[2] & BIT24) != 0) ? DEBUGCTL_BLD : 0);

  Cpuid (HV_CPUID_80000001, 0, Leaf);
  Env->EferValid = (((Leaf[3] & BIT11) != 0) ? HV_EFER_SCE : 0) |
                   (((Leaf[3] & HV_CPUID_80000001_EDX_NX) != 0) ? HV_EFER_NXE : 0) |
                   (((Leaf[3] & HV_CPUID_80000001_EDX_LM) != 0) ? HV_EFER_LME | HV_EFER_LMA : 0);

  Cpuid (0xA, 0, Leaf);
  Env->PerfGlobalValid = PERF_METRICS;
  for (Counter = 0; Counter < 32; Counter++) {
    if (Counter < (Leaf[0] >> 8 & 0xFF)) {
      Env->PerfGlobalValid |= 1ULL << Counter;
    }

    if ((Counter < 16) && ((Counter < (Leaf[3] & 0x1F)) || ((Leaf[2] >> Counter & 1) != 0))) {
      Env->PerfGlobalValid |= 1ULL << (32 + Counter);
    }
  }

  return RETURN_SUCCESS;
}

UINTN
EFIAPI
HvVmxImageFill (
  OUT HV_VMCS_IMAGE      *Image,
  IN  HV_VMX_CHECK_READ  Read,
  IN  VOID               *Context
  )
{
  UINTN  Index;
  UINTN  Count;

  Count = 0;
  for (Index = 0; Index < HvVmcsIndexCount; Index++) {
    if (Read (Context, mFields[Index].Encoding, &Image->Value[Index])) {
      Count++;
    } else {
      Image->Value[Index] = 0;
    }
  }

  return Count;
}

UINTN
EFIAPI
HvVmxCheck (
  IN  CONST HV_VMCS_IMAGE     *Image,
  IN  CONST HV_VMX_CHECK_ENV  *Env,
  IN  UINT32                  Parts,
  OUT HV_FINDING              *Findings,
  IN  UINTN                   Max
  )
{
  CHECK  Check;

  Check.Image    = Image;
  Check.Env      = Env;
  Check.Findings = Findings;
  Check.Max      = Max;
  Check.Count    = 0;
  Check.Parts    = Parts;
  CheckExecutionControls (&Check);
  CheckEptPointer (&Check);
  CheckExitControls (&Check);
  CheckEntryControls (&Check);
  CheckHost (&Check);
  CheckAddressSpace (&Check);
  CheckGuest (&Check);
  return Check.Count;
}
