/** @file
  Carries out an instruction with a memory operand in place of the processor: registers, flags, memory, exceptions.

  For instructions that were stopped because of what is at their address: they are in memory, decoded and allowed at the
  current privilege. What they find in their segments and in the guest's page tables is checked here, as the processor
  does it. Before an exception nothing has changed; of a repeated string instruction, the elements before the one that
  raises it are done.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_EMULATE_LIB_H_
#define HV_EMULATE_LIB_H_

#include <Hv/HvRegs.h>
#include <Library/HvDecodeLib.h>
#include <Library/HvGuestWalkLib.h>

typedef enum {
  HvEmulateDone,    ///< Carried out. RIP, RF and the rest of an instruction's end are the caller's.
  HvEmulateAgain,   ///< A repeated string instruction that is not at its end: RIP stays.
  HvEmulateFault,   ///< It raises an exception.
  HvEmulateRefused  ///< Not one of those that are carried out, or there is no access to its memory. Nothing has changed.
} HV_EMULATE_RESULT;

typedef struct {
  UINT8     Vector;
  UINT32    ErrorCode;  ///< Where the mode has error codes
  UINT64    Cr2;        ///< Of a page fault
} HV_EMULATE_FAULT;

/**
  Translates an address in one page, and makes sure that the guest may access it and that we can.

  @par Context: Host

  @param[in]  Context  Of the HV_EMULATE.
  @param[in]  Linear   Linear address.
  @param[in]  Access   HV_ACCESS_READ or HV_ACCESS_WRITE. A write may be a read too.
  @param[out] Gpa      Guest-physical address.
  @param[out] Fault    Set for RETURN_ACCESS_DENIED.

  @retval RETURN_SUCCESS        Gpa is set. Read and Write will take it.
  @retval RETURN_ACCESS_DENIED  The access raises #PF.
  @retval RETURN_NOT_FOUND      Linear is not canonical.
  @retval Others                We have no access.
**/
typedef
RETURN_STATUS
(EFIAPI *HV_EMULATE_MAP)(
  IN  VOID           *Context,
  IN  UINT64         Linear,
  IN  HV_ACCESS      Access,
  OUT UINT64         *Gpa,
  OUT HV_PAGE_FAULT  *Fault
  );

/**
  Reads or writes bytes in one page, at an address that HV_EMULATE_MAP gave.

  @par Context: Host

  @param[in]     Context  Of the HV_EMULATE.
  @param[in]     Gpa      Guest-physical address.
  @param[in,out] Buffer   The bytes.
  @param[in]     Size     1 to 8.
**/
typedef
VOID
(EFIAPI *HV_EMULATE_MOVE)(
  IN     VOID    *Context,
  IN     UINT64  Gpa,
  IN OUT VOID    *Buffer,
  IN     UINTN   Size
  );

typedef struct {
  HV_REGS             *Regs;           ///< General registers and RFLAGS change, RIP does not
  CONST HV_SEGMENT    *Segment;        ///< ES, CS, SS, DS, FS, GS
  BOOLEAN             Protected;       ///< CR0.PE = 1
  BOOLEAN             AlignmentCheck;  ///< CR0.AM = 1 and CPL = 3: RFLAGS.AC counts
  UINT32              Repeats;         ///< Of a repeated string instruction, the most elements at a time; at least 1
  HV_EMULATE_MAP      Map;
  HV_EMULATE_MOVE     Read;
  HV_EMULATE_MOVE     Write;
  VOID                *Context;
  HV_EMULATE_FAULT    Fault;           ///< Out: set for HvEmulateFault
} HV_EMULATE;

/**
  Tells whether an instruction only stores a value, which depends neither on memory nor on flags: the common case, for
  callers that know already where it goes.

  @par Context: Any

  @param[in]  Insn   The instruction.
  @param[in]  Regs   The registers.
  @param[out] Value  What it stores: Insn->OperandSize bytes, zero-extended.

  @retval TRUE   Value is set. Nothing but the memory operand changes by the instruction.
  @retval FALSE  HvEmulate has to be asked.
**/
BOOLEAN
EFIAPI
HvEmulateStoredValue (
  IN  CONST HV_INSN  *Insn,
  IN  CONST HV_REGS  *Regs,
  OUT UINT64         *Value
  );

/**
  Carries out an instruction.

  LOCK is not more than its absence: a read and a write are two accesses.

  @par Context: Host

  @param[in]     Insn     The instruction, as HvDecode gave it.
  @param[in,out] Emulate  The processor's state, and how its memory is accessed.

  @return What became of it.
**/
HV_EMULATE_RESULT
EFIAPI
HvEmulate (
  IN     CONST HV_INSN  *Insn,
  IN OUT HV_EMULATE     *Emulate
  );

#endif
