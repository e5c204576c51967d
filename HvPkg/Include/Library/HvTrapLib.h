/** @file
  For applications that test: runs code whose interrupts and exceptions are noted, on the processor that calls.

  One processor at a time. While it is on, the firmware's handlers are out of reach, and its interrupts wait.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_TRAP_LIB_H_
#define HV_TRAP_LIB_H_

#define HV_TRAPS_MAX       32
#define HV_TRAP_INTERRUPT  0x50 ///< an interrupt that HvTrapSend sends; acknowledged by the handler
#define HV_TRAP_NMI        0x02

///
/// One event as the handler found it.
///
typedef struct {
  UINT8     Vector;
  UINT64    ErrorCode; ///< 0 without one
  UINT64    Rip;
  UINT64    Rflags;    ///< as pushed
  UINT64    Rsp;
  UINT64    Rax;
  UINT64    Rcx;
  UINT64    Rdx;
  UINT64    Rbx;
  UINT64    Rsi;
  UINT64    Rdi;
  UINT64    Cr2;
  UINT64    Dr6;
  UINT64    Dr7;
} HV_TRAP;

///
/// What happened since HvTrapRun began. Count goes on when Trap is full.
///
typedef struct {
  UINTN      Count;
  BOOLEAN    Faulted;  ///< the code was given up at a fault
  HV_TRAP    Trap[HV_TRAPS_MAX];
} HV_TRAPS;

#define HV_TRAP_NONE  0x100 ///< no exception

///
/// Registers for an instruction; behind it, what they held at its end or at its exception.
///
typedef struct {
  UINT64    Rax;
  UINT64    Rbx;
  UINT64    Rcx;
  UINT64    Rdx;
  UINT64    Rsi;
  UINT64    Rdi;
  UINT64    ErrorCode; ///< of the exception, 0 without one
  UINT64    Rip;       ///< of the exception
} HV_TRAP_REGS;

typedef
VOID
(EFIAPI *HV_TRAP_CODE)(
  IN OUT VOID  *Context
  );

/**
  Turns interrupts off and takes the interrupt descriptor table over.

  @par Context: Boot
**/
VOID
HvTrapBegin (
  VOID
  );

/**
  Gives the interrupt descriptor table back, and interrupts as they were.

  @par Context: Boot
**/
VOID
HvTrapEnd (
  VOID
  );

/**
  Whether the gate of a vector is present, which it is at the start.

  @param[in] Vector   The vector.
  @param[in] Present  FALSE: its event becomes #NP.

  @par Context: Boot
**/
VOID
HvTrapGate (
  IN UINT8    Vector,
  IN BOOLEAN  Present
  );

/**
  Runs code between HvTrapBegin and HvTrapEnd. Behind #DB, #BP, interrupts and NMIs it goes on; at the first fault it is
  given up. An instruction breakpoint is passed by once it was noted.

  @param[in]     Code     The code.
  @param[in,out] Context  Its argument.
  @param[in]     Lost     The code has a stack that does not keep what is written to it: of the first event only vector,
                          CR2, DR6 and DR7 are noted, and the code is given up.
  @param[out]    Traps    What happened.

  @par Context: Boot
**/
VOID
HvTrapRun (
  IN     HV_TRAP_CODE  Code,
  IN OUT VOID          *Context,
  IN     BOOLEAN       Lost,
  OUT    HV_TRAPS      *Traps
  );

/**
  Runs a piece of code with registers, between HvTrapBegin and HvTrapEnd.

  @param[in]     Code  Where it begins; it ends with RET, keeps RSP, R14 and R15, and may change all others.
  @param[in,out] Regs  See HV_TRAP_REGS.

  @return  The vector of its first exception, or HV_TRAP_NONE.

  @par Context: Boot
**/
UINT32
HvTrapTry (
  IN     CONST VOID    *Code,
  IN OUT HV_TRAP_REGS  *Regs
  );

/**
  Sends this processor an interrupt with vector HV_TRAP_INTERRUPT, or an NMI, by its local APIC in xAPIC mode.

  @param[in] Vector  One of the two.

  @par Context: Boot
**/
VOID
EFIAPI
HvTrapSend (
  IN UINT8  Vector
  );

#endif // HV_TRAP_LIB_H_
