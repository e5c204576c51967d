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

  // No gate can be read, so the exception becomes a triple fault (SDM volume 3, 6.15, interrupt 8).
  Idtr.Base  = 0;
  Idtr.Limit = 0;
  __asm__ __volatile__ ("lidt %0; int3" : : "m" (Idtr));
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
    return;
  }

  for (Fixup = HvHostFixups; Fixup->Rip != 0; Fixup++) {
    if (Fixup->Rip == Frame->Rip) {
      Frame->Rip = Fixup->Fixup;
      return;
    }
  }

  HV_LOG (Cpu->Index, HostException, Frame->Vector, Frame->ErrorCode, Frame->Rip, Frame->Rsp, AsmReadCr2 ());
  HvHostPark (Cpu, "exception");
}
