/** @file
  RDMSR and WRMSR of the root. The table of MSRs says which ones exit; all others of the permission map pass.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define DENIED_ROW(Msr, SvmRead, SvmWrite, VmxRead, VmxWrite, Denied, Text)  { Msr, Denied },

STATIC CONST struct {
  UINT32     Msr;
  BOOLEAN    Denied;
} mPolicy[] = {
  HV_MSR_ROOT_POLICY_LIST (DENIED_ROW)
};

///
/// MSRs of VMX and SVM, which do not exist on a processor whose CPUID says that there is neither.
///
STATIC
BOOLEAN
IsDenied (
  IN UINT32  Msr
  )
{
  UINTN  Row;

  for (Row = 0; Row < ARRAY_SIZE (mPolicy); Row++) {
    if (mPolicy[Row].Msr == Msr) {
      return mPolicy[Row].Denied;
    }
  }

  return FALSE;
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
  HV_VCPU_STATE  State;
  UINT64         Value;
  UINT32         Msr;

  Msr   = (UINT32)Vcpu->Regs.Rcx;
  Value = 0;
  switch (Msr) {
    case HV_MSR_EFER:
      Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_CONTROL, &State);
      Value = State.Efer;
      break;
    default:
      if (IsDenied (Msr) || !HvHostReadMsr (Msr, &Value)) {
        Refuse (Cpu, Vcpu, FALSE, 0);
        return;
      }
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
/// EFER. The processor itself says which of the bits that do not matter to the host it takes.
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
  if ((Value & HV_EFER_SVME) != 0) {
    return FALSE;
  }

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
  Cpu->X2Apic = (BOOLEAN)((Value & HV_APIC_BASE_EXTD) != 0);
  if (((Value & HV_APIC_BASE_EN) == 0) || Cpu->X2Apic) {
    // The way back to xAPIC mode begins with the registers of a reset (SDM volume 3, 11.12.5.1).
    Cpu->Apic.Ldr = 0;
    Cpu->Apic.Dfr = MAX_UINT32;
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
    default:
      Taken = (BOOLEAN)(!IsDenied (Msr) && HvHostWriteMsr (Msr, Value));
      if (Taken && IsMtrr (Msr)) {
        HvCoreMtrrsWritten (Cpu, Vcpu);
      }
  }

  if (!Taken) {
    Refuse (Cpu, Vcpu, TRUE, Value);
    return;
  }

  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}
