/** @file
  What the C and assembly parts of HvHostLib share. The assembly uses the System V calling convention.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_HOST_INTERNAL_H_
#define HV_HOST_INTERNAL_H_

#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvConsoleLib.h>
#include <Library/HvHostLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>

///
/// What the exception stub pushes, lowest address first.
///
typedef struct {
  UINT64    R15;
  UINT64    R14;
  UINT64    R13;
  UINT64    R12;
  UINT64    R11;
  UINT64    R10;
  UINT64    R9;
  UINT64    R8;
  UINT64    Rdi;
  UINT64    Rsi;
  UINT64    Rbp;
  UINT64    Rbx;
  UINT64    Rdx;
  UINT64    Rcx;
  UINT64    Rax;
  UINT64    Vector;
  UINT64    ErrorCode;
  UINT64    Rip;
  UINT64    Cs;
  UINT64    Rflags;
  UINT64    Rsp;
  UINT64    Ss;
} HV_EXCEPTION_FRAME;

///
/// An instruction that may fault on a guest's behalf, and where to go on then.
///
typedef struct {
  UINT64    Rip;
  UINT64    Fixup;
} HV_FIXUP;

#pragma pack (1)

typedef struct {
  UINT32    Reserved0;
  UINT64    Rsp[3];
  UINT64    Reserved1;
  UINT64    Ist[7];
  UINT64    Reserved2;
  UINT16    Reserved3;
  UINT16    IoMap;
} HV_TSS;

#pragma pack ()

STATIC_ASSERT (sizeof (HV_TSS) == 104, "SDM volume 3, 8.7");

extern CONST HV_FIXUP  HvHostFixups[];      ///< ends with Rip == 0
extern CONST UINT64    HvHostVectors[256];  ///< addresses of the stubs

/**
  Loads GDT and IDT, then each selector; a null TR is left alone.

  @param[in] Gdtr       The GDT. The TSS that Selectors names becomes busy in it.
  @param[in] Idtr       The IDT.
  @param[in] Selectors  In the order of HV_SEGMENT_NAME.

  @par Context: Host
**/
VOID
HvHostLoadTables (
  IN CONST IA32_DESCRIPTOR  *Gdtr,
  IN CONST IA32_DESCRIPTOR  *Idtr,
  IN CONST UINT16           *Selectors
  );

/**
  RDMSR with a fixup.

  @param[in]  Msr    The MSR.
  @param[out] Value  What it holds; not touched on an exception.

  @return  1, or 0 if the processor raised an exception.

  @par Context: Host
**/
UINT32
HvHostReadMsrRaw (
  IN  UINT32  Msr,
  OUT UINT64  *Value
  );

/**
  WRMSR with a fixup.

  @param[in] Msr    The MSR.
  @param[in] Value  What to write.

  @return  1, or 0 if the processor raised an exception.

  @par Context: Host
**/
UINT32
HvHostWriteMsrRaw (
  IN UINT32  Msr,
  IN UINT64  Value
  );

/**
  XSETBV with a fixup.

  @param[in] Register  ECX.
  @param[in] Value     EDX:EAX.

  @return  1, or 0 if the processor raised an exception.

  @par Context: Host
**/
UINT32
HvHostXsetbvRaw (
  IN UINT32  Register,
  IN UINT64  Value
  );

/**
  Reads a word that may not be mapped.

  @param[in]  Address  Where.
  @param[out] Value    The word; not touched on an exception.

  @return  1, or 0 if the processor raised an exception.

  @par Context: Host
**/
UINT32
HvHostPeekRaw (
  IN  UINT64  Address,
  OUT UINT64  *Value
  );

/**
  Reports an exception of host life, in the crash record and the log, and stops. Does not return.

  @param[in] Cpu    This processor.
  @param[in] Frame  What the stub pushed.

  @par Context: Host
**/
VOID
HvHostCrash (
  IN OUT HV_CPU                    *Cpu,
  IN     CONST HV_EXCEPTION_FRAME  *Frame
  );

/**
  Takes an exception of host life: INIT redirected to #SX is posted, a single step of the guest is passed by, an
  instruction with a fixup goes on there, any other stops this processor.

  @param[in,out] Frame  What the stub pushed; the registers that it pops.

  @par Context: Host
**/
VOID
HvHostException (
  IN OUT HV_EXCEPTION_FRAME  *Frame
  );

#endif // HV_HOST_INTERNAL_H_
