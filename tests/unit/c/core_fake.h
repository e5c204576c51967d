/** @file
  A machine without hardware for HvCoreLib: a backend, the host's environment, and what they were asked to do.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_CORE_FAKE_H_
#define HV_CORE_FAKE_H_

#include <Library/HvConsoleLib.h>
#include <Library/HvCoreLib.h>
#include <Library/HvDecodeLib.h>

#define HV_FAKE_CPUS  8
#define HV_FAKE_LIST  64

///
/// Why a run ended.
///
typedef enum {
  HvFakeDone = 1,  ///< the exits are used up
  HvFakeWaiting,   ///< it waits for mail, and none comes
  HvFakeParked,
  HvFakeShutdown,
  HvFakeLeft,
  HvFakeReturned
} HV_FAKE_END;

// What comes while a processor waits for mail: one of these, or a SIPI's vector.
#define HV_FAKE_MAIL_INIT  0x200
#define HV_FAKE_MAIL_NMI   0x400

typedef struct {
  UINT32    Msr;
  UINT64    Value;
  UINT64    Refused;  ///< a write with one of these bits raises #GP
} HV_FAKE_MSR;

typedef struct {
  UINT32    Leaf;
  UINT32    SubLeaf;
  UINT32    Registers[4];
} HV_FAKE_LEAF;

typedef struct {
  UINT32    Cpu;
  UINT32    Event;
  UINT64    Args[HV_LOG_FIELDS_MAX];
} HV_FAKE_LINE;

typedef struct {
  UINT64    Where;
  UINT64    Value;
} HV_FAKE_WRITE;

///
/// The part of a processor that a backend would have in its control block, and its devices.
///
typedef struct {
  HV_VCPU_STATE    State;
  HV_EVENT         Event;          ///< the event of the next entry
  UINT32           Injections;
  BOOLEAN          IretIntercept;
  BOOLEAN          DebugIntercept;
  BOOLEAN          Guarded;        ///< GuardPorts was called
  UINT32           Flushes;
  BOOLEAN          NmiWindow;
  BOOLEAN          PassesDefType;  ///< a write of MTRR_DEF_TYPE does not exit
  UINT32           Signals;        ///< TakeSignal calls
  UINT32           PendingNmis;    ///< in the processor: the next TakeSignal takes them
  UINT32           Waits;
  UINT32           ApicResets;
  UINT32           Apic[1024];     ///< the registers of the local APIC page
  UINT32           ApicReads;
} HV_FAKE_CPU;

typedef struct {
  HV_HOST           Host;
  HV_CPU            Cpu[HV_FAKE_CPUS];
  HV_VCPU           Vcpu[HV_FAKE_CPUS];
  HV_FAKE_CPU       Fake[HV_FAKE_CPUS];
  UINT8             Ports[8192];           ///< the permission map
  UINT64            Status[(sizeof (HV_STATUS_HEADER) + HV_FAKE_CPUS * 516 + 7) / 8];
  HV_FAKE_MSR       Msr[HV_FAKE_LIST];
  UINT32            MsrCount;
  HV_FAKE_WRITE     MsrWrite[HV_FAKE_LIST];
  UINT32            MsrWrites;
  HV_FAKE_LEAF      Leaf[HV_FAKE_LIST];
  UINT32            LeafCount;
  HV_FAKE_LINE      Line[HV_FAKE_LIST];
  UINT32            Lines;
  HV_FAKE_WRITE     ApicWrite[HV_FAKE_LIST];
  UINT32            ApicWrites;
  HV_FAKE_WRITE     Icr[HV_FAKE_LIST];       ///< Where: the sender's index
  UINT32            Icrs;
  HV_FAKE_WRITE     Nmi[HV_FAKE_LIST];       ///< Where: the sender's index, Value: the APIC id
  UINT32            Nmis;
  HV_FAKE_WRITE     IoWrite[HV_FAKE_LIST];     ///< Where: the port, in bits 23:16 the bytes
  UINT32            IoWrites;
  UINT32            IoValue;                  ///< what every port reads
  HV_FAKE_WRITE     Xsetbv[HV_FAKE_LIST];
  UINT32            Xsetbvs;
  BOOLEAN           XsetbvFaults;
  UINT32            Mail[HV_FAKE_LIST];
  UINT32            Mails;
  UINT32            MailNext;
  UINT32            MailAtSipiWait;           ///< 0, or the vector of a SIPI that is posted as a guest begins to wait
  UINT32            BadAccesses;              ///< unprotected accesses to MSRs that do not exist
  UINT32            Wbinvds;
  BOOLEAN           NoTimer;                  ///< PassDefType cannot
  UINT64            Ticks;                    ///< the time-stamp counter: one for each time that it was read
  UINT64            Dr[4];
  UINT64            Cr0;                      ///< the host's
  CONST HV_EXIT     *Exit;
  UINT32            ExitsLeft;
  RETURN_STATUS     EnterStatus;
} HV_FAKE;

extern HV_FAKE  gFake;

/**
  A machine after a launch: all processors are running guests in 64-bit mode.

  @param[in] CpuCount     1 to HV_FAKE_CPUS.
  @param[in] X2Apic       The local APICs' mode.
  @param[in] VirtualNmis  The backend has NmiWindow, and PassDefType with it.
**/
VOID
HvFakeReset (
  IN UINT32   CpuCount,
  IN BOOLEAN  X2Apic,
  IN BOOLEAN  VirtualNmis
  );

/**
  Lets a processor run into exits, one after the other, through the core's run loop.

  @param[in] Index  The processor.
  @param[in] Exits  The exits as a backend gives them.
  @param[in] Count  How many.

  @return  Why it ended.
**/
HV_FAKE_END
HvFakeRun (
  IN UINT32         Index,
  IN CONST HV_EXIT  *Exits,
  IN UINT32         Count
  );

/**
  Whether a kind of exit has a handler.

  @param[in] Kind  HV_EXIT_KIND.

  @return  TRUE if it has.
**/
BOOLEAN
HvFakeHasHandler (
  IN UINT32  Kind
  );

/**
  HvCoreIsQuickCall, which is inline.

  @par Context: Any
**/
BOOLEAN
HvFakeIsQuickCall (
  IN CONST HV_VCPU  *Vcpu,
  IN UINT8          Cpl
  );

/**
  HvCoreIsQuickWrmsr, which is inline.

  @par Context: Any
**/
BOOLEAN
HvFakeIsQuickWrmsr (
  IN CONST HV_VCPU  *Vcpu
  );

/**
  HvCoreKnownInsn, which is inline.

  @par Context: Any
**/
CONST HV_INSN *
HvFakeKnown (
  IN CONST HV_VCPU  *Vcpu,
  IN UINT64         Rip,
  IN UINT64         Cr3,
  IN UINT64         Cr4,
  IN UINT64         Efer,
  IN UINT16         CsAttributes
  );

/**
  Memory below 4 GiB, which is the guest's RAM at the same physical addresses.

  @param[in] Bytes  How much.

  @return  Its address, 0 if there is none.
**/
UINT64
HvFakeRam (
  IN UINT64  Bytes
  );

#endif
