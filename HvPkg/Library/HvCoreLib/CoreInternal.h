/** @file
  What the parts of the core share.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_CORE_INTERNAL_H_
#define HV_CORE_INTERNAL_H_

#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvConsoleLib.h>
#include <Library/HvCoreLib.h>
#include <Library/HvDecodeLib.h>
#include <Library/HvGuestWalkLib.h>
#include <Library/HvHostLib.h>
#include <Library/SynchronizationLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvHypercall.h>
#include <Generated/HvMsr.h>

typedef
VOID
(*HV_EXIT_HANDLER)(
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnCpuid (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnRdmsr (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnWrmsr (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnXsetbv (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnHypercall (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnNestedFault (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnHostMemory (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnApicWrite (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnNmi (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnIret (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

VOID
HvOnDebug (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  Takes what is in this processor's mailbox, and waits inside the hypervisor while there is no SIPI.

  @par Context: Host
**/
VOID
HvCoreMail (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  );

/**
  Settles the NMIs that this processor took since the last call.

  @retval TRUE   One of them was a kick.
  @retval FALSE  None was.

  @par Context: Host
**/
BOOLEAN
HvCoreSettleNmis (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  );

/**
  Carries out an interrupt command of the guest when it is an INIT or a SIPI.

  @param[in] Icr  The command.

  @retval TRUE   It was, and it is done.
  @retval FALSE  It is another IPI: the caller gives it to the local APIC.

  @par Context: Host
**/
BOOLEAN
HvCoreInterruptCommand (
  IN OUT HV_CPU  *Cpu,
  IN     UINT64  Icr
  );

/**
  Queues an exception for the guest.

  @par Context: Host
**/
VOID
HvCoreRaise (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT8    Vector
  );

/**
  Decodes the guest's instruction at RIP. If it cannot, the failure is logged and #GP is queued.

  @retval TRUE   Insn is set.
  @retval FALSE  The exit is dealt with.

  @par Context: Host
**/
BOOLEAN
HvCoreDecode (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit,
  OUT    HV_INSN  *Insn
  );

/**
  Ends an instruction that was carried out for the guest: RIP, RF, interrupt shadow, single step.

  @param[in] Length  Bytes of the instruction, 0 if it is not known yet.

  @par Context: Host
**/
VOID
HvCoreRetire (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit,
  IN     UINT8    Length
  );

/**
  What stands where in the root's physical address space.

  @par Context: Any
**/
BOOLEAN
HvCoreIsHostMemory (
  IN CONST HV_HOST  *Host,
  IN UINT64         Address
  );

/**
  The operand that a store would write, for the stores that HvCore carries out.

  @param[in]  Insn     The instruction.
  @param[in]  Old      What is in memory.
  @param[out] Value    What the instruction writes.

  @retval TRUE   Value is set, and registers and flags are as after the instruction.
  @retval FALSE  The instruction is not one of them.

  @par Context: Host
**/
BOOLEAN
HvCoreStore (
  IN OUT HV_VCPU        *Vcpu,
  IN     CONST HV_INSN  *Insn,
  IN     UINT64         Old,
  OUT    UINT64         *Value
  );

#endif // HV_CORE_INTERNAL_H_
