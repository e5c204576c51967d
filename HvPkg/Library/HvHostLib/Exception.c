/** @file
  Exceptions of the host, and the ways it ends.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HostInternal.h"

BOOLEAN
HvHostReadMsr (
  IN  UINT32  Msr,
  OUT UINT64  *Value
  )
{
  return (BOOLEAN)(HvHostReadMsrRaw (Msr, Value) != 0);
}

BOOLEAN
HvHostWriteMsr (
  IN UINT32  Msr,
  IN UINT64  Value
  )
{
  return (BOOLEAN)(HvHostWriteMsrRaw (Msr, Value) != 0);
}

BOOLEAN
HvHostXsetbv (
  IN UINT32  Register,
  IN UINT64  Value
  )
{
  return (BOOLEAN)(HvHostXsetbvRaw (Register, Value) != 0);
}

STATIC
HV_CPU *
CurrentCpu (
  VOID
  )
{
  IA32_DESCRIPTOR  Gdtr;

  // Every processor has its own, and every exit loads it. GS may be the guest's (HvCoreQuick).
  AsmReadGdtr (&Gdtr);
  return BASE_CR (Gdtr.Base, HV_CPU, Gdt);
}

VOID
HvHostStop (
  VOID
  )
{
  for ( ; ;) {
    __asm__ __volatile__ ("cli; hlt");
  }
}

VOID
HvHostShutdown (
  VOID
  )
{
  IA32_DESCRIPTOR  Idtr;

  // A platform may answer a shutdown with INIT, which VMX root operation blocks (SDM 24.8), and GIF = 0 or R_INIT keep
  // from the processor (APM2 15.17, 15.30.1).
  if ((AsmReadCr4 () & HV_CR4_VMXE) != 0) {
    __asm__ __volatile__ ("vmxoff" : : : "cc");
  } else if ((AsmReadMsr64 (HV_MSR_EFER) & HV_EFER_SVME) != 0) {
    HvHostWriteMsr (HV_MSR_VM_CR, AsmReadMsr64 (HV_MSR_VM_CR) & ~HV_VM_CR_R_INIT);
    __asm__ __volatile__ ("stgi");
  }

  // No gate can be read, so the exception becomes a triple fault (SDM volume 3, 6.15, interrupt 8).
  Idtr.Base  = 0;
  Idtr.Limit = 0;
  __asm__ __volatile__ ("lidt %0; int3" : : "m" (Idtr));
}

///
/// Whether this is a single step that the guest began: here TF is never set, and DR7 has no breakpoint (APM2 15.6; SDM
/// 28.5.1). An instruction that exits is not done, so its trap comes behind it, in the guest, from HvCoreRetire. Bochs
/// 3.0 keeps it over #VMEXIT, and with GIF clear it is not held back (APM2 15.17): it comes at the first instruction of
/// the host.
///
STATIC
BOOLEAN
IsStepOfGuest (
  IN CONST HV_EXCEPTION_FRAME  *Frame
  )
{
  return (BOOLEAN)((Frame->Vector == HV_VECTOR_DB) && ((Frame->Rflags & HV_RFLAGS_TF) == 0) &&
                   ((AsmReadDr6 () & HV_DR6_BS) != 0));
}

VOID
HvHostException (
  IN OUT HV_EXCEPTION_FRAME  *Frame
  )
{
  CONST HV_FIXUP  *Fixup;
  HV_CPU          *Cpu;

  Cpu = CurrentCpu ();
  if (Frame->Vector == HV_VECTOR_SX) {
    // A redirected INIT (APM2 15.28, 15.30.1): it waits in the mailbox like one that was sent through us.
    HvMailboxPostInit (&Cpu->Mailbox);
    if ((Frame->Rip >= (UINTN)HvHostWaitNmi) && (Frame->Rip < (UINTN)HvHostWaitNmiEnd)) {
      Frame->Rip = (UINTN)HvHostWaitNmiEnd; // not into the HLT behind a look that saw no mail
    }

    return;
  }

  if (IsStepOfGuest (Frame)) {
    // VMRUN loads the guest's DR6; the bit is not to be taken for that of a later #DB.
    AsmWriteDr6 (AsmReadDr6 () & ~(UINTN)HV_DR6_BS);
    return;
  }

  for (Fixup = HvHostFixups; Fixup->Rip != 0; Fixup++) {
    if (Fixup->Rip == Frame->Rip) {
      Frame->Rip = Fixup->Fixup;
      return;
    }
  }

  HvHostCrash (Cpu, Frame);
}
