/** @file
  The core: registry of backends, the run loop, and what the exits mean.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_CORE_LIB_H_
#define HV_CORE_LIB_H_

#include <Hv/HvFinding.h>
#include <Hv/HvTypes.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvHypercall.h>
#include <Generated/HvMsr.h>

///
/// One requirement of a backend, as a check found it.
///
typedef struct {
  CONST CHAR8    *Name;
  CONST CHAR8    *Source;   ///< the CPUID leaf or MSR that was read
  UINT64         Value;
  CONST CHAR8    *Expected;
  BOOLEAN        Met;
} HV_REQUIREMENT;

#define HV_REQUIREMENTS_MAX  48

///
/// What a backend needs and what it found.
///
typedef struct {
  UINT32            Count;
  UINT8             LargestLevel;  ///< of a nested leaf: 1 4K, 2 2M, 3 1G
  HV_PAGING_FORMAT  Format;
  UINT32            SharedPages;   ///< contiguous pages for each VM
  UINT32            CpuPages;      ///< contiguous pages for each processor
  UINT64            RootCr0;       ///< bits of CR0 and CR4 that must be 1 while root mode is on
  UINT64            RootCr4;
  CONST CHAR8       *KickMethod;
  BOOLEAN           SipiExits;     ///< INIT and SIPI exit at the processor that they are for
  UINT32            HiddenCount;
  HV_CPUID_HIDDEN   Hidden[HV_CPUID_HIDDEN_MAX];
  HV_REQUIREMENT    Requirement[HV_REQUIREMENTS_MAX];
} HV_PROBE;

///
/// What a backend does. It translates; it decides nothing.
///
struct _HV_BACKEND_OPS {
  CONST CHAR8    *Name;
  CONST CHAR8    *Vendor;
  UINT32         Id;  ///< HV_STATUS_HEADER.Vendor and CPUID 40000001h ECX

  /// Fills the requirements, reads only. Boot.
  VOID (*Probe)(OUT HV_PROBE *Probe);

  /// Prepares the pages of a VM (permission maps). Boot.
  VOID (*VmInit)(IN HV_HOST *Host, IN OUT HV_VM *Vm);

  /// Root mode on for this processor, before HvHostLoad. On error nothing has changed, and Cpu->LaunchReason and
  /// LaunchDetail are set. Host.
  RETURN_STATUS (*CpuOn)(IN OUT HV_CPU *Cpu);

  /// Root mode off, after HvHostRestore with the same state. What could not be restored before it is restored now. Host.
  VOID (*CpuOff)(IN OUT HV_CPU *Cpu, IN CONST HV_VCPU_STATE *State);

  /// Makes the vCPU's control blocks with this state. Host.
  VOID (*VcpuInit)(IN OUT HV_VCPU *Vcpu, IN CONST HV_VCPU_STATE *State);

  /// Runs the guest until an exit. An error means that the state was refused, by the processor or, with
  /// RETURN_COMPROMISED_DATA, by the checks before it (DEBUG build); the rules that it breaks are in the log. Host.
  RETURN_STATUS (*Enter)(IN OUT HV_VCPU *Vcpu, OUT HV_EXIT *Exit);

  /// Deals with an exit in the middle of the world switch, if it is one of the frequent ones; Enter goes on then. Host.
  BOOLEAN (*Quick)(IN OUT HV_VCPU *Vcpu);

  /// Reads or writes the parts of the state that Mask names (HV_STATE_*). Host.
  VOID (*StateGet)(IN HV_VCPU *Vcpu, IN UINT32 Mask, OUT HV_VCPU_STATE *State);
  VOID (*StateSet)(IN OUT HV_VCPU *Vcpu, IN UINT32 Mask, IN CONST HV_VCPU_STATE *State);

  /// Queues an event for the next entry. HvEventNone takes back what is queued. Host.
  VOID (*Inject)(IN OUT HV_VCPU *Vcpu, IN CONST HV_EVENT *Event);

  /// TRUE when the next entry delivers an event already, which Event then is. Host.
  BOOLEAN (*EventQueued)(IN HV_VCPU *Vcpu, OUT HV_EVENT *Event);

  /// Behind an instruction that began with TF set and was carried out for the guest: the trap that the processor would
  /// take there, with all that belongs to it. Nothing with DEBUGCTL.BTF, which leaves the trap to branches. Host.
  VOID (*StepTrap)(IN OUT HV_VCPU *Vcpu);

  /// Exit when the guest is about to execute IRET, or takes #DB. Host.
  VOID (*InterceptIret)(IN OUT HV_VCPU *Vcpu, IN BOOLEAN On);
  VOID (*InterceptDebug)(IN OUT HV_VCPU *Vcpu, IN BOOLEAN On);

  /// Exit (HvExitIo) at the ports of HV_HOST.Sleep. None does before. Host.
  VOID (*GuardPorts)(IN OUT HV_VCPU *Vcpu);

  /// Exit (HvExitWindow) when the guest can take an NMI. NULL where the processor keeps no account of that. Host.
  VOID (*NmiWindow)(IN OUT HV_VCPU *Vcpu, IN BOOLEAN On);

  /// Lets the guest write MTRR_DEF_TYPE without an exit, up to the next one, which comes when it has run for so many ticks
  /// of the time-stamp counter (HvExitTimer); 0: not any more. FALSE where the processor has no timer for that: the writes
  /// exit as before. NULL where they never exit. Host.
  BOOLEAN (*PassDefType)(IN OUT HV_VCPU *Vcpu, IN UINT32 Ticks);

  /// Forgets cached nested translations on this processor. Host.
  VOID (*Flush)(IN OUT HV_VCPU *Vcpu);

  /// Takes the signal that an exit announced: an NMI is counted, INIT and SIPI are posted into the own mailbox. Host.
  VOID (*TakeSignal)(IN OUT HV_CPU *Cpu, IN CONST HV_EXIT *Exit);

  /// Sleeps until the mailbox is not empty; NMIs are taken. Host.
  VOID (*WaitMail)(IN OUT HV_CPU *Cpu);

  /// Ends root mode and goes on natively with the vCPU's state. Does not return. Host.
  VOID (*Leave)(IN OUT HV_VCPU *Vcpu);
};

/**
  Registers a backend. Called by the constructor of a backend's library.

  @param[in] Ops  The backend.

  @retval RETURN_SUCCESS           Registered.
  @retval RETURN_OUT_OF_RESOURCES  There are more backends than the registry holds.

  @par Context: Boot
**/
RETURN_STATUS
EFIAPI
HvBackendRegister (
  IN CONST HV_BACKEND_OPS  *Ops
  );

/**
  The registered backend with a number.

  @param[in] Index  From 0.

  @return  The backend, or NULL after the last.

  @par Context: Boot
**/
CONST HV_BACKEND_OPS *
HvBackendGet (
  IN UINTN  Index
  );

/**
  Marks the ports of sleep registers in a permission map, bit n of byte n / 8 for each port. Bits that are set already
  are not written: other processors may have the map in use (SDM 25.11.4).

  @param[in]     Sleep  The ports.
  @param[in,out] Map    For 64 Ki ports.

  @par Context: Host
**/
VOID
HvCoreMarkPorts (
  IN     CONST HV_SLEEP  *Sleep,
  IN OUT UINT8           *Map
  );

/**
  Makes the host's copy of the image ready. The first call into it, once, before any launch.

  @par Context: Host
**/
VOID
HvCoreStart (
  VOID
  );

/**
  Bytes of a processor's ring in the trace of exits.

  @param[in] Records  Exits that it keeps.

  @par Context: Any
**/
UINT64
HvCoreTraceBytes (
  IN UINT64  Records
  );

/**
  Makes every exit come to its handler, also those that the world switch would deal with. Called in the copy before any
  launch.

  @param[in,out] Host  The host; the run loops will use another table of the backend's functions.

  @par Context: Host
**/
VOID
HvCoreNoQuick (
  IN OUT HV_HOST  *Host
  );

/**
  Makes every exit leave a record in the rings at Host->TraceBase (Generated/HvTrace.h). Called in the copy, once,
  before any launch.

  @param[in,out] Host     The host; the run loops will use another table of the backend's functions.
  @param[in]     Records  Exits that each ring keeps, not 0.

  @par Context: Host
**/
VOID
HvCoreTrace (
  IN OUT HV_HOST  *Host,
  IN     UINT32   Records
  );

/**
  Launches this processor: host environment, root mode, and the calling context as the guest. Called by a thunk that set
  Cpu->LaunchRip and LaunchRsp, which is where the guest begins, with RAX 0.

  @param[in] Cpu  This processor.

  @return  Why it failed; Cpu->LaunchReason and LaunchDetail say more, and the processor is as it was. There is no return
           from a launch that succeeds.

  @par Context: Host
**/
RETURN_STATUS
HvCoreLaunch (
  IN OUT HV_CPU  *Cpu
  );

/**
  Runs this processor's vCPU until it leaves the hypervisor for good.

  @param[in] Cpu  This processor.

  @return  Why the guest's first entry was refused. There is no return after it.

  @par Context: Host
**/
RETURN_STATUS
HvCoreRun (
  IN OUT HV_CPU  *Cpu
  );

/**
  Logs the rules that the state for an entry breaks, one event each.

  @param[in] Cpu       This processor.
  @param[in] Findings  What a check found.
  @param[in] Count     Entries in Findings.

  @par Context: Host
**/
VOID
HvCoreLogFindings (
  IN HV_CPU            *Cpu,
  IN CONST HV_FINDING  *Findings,
  IN UINTN             Count
  );

#define HV_DUMP_TEXT_MAX  192

///
/// A dump that is being written.
///
typedef struct {
  UINT32    CpuIndex;
  UINT32    Words;
  UINTN     Length;
  CHAR8     Text[HV_DUMP_TEXT_MAX];
} HV_DUMP;

/**
  Begins a dump of a refused state in the log. There are only a few of them, so that they leave room in the ring.

  @param[in]  Cpu   This processor.
  @param[out] Dump  The dump.

  @retval TRUE   Write it: HvCoreDumpWord and HvCoreDumpEnd.
  @retval FALSE  There were enough of them.

  @par Context: Host
**/
BOOLEAN
HvCoreDumpBegin (
  IN  HV_CPU   *Cpu,
  OUT HV_DUMP  *Dump
  );

/**
  Writes a word of a dump, if it is not 0.

  @param[in,out] Dump   The dump.
  @param[in]     Key    Encoding or offset.
  @param[in]     Value  The word.

  @par Context: Host
**/
VOID
HvCoreDumpWord (
  IN OUT HV_DUMP  *Dump,
  IN     UINT32   Key,
  IN     UINT64   Value
  );

/**
  Ends a dump.

  @param[in,out] Dump   The dump.
  @param[in]     Kind   "vmcs" or "vmcb".
  @param[in]     Parts  HV_PART: what the processor was to check.

  @par Context: Host
**/
VOID
HvCoreDumpEnd (
  IN OUT HV_DUMP      *Dump,
  IN     CONST CHAR8  *Kind,
  IN     UINT32       Parts
  );

//
// The exits that a running system cannot avoid, where nothing is out of the ordinary. The world switch asks for them,
// through its backend, before it leaves the guest's state: only RAX, RBX, RCX, RDX, RSI, RDI and R8 to R11 are in
// Vcpu->Regs, GS is not the host's and, under SVM, TR is not either, and no NMI comes. The guest is neither
// single-stepping nor in an interrupt shadow. An exit that is dealt with is counted; RIP is the backend's to move. One
// that is not has changed nothing, and goes the way of all others, through HvCoreRun.
//

/**
  Whether bits of a CPUID leaf mirror CR4, so that the guest's has to be known.

  @param[in] Leaf  EAX.

  @retval TRUE   They do.
  @retval FALSE  They do not.

  @par Context: Any
**/
STATIC HV_INLINE BOOLEAN
HvCoreCpuidMirrorsCr4 (
  IN UINT32  Leaf
  )
{
  return (BOOLEAN)((Leaf & ~6U) == 1); // 1 and 7; 3 and 5 are not worth a comparison of their own
}

/**
  CPUID.

  @param[in,out] Vcpu  The vCPU that made the exit.
  @param[in]     Cr4   The guest's, where HvCoreCpuidMirrorsCr4 says so.

  @retval TRUE  Dealt with, always.

  @par Context: Host
**/
BOOLEAN
HvCoreQuickCpuid (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT64   Cr4
  );

/**
  Whether VMCALL or VMMCALL is one that HvCoreQuickCall carries out: the null call, which measures this path.

  @param[in] Vcpu  The vCPU that made the exit.
  @param[in] Cpl   Its privilege level.

  @par Context: Host
**/
STATIC HV_INLINE BOOLEAN
HvCoreIsQuickCall (
  IN CONST HV_VCPU  *Vcpu,
  IN UINT8          Cpl
  )
{
  return (BOOLEAN)((Cpl == 0) && (Vcpu->Regs.Rax == HV_HC_NULL));
}

/**
  VMCALL or VMMCALL, where HvCoreIsQuickCall says so.

  @param[in,out] Vcpu  The vCPU that made the exit.

  @retval TRUE  Dealt with, always.

  @par Context: Host
**/
BOOLEAN
HvCoreQuickCall (
  IN OUT HV_VCPU  *Vcpu
  );

/**
  Whether WRMSR is one that HvCoreQuickWrmsr carries out: an ordinary IPI in x2APIC mode.

  @param[in] Vcpu  The vCPU that made the exit.

  @par Context: Host
**/
STATIC HV_INLINE BOOLEAN
HvCoreIsQuickWrmsr (
  IN CONST HV_VCPU  *Vcpu
  )
{
  return (BOOLEAN)(((UINT32)Vcpu->Regs.Rcx == HV_MSR_X2APIC_ICR) && Vcpu->Cpu->X2Apic &&
                   HvApicIsFixed ((UINT32)Vcpu->Regs.Rax));
}

/**
  WRMSR, where HvCoreIsQuickWrmsr says so.

  @param[in,out] Vcpu  The vCPU that made the exit.

  @retval TRUE  Dealt with, always.

  @par Context: Host
**/
BOOLEAN
HvCoreQuickWrmsr (
  IN OUT HV_VCPU  *Vcpu
  );

/**
  A write that faulted in the nested tables.

  @param[in,out] Vcpu  The vCPU that made the exit.
  @param[in]     Gpa   Where it writes.
  @param[in]     Insn  The instruction.

  @retval TRUE   Dealt with: it was a plain store to a register of the local APIC that the root may write as it likes.
  @retval FALSE  Not.

  @par Context: Host
**/
BOOLEAN
HvCoreQuickStore (
  IN OUT HV_VCPU        *Vcpu,
  IN     UINT64         Gpa,
  IN     CONST HV_INSN  *Insn
  );

/**
  Whether the guest's instruction at RIP is a MOV to CR4. Where it cannot be read, what its fetch raises is queued.

  @par Context: Host
**/
BOOLEAN
HvCoreAtCr4Write (
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  );

/**
  The instruction at RIP, if it was decoded before and a fetch would give it again. The arguments are the guest's state
  now; nothing is known of code that is not 64-bit code.

  @param[in] Vcpu          The vCPU.
  @param[in] Rip           As HvCoreDecode found them.
  @param[in] Cr3           The same.
  @param[in] Cr4           The same.
  @param[in] Efer          With SVME, as in a VMCB.
  @param[in] CsAttributes  The same.

  @return  The instruction, or NULL.

  @par Context: Host
**/
STATIC HV_INLINE CONST HV_INSN *
HvCoreKnownInsn (
  IN CONST HV_VCPU  *Vcpu,
  IN UINT64         Rip,
  IN UINT64         Cr3,
  IN UINT64         Cr4,
  IN UINT64         Efer,
  IN UINT16         CsAttributes
  )
{
  CONST HV_KNOWN_INSN  *Known;

  Known = &Vcpu->Known[Rip % HV_KNOWN_INSNS];
  __asm__ ("" : "+r" (Known)); // the address is not made a second time
  if ((Known->Rip != Rip) || (Known->Cr3 != Cr3) || (Known->Cr4 != Cr4) || (Known->Efer != Efer) ||
      (Known->CsAttributes != CsAttributes))
  {
    return NULL;
  }

  // Other processors change tables and code without asking: all of it is looked at again, from the top as a walk does.
  if ((*(CONST volatile UINT64 *)Known->Entry[0] != Known->EntryValue[0]) ||
      (*(CONST volatile UINT64 *)Known->Entry[1] != Known->EntryValue[1]) ||
      (*(CONST volatile UINT64 *)Known->Entry[2] != Known->EntryValue[2]) ||
      (*(CONST volatile UINT64 *)Known->Entry[3] != Known->EntryValue[3]) ||
      (((*(CONST volatile UINT64 *)Known->Code ^ Known->Bytes) & Known->Mask) != 0))
  {
    return NULL;
  }

  return &Known->Insn;
}

/**
  Makes the rows by which CPUID is answered, from the policy and from what the backend found missing (Host->Hidden).

  @param[in,out] Host  The host.

  @par Context: Any
**/
VOID
HvCoreCpuidPrepare (
  IN OUT HV_HOST  *Host
  );

///
/// What two events become when the second comes during the delivery of the first.
///
typedef enum {
  HvCombinedSecond,      ///< the second; an instruction that caused the first is executed again behind its handler
  HvCombinedDoubleFault,
  HvCombinedShutdown
} HV_COMBINED;

/**
  What becomes of an exception that is raised while another event is being delivered (SDM volume 3, 6.15 table 6-5; APM2
  8.2.9).

  @param[in] First   The event that was being delivered.
  @param[in] Second  The exception.

  @return  What the two are together.

  @par Context: Any
**/
HV_COMBINED
HvCoreCombine (
  IN CONST HV_EVENT  *First,
  IN UINT8           Second
  );

/**
  Whether XSETBV accepts a value, as the processor checks it (SDM volume 2, XSETBV; SDM volume 1, 13.3).

  @param[in] Register   ECX.
  @param[in] Value      EDX:EAX.
  @param[in] Supported  CPUID (0Dh,0) EDX:EAX.

  @retval TRUE   The processor would take it.
  @retval FALSE  It raises #GP(0).

  @par Context: Any
**/
BOOLEAN
HvCoreXcr0IsValid (
  IN UINT32  Register,
  IN UINT64  Value,
  IN UINT64  Supported
  );

/**
  The state of a processor after INIT (SDM volume 3, table 10-1 "INIT"; APM2 table 14-1).

  @param[in,out] State  CR0's CD and NW are kept, the rest is set.
  @param[out]    Regs   All general registers, RIP and RFLAGS.
  @param[in]     Model  CPUID.1 EAX, which INIT leaves in EDX.

  @par Context: Any
**/
VOID
HvCoreInitState (
  IN OUT HV_VCPU_STATE  *State,
  OUT    HV_REGS        *Regs,
  IN     UINT32         Model
  );

/**
  Reads this processor's MTRRs.

  @param[out] Mtrrs  All of them; zero, which is uncached, where there are none.

  @par Context: Any
**/
VOID
HvCoreReadMtrrs (
  OUT HV_MTRRS  *Mtrrs
  );

/**
  Maps a range of a VM's physical addresses to itself, with the largest leaves that the memory types allow. The caller
  holds the VM's lock.

  @param[in]     Host  The host, for its MTRRs.
  @param[in,out] Vm    The VM.
  @param[in]     Base  A multiple of 4 KiB.
  @param[in]     End   Exclusive, a multiple of 4 KiB, within the physical address width.

  @retval RETURN_SUCCESS           Mapped.
  @retval RETURN_OUT_OF_RESOURCES  The page pool is empty.
  @retval Others                   As HvMemoryTypeGet and HvPagingMap say.

  @par Context: Any
**/
RETURN_STATUS
HvCoreMapIdentity (
  IN     CONST HV_HOST  *Host,
  IN OUT HV_VM          *Vm,
  IN     UINT64         Base,
  IN     UINT64         End
  );

/**
  Maps the root's physical addresses from 0 to themselves, but under EPT without what is neither memory nor named by an
  MTRR and would be cached by the default type, in units of 2 MiB: that is mapped on first use. While it is not, a default
  type that came unseen leaves no device cached. The local APIC's page is always there.

  @param[in]     Host  The host, for its memory and its MTRRs.
  @param[in,out] Vm    The root.
  @param[in]     End   Exclusive, a multiple of 4 KiB, within the physical address width.

  @return  As HvCoreMapIdentity.

  @par Context: Boot
**/
RETURN_STATUS
HvCoreMapStart (
  IN     CONST HV_HOST  *Host,
  IN OUT HV_VM          *Vm,
  IN     UINT64         End
  );

#endif // HV_CORE_LIB_H_
