/** @file
  What an exception of the host leaves behind.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HostInternal.h"
#include <Library/IoLib.h>
#include <Library/SynchronizationLib.h>

#define KEYBOARD_PORT   0x64
#define KEYBOARD_RESET  0xFE
#define RESET_PORT      0xCF9 // of every chipset with PCI
#define RESET_HARD      0x06
#define RESET_SPIN      1000000
#define WORDS_IN_LINE   4

///
/// The gentlest reset first: memory has to keep the record.
///
STATIC
VOID
Reset (
  VOID
  )
{
  UINTN  Spin;

  IoWrite8 (KEYBOARD_PORT, KEYBOARD_RESET);
  for (Spin = 0; Spin < RESET_SPIN; Spin++) {
    CpuPause ();
  }

  IoWrite8 (RESET_PORT, RESET_HARD);
  HvHostShutdown ();
}

///
/// Words from the stack pointer up. If it stands in a guard page, the stack above is what counts.
///
STATIC
VOID
FillStack (
  IN OUT HV_CRASH_RECORD  *Record,
  IN     UINT64           Rsp
  )
{
  UINT64  Address;

  Address            = ALIGN_VALUE (Rsp, sizeof (UINT64));
  Record->StackWords = 0;
  if (HvHostPeekRaw (Address, &Record->Stack[0]) == 0) {
    Address = ALIGN_VALUE (Address + 1, EFI_PAGE_SIZE);
  }

  Record->StackBase = Address;
  while ((Record->StackWords < HV_CRASH_STACK_WORDS) &&
         (HvHostPeekRaw (Address, &Record->Stack[Record->StackWords]) != 0))
  {
    Record->StackWords++;
    Address += sizeof (UINT64);
  }
}

STATIC
VOID
Fill (
  IN OUT HV_CRASH_RECORD           *Record,
  IN     CONST HV_CPU              *Cpu,
  IN     CONST HV_EXCEPTION_FRAME  *Frame
  )
{
  CONST HV_REGS  Regs = {
    {
      .Rax    = Frame->Rax,
      .Rcx    = Frame->Rcx,
      .Rdx    = Frame->Rdx,
      .Rbx    = Frame->Rbx,
      .Rsp    = Frame->Rsp,
      .Rbp    = Frame->Rbp,
      .Rsi    = Frame->Rsi,
      .Rdi    = Frame->Rdi,
      .R8     = Frame->R8,
      .R9     = Frame->R9,
      .R10    = Frame->R10,
      .R11    = Frame->R11,
      .R12    = Frame->R12,
      .R13    = Frame->R13,
      .R14    = Frame->R14,
      .R15    = Frame->R15,
      .Rip    = Frame->Rip,
      .Rflags = Frame->Rflags,
    }
  };

  STATIC_ASSERT (sizeof (Regs) == sizeof (Record->Regs), "HvCrashLib.h");
  Record->CpuIndex  = Cpu->Index;
  Record->Vector    = Frame->Vector;
  Record->ErrorCode = Frame->ErrorCode;
  Record->Cr0       = AsmReadCr0 ();
  Record->Cr2       = AsmReadCr2 ();
  Record->Cr3       = AsmReadCr3 ();
  Record->Cr4       = AsmReadCr4 ();
  CopyMem (Record->Regs, &Regs, sizeof (Regs));
  FillStack (Record, Frame->Rsp);
}

VOID
HvHostLogCrash (
  IN UINT32                 CpuIndex,
  IN CONST HV_CRASH_RECORD  *Record
  )
{
  CONST HV_REGS  *Regs;
  CONST UINT64   *Word;
  UINT64         Index;

  Regs = (CONST HV_REGS *)Record->Regs;
  HV_LOG (CpuIndex, HostException, Record->Vector, Record->ErrorCode, Regs->Rip, Regs->Rsp, Record->Cr2);
  HV_LOG (
    CpuIndex,
    HostRegisters,
    Regs->Rax,
    Regs->Rbx,
    Regs->Rcx,
    Regs->Rdx,
    Regs->Rsi,
    Regs->Rdi,
    Regs->Rbp,
    Regs->Rflags
    );
  HV_LOG (
    CpuIndex,
    HostRegistersHigh,
    Regs->R8,
    Regs->R9,
    Regs->R10,
    Regs->R11,
    Regs->R12,
    Regs->R13,
    Regs->R14,
    Regs->R15
    );
  HV_LOG (CpuIndex, HostControl, Record->Cr0, Record->Cr2, Record->Cr3, Record->Cr4);
  for (Index = 0; Index + WORDS_IN_LINE <= Record->StackWords; Index += WORDS_IN_LINE) {
    Word = &Record->Stack[Index];
    HV_LOG (CpuIndex, HostStack, Record->StackBase + Index * sizeof (UINT64), Word[0], Word[1], Word[2], Word[3]);
  }
}

VOID
HvHostCrash (
  IN OUT HV_CPU                    *Cpu,
  IN     CONST HV_EXCEPTION_FRAME  *Frame
  )
{
  HV_CRASH_RECORD  Local;
  HV_CRASH_RECORD  *Record;

  if (Cpu->Crashing) {
    HvHostPark (Cpu, "exception in the report of an exception");
  }

  Cpu->Crashing = TRUE;
  Record        = Cpu->Host->Crash;
  if (InterlockedCompareExchange32 ((UINT32 *)&Record->Claimed, 0, 1) == 0) {
    // Before anything that could fail again.
    Fill (Record, Cpu, Frame);
    HvCrashSeal (Record);
  } else {
    Record = &Local;
    Fill (Record, Cpu, Frame);
  }

  HvHostLogCrash (Cpu->Index, Record);
  if (Cpu->Host->ResetOnCrash) {
    Reset ();
  }

  HvHostPark (Cpu, "exception");
}
