/** @file
  Decoder for the instructions that a hypervisor meets.

  SDM 2.x is chapter "Instruction Format" of SDM Volume 2A, APM3 is AMD 24594 (chapter 1 "Instruction Encoding",
  appendix A "Opcode and Operand Encodings").

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvDecodeLib.h>

#define HV_LENGTH_MAX  15

#define HV_REX_B  0x01u
#define HV_REX_X  0x02u
#define HV_REX_R  0x04u
#define HV_REX_W  0x08u

#define HV_REG_CX  1
#define HV_REG_SP  4
#define HV_REG_BP  5
#define HV_REG_SI  6
#define HV_REG_DI  7
#define HV_REG_BX  3

///
/// Operands of a row.
///
typedef enum {
  HvNo,      ///< None
  HvEG,      ///< r/m, reg
  HvGE,      ///< reg, r/m
  HvEI,      ///< r/m, immediate of the operand's size, at most 4 bytes
  HvEIb,     ///< r/m, sign-extended byte
  HvEUb,     ///< r/m, unsigned byte
  HvE1,      ///< r/m, 1
  HvECl,     ///< r/m, CL
  HvE,       ///< r/m
  HvAO,      ///< accumulator, memory at an address in the instruction
  HvOA,      ///< the same, stored
  HvYA,      ///< string: ES:rDI
  HvYX,      ///< string: ES:rDI, segment:rSI
  HvAX,      ///< string: segment:rSI
  HvUb,      ///< unsigned byte
  HvCR,      ///< general register, control register (reg)
  HvRC,      ///< control register, general register
  HvDR,      ///< general register, debug register
  HvRD       ///< debug register, general register
} HV_OPERANDS;

#define HV_ROW_BYTE      0x0001u  // The operand is a byte
#define HV_ROW_LOCK      0x0002u  // LOCK is allowed if r/m is memory
#define HV_ROW_MEMORY    0x0004u  // With a register as r/m it is another instruction
#define HV_ROW_NOT64     0x0008u  // Not in 64-bit code
#define HV_ROW_ONLY64    0x0010u  // Only in 64-bit code
#define HV_ROW_GROUP     0x0020u  // Op is the index of a group
#define HV_ROW_NO_66     0x0040u  // Another or no instruction with 66, F2 or F3
#define HV_ROW_NO_REP    0x0080u  // Another or no instruction with F2 or F3
#define HV_ROW_F3        0x0100u  // Only with F3
#define HV_ROW_SOURCE8   0x0200u  // r/m is a byte, reg is not
#define HV_ROW_SOURCE16  0x0400u  // r/m is a word, reg is not
#define HV_ROW_SOURCE32  0x0800u  // r/m has 32 bits, or 16 if the operand has 16
#define HV_ROW_WORD      0x1000u  // r/m is a word, as a register too
#define HV_ROW_WORDMEM   0x2000u  // r/m is a word if it is memory
#define HV_ROW_NOT16     0x4000u  // The operand has 32 or 64 bits

typedef struct {
  UINT8     Op;
  UINT8     Operands;
  UINT16    Flags;
} HV_ROW;

typedef enum {
  HvGroup1Byte,    ///< 80, 82
  HvGroup1,        ///< 81
  HvGroup1Short,   ///< 83
  HvGroup2ByteUb,  ///< C0
  HvGroup2Ub,      ///< C1
  HvGroup2Byte1,   ///< D0
  HvGroup21,       ///< D1
  HvGroup2ByteCl,  ///< D2
  HvGroup2Cl,      ///< D3
  HvGroup3Byte,    ///< F6
  HvGroup3,        ///< F7
  HvGroup4,        ///< FE
  HvGroup5,        ///< FF
  HvGroup7,        ///< 0F 01
  HvGroup8,        ///< 0F BA
  HvGroup11Byte,   ///< C6
  HvGroup11,       ///< C7
  HvGroupMax
} HV_GROUP;

#define HV_ALU(Opcode, Name, Locked) \
  [(Opcode) + 0] = { Name, HvEG, HV_ROW_BYTE | (Locked) }, \
  [(Opcode) + 1] = { Name, HvEG, (Locked) }, \
  [(Opcode) + 2] = { Name, HvGE, HV_ROW_BYTE }, \
  [(Opcode) + 3] = { Name, HvGE, 0 }

STATIC CONST HV_ROW  mOneByte[256] = {
  HV_ALU (0x00, HvOpAdd, HV_ROW_LOCK),
  HV_ALU (0x08, HvOpOr,  HV_ROW_LOCK),
  HV_ALU (0x10, HvOpAdc, HV_ROW_LOCK),
  HV_ALU (0x18, HvOpSbb, HV_ROW_LOCK),
  HV_ALU (0x20, HvOpAnd, HV_ROW_LOCK),
  HV_ALU (0x28, HvOpSub, HV_ROW_LOCK),
  HV_ALU (0x30, HvOpXor, HV_ROW_LOCK),
  HV_ALU (0x38, HvOpCmp, 0),
  [0x63] = { HvOpMovsx,       HvGE, HV_ROW_ONLY64 | HV_ROW_SOURCE32 },
  [0x80] = { HvGroup1Byte,    HvNo, HV_ROW_GROUP },
  [0x81] = { HvGroup1,        HvNo, HV_ROW_GROUP },
  [0x82] = { HvGroup1Byte,    HvNo, HV_ROW_GROUP | HV_ROW_NOT64 },
  [0x83] = { HvGroup1Short,   HvNo, HV_ROW_GROUP },
  [0x84] = { HvOpTest,        HvEG, HV_ROW_BYTE },
  [0x85] = { HvOpTest,        HvEG, 0 },
  [0x86] = { HvOpXchg,        HvEG, HV_ROW_BYTE | HV_ROW_LOCK },
  [0x87] = { HvOpXchg,        HvEG, HV_ROW_LOCK },
  [0x88] = { HvOpMovStoreReg, HvEG, HV_ROW_BYTE },
  [0x89] = { HvOpMovStoreReg, HvEG, 0 },
  [0x8A] = { HvOpMovLoad,     HvGE, HV_ROW_BYTE },
  [0x8B] = { HvOpMovLoad,     HvGE, 0 },
  [0x90] = { HvOpPause,       HvNo, HV_ROW_F3 },
  [0xA0] = { HvOpMovLoad,     HvAO, HV_ROW_BYTE },
  [0xA1] = { HvOpMovLoad,     HvAO, 0 },
  [0xA2] = { HvOpMovStoreReg, HvOA, HV_ROW_BYTE },
  [0xA3] = { HvOpMovStoreReg, HvOA, 0 },
  [0xA4] = { HvOpMovs,        HvYX, HV_ROW_BYTE },
  [0xA5] = { HvOpMovs,        HvYX, 0 },
  [0xAA] = { HvOpStos,        HvYA, HV_ROW_BYTE },
  [0xAB] = { HvOpStos,        HvYA, 0 },
  [0xAC] = { HvOpLods,        HvAX, HV_ROW_BYTE },
  [0xAD] = { HvOpLods,        HvAX, 0 },
  [0xC0] = { HvGroup2ByteUb,  HvNo, HV_ROW_GROUP },
  [0xC1] = { HvGroup2Ub,      HvNo, HV_ROW_GROUP },
  [0xC6] = { HvGroup11Byte,   HvNo, HV_ROW_GROUP },
  [0xC7] = { HvGroup11,       HvNo, HV_ROW_GROUP },
  [0xCC] = { HvOpInt3,        HvNo, 0 },
  [0xCD] = { HvOpInt,         HvUb, 0 },
  [0xCE] = { HvOpInto,        HvNo, HV_ROW_NOT64 },
  [0xCF] = { HvOpIret,        HvNo, 0 },
  [0xD0] = { HvGroup2Byte1,   HvNo, HV_ROW_GROUP },
  [0xD1] = { HvGroup21,       HvNo, HV_ROW_GROUP },
  [0xD2] = { HvGroup2ByteCl,  HvNo, HV_ROW_GROUP },
  [0xD3] = { HvGroup2Cl,      HvNo, HV_ROW_GROUP },
  [0xF1] = { HvOpIcebp,       HvNo, 0 },
  [0xF4] = { HvOpHlt,         HvNo, 0 },
  [0xF6] = { HvGroup3Byte,    HvNo, HV_ROW_GROUP },
  [0xF7] = { HvGroup3,        HvNo, HV_ROW_GROUP },
  [0xFE] = { HvGroup4,        HvNo, HV_ROW_GROUP },
  [0xFF] = { HvGroup5,        HvNo, HV_ROW_GROUP }
};

STATIC CONST HV_ROW  mTwoByte[256] = {
  [0x01] = { HvGroup7,      HvNo,  HV_ROW_GROUP },
  [0x06] = { HvOpClts,      HvNo,  0 },
  [0x08] = { HvOpInvd,      HvNo,  0 },
  [0x09] = { HvOpWbinvd,    HvNo,  0 },
  [0x20] = { HvOpMovFromCr, HvCR,  0 },
  [0x21] = { HvOpMovFromDr, HvDR,  0 },
  [0x22] = { HvOpMovToCr,   HvRC,  0 },
  [0x23] = { HvOpMovToDr,   HvRD,  0 },
  [0x30] = { HvOpWrmsr,     HvNo,  0 },
  [0x31] = { HvOpRdtsc,     HvNo,  0 },
  [0x32] = { HvOpRdmsr,     HvNo,  0 },
  [0x33] = { HvOpRdpmc,     HvNo,  0 },
  [0x90] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x91] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x92] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x93] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x94] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x95] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x96] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x97] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x98] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x99] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x9A] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x9B] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x9C] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x9D] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x9E] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0x9F] = { HvOpSetcc,     HvE,   HV_ROW_BYTE },
  [0xA2] = { HvOpCpuid,     HvNo,  0 },
  [0xA3] = { HvOpBt,        HvEG,  0 },
  [0xAA] = { HvOpRsm,       HvNo,  0 },
  [0xAB] = { HvOpBts,       HvEG,  HV_ROW_LOCK },
  [0xB0] = { HvOpCmpxchg,   HvEG,  HV_ROW_BYTE | HV_ROW_LOCK },
  [0xB1] = { HvOpCmpxchg,   HvEG,  HV_ROW_LOCK },
  [0xB3] = { HvOpBtr,       HvEG,  HV_ROW_LOCK },
  [0xB6] = { HvOpMovzx,     HvGE,  HV_ROW_SOURCE8 },
  [0xB7] = { HvOpMovzx,     HvGE,  HV_ROW_SOURCE16 },
  [0xBA] = { HvGroup8,      HvNo,  HV_ROW_GROUP },
  [0xBB] = { HvOpBtc,       HvEG,  HV_ROW_LOCK },
  [0xBE] = { HvOpMovsx,     HvGE,  HV_ROW_SOURCE8 },
  [0xBF] = { HvOpMovsx,     HvGE,  HV_ROW_SOURCE16 },
  [0xC0] = { HvOpXadd,      HvEG,  HV_ROW_BYTE | HV_ROW_LOCK },
  [0xC1] = { HvOpXadd,      HvEG,  HV_ROW_LOCK },
  [0xC3] = { HvOpMovStoreReg, HvEG, HV_ROW_MEMORY | HV_ROW_NO_66 | HV_ROW_NOT16 }  // MOVNTI
};

#define HV_GROUP1_ROWS(Form, Flags) \
  { \
    { HvOpAdd, Form, (Flags) | HV_ROW_LOCK }, \
    { HvOpOr,  Form, (Flags) | HV_ROW_LOCK }, \
    { HvOpAdc, Form, (Flags) | HV_ROW_LOCK }, \
    { HvOpSbb, Form, (Flags) | HV_ROW_LOCK }, \
    { HvOpAnd, Form, (Flags) | HV_ROW_LOCK }, \
    { HvOpSub, Form, (Flags) | HV_ROW_LOCK }, \
    { HvOpXor, Form, (Flags) | HV_ROW_LOCK }, \
    { HvOpCmp, Form, (Flags) } \
  }

#define HV_GROUP2_ROWS(Form, Flags) \
  { \
    { HvOpRol, Form, (Flags) }, \
    { HvOpRor, Form, (Flags) }, \
    { HvOpRcl, Form, (Flags) }, \
    { HvOpRcr, Form, (Flags) }, \
    { HvOpShl, Form, (Flags) }, \
    { HvOpShr, Form, (Flags) }, \
    { HvOpShl, Form, (Flags) }, \
    { HvOpSar, Form, (Flags) } \
  }

#define HV_GROUP3_ROWS(Flags) \
  { \
    [0] = { HvOpTest, HvEI, (Flags) }, \
    [1] = { HvOpTest, HvEI, (Flags) }, \
    [2] = { HvOpNot,  HvE,  (Flags) | HV_ROW_LOCK }, \
    [3] = { HvOpNeg,  HvE,  (Flags) | HV_ROW_LOCK } \
  }

#define HV_GROUP45_ROWS(Flags) \
  { \
    [0] = { HvOpInc, HvE, (Flags) | HV_ROW_LOCK }, \
    [1] = { HvOpDec, HvE, (Flags) | HV_ROW_LOCK } \
  }

STATIC CONST HV_ROW  mGroups[HvGroupMax][8] = {
  [HvGroup1Byte]  = HV_GROUP1_ROWS (HvEI, HV_ROW_BYTE),
  [HvGroup1]      = HV_GROUP1_ROWS (HvEI, 0),
  [HvGroup1Short] = HV_GROUP1_ROWS (HvEIb, 0),
  [HvGroup2ByteUb] = HV_GROUP2_ROWS (HvEUb, HV_ROW_BYTE),
  [HvGroup2Ub]     = HV_GROUP2_ROWS (HvEUb, 0),
  [HvGroup2Byte1]  = HV_GROUP2_ROWS (HvE1,  HV_ROW_BYTE),
  [HvGroup21]      = HV_GROUP2_ROWS (HvE1,  0),
  [HvGroup2ByteCl] = HV_GROUP2_ROWS (HvECl, HV_ROW_BYTE),
  [HvGroup2Cl]     = HV_GROUP2_ROWS (HvECl, 0),
  [HvGroup3Byte]  = HV_GROUP3_ROWS (HV_ROW_BYTE),
  [HvGroup3]      = HV_GROUP3_ROWS (0),
  [HvGroup4]      = HV_GROUP45_ROWS (HV_ROW_BYTE),
  [HvGroup5]      = HV_GROUP45_ROWS (0),
  [HvGroup7]      = {
    [4] = { HvOpSmsw,   HvE, HV_ROW_WORDMEM },
    [6] = { HvOpLmsw,   HvE, HV_ROW_WORD },
    [7] = { HvOpInvlpg, HvE, HV_ROW_MEMORY }
  },
  [HvGroup8]      = {
    [4] = { HvOpBt,  HvEUb, 0 },
    [5] = { HvOpBts, HvEUb, HV_ROW_LOCK },
    [6] = { HvOpBtr, HvEUb, HV_ROW_LOCK },
    [7] = { HvOpBtc, HvEUb, HV_ROW_LOCK }
  },
  [HvGroup11Byte] = { [0] = { HvOpMovStoreImm, HvEI, HV_ROW_BYTE } },
  [HvGroup11]     = { [0] = { HvOpMovStoreImm, HvEI, 0 } }
};

///
/// 0F 01 with a ModRM byte from C0: instructions without operands, by the low six bits. What is not here is looked up
/// in HvGroup7.
///
STATIC CONST HV_ROW  mGroup7Register[64] = {
  [0x01] = { HvOpVmcall,  HvNo, HV_ROW_NO_66 },
  [0x08] = { HvOpMonitor, HvNo, HV_ROW_NO_66 },
  [0x09] = { HvOpMwait,   HvNo, HV_ROW_NO_66 },
  [0x10] = { HvOpXgetbv,  HvNo, HV_ROW_NO_66 },
  [0x11] = { HvOpXsetbv,  HvNo, HV_ROW_NO_66 },
  [0x18] = { HvOpVmrun,   HvNo, 0 },
  [0x19] = { HvOpVmmcall, HvNo, HV_ROW_NO_REP },
  [0x1A] = { HvOpVmload,  HvNo, 0 },
  [0x1B] = { HvOpVmsave,  HvNo, 0 },
  [0x1C] = { HvOpStgi,    HvNo, 0 },
  [0x1D] = { HvOpClgi,    HvNo, 0 },
  [0x1E] = { HvOpSkinit,  HvNo, 0 },
  [0x1F] = { HvOpInvlpga, HvNo, 0 },
  [0x39] = { HvOpRdtscp,  HvNo, 0 }
};

///
/// Base and index of 16-bit addresses, by r/m.
///
STATIC CONST UINT8  mAddress16[8][2] = {
  { HV_REG_BX, HV_REG_SI   },
  { HV_REG_BX, HV_REG_DI   },
  { HV_REG_BP, HV_REG_SI   },
  { HV_REG_BP, HV_REG_DI   },
  { HV_REG_SI, HV_REG_NONE },
  { HV_REG_DI, HV_REG_NONE },
  { HV_REG_BP, HV_REG_NONE },
  { HV_REG_BX, HV_REG_NONE }
};

///
/// What is being decoded.
///
typedef struct {
  CONST UINT8    *Bytes;
  UINTN          Count;
  UINTN          Position;
  HV_INSN        *Insn;
  BOOLEAN        Prefix66;
  UINT8          PrefixRep;  ///< HV_REP_*
  BOOLEAN        HasRex;
  UINT8          Rex;
  UINT8          Segment;    ///< Of an override, or HV_REG_NONE
  UINT8          Mod;
  UINT8          RegField;   ///< 0..7, without REX
  UINT8          RmField;
} HV_DECODER;

/**
  Takes the next bytes of the instruction, as a little-endian number.

  @param[in,out] Decoder  The decoder.
  @param[in]     Size     Number of bytes, 0 to 8.
  @param[out]    Value    The number, zero-extended.

  @retval HvDecodeOk  Value is set.
  @retval Others      The instruction is too long, or there are not enough bytes.
**/
STATIC
HV_DECODE_REASON
HvTake (
  IN OUT HV_DECODER  *Decoder,
  IN     UINT8       Size,
  OUT    UINT64      *Value
  )
{
  UINT8  Index;

  *Value = 0;
  for (Index = 0; Index < Size; Index++) {
    if (Decoder->Position >= HV_LENGTH_MAX) {
      return HvDecodeTooLong;
    }

    if (Decoder->Position >= Decoder->Count) {
      return HvDecodeShort;
    }

    *Value |= (UINT64)Decoder->Bytes[Decoder->Position++] << (8 * Index);
  }

  return HvDecodeOk;
}

/**
  Sign-extends a number.

  @param[in] Value  The number, zero-extended.
  @param[in] Size   Its size in bytes; 0 gives 0.

  @return The number with 64 bits.
**/
STATIC
UINT64
HvSignExtend (
  IN UINT64  Value,
  IN UINT8   Size
  )
{
  UINT8  Shift;

  if (Size == 0) {
    return 0;
  }

  Shift = (UINT8)(64 - 8 * Size);
  return (UINT64)((INT64)(Value << Shift) >> Shift);
}

/**
  Takes the prefixes and the first byte of the opcode (SDM 2.1.1, 2.2.1, APM3 1.2).

  @param[in,out] Decoder  The decoder.
  @param[out]    Opcode   The first byte that is no prefix.

  @retval HvDecodeOk  Opcode is set.
  @retval Others      The instruction is too long, or there are not enough bytes.
**/
STATIC
HV_DECODE_REASON
HvTakePrefixes (
  IN OUT HV_DECODER  *Decoder,
  OUT    UINT64      *Opcode
  )
{
  HV_DECODE_REASON  Reason;
  BOOLEAN           Prefix67;
  BOOLEAN           Code64;
  BOOLEAN           More;

  Code64           = (BOOLEAN)(Decoder->Insn->Mode == 64);
  Prefix67         = FALSE;
  Decoder->Segment = HV_REG_NONE;
  do {
    Reason = HvTake (Decoder, 1, Opcode);
    if (Reason != HvDecodeOk) {
      return Reason;
    }

    if (Code64 && ((*Opcode & 0xF0) == 0x40)) {
      Decoder->HasRex = TRUE;
      Decoder->Rex    = (UINT8)*Opcode;
      More            = TRUE;
      continue;
    }

    More = TRUE;
    switch (*Opcode) {
      case 0x26:
      case 0x2E:
      case 0x36:
      case 0x3E:
        //
        // ES, CS, SS, DS have bits 4:3 = 0..3. 64-bit code ignores them.
        //
        if (!Code64) {
          Decoder->Segment = (UINT8)((*Opcode >> 3) & 3);
        }

        break;
      case 0x64:
        Decoder->Segment = HV_SEGMENT_FS;
        break;
      case 0x65:
        Decoder->Segment = HV_SEGMENT_GS;
        break;
      case 0x66:
        Decoder->Prefix66 = TRUE;
        break;
      case 0x67:
        Prefix67 = TRUE;
        break;
      case 0xF0:
        Decoder->Insn->Lock = TRUE;
        break;
      case 0xF2:
        Decoder->PrefixRep = HV_REP_REPNE;
        break;
      case 0xF3:
        Decoder->PrefixRep = HV_REP_REP;
        break;
      default:
        More = FALSE;
        break;
    }

    //
    // A REX prefix counts only directly before the opcode.
    //
    if (More) {
      Decoder->HasRex = FALSE;
      Decoder->Rex    = 0;
    }
  } while (More);

  switch (Decoder->Insn->Mode) {
    case 16:
      Decoder->Insn->OperandSize = Decoder->Prefix66 ? 4 : 2;
      Decoder->Insn->AddressSize = Prefix67 ? 4 : 2;
      break;
    case 32:
      Decoder->Insn->OperandSize = Decoder->Prefix66 ? 2 : 4;
      Decoder->Insn->AddressSize = Prefix67 ? 2 : 4;
      break;
    default:
      Decoder->Insn->OperandSize = Decoder->Prefix66 ? 2 : 4;
      if ((Decoder->Rex & HV_REX_W) != 0) {
        Decoder->Insn->OperandSize = 8;
      }

      Decoder->Insn->AddressSize = Prefix67 ? 4 : 8;
      break;
  }

  return HvDecodeOk;
}

/**
  Takes a ModRM byte apart.

  @param[in,out] Decoder  The decoder.

  @retval HvDecodeOk  Done.
  @retval Others      The instruction is too long, or there are not enough bytes.
**/
STATIC
HV_DECODE_REASON
HvTakeModRm (
  IN OUT HV_DECODER  *Decoder
  )
{
  HV_DECODE_REASON  Reason;
  UINT64            Byte;

  Reason            = HvTake (Decoder, 1, &Byte);
  Decoder->Mod      = (UINT8)(Byte >> 6);
  Decoder->RegField = (UINT8)((Byte >> 3) & 7);
  Decoder->RmField  = (UINT8)(Byte & 7);
  return Reason;
}

/**
  Takes the memory operand of the ModRM byte (SDM 2.1.5 and 2.2.1.2 to 2.2.1.6, APM3 1.4 to 1.7).

  @param[in,out] Decoder  The decoder.

  @retval HvDecodeOk  Insn->Memory is set.
  @retval Others      The instruction is too long, or there are not enough bytes.
**/
STATIC
HV_DECODE_REASON
HvTakeMemory (
  IN OUT HV_DECODER  *Decoder
  )
{
  HV_DECODE_REASON  Reason;
  HV_INSN           *Insn;
  HV_MEMORY         *Memory;
  UINT64            Sib;
  UINT64            Value;
  UINT8             DisplacementSize;
  UINT8             Wide;
  UINT8             Rm;

  Insn          = Decoder->Insn;
  Memory        = &Insn->Memory;
  Memory->Base  = HV_REG_NONE;
  Memory->Index = HV_REG_NONE;
  Memory->Scale = 1;
  Rm            = Decoder->RmField;
  Wide          = (Insn->AddressSize == 2) ? 2 : 4;

  DisplacementSize = 0;
  if (Decoder->Mod == 1) {
    DisplacementSize = 1;
  } else if (Decoder->Mod == 2) {
    DisplacementSize = Wide;
  }

  if (Insn->AddressSize == 2) {
    Memory->Base  = mAddress16[Rm][0];
    Memory->Index = mAddress16[Rm][1];
    if ((Decoder->Mod == 0) && (Rm == 6)) {
      Memory->Base     = HV_REG_NONE;
      DisplacementSize = Wide;
    }
  } else if (Rm == 4) {
    Reason = HvTake (Decoder, 1, &Sib);
    if (Reason != HvDecodeOk) {
      return Reason;
    }

    Memory->Scale = (UINT8)(1u << (Sib >> 6));
    Memory->Base  = (UINT8)((Sib & 7) | (((Decoder->Rex & HV_REX_B) != 0) ? 8 : 0));
    Memory->Index = (UINT8)(((Sib >> 3) & 7) | (((Decoder->Rex & HV_REX_X) != 0) ? 8 : 0));
    if (Memory->Index == 4) {
      Memory->Index = HV_REG_NONE;
      Memory->Scale = 1;
    }

    if ((Decoder->Mod == 0) && ((Sib & 7) == 5)) {
      Memory->Base     = HV_REG_NONE;
      DisplacementSize = Wide;
    }
  } else if ((Decoder->Mod == 0) && (Rm == 5)) {
    Memory->Base     = (Insn->Mode == 64) ? HV_REG_RIP : HV_REG_NONE;
    DisplacementSize = Wide;
  } else {
    Memory->Base = (UINT8)(Rm | (((Decoder->Rex & HV_REX_B) != 0) ? 8 : 0));
  }

  Memory->Segment = ((Memory->Base == HV_REG_SP) || (Memory->Base == HV_REG_BP)) ? HV_SEGMENT_SS : HV_SEGMENT_DS;
  if (Decoder->Segment != HV_REG_NONE) {
    Memory->Segment = Decoder->Segment;
  }

  Reason               = HvTake (Decoder, DisplacementSize, &Value);
  Memory->Displacement = HvSignExtend (Value, DisplacementSize);
  Insn->HasMemory      = TRUE;
  return Reason;
}

/**
  Sets a register operand.

  @param[in]  Decoder  The decoder.
  @param[in]  Number   Number of the register, with REX.
  @param[in]  Size     Size of the operand in bytes.
  @param[out] Reg      The register.
  @param[out] High     TRUE for AH, CH, DH, BH.
**/
STATIC
VOID
HvSetRegister (
  IN  CONST HV_DECODER  *Decoder,
  IN  UINT8             Number,
  IN  UINT8             Size,
  OUT UINT8             *Reg,
  OUT BOOLEAN           *High
  )
{
  *High = (BOOLEAN)((Size == 1) && !Decoder->HasRex && (Number >= 4));
  *Reg  = *High ? (UINT8)(Number - 4) : Number;
}

/**
  Sets a memory operand that the opcode names: rSI or rDI, or no register.

  @param[in]  Decoder  The decoder.
  @param[in]  Base     The register, or HV_REG_NONE.
  @param[in]  Fixed    TRUE if the segment is ES and cannot be overridden.
  @param[out] Memory   The operand.
**/
STATIC
VOID
HvSetMemory (
  IN  CONST HV_DECODER  *Decoder,
  IN  UINT8             Base,
  IN  BOOLEAN           Fixed,
  OUT HV_MEMORY         *Memory
  )
{
  Memory->Base         = Base;
  Memory->Index        = HV_REG_NONE;
  Memory->Scale        = 1;
  Memory->Displacement = 0;
  Memory->Segment      = HV_SEGMENT_DS;
  if (Fixed) {
    Memory->Segment = HV_SEGMENT_ES;
  } else if (Decoder->Segment != HV_REG_NONE) {
    Memory->Segment = Decoder->Segment;
  }
}

/**
  Takes an immediate.

  @param[in,out] Decoder  The decoder.
  @param[in]     Size     Its size in bytes.
  @param[in]     Signed   TRUE to sign-extend it.

  @retval HvDecodeOk  It is set.
  @retval Others      The instruction is too long, or there are not enough bytes.
**/
STATIC
HV_DECODE_REASON
HvTakeImmediate (
  IN OUT HV_DECODER  *Decoder,
  IN     UINT8       Size,
  IN     BOOLEAN     Signed
  )
{
  HV_DECODE_REASON  Reason;
  UINT64            Value;

  Reason                       = HvTake (Decoder, Size, &Value);
  Decoder->Insn->HasImmediate  = TRUE;
  Decoder->Insn->ImmediateSize = Size;
  Decoder->Insn->Immediate     = Signed ? HvSignExtend (Value, Size) : Value;
  return Reason;
}

/**
  Tells whether an instruction has a ModRM byte.

  @param[in] Row  Its row.

  @retval TRUE   It has.
  @retval FALSE  It has not.
**/
STATIC
BOOLEAN
HvHasModRm (
  IN CONST HV_ROW  *Row
  )
{
  if ((Row->Flags & HV_ROW_GROUP) != 0) {
    return TRUE;
  }

  switch (Row->Operands) {
    case HvEG:
    case HvGE:
    case HvE:
    case HvCR:
    case HvRC:
    case HvDR:
    case HvRD:
      return TRUE;
    default:
      return FALSE;
  }
}

/**
  Takes the operands of MOV to and from control and debug registers. The mod field does not count, the general register
  has the full width (SDM Volume 2B, APM3: "MOV CRn", "MOV DRn").

  @param[in,out] Decoder  The decoder.
  @param[in]     Row      Row of the instruction.

  @retval HvDecodeOk          Done.
  @retval HvDecodeBadOperand  There is no such register.
**/
STATIC
HV_DECODE_REASON
HvSetSystemRegister (
  IN OUT HV_DECODER    *Decoder,
  IN     CONST HV_ROW  *Row
  )
{
  HV_INSN  *Insn;

  Insn              = Decoder->Insn;
  Insn->OperandSize = (Insn->Mode == 64) ? 8 : 4;
  Insn->SourceSize  = Insn->OperandSize;
  Insn->HasReg      = TRUE;
  Insn->HasRm       = TRUE;
  Insn->Reg         = (UINT8)(Decoder->RegField | (((Decoder->Rex & HV_REX_R) != 0) ? 8 : 0));
  Insn->Rm          = (UINT8)(Decoder->RmField | (((Decoder->Rex & HV_REX_B) != 0) ? 8 : 0));
  if ((Row->Operands == HvDR) || (Row->Operands == HvRD)) {
    return (Insn->Reg < 8) ? HvDecodeOk : HvDecodeBadOperand;
  }

  //
  // With LOCK, CR0 is CR8 on AMD processors (CPUID 80000001h ECX bit 4).
  //
  if (Insn->Lock && (Insn->Reg == 0)) {
    Insn->Reg  = 8;
    Insn->Lock = FALSE;
  }

  switch (Insn->Reg) {
    case 0:
    case 2:
    case 3:
    case 4:
    case 8:
      return HvDecodeOk;
    default:
      return HvDecodeBadOperand;
  }
}

/**
  Takes the operand of the ModRM byte, memory or register.

  @param[in,out] Decoder  The decoder.
  @param[in]     Row      Row of the instruction.

  @retval HvDecodeOk  Done.
  @retval Others      Why not.
**/
STATIC
HV_DECODE_REASON
HvTakeRm (
  IN OUT HV_DECODER    *Decoder,
  IN     CONST HV_ROW  *Row
  )
{
  HV_INSN  *Insn;
  UINT8    Size;

  Insn = Decoder->Insn;
  Size = Insn->OperandSize;
  if ((Row->Flags & HV_ROW_SOURCE8) != 0) {
    Size = 1;
  } else if ((Row->Flags & HV_ROW_SOURCE16) != 0) {
    Size = 2;
  } else if ((Row->Flags & HV_ROW_SOURCE32) != 0) {
    Size = MIN (Size, 4);
  }

  Insn->SourceSize = Size;
  if (Decoder->Mod != 3) {
    return HvTakeMemory (Decoder);
  }

  if ((Row->Flags & HV_ROW_MEMORY) != 0) {
    return HvDecodeUnknown;
  }

  Insn->HasRm = TRUE;
  HvSetRegister (
    Decoder,
    (UINT8)(Decoder->RmField | (((Decoder->Rex & HV_REX_B) != 0) ? 8 : 0)),
    Size,
    &Insn->Rm,
    &Insn->RmHigh
    );
  return HvDecodeOk;
}

/**
  Takes the operands.

  @param[in,out] Decoder  The decoder.
  @param[in]     Row      Row of the instruction.

  @retval HvDecodeOk  Done.
  @retval Others      Why not.
**/
STATIC
HV_DECODE_REASON
HvTakeOperands (
  IN OUT HV_DECODER    *Decoder,
  IN     CONST HV_ROW  *Row
  )
{
  HV_DECODE_REASON  Reason;
  HV_INSN           *Insn;
  UINT8             ImmediateSize;

  Insn = Decoder->Insn;
  if ((Row->Flags & HV_ROW_BYTE) != 0) {
    Insn->OperandSize = 1;
  } else if (((Row->Flags & HV_ROW_WORD) != 0) || (((Row->Flags & HV_ROW_WORDMEM) != 0) && (Decoder->Mod != 3))) {
    Insn->OperandSize = 2;
  } else if ((Row->Flags & HV_ROW_NOT16) != 0) {
    Insn->OperandSize = MAX (Insn->OperandSize, 4);
  }

  Insn->SourceSize = Insn->OperandSize;
  switch (Row->Operands) {
    case HvEG:
    case HvGE:
      Insn->Form   = (Row->Operands == HvEG) ? HvFormRmReg : HvFormRegRm;
      Insn->HasReg = TRUE;
      HvSetRegister (
        Decoder,
        (UINT8)(Decoder->RegField | (((Decoder->Rex & HV_REX_R) != 0) ? 8 : 0)),
        Insn->OperandSize,
        &Insn->Reg,
        &Insn->RegHigh
        );
      return HvTakeRm (Decoder, Row);

    case HvE:
      Insn->Form = HvFormRm;
      return HvTakeRm (Decoder, Row);

    case HvEI:
    case HvEIb:
    case HvEUb:
      Insn->Form = HvFormRmImm;
      Reason     = HvTakeRm (Decoder, Row);
      if (Reason != HvDecodeOk) {
        return Reason;
      }

      ImmediateSize = (Row->Operands == HvEI) ? MIN (Insn->OperandSize, 4) : 1;
      return HvTakeImmediate (Decoder, ImmediateSize, (BOOLEAN)(Row->Operands != HvEUb));

    case HvE1:
      Insn->Form         = HvFormRmImm;
      Insn->HasImmediate = TRUE;
      Insn->Immediate    = 1;
      return HvTakeRm (Decoder, Row);

    case HvECl:
      Insn->Form   = HvFormRmReg;
      Insn->HasReg = TRUE;
      Insn->Reg    = HV_REG_CX;
      return HvTakeRm (Decoder, Row);

    case HvAO:
    case HvOA:
      Insn->Form      = (Row->Operands == HvOA) ? HvFormRmReg : HvFormRegRm;
      Insn->HasReg    = TRUE;
      Insn->HasMemory = TRUE;
      HvSetMemory (Decoder, HV_REG_NONE, FALSE, &Insn->Memory);
      return HvTake (Decoder, Insn->AddressSize, &Insn->Memory.Displacement);

    case HvYA:
    case HvYX:
    case HvAX:
      Insn->Form = HvFormString;
      Insn->Rep  = Decoder->PrefixRep;
      if (Row->Operands != HvAX) {
        Insn->HasMemory = TRUE;
        HvSetMemory (Decoder, HV_REG_DI, TRUE, &Insn->Memory);
      }

      if (Row->Operands != HvYA) {
        Insn->HasSource = TRUE;
        HvSetMemory (Decoder, HV_REG_SI, FALSE, &Insn->Source);
      }

      Insn->HasReg = (BOOLEAN)(Row->Operands != HvYX);
      return HvDecodeOk;

    case HvUb:
      Insn->Form = HvFormImm;
      return HvTakeImmediate (Decoder, 1, FALSE);

    case HvCR:
    case HvDR:
      Insn->Form = HvFormRmReg;
      return HvSetSystemRegister (Decoder, Row);

    case HvRC:
    case HvRD:
      Insn->Form = HvFormRegRm;
      return HvSetSystemRegister (Decoder, Row);

    default:
      return HvDecodeOk;
  }
}

/**
  Finds the row of an opcode, and takes the opcode and the ModRM byte.

  @param[in,out] Decoder  The decoder.
  @param[out]    Row      The row.

  @retval HvDecodeOk  Row is set.
  @retval Others      Why not.
**/
STATIC
HV_DECODE_REASON
HvFindRow (
  IN OUT HV_DECODER  *Decoder,
  OUT    HV_ROW      *Row
  )
{
  HV_DECODE_REASON  Reason;
  UINT64            Opcode;
  BOOLEAN           Escape;
  UINT8             Group;

  Reason = HvTakePrefixes (Decoder, &Opcode);
  if (Reason != HvDecodeOk) {
    return Reason;
  }

  Escape = (BOOLEAN)(Opcode == 0x0F);
  if (Escape) {
    Reason = HvTake (Decoder, 1, &Opcode);
    if (Reason != HvDecodeOk) {
      return Reason;
    }
  }

  Decoder->Insn->Condition = (UINT8)(Opcode & 0x0F);
  *Row                     = Escape ? mTwoByte[Opcode] : mOneByte[Opcode];
  if (HvHasModRm (Row)) {
    Reason = HvTakeModRm (Decoder);
    if (Reason != HvDecodeOk) {
      return Reason;
    }
  }

  if (((Row->Flags & HV_ROW_NOT64) != 0) && (Decoder->Insn->Mode == 64)) {
    return HvDecodeBadMode;
  }

  if (((Row->Flags & HV_ROW_ONLY64) != 0) && (Decoder->Insn->Mode != 64)) {
    return HvDecodeUnknown;
  }

  if ((Row->Flags & HV_ROW_GROUP) != 0) {
    Group = Row->Op;
    *Row  = mGroups[Group][Decoder->RegField];
    if ((Group == HvGroup7) && (Decoder->Mod == 3) &&
        (mGroup7Register[Decoder->RegField * 8 + Decoder->RmField].Op != HvOpInvalid))
    {
      *Row = mGroup7Register[Decoder->RegField * 8 + Decoder->RmField];
    }
  } else if (Escape && (Row->Op == HvOpWbinvd) && (Decoder->PrefixRep == HV_REP_REP)) {
    Row->Op = HvOpWbnoinvd;
  }

  if (Row->Op == HvOpInvalid) {
    return HvDecodeUnknown;
  }

  if ((((Row->Flags & HV_ROW_NO_66) != 0) && Decoder->Prefix66) ||
      (((Row->Flags & (HV_ROW_NO_66 | HV_ROW_NO_REP)) != 0) && (Decoder->PrefixRep != HV_REP_NONE)) ||
      (((Row->Flags & HV_ROW_F3) != 0) &&
       ((Decoder->PrefixRep != HV_REP_REP) || ((Decoder->Rex & HV_REX_B) != 0))))
  {
    return HvDecodeUnknown;
  }

  return HvDecodeOk;
}

RETURN_STATUS
EFIAPI
HvDecode (
  IN  CONST UINT8  *Bytes,
  IN  UINTN        Count,
  IN  UINT8        Mode,
  OUT HV_INSN      *Insn
  )
{
  HV_DECODER        Decoder;
  HV_ROW            Row;
  HV_DECODE_REASON  Reason;

  if ((Bytes == NULL) || (Insn == NULL) || ((Mode != 16) && (Mode != 32) && (Mode != 64))) {
    return RETURN_INVALID_PARAMETER;
  }

  ZeroMem (Insn, sizeof (*Insn));
  ZeroMem (&Decoder, sizeof (Decoder));
  Insn->Mode    = Mode;
  Decoder.Bytes = Bytes;
  Decoder.Count = Count;
  Decoder.Insn  = Insn;

  Reason = HvFindRow (&Decoder, &Row);
  if (Reason == HvDecodeOk) {
    Insn->Op = (HV_OP)Row.Op;
    Reason   = HvTakeOperands (&Decoder, &Row);
  }

  if ((Reason == HvDecodeOk) && Insn->Lock && (((Row.Flags & HV_ROW_LOCK) == 0) || !Insn->HasMemory)) {
    Reason = HvDecodeBadLock;
  }

  Insn->Length = (UINT8)Decoder.Position;
  Insn->Reason = Reason;
  switch (Reason) {
    case HvDecodeOk:
      return RETURN_SUCCESS;
    case HvDecodeShort:
      return RETURN_BUFFER_TOO_SMALL;
    default:
      return RETURN_UNSUPPORTED;
  }
}

/**
  Cuts a number to some bytes.

  @param[in] Value  The number.
  @param[in] Size   1, 2, 4 or 8.

  @return The low bytes, zero-extended.
**/
STATIC
UINT64
HvCut (
  IN UINT64  Value,
  IN UINT8   Size
  )
{
  return (Size >= 8) ? Value : (Value & ((1ull << (8 * Size)) - 1));
}

UINT64
EFIAPI
HvInsnOffset (
  IN CONST HV_INSN    *Insn,
  IN CONST HV_MEMORY  *Memory,
  IN CONST UINT64     *Gpr,
  IN UINT64           Rip,
  IN UINT64           Addend
  )
{
  UINT64  Offset;

  Offset = Memory->Displacement + Addend;
  if (Memory->Base == HV_REG_RIP) {
    Offset += Rip + Insn->Length;
  } else if (Memory->Base != HV_REG_NONE) {
    Offset += Gpr[Memory->Base];
  }

  if (Memory->Index != HV_REG_NONE) {
    Offset += Gpr[Memory->Index] * Memory->Scale;
  }

  return HvCut (Offset, Insn->AddressSize);
}

UINT64
EFIAPI
HvInsnReadRegister (
  IN CONST UINT64  *Gpr,
  IN UINT8         Reg,
  IN BOOLEAN       High,
  IN UINT8         Size
  )
{
  return HvCut (High ? (Gpr[Reg] >> 8) : Gpr[Reg], Size);
}

VOID
EFIAPI
HvInsnWriteRegister (
  IN OUT UINT64  *Gpr,
  IN     UINT8    Reg,
  IN     BOOLEAN  High,
  IN     UINT8    Size,
  IN     UINT64   Value
  )
{
  UINT64  Mask;

  Value = HvCut (Value, Size);
  if (Size >= 4) {
    Gpr[Reg] = Value;
    return;
  }

  Mask     = HvCut (MAX_UINT64, Size) << (High ? 8 : 0);
  Gpr[Reg] = (Gpr[Reg] & ~Mask) | (Value << (High ? 8 : 0));
}
