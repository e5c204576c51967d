/** @file
  The guest's instruction at RIP: fetch, decode, carry out, retire.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

///
/// The page fault that the fetch of an instruction raises now: another processor may have changed the tables since.
///
STATIC
VOID
RaisePageFault (
  IN OUT HV_VCPU              *Vcpu,
  IN     CONST HV_PAGE_FAULT  *Fault
  )
{
  HV_VCPU_STATE  State;

  State.Cr2 = Fault->Cr2;
  Vcpu->Cpu->Host->Ops->StateSet (Vcpu, HV_STATE_CR2, &State);
  HvCoreRaiseWithCode (Vcpu, HV_VECTOR_PF, Fault->ErrorCode);
}

RETURN_STATUS
EFIAPI
HvCoreReadGuest (
  IN  VOID    *Context,
  IN  UINT64  Gpa,
  OUT VOID    *Buffer,
  IN  UINTN   Size
  )
{
  CONST HV_HOST  *Host;
  UINT32         Index;

  Host = Context;
  if (HvCoreIsHostMemory (Host, Gpa)) {
    SetMem (Buffer, Size, 0xFF);
    return RETURN_SUCCESS;
  }

  // Only memory: a read of a device register may do something.
  for (Index = 0; Index < Host->RamCount; Index++) {
    if ((Gpa >= Host->Ram[Index].Base) && (Gpa < Host->Ram[Index].End)) {
      CopyMem (Buffer, (VOID *)(UINTN)Gpa, Size);
      return RETURN_SUCCESS;
    }
  }

  return RETURN_DEVICE_ERROR;
}

STATIC
VOID
LogDecodeFailure (
  IN HV_CPU       *Cpu,
  IN HV_VCPU      *Vcpu,
  IN CONST UINT8  *Bytes,
  IN UINTN        Count,
  IN CONST CHAR8  *Reason
  )
{
  UINT64  Text;
  UINTN   Index;

  Text = 0;
  for (Index = 0; (Index < Count) && (Index < sizeof (Text)); Index++) {
    Text = LShiftU64 (Text, 8) | Bytes[Index];
  }

  HV_LOG_GUEST (Cpu, DecodeFailed, Vcpu->Regs.Rip, Text, HV_STR (Reason));
}

BOOLEAN
HvCoreDecode (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit,
  OUT    HV_INSN  *Insn
  )
{
  STATIC CONST CHAR8  *CONST  Reasons[HvDecodeReasonMax] = {
    [HvDecodeOk]         = "ok",
    [HvDecodeShort]      = "short",
    [HvDecodeTooLong]    = "longer than 15 bytes",
    [HvDecodeUnknown]    = "unknown instruction",
    [HvDecodeBadLock]    = "bad LOCK",
    [HvDecodeBadMode]    = "not in this mode",
    [HvDecodeBadOperand] = "bad operand",
  };
  HV_VCPU_STATE               State;
  HV_GUEST_PAGING             Paging;
  HV_PAGE_FAULT               Fault;
  UINT8                       Bytes[HV_INSTRUCTION_MAX];
  UINTN                       Count;
  UINT64                      Linear;
  UINT8                       Mode;
  RETURN_STATUS               Status;

  Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_CONTROL | HV_STATE_SEGMENTS | HV_STATE_PDPTE, &State);
  Mode   = 16;
  Linear = (UINT32)(State.Segment[HvSegmentCs].Base + Vcpu->Regs.Rip);
  if (((State.Efer & HV_EFER_LMA) != 0) && ((State.Segment[HvSegmentCs].Attributes & HV_SEGMENT_LONG) != 0)) {
    Mode   = 64;
    Linear = Vcpu->Regs.Rip;
  } else if ((State.Segment[HvSegmentCs].Attributes & HV_SEGMENT_DB) != 0) {
    Mode = 32;
  }

  ZeroMem (&Fault, sizeof (Fault));
  Count = Exit->FetchedCount;
  if (Count > 0) {
    CopyMem (Bytes, Exit->Fetched, Count);
  } else {
    ZeroMem (&Paging, sizeof (Paging));
    Paging.Cr0         = State.Cr0;
    Paging.Cr3         = State.Cr3;
    Paging.Cr4         = State.Cr4;
    Paging.Efer        = State.Efer;
    Paging.Rflags      = Vcpu->Regs.Rflags;
    Paging.Cpl         = State.Cpl;
    Paging.AddressBits = Cpu->Host->AddressBits;
    Paging.Page1G      = TRUE;
    Paging.PdpteLoaded = State.PdpteLoaded;
    CopyMem (Paging.Pdpte, State.Pdpte, sizeof (Paging.Pdpte));
    Status             = HvGuestFetch (&Paging, Linear, HvCoreReadGuest, Cpu->Host, Bytes, &Count, &Fault);
    if (Status == RETURN_ACCESS_DENIED) {
      RaisePageFault (Vcpu, &Fault);
      return FALSE;
    }

    if (RETURN_ERROR (Status)) {
      LogDecodeFailure (Cpu, Vcpu, NULL, 0, "the instruction cannot be read");
      HvCoreRaise (Vcpu, HV_VECTOR_GP);
      return FALSE;
    }
  }

  Status = HvDecode (Bytes, Count, Mode, Insn);
  if ((Status == RETURN_BUFFER_TOO_SMALL) && (Fault.Cr2 != 0)) {
    RaisePageFault (Vcpu, &Fault);
    return FALSE;
  }

  if (RETURN_ERROR (Status)) {
    LogDecodeFailure (Cpu, Vcpu, Bytes, Count, Reasons[Insn->Reason]);
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return FALSE;
  }

  return TRUE;
}

VOID
HvCoreRetire (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit,
  IN     UINT8    Length
  )
{
  CONST HV_BACKEND_OPS  *Ops;
  HV_VCPU_STATE         State;
  HV_INSN               Insn;

  Ops = Cpu->Host->Ops;
  if (Exit->NextRip != 0) {
    Vcpu->Regs.Rip = Exit->NextRip;
  } else {
    if (Length == 0) {
      if (!HvCoreDecode (Cpu, Vcpu, Exit, &Insn)) {
        return;
      }

      Length = Insn.Length;
    }

    Vcpu->Regs.Rip += Length;
  }

  Vcpu->Regs.Rflags &= ~(UINT64)HV_RFLAGS_RF;
  Ops->StateGet (Vcpu, HV_STATE_EVENTS, &State);
  if (State.InterruptShadow) {
    State.InterruptShadow = FALSE;
    Ops->StateSet (Vcpu, HV_STATE_EVENTS, &State);
  }

  if (((Vcpu->Regs.Rflags & HV_RFLAGS_TF) != 0) && (!Vcpu->NmiStepping || Vcpu->StepGuestTf)) {
    Ops->StepTrap (Vcpu);
  }
}

STATIC
VOID
SetLogicFlags (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT64   Value,
  IN     UINT8    Size
  )
{
  UINT64  Flags;
  UINT8   Low;

  Low   = (UINT8)Value;
  Low  ^= Low >> 4;
  Low  ^= Low >> 2;
  Low  ^= Low >> 1;
  Flags = Vcpu->Regs.Rflags & ~(HV_RFLAGS_CF | HV_RFLAGS_OF | HV_RFLAGS_SF | HV_RFLAGS_ZF | HV_RFLAGS_PF);
  if ((Low & 1) == 0) {
    Flags |= HV_RFLAGS_PF;
  }

  if (Value == 0) {
    Flags |= HV_RFLAGS_ZF;
  }

  if ((Value & LShiftU64 (1, Size * 8 - 1)) != 0) {
    Flags |= HV_RFLAGS_SF;
  }

  Vcpu->Regs.Rflags = Flags;
}

BOOLEAN
HvCoreStore (
  IN OUT HV_VCPU        *Vcpu,
  IN     CONST HV_INSN  *Insn,
  IN     UINT64         Old,
  OUT    UINT64         *Value
  )
{
  UINT64  *Gpr;
  UINT64  Operand;
  UINT64  Mask;

  Gpr     = Vcpu->Regs.Index;
  Mask    = MAX_UINT64 >> (64 - Insn->OperandSize * 8);
  Operand = Insn->HasImmediate ? Insn->Immediate
                               : HvInsnReadRegister (Gpr, Insn->Reg, Insn->RegHigh, Insn->OperandSize);
  Operand &= Mask;
  Old     &= Mask;

  if (!Insn->HasMemory || ((Insn->Form != HvFormRmReg) && (Insn->Form != HvFormRmImm))) {
    return FALSE;
  }

  switch (Insn->Op) {
    case HvOpMovStoreReg:
    case HvOpMovStoreImm:
      *Value = Operand;
      return TRUE;
    case HvOpXchg:
      HvInsnWriteRegister (Gpr, Insn->Reg, Insn->RegHigh, Insn->OperandSize, Old);
      *Value = Operand;
      return TRUE;
    case HvOpOr:
      *Value = Old | Operand;
      break;
    case HvOpAnd:
      *Value = Old & Operand;
      break;
    case HvOpXor:
      *Value = Old ^ Operand;
      break;
    default:
      return FALSE;
  }

  SetLogicFlags (Vcpu, *Value, Insn->OperandSize);
  return TRUE;
}
