/** @file
  The types that the core, the backends and the driver share.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_TYPES_H_
#define HV_TYPES_H_

#include <Uefi/UefiBaseType.h>
#include <Hv/HvAsm.h>
#include <Hv/HvRegs.h>
#include <Generated/HvExitKind.h>
#include <Generated/HvLogEvents.h>
#include <Generated/HvStatus.h>
#include <Library/HvApicLib.h>
#include <Library/HvDecodeLib.h>
#include <Library/HvIommuLib.h>
#include <Library/HvCrashLib.h>
#include <Library/HvMailboxLib.h>
#include <Library/HvMemoryTypeLib.h>
#include <Library/HvPagingLib.h>
#include <Library/HvSleepLib.h>

// Builds are for size. On the path of the frequent exits every call counts, and what is off it must not weigh on it.
#define HV_INLINE    inline __attribute__ ((always_inline))
#define HV_NOINLINE  __attribute__ ((noinline))

typedef struct _HV_HOST         HV_HOST;
typedef struct _HV_VM           HV_VM;
typedef struct _HV_CPU          HV_CPU;
typedef struct _HV_VCPU         HV_VCPU;
typedef struct _HV_BACKEND_OPS  HV_BACKEND_OPS;

///
/// Parts of HV_VCPU_STATE. General registers, RIP, RSP and RFLAGS live in HV_VCPU.Regs, in both directions.
///
#define HV_STATE_SEGMENTS  BIT0 ///< ES CS SS DS
#define HV_STATE_SYSTEM    BIT1 ///< FS GS LDTR TR, SYSCALL and SYSENTER MSRs, KernelGsBase
#define HV_STATE_TABLES    BIT2 ///< GDTR IDTR
#define HV_STATE_CONTROL   BIT3 ///< CR0 CR3 CR4 EFER, CPL
#define HV_STATE_CR2       BIT4
#define HV_STATE_DEBUG     BIT5 ///< DR6 DR7
#define HV_STATE_PAT       BIT6
#define HV_STATE_EVENTS    BIT7 ///< interrupt shadow, blocking by NMI, activity
#define HV_STATE_ALL       (BIT8 - 1)
#define HV_STATE_CODE      BIT9 ///< CS alone; only to get
#define HV_STATE_PDPTE     BIT8 ///< for PAE paging, where the processor keeps them in registers; else it changes nothing

///
/// What a processor does between two events. Where the backend cannot keep it across an exit, it is always running.
///
typedef enum {
  HvActivityRunning,
  HvActivityHalted,
  HvActivityWaitForSipi
} HV_ACTIVITY;

// Of HV_STATE_CONTROL, to be read alone by frequent exits.
#define HV_STATE_CR4  BIT9
#define HV_STATE_CPL  BIT10

typedef struct {
  HV_SEGMENT    Segment[HvSegmentCount];
  UINT64        GdtBase;
  UINT64        IdtBase;
  UINT16        GdtLimit;
  UINT16        IdtLimit;
  UINT8         Cpl;
  BOOLEAN       InterruptShadow;
  BOOLEAN       NmiBlocked;       ///< where the processor keeps account of it, else FALSE
  HV_ACTIVITY   Activity;
  UINT64        Cr0;
  UINT64        Cr2;
  UINT64        Cr3;
  UINT64        Cr4;
  UINT64        Efer;
  UINT64        Dr6;
  UINT64        Dr7;
  UINT64        Pat;
  UINT64        Star;
  UINT64        Lstar;
  UINT64        Cstar;
  UINT64        SfMask;
  UINT64        KernelGsBase;
  UINT64        SysenterCs;
  UINT64        SysenterEsp;
  UINT64        SysenterEip;
  BOOLEAN       PdpteLoaded;      ///< the processor keeps them in registers
  UINT64        Pdpte[4];
} HV_VCPU_STATE;

typedef enum {
  HvEventNone,
  HvEventException,
  HvEventNmi,
  HvEventInterrupt  ///< an external one: only queued again when an exit cut off its delivery
} HV_EVENT_TYPE;

///
/// An event for the guest.
///
typedef struct {
  HV_EVENT_TYPE    Type;
  UINT8            Vector;
  BOOLEAN          HasErrorCode;
  UINT32           ErrorCode;
} HV_EVENT;

#define HV_FAULT_PRESENT  BIT0 ///< a translation was there and forbade the access
#define HV_FAULT_WRITE    BIT1
#define HV_FAULT_FETCH    BIT2
#define HV_FAULT_TABLE    BIT3 ///< the access was one of the guest's own page walk
#define HV_FAULT_MALFORMED  BIT4 ///< an entry of the nested tables is not one that the processor takes

#define HV_IO_IN      BIT0
#define HV_IO_STRING  BIT1

///
/// What asks for a task switch.
///
typedef enum {
  HvTaskCall,
  HvTaskIret,
  HvTaskJmp,
  HvTaskGate ///< in the IDT; an event that is not software's is queued
} HV_TASK_SOURCE;

///
/// A hardware exit in neutral terms.
///
typedef struct {
  HV_EXIT_KIND    Kind;
  UINT32          FaultFlags; ///< HvExitNestedFault: HV_FAULT_*
  UINT64          Code;       ///< exit code or reason as the processor gave it, for the log
  UINT64          Info1;
  UINT64          Info2;
  UINT64          NextRip;    ///< 0: the processor did not say, the instruction has to be decoded
  UINT64          Gpa;        ///< HvExitNestedFault: guest-physical address
  UINT64          CrValue;    ///< HvExitCrAccess: what the guest writes
  UINT8           CrNumber;   ///< HvExitCrAccess: 0 or 4
  UINT8           TaskSource; ///< HvExitTaskSwitch: HV_TASK_SOURCE; NextRip is what the old task goes on with
  UINT16          TaskSelector; ///< HvExitTaskSwitch: of the new TSS
  UINT8           IoSize;     ///< HvExitIo: bytes
  UINT8           IoFlags;    ///< HvExitIo: HV_IO_*
  UINT16          IoPort;     ///< HvExitIo
  UINT8           FetchedCount;
  UINT8           Fetched[15]; ///< instruction bytes, where the processor gives them
} HV_EXIT;

#define HV_KNOWN_ENTRIES  4 ///< tables of a walk in 64-bit mode, but with 5 levels
#define HV_KNOWN_BYTES    8 ///< of an instruction that is remembered

///
/// An instruction of 64-bit code that was fetched and decoded, with all that this depended on: what chose the tables, the
/// entries of the walk, and the bytes. While these are the same, another fetch gives the same.
///
typedef struct {
  UINT64        Rip;
  UINT64        Cr3;
  UINT64        Cr4;
  UINT64        Efer;                               ///< with SVME, as in a VMCB
  UINT16        CsAttributes;                       ///< with CPL in it, for the segment is not a conforming one; 0: none
  UINT64        Bytes;
  UINT64        Mask;                               ///< of those of Bytes that are the instruction's
  CONST VOID    *Code;                              ///< where they are
  CONST VOID    *Entry[HV_KNOWN_ENTRIES];           ///< those that a walk does not have point to EntryValue
  UINT64        EntryValue[HV_KNOWN_ENTRIES];
  HV_INSN       Insn;
  UINT64        Reserved[5];
} HV_KNOWN_INSN;

STATIC_ASSERT (sizeof (HV_KNOWN_INSN) == 256, "a shift finds the one of a RIP");

#define HV_KNOWN_INSNS  8

///
/// A virtual processor. It is changed only by the processor that holds it.
///
struct _HV_VCPU {
  HV_REGS     Regs;
  VOID        *Hw;            ///< the backend's control block
  VOID        *HostHw;        ///< the backend's host state block
  BOOLEAN     (*Quick)(IN OUT HV_VCPU *Vcpu); ///< asked by the world switch whether an exit is dealt with already
  HV_VM       *Vm;
  HV_CPU      *Cpu;
  UINT32      Index;
  BOOLEAN     NmiPending;
  BOOLEAN     NmiBlocked;     ///< an NMI was injected and its IRET has not retired
  BOOLEAN     NmiStepping;    ///< single-stepping until an NMI can be injected
  BOOLEAN     NmiIretSeen;
  BOOLEAN     StepGuestTf;    ///< the guest's own TF while NmiStepping
  BOOLEAN     StepIret;       ///< the step is over the IRET itself, which brings flags of its own
  UINT64      NmiIretRip;
  UINT64      UnseenDefType;  ///< MTRR_DEF_TYPE as the tables have it while the guest can write it unseen, else 0
  HV_INSN     Insn;           ///< the last one that was decoded
  HV_KNOWN_INSN  Known[HV_KNOWN_INSNS]; ///< by RIP
};

///
/// A virtual machine; the root is VM 0.
///
struct _HV_VM {
  HV_PAGING          Nested;
  volatile UINT32    Lock;          ///< protects Nested and RestCached
  BOOLEAN            RestCached;    ///< what is neither memory nor named by an MTRR may be mapped otherwise than UC
  VOID               *Shared;       ///< the backend's pages for a VM (permission maps)
};

#define HV_ENTERED_NEVER    0 // there was no entry
#define HV_ENTERED_RAN      1 // as the processor left it, general registers aside; stored after each exit
#define HV_ENTERED_CHANGED  2 // the host changed it since the last exit

///
/// A host processor. Fields without a remark are written at launch only.
///
struct _HV_CPU {
  HV_CPU             *Self;          ///< the GS base of host life points here
  UINT64             LaunchRsp;
  UINT64             LaunchRip;
  UINT64             StackTop;
  volatile UINT64    NmiCount;       ///< the NMI stub of this processor
  UINT64             NmiSettled;     ///< how many of them were told apart
  HV_HOST            *Host;
  HV_VCPU            *Vcpu;
  UINT64             *Exits;         ///< this processor's row of counters in the status page
  UINT32             Index;
  HV_APIC_ID         Apic;           ///< id; LDR and DFR: this processor, as its guest writes them
  BOOLEAN            X2Apic;         ///< this processor
  BOOLEAN            Bsp;
  BOOLEAN            Crashing;       ///< this processor: an exception of the host is being reported
  BOOLEAN            SpoilRootMode;  ///< test option fail_at: CpuOn has to fail
  UINT8              Entered;        ///< HV_ENTERED_*; what is known of the state for the next entry
  volatile UINT32    State;          ///< HV_MP_STATE: this processor
  volatile UINT32    KickPending;    ///< set by who kicks, cleared by the kicked
  volatile UINT32    SipiWait;       ///< this processor: its guest waits for a SIPI by the wire; NMIs do not reach it
  volatile UINT32    OsStarted;      ///< this processor: the operating system runs on it
  HV_MAILBOX         Mailbox;
  VOID               *BackendPages;
  UINT64             FaultStackTop;
  UINT64             NmiStackTop;
  RETURN_STATUS      LaunchStatus;
  UINT64             LaunchDetail;
  CONST CHAR8        *LaunchReason;
  UINT64             Gdt[8];
  UINT8              Tss[104];
  UINT8              Logged[HvLogEventCount]; ///< this processor: HV_LOG_GUEST
};

STATIC_ASSERT (OFFSET_OF (HV_CPU, Self) == HV_CPU_SELF, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_CPU, LaunchRsp) == HV_CPU_LAUNCH_RSP, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_CPU, LaunchRip) == HV_CPU_LAUNCH_RIP, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_CPU, StackTop) == HV_CPU_STACK_TOP, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_CPU, NmiCount) == HV_CPU_NMI_COUNT, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_CPU, NmiSettled) == HV_CPU_NMI_SETTLED, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_REGS, Rax) == HV_REGS_RAX, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_REGS, Rbx) == HV_REGS_RBX, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_REGS, Rcx) == HV_REGS_RCX, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_REGS, Rdx) == HV_REGS_RDX, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_REGS, Rsp) == HV_REGS_RSP, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_REGS, Rdi) == HV_REGS_RDI, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_REGS, R15) == HV_REGS_R15, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_REGS, Rip) == HV_REGS_RIP, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_REGS, Rflags) == HV_REGS_RFLAGS, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_VCPU, Regs) == 0, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_VCPU, Hw) == HV_VCPU_HW, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_VCPU, HostHw) == HV_VCPU_HOST_HW, "HvAsm.h");
STATIC_ASSERT (OFFSET_OF (HV_VCPU, Quick) == HV_VCPU_QUICK, "HvAsm.h");

typedef struct {
  UINT64    Base;
  UINT64    End; ///< exclusive
} HV_RANGE;

#define HV_RAM_RANGES_MAX  128

///
/// CPUID bits that the root must not see because a control of the backend is missing.
///
typedef struct {
  UINT32    Leaf;
  UINT32    SubLeaf;
  UINT32    Register; ///< HV_CPUID_REG_*
  UINT32    Bits;
} HV_CPUID_HIDDEN;

#define HV_CPUID_HIDDEN_MAX  8

///
/// What the root sees otherwise than the processor says.
///
typedef struct {
  UINT32    Leaf;
  UINT32    SubLeaf;     ///< where SubLeafMask is not 0
  UINT32    SubLeafMask; ///< 0 for every subleaf
  UINT32    Mirror;      ///< bit of ECX that is 1 while this one of the guest's CR4 is
  UINT32    Cr4;
  UINT32    Keep[4];     ///< by HV_CPUID_REG_*: bits that are the processor's
  UINT32    Set[4];
  UINT32    More;        ///< not 0: the next row is of the same leaf
  UINT32    Reserved[2];
} HV_CPUID_ROW;

#define HV_CPUID_NO_LEAF   MAX_UINT32
#define HV_CPUID_ROWS_MAX     32
#define HV_CPUID_LEAVES       32 ///< that can have rows: so many of the basic leaves, and of the extended

///
/// The host: everything that is there once. Written before the launch, read-only after it but for the marked fields.
///
struct _HV_HOST {
  CONST HV_BACKEND_OPS    *Ops;
  UINT64                  Base;            ///< the reserved block
  UINT64                  Bytes;
  UINT64                  SharedBase;      ///< inside it: what the root may read (status, ring)
  UINT64                  SharedBytes;
  UINT64                  OnesPage;        ///< what the root reads in the rest of it
  UINT64                  TraceBase;       ///< rings of the trace of exits, 0 without the option
  UINT64                  TraceStride;     ///< bytes from one processor's to the next
  UINT64                  ApicPage;
  UINT64                  Cr0;             ///< of host life
  UINT64                  Cr3;
  UINT64                  Cr4;
  UINT64                  RootCr0;         ///< bits that must be 1 while root mode is on
  UINT64                  RootCr4;
  UINT64                  BootTextBase;    ///< HvDxe as the firmware loaded it: only its code may ask to leave
  UINT64                  BootTextEnd;
  HV_STATUS_HEADER        *Status;
  UINT32                  CpuCount;
  UINT32                  RamCount;
  UINT32                  FailCpu;         ///< test option fail_cpu, MAX_UINT32 for none
  UINT32                  FailAt;          ///< test option fail_at: HV_OPTION_FAIL_AT_*
  UINT32                  Corrupt;         ///< test option corrupt: HV_OPTION_CORRUPT_*
  UINT32                  CorruptCpu;      ///< test option corrupt_cpu
  BOOLEAN                 EntryCheck;      ///< test option entry_check
  BOOLEAN                 Inject;          ///< test option inject
  BOOLEAN                 ResetOnCrash;    ///< option on_crash
  UINT32                  IommuCount;      ///< units that keep devices from the block
  HV_RANGE                Iommu[HV_IOMMU_UNITS_MAX]; ///< their registers, which the root does not see either
  UINT64                  DmaBase;         ///< what the units look into
  UINT64                  DmaPages;
  HV_CRASH_RECORD         *Crash;          ///< written by the processor that crashes first
  UINT32                  HiddenCount;
  HV_CPUID_HIDDEN         Hidden[HV_CPUID_HIDDEN_MAX];
  HV_CPUID_ROW            CpuidRow[HV_CPUID_ROWS_MAX];        ///< by leaf; behind the last, HV_CPUID_NO_LEAF
  UINT8                   CpuidFirst[2 * HV_CPUID_LEAVES];    ///< basic, then extended: a leaf's first row + 1, or 0
  UINT8                   AddressBits;
  volatile UINT8          BootDone;
  volatile UINT8          FirmwareDone;
  BOOLEAN                 LiftApicTrap;    ///< as soon as the operating system has started every processor
  volatile UINT8          ApicTrapLifted;  ///< changes under Root.Lock
  volatile UINT32         Dumps;           ///< dumps of refused states that were begun
  HV_SLEEP                Sleep;           ///< the ports that exit
  HV_PAGE_POOL            Pool;
  HV_PAGING               HostPaging;
  HV_MTRRS                Mtrrs;           ///< changes under Root.Lock
  HV_VM                   Root;
  HV_RANGE                Ram[HV_RAM_RANGES_MAX];
  HV_CPU                  *Cpu;            ///< CpuCount entries, CpuStride bytes apart: see HvHostCpu
  UINT64                  CpuStride;
};

/**
  The processor with an index.

  @param[in] Host   The host.
  @param[in] Index  Less than Host->CpuCount.

  @return  The processor.

  @par Context: Any
**/
STATIC inline HV_CPU *
HvHostCpu (
  IN CONST HV_HOST  *Host,
  IN UINT32         Index
  )
{
  return (HV_CPU *)((UINTN)Host->Cpu + Index * Host->CpuStride);
}

#endif // HV_TYPES_H_
