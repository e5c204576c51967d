/** @file
  The host's own environment: descriptor tables, exceptions, safe MSR access, local APIC.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_HOST_LIB_H_
#define HV_HOST_LIB_H_

#include <Hv/HvTypes.h>
#include <Library/BaseLib.h>
#include <Library/SynchronizationLib.h>

/**
  Reads the state of this processor as the firmware has it, without general registers.

  @param[out] State  Everything in HV_VCPU_STATE.

  @par Context: Host
**/
VOID
HvHostCapture (
  OUT HV_VCPU_STATE  *State
  );

/**
  Puts this processor under the host's tables: CR0, CR3, CR4, EFER.NXE, GDT, IDT, TR, segments, GS base.

  @param[in,out] Cpu  This processor.

  @par Context: Host
**/
VOID
HvHostLoad (
  IN OUT HV_CPU  *Cpu
  );

/**
  Undoes HvHostLoad, but for the bits of CR0 and CR4 that root mode needs, and but for a null TR.

  @param[in] Cpu    This processor.
  @param[in] State  As HvHostCapture gave it.

  @par Context: Host
**/
VOID
HvHostRestore (
  IN CONST HV_CPU         *Cpu,
  IN CONST HV_VCPU_STATE  *State
  );

/**
  Names a piece of code that an NMI must not be followed by: the look at what NMIs left, and the entry behind it. An NMI
  between Begin and End goes on at Target. One piece for all processors.

  @param[in] Begin   The first instruction.
  @param[in] End     Behind the last.
  @param[in] Target  Where to go on, with registers and stack as they were.

  @par Context: Host
**/
VOID
HvHostNmiGuard (
  IN CONST VOID  *Begin,
  IN CONST VOID  *End,
  IN CONST VOID  *Target
  );

/**
  Jumps into a context whose tables are loaded already (HvHostRestore). Does not return.

  @param[in] Regs  General registers, RIP, RSP, RFLAGS.
  @param[in] Cs    Selector of the code segment, in the table that is loaded.
  @param[in] Ss    Selector of the stack segment.

  @par Context: Host
**/
VOID
HvHostJump (
  IN CONST HV_REGS  *Regs,
  IN UINT64         Cs,
  IN UINT64         Ss
  );

/**
  Sleeps until a word is not 0 or an NMI comes; one that comes before the HLT is not slept over. NMIs must not be masked.

  @param[in] Word  Written by another processor, which sends an NMI after it.

  @par Context: Host
**/
VOID
HvHostWaitNmi (
  IN volatile UINT32  *Word
  );

/**
  Where HvHostWaitNmi returns: who interrupts it between its look and its HLT goes on here.

  @par Context: Host
**/
VOID
HvHostWaitNmiEnd (
  VOID
  );

/**
  Builds the tables that all processors share: the IDT.

  @par Context: Host
**/
VOID
HvHostInit (
  VOID
  );

/**
  RDMSR that survives #GP.

  @param[in]  Msr    The MSR.
  @param[out] Value  What it holds.

  @retval TRUE   Read.
  @retval FALSE  The processor raised #GP.

  @par Context: Host
**/
BOOLEAN
HvHostReadMsr (
  IN  UINT32  Msr,
  OUT UINT64  *Value
  );

/**
  WRMSR that survives #GP.

  @param[in] Msr    The MSR.
  @param[in] Value  What to write.

  @retval TRUE   Written.
  @retval FALSE  The processor raised #GP; nothing was written.

  @par Context: Host
**/
BOOLEAN
HvHostWriteMsr (
  IN UINT32  Msr,
  IN UINT64  Value
  );

/**
  CPUID.

  @param[in,out] Rax  The leaf.
  @param[out]    Rbx  All four answers have 32 bits.
  @param[in,out] Rcx  The subleaf.
  @param[out]    Rdx  As Rbx.

  @par Context: Host
**/
STATIC HV_INLINE VOID
HvHostCpuid (
  IN OUT UINT64  *Rax,
  OUT    UINT64  *Rbx,
  IN OUT UINT64  *Rcx,
  OUT    UINT64  *Rdx
  )
{
 #ifdef HV_HOST_FAKE
  UINT32  Answer[4];

  // The tests of the core replace BaseLib.
  AsmCpuidEx ((UINT32)*Rax, (UINT32)*Rcx, &Answer[0], &Answer[1], &Answer[2], &Answer[3]);
  *Rax = Answer[0];
  *Rbx = Answer[1];
  *Rcx = Answer[2];
  *Rdx = Answer[3];
 #else
  // RBX, which a function has to keep, costs less so than on the stack.
  __asm__ __volatile__ ("movq %%rbx, %1; cpuid; xchgq %%rbx, %1" : "+a" (*Rax), "=&r" (*Rbx), "+c" (*Rcx), "=&d" (*Rdx));
 #endif
}

/**
  XSETBV that survives #GP and #UD.

  @param[in] Register  ECX.
  @param[in] Value     EDX:EAX.

  @retval TRUE   Written.
  @retval FALSE  The processor raised an exception; nothing was written.

  @par Context: Host
**/
BOOLEAN
HvHostXsetbv (
  IN UINT32  Register,
  IN UINT64  Value
  );

/**
  Sends an NMI to another processor through this processor's local APIC. The guest's half-written ICR survives.

  @param[in] Cpu     This processor.
  @param[in] ApicId  The target.

  @par Context: Host
**/
VOID
HvHostSendNmi (
  IN HV_CPU  *Cpu,
  IN UINT32  ApicId
  );

/**
  Writes the ICR of this processor's local APIC as the guest meant it.

  @param[in] Cpu  This processor.
  @param[in] Icr  The command; in xAPIC mode the destination is in bits 63:56.

  @par Context: Host
**/
VOID
HvHostSendIcr (
  IN HV_CPU  *Cpu,
  IN UINT64  Icr
  );

/**
  Reads a register of this processor's local APIC.

  @param[in] Cpu     This processor.
  @param[in] Offset  HV_APIC_REG_*: the offset in the xAPIC page.

  @return  The register.

  @par Context: Host
**/
UINT32
HvHostApicRead (
  IN HV_CPU  *Cpu,
  IN UINT32  Offset
  );

/**
  Writes a register of this processor's local APIC.

  @param[in] Cpu     This processor.
  @param[in] Offset  HV_APIC_REG_*: the offset in the xAPIC page.
  @param[in] Value   What to write.

  @par Context: Host
**/
VOID
HvHostApicWrite (
  IN HV_CPU  *Cpu,
  IN UINT32  Offset,
  IN UINT32  Value
  );

/**
  The local APIC after INIT (SDM volume 3, "Local APIC State After It Receives an INIT"): all but the id is reset.

  @param[in] Cpu  This processor.

  @par Context: Host
**/
VOID
HvHostApicReset (
  IN OUT HV_CPU  *Cpu
  );

/**
  Makes a processor look into its mailbox. One NMI in flight is enough: it looks after it has cleared the mark.

  @param[in]     Cpu     This processor.
  @param[in,out] Target  The other one.

  @par Context: Host
**/
STATIC inline VOID
HvHostKick (
  IN     HV_CPU  *Cpu,
  IN OUT HV_CPU  *Target
  )
{
  if (InterlockedCompareExchange32 ((UINT32 *)&Target->KickPending, 0, 1) == 0) {
    HvHostSendNmi (Cpu, Target->Apic.ApicId);
  }
}

/**
  Sleeps without end.

  @par Context: Host
**/
VOID
HvHostStop (
  VOID
  );

/**
  Stops this processor for good after a failure of the host, and tells all others, which stop too. Logged with the reason.

  @param[in] Cpu     This processor.
  @param[in] Reason  In a word or two.

  @par Context: Host
**/
VOID
HvHostPark (
  IN HV_CPU       *Cpu,
  IN CONST CHAR8  *Reason
  );

/**
  Logs a crash: the exception, registers, stack.

  @param[in] CpuIndex  The processor that logs.
  @param[in] Record    The record.

  @par Context: Any
**/
VOID
HvHostLogCrash (
  IN UINT32                 CpuIndex,
  IN CONST HV_CRASH_RECORD  *Record
  );

/**
  Shuts the processor down as a triple fault does, which makes the platform reset. Does not return.

  @par Context: Host
**/
VOID
HvHostShutdown (
  VOID
  );

#endif // HV_HOST_LIB_H_
