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
#include <Library/HvEmulateLib.h>
#include <Library/HvGuestWalkLib.h>
#include <Library/HvHostLib.h>
#include <Library/HvSleepLib.h>
#include <Library/IoLib.h>
#include <Library/SynchronizationLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvHypercall.h>
#include <Generated/HvMsr.h>

///
/// HV_LOG for what a guest can cause as often as it likes.
///
#define HV_LOG_GUEST(Cpu, Event, ...)    \
  HvLogLimited (                         \
    (Cpu)->Index,                        \
    HvLogEvent##Event,                   \
    &(Cpu)->Logged[HvLogEvent##Event],   \
    (CONST UINT64[]) { 0, ##__VA_ARGS__ } + 1 \
    )

typedef
VOID
(*HV_EXIT_HANDLER)(
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  Counts an exit that was dealt with in the switch.

  @param[in,out] Cpu   This processor.
  @param[in]     Kind  Its kind.

  @par Context: Host
**/
STATIC HV_INLINE VOID
HvCoreCountQuick (
  IN OUT HV_CPU        *Cpu,
  IN     HV_EXIT_KIND  Kind
  )
{
  Cpu->Entered = HV_ENTERED_RAN;
  Cpu->Exits[Kind]++;
}

/**
  CPUID: the processor's answer, with what the policy changes.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnCpuid (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  RDMSR of an MSR that the permission map does not pass: the value, or #GP where the processor raises it.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnRdmsr (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  WRMSR of an MSR that the permission map does not pass. A refused value gives #GP and changes nothing.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnWrmsr (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  XSETBV, with the processor's own checks before it is executed for the guest.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnXsetbv (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  VMCALL and VMMCALL: #UD above CPL 0 and for what is no call of HvHypercall.h.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnHypercall (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  An address without a nested mapping: mapped, if the root may have it.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnNestedFault (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  A write to the hypervisor's memory: counted and dropped.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnHostMemory (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  A write to the xAPIC page: INIT and SIPI go to mailboxes, all else to the local APIC.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnApicWrite (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  NMIs that were taken: a kick makes this processor look into its mailbox, the guest's own goes to it.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnNmi (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  The IRET that ends the NMI handler of the guest is about to be executed.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnIret (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  #DB while it is intercepted: our own single step, or the guest's.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnDebug (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  An access to one of the ports by which the root asks for a sleep state.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnIo (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  A write to CR0 or CR4 that the backend does not leave to the processor.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnCrAccess (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  A task switch, which the processor has checked up to the descriptor of the new TSS.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnTaskSwitch (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  Reads the four PDPTEs that CR3 points to, as MOV to a control register and a task switch do (SDM volume 3, 4.4.1).

  @param[in]     Cpu    This processor.
  @param[in,out] State  CR3, and the PDPTEs.

  @retval TRUE   They are in State.
  @retval FALSE  They cannot be read, or have reserved bits: #GP.

  @par Context: Host
**/
BOOLEAN
HvCoreLoadPdptes (
  IN     HV_CPU         *Cpu,
  IN OUT HV_VCPU_STATE  *State
  );

/**
  The guest can take an NMI.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Exit  What the backend made of the exit.

  @par Context: Host
**/
VOID
HvOnWindow (
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
  An NMI for the guest of this processor: it gets it now or in its window.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.

  @par Context: Host
**/
VOID
HvCoreTakeNmi (
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
  Carries out an interrupt command of the guest when it is an INIT, a SIPI or an NMI.

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
  The operating system runs on this processor. When it does on all, the trap of the xAPIC page is lifted, where INIT and
  SIPI exit by themselves.

  @param[in,out] Cpu  This processor.

  @par Context: Host
**/
VOID
HvCoreOsStarted (
  IN OUT HV_CPU  *Cpu
  );

/**
  Queues an exception for the guest. While another event is queued, which is one whose delivery the exit cut off, it
  becomes what the two are together: itself, #DF, or a shutdown.

  @param[in,out] Vcpu       The virtual processor.
  @param[in]     Vector     The exception.
  @param[in]     ErrorCode  Its error code, if it has one; without EXT.

  @par Context: Host
**/
VOID
HvCoreRaiseWithCode (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT8    Vector,
  IN     UINT32   ErrorCode
  );

/**
  Queues an exception for the guest, with error code 0 if it has one.

  @par Context: Host
**/
VOID
HvCoreRaise (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT8    Vector
  );

/**
  The guest's triple fault: logged, then the same on the bare processor. Does not return.

  @par Context: Host
**/
VOID
HvCoreShutdown (
  IN OUT HV_VCPU  *Vcpu
  );

/**
  Decodes the guest's instruction at RIP. If it cannot, #PF is queued where the fetch raises it, else the failure is logged
  and #GP is queued.

  @return  The instruction, until the next call; NULL: the exit is dealt with.

  @par Context: Host
**/
CONST HV_INSN *
HvCoreDecode (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  Reads the guest's memory by its physical address: all ones in the host's block, nothing outside memory.

  @param[in]  Context  The host.
  @param[in]  Gpa      Guest-physical address; the bytes must not cross a page.
  @param[out] Buffer   The bytes.
  @param[in]  Size     How many.

  @retval RETURN_SUCCESS       Read.
  @retval RETURN_DEVICE_ERROR  There is no memory at the address.

  @par Context: Host
**/
RETURN_STATUS
EFIAPI
HvCoreReadGuest (
  IN  VOID    *Context,
  IN  UINT64  Gpa,
  OUT VOID    *Buffer,
  IN  UINTN   Size
  );

/**
  What HvGuestWalkLib has to know of the guest.

  @param[in]  Vcpu    The virtual processor.
  @param[in]  State   Its HV_STATE_CONTROL and HV_STATE_PDPTE.
  @param[out] Paging  The same for a walk.

  @par Context: Host
**/
VOID
HvCoreGuestPaging (
  IN  CONST HV_VCPU        *Vcpu,
  IN  CONST HV_VCPU_STATE  *State,
  OUT HV_GUEST_PAGING      *Paging
  );

/**
  Queues a page fault for the guest.

  @param[in] ErrorCode  HV_PF_*.
  @param[in] Cr2        The linear address.

  @par Context: Host
**/
VOID
HvCoreRaisePageFault (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT32   ErrorCode,
  IN     UINT64   Cr2
  );

/**
  Ends a part of an instruction that was carried out for the guest, such as an element of a repeated string instruction:
  RF, interrupt shadow, single step.

  @par Context: Host
**/
VOID
HvCoreRetireInPlace (
  IN OUT HV_VCPU  *Vcpu
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
  Waits for a lock and takes it.

  @param[in] Word  The lock.

  @par Context: Any
**/
VOID
HvCoreLock (
  IN volatile UINT32  *Word
  );

/**
  Gives a lock back.

  @param[in] Word  The lock.

  @par Context: Any
**/
VOID
HvCoreUnlock (
  IN volatile UINT32  *Word
  );

/**
  Makes every processor forget its nested translations: this one now, the others as soon as they take their mail.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.

  @par Context: Host
**/
VOID
HvCoreFlushAll (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  );

/**
  Makes the ports of HV_HOST.Sleep exit on all processors, on the others by mail.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  Its vCPU.

  @par Context: Host
**/
VOID
HvCoreGuardAll (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  );

/**
  The guest has written one of this processor's MTRRs: where they are in force and not what they were, the nested tables
  follow. Where they have gone off, its next write of MTRR_DEF_TYPE may pass unseen.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.
  @param[in]     Msr   Which one.

  @par Context: Host
**/
VOID
HvCoreMtrrsWritten (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT32   Msr
  );

/**
  The first exit after the guest could write MTRR_DEF_TYPE unseen (HV_VCPU.UnseenDefType is not 0): the tables follow what
  it wrote, and its next write exits.

  @param[in,out] Cpu   This processor.
  @param[in,out] Vcpu  The virtual processor that it holds.

  @par Context: Host
**/
VOID
HvCoreMtrrsUnseen (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  );

/**
  In place of a backend's Quick: every exit is to come out of Enter.

  @param[in,out] Vcpu  The virtual processor.

  @retval FALSE  Always.

  @par Context: Host
**/
BOOLEAN
HvCoreQuickNone (
  IN OUT HV_VCPU  *Vcpu
  );

/**
  Whether the leaves of nested tables have the memory types, and not the MTRRs by themselves.

  @param[in] Nested  The tables.

  @par Context: Any
**/
STATIC HV_INLINE BOOLEAN
HvCoreIsEpt (
  IN CONST HV_PAGING  *Nested
  )
{
  return (BOOLEAN)((Nested->Format == HvPagingEpt4) || (Nested->Format == HvPagingEpt5));
}

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
  Whether there is memory at an address, the host's block included, and where that changes next.

  @param[in]  Host     The host.
  @param[in]  Address  The address.
  @param[out] End      The first address behind it that is otherwise, MAX_UINT64 if there is none.

  @par Context: Any
**/
BOOLEAN
HvCoreRamAt (
  IN  CONST HV_HOST  *Host,
  IN  UINT64         Address,
  OUT UINT64         *End
  );

/**
  Whether there is memory at an address, the host's block included.

  @par Context: Any
**/
BOOLEAN
HvCoreIsRam (
  IN CONST HV_HOST  *Host,
  IN UINT64         Address
  );

///
/// A write to a register of the local APIC that an emulated instruction does.
///
typedef struct {
  BOOLEAN    Written;
  UINT32     Offset;
  UINT32     Value;
} HV_APIC_STORE;

/**
  Carries out the guest's instruction and retires it, or queues the exception that it raises. What cannot be carried out
  is logged and gets #GP.

  @param[in,out] Cpu      This processor.
  @param[in,out] Vcpu     The virtual processor that it holds.
  @param[in]     Exit     What the backend made of the exit.
  @param[in]     Insn     The instruction.
  @param[in]     Repeats  Of a repeated string instruction, the most elements.
  @param[in,out] Store    Written is set if a register of the local APIC is to be written: by the caller. NULL: it is not.

  @retval TRUE   Done, or as many elements as were asked for.
  @retval FALSE  An exception is queued.

  @par Context: Host
**/
BOOLEAN
HvCoreEmulate (
  IN OUT HV_CPU         *Cpu,
  IN OUT HV_VCPU        *Vcpu,
  IN     HV_EXIT        *Exit,
  IN     CONST HV_INSN  *Insn,
  IN     UINT32         Repeats,
  IN OUT HV_APIC_STORE  *Store OPTIONAL
  );

/**
  Whether an access to the local APIC's page is one to a register.

  @param[in] Offset  In the page.
  @param[in] Size    In bytes.

  @par Context: Host
**/
BOOLEAN
HvCoreIsApicAccess (
  IN CONST HV_CPU  *Cpu,
  IN UINT32        Offset,
  IN UINTN         Size
  );

/**
  Whether the memory operand of an instruction is certainly on the page of the nested fault alone, from its address on.

  @param[in] Insn  The instruction.

  @par Context: Host
**/
BOOLEAN
HvCoreIsWhole (
  IN CONST HV_VCPU  *Vcpu,
  IN CONST HV_EXIT  *Exit,
  IN CONST HV_INSN  *Insn
  );

/**
  Raises an exception in the host, if the test option inject allows it.

  @param[in] Host    The host.
  @param[in] Vector  The exception.

  @retval HV_HC_UNKNOWN       The option is off.
  @retval HV_HC_BAD_ARGUMENT  It cannot raise this one.
  @retval HV_HC_OK            It was raised, and somebody came back from it.

  @par Context: Host
**/
UINT64
HvCoreInject (
  IN CONST HV_HOST  *Host,
  IN UINT64         Vector
  );

#endif // HV_CORE_INTERNAL_H_
