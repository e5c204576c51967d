/** @file
  RDMSR and WRMSR of the root. The table of MSRs says which ones exit; all others of the permission map pass.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define RULE_ROW(Msr, SvmRead, SvmWrite, SvmRule, VmxRead, VmxWrite, VmxRule, Text)  { Msr, SvmRule, VmxRule },

STATIC CONST struct {
  UINT32         Msr;
  HV_MSR_RULE    Svm;
  HV_MSR_RULE    Vmx;
} mPolicy[] = {
  HV_MSR_ROOT_POLICY_LIST (RULE_ROW)
};

#define SYSCFG_ROOT         (HV_SYSCFG_MTRR_FIX_DRAM_EN | HV_SYSCFG_MTRR_FIX_DRAM_MOD)
#define FEEDBACK_PAGES_MAX  16     // CPUID.6 EDX[11:8] plus 1 (SDM 15.6.1)

STATIC
HV_MSR_RULE
Rule (
  IN CONST HV_CPU  *Cpu,
  IN UINT32        Msr
  )
{
  UINTN  Low;
  UINTN  High;
  UINTN  Row;

  Low  = 0;
  High = ARRAY_SIZE (mPolicy);
  while (Low < High) {
    Row = (Low + High) / 2;
    if (mPolicy[Row].Msr == Msr) {
      return (Cpu->Host->Ops->Id == HV_CPUID_BACKEND_VMX) ? mPolicy[Row].Vmx : mPolicy[Row].Svm;
    }

    if (mPolicy[Row].Msr < Msr) {
      Low = Row + 1;
    } else {
      High = Row;
    }
  }

  return HvMsrHook;
}

STATIC
VOID
Refuse (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  Write,
  IN     UINT64   Value
  )
{
  HV_LOG_GUEST (Cpu, MsrGp, (UINT32)Vcpu->Regs.Rcx, Write, Value, Vcpu->Regs.Rip);
  HvCoreRaise (Vcpu, HV_VECTOR_GP);
}

VOID
HvOnRdmsr (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  UINT64  Value;
  UINT32  Msr;

  Msr = (UINT32)Vcpu->Regs.Rcx;
  if ((Rule (Cpu, Msr) == HvMsrDeny) || !HvHostReadMsr (Msr, &Value)) {
    Refuse (Cpu, Vcpu, FALSE, 0);
    return;
  }

  Vcpu->Regs.Rax = (UINT32)Value;
  Vcpu->Regs.Rdx = RShiftU64 (Value, 32);
  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}

STATIC
BOOLEAN
IsMtrr (
  IN UINT32  Msr
  )
{
  return (BOOLEAN)(((Msr >= HV_MSR_MTRR_PHYSBASE0) && (Msr <= HV_MSR_MTRR_FIX4K_F8000)) ||
                   (Msr == HV_MSR_MTRR_DEF_TYPE));
}

///
/// EFER. SVME is the host's, whatever the root writes: reads pass, and show it as set. The processor itself says which
/// of the bits that do not matter to the host it takes.
///
STATIC
BOOLEAN
WriteEfer (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT64   Value
  )
{
  CONST UINT64   Modelled = HV_EFER_LME | HV_EFER_LMA | HV_EFER_NXE | HV_EFER_SVME;
  HV_VCPU_STATE  State;
  UINT64         Host;
  UINT64         Kept;
  BOOLEAN        Taken;

  Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_CONTROL, &State);
  // LME does not change while paging is on; LMA is not writable (APM2 3.1.7).
  if (((State.Cr0 & HV_CR0_PG) != 0) && (((Value ^ State.Efer) & HV_EFER_LME) != 0)) {
    return FALSE;
  }

  Host  = AsmReadMsr64 (HV_MSR_EFER);
  Taken = HvHostWriteMsr (HV_MSR_EFER, (Value & ~Modelled) | (Host & Modelled));
  Kept  = AsmReadMsr64 (HV_MSR_EFER);
  AsmWriteMsr64 (HV_MSR_EFER, Host);
  if (!Taken) {
    return FALSE;
  }

  State.Efer = (Kept & ~Modelled) | (Value & (HV_EFER_LME | HV_EFER_NXE)) | (State.Efer & HV_EFER_LMA);
  Cpu->Host->Ops->StateSet (Vcpu, HV_STATE_CONTROL, &State);
  return TRUE;
}

///
/// The local APIC may change its mode, not its place: the trap is on one page for all processors.
///
STATIC
BOOLEAN
WriteApicBase (
  IN OUT HV_CPU  *Cpu,
  IN     UINT64  Value
  )
{
  if (((Value & HV_APIC_BASE_ADDRESS_MASK) != Cpu->Host->ApicPage) || !HvHostWriteMsr (HV_MSR_APIC_BASE, Value)) {
    return FALSE;
  }

  Value       = AsmReadMsr64 (HV_MSR_APIC_BASE);
  Cpu->Bsp    = (BOOLEAN)((Value & HV_APIC_BASE_BSP) != 0); // it moves (MP services, SwitchBSP)
  Cpu->X2Apic = (BOOLEAN)((Value & HV_APIC_BASE_EXTD) != 0);
  if (((Value & HV_APIC_BASE_EN) == 0) || Cpu->X2Apic) {
    // The way back to xAPIC mode begins with the registers of a reset (SDM volume 3, 11.12.5.1).
    Cpu->Apic.Ldr = 0;
    Cpu->Apic.Dfr = MAX_UINT32;
  }

  return TRUE;
}

///
/// An MSR of which the root may change the bits of Mask.
///
STATIC
BOOLEAN
WriteMasked (
  IN UINT32  Msr,
  IN UINT64  Value,
  IN UINT64  Mask
  )
{
  UINT64  Old;

  return (BOOLEAN)(HvHostReadMsr (Msr, &Old) && (((Old ^ Value) & ~Mask) == 0) && HvHostWriteMsr (Msr, Value));
}

///
/// An MSR in which the root may not set the bits of Mask.
///
STATIC
BOOLEAN
WriteClearOnly (
  IN UINT32  Msr,
  IN UINT64  Value,
  IN UINT64  Mask
  )
{
  UINT64  Old;

  return (BOOLEAN)(HvHostReadMsr (Msr, &Old) && ((Value & ~Old & Mask) == 0) && HvHostWriteMsr (Msr, Value));
}

///
/// The processor writes to the table that this MSR points to.
///
STATIC
BOOLEAN
WriteFeedbackPointer (
  IN HV_CPU  *Cpu,
  IN UINT64  Value
  )
{
  UINT64  Page;
  UINTN   Index;

  Page = Value & (LShiftU64 (1, Cpu->Host->AddressBits) - 1) & ~(UINT64)EFI_PAGE_MASK;
  for (Index = 0; Index < FEEDBACK_PAGES_MAX; Index++) {
    if (HvCoreIsHostMemory (Cpu->Host, Page + EFI_PAGES_TO_SIZE (Index))) {
      return FALSE;
    }
  }

  return HvHostWriteMsr (HV_MSR_HW_FEEDBACK_PTR, Value);
}

STATIC
BOOLEAN
WriteByRule (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT32   Msr,
  IN     UINT64   Value
  )
{
  switch (Rule (Cpu, Msr)) {
    case HvMsrDeny:
    case HvMsrReadOnly:
      return FALSE;
    case HvMsrFrozen:
      return WriteMasked (Msr, Value, 0);
    case HvMsrDrop:
      return TRUE;
    default:
      if (!HvHostWriteMsr (Msr, Value)) {
        return FALSE;
      }
  }

  if (IsMtrr (Msr)) {
    HvCoreMtrrsWritten (Cpu, Vcpu, Msr);
  }

  return TRUE;
}

VOID
HvOnWrmsr (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  UINT64   Value;
  UINT32   Msr;
  HV_IPI   Ipi;
  BOOLEAN  Taken;

  Msr   = (UINT32)Vcpu->Regs.Rcx;
  Value = LShiftU64 ((UINT32)Vcpu->Regs.Rdx, 32) | (UINT32)Vcpu->Regs.Rax;
  switch (Msr) {
    case HV_MSR_EFER:
      Taken = WriteEfer (Cpu, Vcpu, Value);
      break;
    case HV_MSR_APIC_BASE:
      Taken = WriteApicBase (Cpu, Value);
      break;
    case HV_MSR_X2APIC_ICR:
      if (!Cpu->X2Apic || RETURN_ERROR (HvApicDecodeIcr (Value, TRUE, &Ipi))) {
        Taken = FALSE;
        break;
      }

      HvCoreRetire (Cpu, Vcpu, Exit, 0);
      if (!HvCoreInterruptCommand (Cpu, Value)) {
        HvHostSendIcr (Cpu, Value);
      }

      HvCoreMail (Cpu, Vcpu);
      return;
    case HV_MSR_HW_FEEDBACK_PTR:
      Taken = WriteFeedbackPointer (Cpu, Value);
      break;
    case HV_MSR_SYSCFG:
      Taken = WriteMasked (Msr, Value, SYSCFG_ROOT);
      break;
    case HV_MSR_TEST_CTRL:
      Taken = WriteMasked (Msr, Value, ~HV_TEST_CTRL_UC_LOCK);
      break;
    case HV_MSR_MISC_ENABLE:
      Taken = WriteClearOnly (Msr, Value, HV_MISC_ENABLE_LIMIT_CPUID | HV_MISC_ENABLE_XD_DISABLE);
      break;
    default:
      Taken = WriteByRule (Cpu, Vcpu, Msr, Value);
  }

  if (!Taken) {
    Refuse (Cpu, Vcpu, TRUE, Value);
    return;
  }

  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}
