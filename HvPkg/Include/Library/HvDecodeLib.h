/** @file
  Decoder for the instructions that a hypervisor meets: those that are intercepted, and those that access memory.

  It says what the bytes mean, in 16-, 32- and 64-bit code, and executes nothing. What it does not know it refuses.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_DECODE_LIB_H_
#define HV_DECODE_LIB_H_

typedef enum {
  HvOpInvalid,
  //
  // Instructions with a memory (or register) operand and data.
  //
  HvOpMovStoreReg,   ///< r/m = Reg
  HvOpMovStoreImm,   ///< r/m = Immediate
  HvOpMovLoad,       ///< Reg = r/m
  HvOpMovzx,         ///< Reg (OperandSize) = zero-extended r/m (SourceSize)
  HvOpMovsx,         ///< Reg (OperandSize) = sign-extended r/m (SourceSize); also MOVSXD
  HvOpXchg,
  HvOpXadd,
  HvOpCmpxchg,
  HvOpAdd,
  HvOpOr,
  HvOpAdc,
  HvOpSbb,
  HvOpAnd,
  HvOpSub,
  HvOpXor,
  HvOpCmp,
  HvOpTest,
  HvOpNot,
  HvOpNeg,
  HvOpInc,
  HvOpDec,
  HvOpBt,
  HvOpBts,
  HvOpBtr,
  HvOpBtc,
  HvOpRol,           ///< The shifts: by Immediate, or by Reg, which is CL
  HvOpRor,
  HvOpRcl,
  HvOpRcr,
  HvOpShl,
  HvOpShr,
  HvOpSar,
  HvOpSetcc,         ///< r/m = whether Condition holds
  HvOpStos,          ///< Memory = accumulator
  HvOpMovs,          ///< Memory = Source
  HvOpLods,          ///< Accumulator = Source
  //
  // Instructions that are intercepted by themselves.
  //
  HvOpCpuid,
  HvOpRdmsr,
  HvOpWrmsr,
  HvOpRdtsc,
  HvOpRdtscp,
  HvOpRdpmc,
  HvOpVmmcall,
  HvOpVmcall,
  HvOpXgetbv,
  HvOpXsetbv,
  HvOpHlt,
  HvOpPause,
  HvOpMonitor,
  HvOpMwait,
  HvOpIret,
  HvOpInvd,
  HvOpWbinvd,
  HvOpWbnoinvd,
  HvOpInvlpg,
  HvOpClts,
  HvOpLmsw,
  HvOpSmsw,
  HvOpRsm,
  HvOpInt,           ///< INT n; Immediate is the vector
  HvOpInt3,
  HvOpInto,
  HvOpIcebp,         ///< INT1
  HvOpMovFromCr,     ///< Rm = control register Reg
  HvOpMovToCr,       ///< Control register Reg = Rm
  HvOpMovFromDr,     ///< Rm = debug register Reg
  HvOpMovToDr,       ///< Debug register Reg = Rm
  HvOpVmrun,
  HvOpVmload,
  HvOpVmsave,
  HvOpStgi,
  HvOpClgi,
  HvOpInvlpga,
  HvOpSkinit,
  HvOpMax
} HV_OP;

///
/// Which operands there are and in which direction data goes. "Rm" is the operand of the ModRM byte: the memory
/// operand if HasMemory, else the register Rm.
///
typedef enum {
  HvFormNone,    ///< No explicit operand
  HvFormRmReg,   ///< Rm is changed (or, in CMP and TEST, is the first operand), Reg is the second
  HvFormRegRm,   ///< Reg is changed or first, Rm is the second
  HvFormRmImm,   ///< Rm is changed or first, Immediate is the second
  HvFormRm,      ///< Rm only
  HvFormImm,     ///< Immediate only
  HvFormString,  ///< Memory (ES:rDI) and/or Source (segment:rSI); OperandSize is the size of one element
  HvFormMax
} HV_FORM;

typedef enum {
  HvDecodeOk,
  HvDecodeShort,          ///< The instruction goes on after the bytes that were given
  HvDecodeTooLong,        ///< More than 15 bytes (#GP)
  HvDecodeUnknown,        ///< An opcode that this decoder does not have
  HvDecodeBadLock,        ///< LOCK where it is not allowed (#UD)
  HvDecodeBadMode,        ///< Not valid in this mode (#UD)
  HvDecodeBadOperand,     ///< A control or debug register that does not exist (#UD)
  HvDecodeReasonMax
} HV_DECODE_REASON;

#define HV_REG_NONE  0xFF
#define HV_REG_RIP   0x10  ///< As Memory.Base: address of the next instruction (64-bit code only)

#define HV_SEGMENT_ES  0
#define HV_SEGMENT_CS  1
#define HV_SEGMENT_SS  2
#define HV_SEGMENT_DS  3
#define HV_SEGMENT_FS  4
#define HV_SEGMENT_GS  5

#define HV_REP_NONE  0
#define HV_REP_REP   1  ///< F3
#define HV_REP_REPNE 2  ///< F2

typedef struct {
  UINT8     Base;          ///< 0..15, HV_REG_RIP or HV_REG_NONE
  UINT8     Index;         ///< 0..15 or HV_REG_NONE
  UINT8     Scale;         ///< 1, 2, 4 or 8
  UINT8     Segment;       ///< HV_SEGMENT_*, prefix and default applied; in 64-bit code only FS and GS have a base
  UINT64    Displacement;  ///< Sign-extended (of MOV with moffs: all bits)
} HV_MEMORY;

typedef struct {
  UINT8        Length;         ///< In bytes, 1..15
  UINT8        Mode;           ///< 16, 32 or 64, as handed in
  HV_OP        Op;
  HV_FORM      Form;
  UINT8        OperandSize;    ///< Bytes: 1, 2, 4, 8. For instructions without data, what the prefixes say.
  UINT8        SourceSize;     ///< Bytes of Rm; differs from OperandSize only for MOVZX and MOVSX
  UINT8        AddressSize;    ///< Bytes: 2, 4, 8
  BOOLEAN      Lock;
  UINT8        Rep;            ///< HV_REP_*: the prefix, if it means a repetition (string instructions); else NONE
  BOOLEAN      HasReg;
  UINT8        Reg;            ///< 0..15 (general, control or debug register)
  BOOLEAN      RegHigh;        ///< Byte register AH, CH, DH, BH: Reg is 0..3 and means bits 15:8
  BOOLEAN      HasRm;          ///< Rm is a register
  UINT8        Rm;
  BOOLEAN      RmHigh;
  BOOLEAN      HasMemory;
  HV_MEMORY    Memory;         ///< The memory operand; of STOS and MOVS the destination
  BOOLEAN      HasSource;
  HV_MEMORY    Source;         ///< Of MOVS and LODS
  BOOLEAN      HasImmediate;
  UINT8        ImmediateSize;  ///< Bytes in the encoding; 0 of a shift by 1
  UINT64       Immediate;      ///< Sign-extended to 64 bits, except INT n, bit offsets and shifts: zero-extended
  UINT8        Condition;      ///< Of SETcc: the low four bits of the opcode
  HV_DECODE_REASON    Reason;
} HV_INSN;

/**
  Decodes one instruction.

  @par Context: Any

  @param[in]  Bytes  The bytes. Never more than Count of them are read.
  @param[in]  Count  How many there are.
  @param[in]  Mode   Size of the code segment: 16, 32 or 64.
  @param[out] Insn   What was found. If it fails, only Reason is meaningful.

  @retval RETURN_SUCCESS            The instruction is complete.
  @retval RETURN_BUFFER_TOO_SMALL   More bytes are needed.
  @retval RETURN_UNSUPPORTED        The instruction is not known or not valid: see Insn->Reason.
  @retval RETURN_INVALID_PARAMETER  A pointer is NULL or Mode is none of the three.
**/
RETURN_STATUS
EFIAPI
HvDecode (
  IN  CONST UINT8  *Bytes,
  IN  UINTN        Count,
  IN  UINT8        Mode,
  OUT HV_INSN      *Insn
  );

/**
  Computes the effective address of a memory operand, with the instruction's address size.

  @par Context: Any

  @param[in] Insn    The instruction.
  @param[in] Memory  &Insn->Memory or &Insn->Source.
  @param[in] Gpr     The 16 general registers in the order of their encoding (RAX, RCX, RDX, RBX, RSP, ...).
  @param[in] Rip     Address of the instruction's first byte.
  @param[in] Addend  What is added before it is cut to the address size; 0, or for the bit offset of BT, BTS, BTR, BTC.

  @return The offset in the segment Memory->Segment.
**/
UINT64
EFIAPI
HvInsnOffset (
  IN CONST HV_INSN    *Insn,
  IN CONST HV_MEMORY  *Memory,
  IN CONST UINT64     *Gpr,
  IN UINT64           Rip,
  IN UINT64           Addend
  );

/**
  Reads a general register as an operand.

  @par Context: Any

  @param[in] Gpr   The 16 general registers in the order of their encoding.
  @param[in] Reg   0..15.
  @param[in] High  TRUE: bits 15:8.
  @param[in] Size  1, 2, 4 or 8 bytes.

  @return The value, zero-extended.
**/
UINT64
EFIAPI
HvInsnReadRegister (
  IN CONST UINT64  *Gpr,
  IN UINT8         Reg,
  IN BOOLEAN       High,
  IN UINT8         Size
  );

/**
  Writes a general register as an operand: 8 and 16 bits keep the rest, 32 bits clear the upper half.

  @par Context: Any

  @param[in,out] Gpr    The 16 general registers in the order of their encoding.
  @param[in]     Reg    0..15.
  @param[in]     High   TRUE: bits 15:8.
  @param[in]     Size   1, 2, 4 or 8 bytes.
  @param[in]     Value  The value.
**/
VOID
EFIAPI
HvInsnWriteRegister (
  IN OUT UINT64  *Gpr,
  IN     UINT8    Reg,
  IN     BOOLEAN  High,
  IN     UINT8    Size,
  IN     UINT64   Value
  );

#endif
