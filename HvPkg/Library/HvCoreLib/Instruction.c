/** @file
  The guest's instruction at RIP: fetch, decode, carry out, retire.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

VOID
HvCoreRaisePageFault (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT32   ErrorCode,
  IN     UINT64   Cr2
  )
{
  HV_VCPU_STATE  State;

  State.Cr2 = Cr2;
  Vcpu->Cpu->Host->Ops->StateSet (Vcpu, HV_STATE_CR2, &State);
  HvCoreRaiseWithCode (Vcpu, HV_VECTOR_PF, ErrorCode);
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

  Host = Context;
  if (HvCoreIsHostMemory (Host, Gpa)) {
    SetMem (Buffer, Size, 0xFF);
    return RETURN_SUCCESS;
  }

  // Only memory: a read of a device register may do something.
  if (!HvCoreIsRam (Host, Gpa)) {
    return RETURN_DEVICE_ERROR;
  }

  CopyMem (Buffer, (VOID *)(UINTN)Gpa, Size);
  return RETURN_SUCCESS;
}

VOID
HvCoreGuestPaging (
  IN  CONST HV_VCPU        *Vcpu,
  IN  CONST HV_VCPU_STATE  *State,
  OUT HV_GUEST_PAGING      *Paging
  )
{
  ZeroMem (Paging, sizeof (*Paging));
  Paging->Cr0         = State->Cr0;
  Paging->Cr3         = State->Cr3;
  Paging->Cr4         = State->Cr4;
  Paging->Efer        = State->Efer;
  Paging->Rflags      = Vcpu->Regs.Rflags;
  Paging->Cpl         = State->Cpl;
  Paging->AddressBits = Vcpu->Cpu->Host->AddressBits;
  Paging->Page1G      = TRUE;
  Paging->PdpteLoaded = State->PdpteLoaded;
  CopyMem (Paging->Pdpte, State->Pdpte, sizeof (Paging->Pdpte));
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

///
/// What reads the guest's memory for a fetch, and notes what it read: the entries of its tables, then the code.
///
typedef struct {
  HV_HOST          *Host;
  UINTN            Entries;
  BOOLEAN          Keep;    ///< all of it is in Known
  HV_KNOWN_INSN    Known;
} FETCH;

STATIC
RETURN_STATUS
EFIAPI
FetchRead (
  IN  VOID    *Context,
  IN  UINT64  Gpa,
  OUT VOID    *Buffer,
  IN  UINTN   Size
  )
{
  FETCH          *Fetch;
  HV_KNOWN_INSN  *Known;
  RETURN_STATUS  Status;

  Fetch  = Context;
  Known  = &Fetch->Known;
  Status = HvCoreReadGuest (Fetch->Host, Gpa, Buffer, Size);
  if (RETURN_ERROR (Status) || HvCoreIsHostMemory (Fetch->Host, Gpa)) {
    Fetch->Keep = FALSE;
  } else if ((Size == sizeof (UINT64)) && (Fetch->Entries < HV_KNOWN_ENTRIES)) {
    Known->Entry[Fetch->Entries] = (CONST VOID *)(UINTN)Gpa;
    CopyMem (&Known->EntryValue[Fetch->Entries], Buffer, sizeof (UINT64));
    Fetch->Entries++;
  } else if (Size == HV_INSTRUCTION_MAX) {
    Known->Code  = (CONST VOID *)(UINTN)Gpa;
    CopyMem (&Known->Bytes, Buffer, sizeof (Known->Bytes));
  } else {
    Fetch->Keep = FALSE; // a fifth level, entries of 4 bytes, or code on two pages
  }

  return Status;
}

///
/// Fetches the bytes at RIP. FALSE: the exit is dealt with.
///
STATIC
BOOLEAN
FetchBytes (
  IN OUT HV_CPU               *Cpu,
  IN OUT HV_VCPU              *Vcpu,
  IN     CONST HV_VCPU_STATE  *State,
  IN     UINT64               Linear,
  IN OUT FETCH                *Fetch,
  OUT    UINT8                *Bytes,
  OUT    UINTN                *Count,
  OUT    HV_PAGE_FAULT        *Fault
  )
{
  HV_GUEST_PAGING  Paging;
  RETURN_STATUS    Status;

  HvCoreGuestPaging (Vcpu, State, &Paging);
  Status = HvGuestFetch (&Paging, Linear, FetchRead, Fetch, Bytes, Count, Fault);
  if (Status == RETURN_ACCESS_DENIED) {
    // Another processor may have changed the tables since.
    HvCoreRaisePageFault (Vcpu, Fault->ErrorCode, Fault->Cr2);
    return FALSE;
  }

  if (RETURN_ERROR (Status)) {
    LogDecodeFailure (Cpu, Vcpu, NULL, 0, "the instruction cannot be read");
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return FALSE;
  }

  return TRUE;
}

///
/// Notes what a fetch of the bytes reads that the processor gave by itself: without it the instruction could not be
/// remembered (a store to the xAPIC page comes again and again).
///
STATIC
VOID
NoteFetch (
  IN     HV_VCPU              *Vcpu,
  IN     CONST HV_VCPU_STATE  *State,
  IN     UINT64               Linear,
  IN     CONST UINT8          *Bytes,
  IN     UINTN                Count,
  IN OUT FETCH                *Fetch
  )
{
  HV_GUEST_PAGING  Paging;
  HV_PAGE_FAULT    Fault;
  UINT8            Read[HV_INSTRUCTION_MAX];
  UINTN            ReadCount;
  RETURN_STATUS    Status;

  HvCoreGuestPaging (Vcpu, State, &Paging);
  Status      = HvGuestFetch (&Paging, Linear, FetchRead, Fetch, Read, &ReadCount, &Fault);
  Fetch->Keep = (BOOLEAN)(Fetch->Keep && !RETURN_ERROR (Status) && (ReadCount >= Count) &&
                          (CompareMem (Read, Bytes, Count) == 0));
}

///
/// Remembers the instruction that was just decoded for HvCoreKnownInsn, where that can tell whether it is still there:
/// 64-bit code, few bytes, not more tables than there is room for, a code segment that says the privilege level.
///
STATIC
VOID
Remember (
  IN OUT HV_VCPU              *Vcpu,
  IN     CONST HV_VCPU_STATE  *State,
  IN OUT FETCH                *Fetch
  )
{
  HV_KNOWN_INSN  *Known;
  UINT16         CsAttributes;

  CsAttributes = State->Segment[HvSegmentCs].Attributes;
  if (!Fetch->Keep || (Fetch->Entries == 0) || (Fetch->Known.Code == NULL) || (Vcpu->Insn.Mode != 64) ||
      (Vcpu->Insn.Length > HV_KNOWN_BYTES) || ((CsAttributes & HV_SEGMENT_CONFORMING) != 0))
  {
    return;
  }

  Known = &Vcpu->Known[Vcpu->Regs.Rip % HV_KNOWN_INSNS];
  CopyMem (Known, &Fetch->Known, sizeof (*Known));
  Known->Rip          = Vcpu->Regs.Rip;
  Known->Cr3          = State->Cr3;
  Known->Cr4          = State->Cr4;
  Known->Efer         = State->Efer | HV_EFER_SVME;
  Known->CsAttributes = CsAttributes;
  Known->Mask         = MAX_UINT64 >> (64 - 8 * Vcpu->Insn.Length);
  CopyMem (&Known->Insn, &Vcpu->Insn, sizeof (Known->Insn));
  for ( ; Fetch->Entries < HV_KNOWN_ENTRIES; Fetch->Entries++) {
    Known->Entry[Fetch->Entries] = &Known->EntryValue[Fetch->Entries];
  }
}

CONST HV_INSN *
HvCoreDecode (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
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
  HV_PAGE_FAULT               Fault;
  FETCH                       Fetch;
  CONST HV_INSN               *Known;
  UINT8                       Bytes[HV_INSTRUCTION_MAX];
  UINTN                       Count;
  UINT64                      Linear;
  UINT8                       Mode;
  RETURN_STATUS               Status;

  Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_CONTROL | HV_STATE_CODE | HV_STATE_PDPTE, &State);
  Known = HvCoreKnownInsn (
            Vcpu,
            Vcpu->Regs.Rip,
            State.Cr3,
            State.Cr4,
            State.Efer | HV_EFER_SVME,
            State.Segment[HvSegmentCs].Attributes
            );
  if (Known != NULL) {
    return Known;
  }

  Mode   = 16;
  Linear = (UINT32)(State.Segment[HvSegmentCs].Base + Vcpu->Regs.Rip);
  if (((State.Efer & HV_EFER_LMA) != 0) && ((State.Segment[HvSegmentCs].Attributes & HV_SEGMENT_LONG) != 0)) {
    Mode   = 64;
    Linear = Vcpu->Regs.Rip;
  } else if ((State.Segment[HvSegmentCs].Attributes & HV_SEGMENT_DB) != 0) {
    Mode = 32;
  }

  ZeroMem (&Fault, sizeof (Fault));
  Fetch.Host       = Cpu->Host;
  Fetch.Keep       = TRUE;
  Fetch.Entries    = 0;
  Fetch.Known.Code = NULL;
  Count            = Exit->FetchedCount;
  if (Count > 0) {
    CopyMem (Bytes, Exit->Fetched, Count);
    NoteFetch (Vcpu, &State, Linear, Bytes, Count, &Fetch);
  } else if (!FetchBytes (Cpu, Vcpu, &State, Linear, &Fetch, Bytes, &Count, &Fault)) {
    return NULL;
  }

  Status = HvDecode (Bytes, Count, Mode, &Vcpu->Insn);
  if (!RETURN_ERROR (Status)) {
    Remember (Vcpu, &State, &Fetch);
    return &Vcpu->Insn;
  }

  if ((Status == RETURN_BUFFER_TOO_SMALL) && (Fault.Cr2 != 0)) {
    HvCoreRaisePageFault (Vcpu, Fault.ErrorCode, Fault.Cr2);
  } else {
    LogDecodeFailure (Cpu, Vcpu, Bytes, Count, Reasons[Vcpu->Insn.Reason]);
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
  }

  return NULL;
}

VOID
HvCoreRetire (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit,
  IN     UINT8    Length
  )
{
  CONST HV_INSN  *Insn;
  HV_VCPU_STATE  State;
  UINT64         Next;

  Next = Exit->NextRip;
  if (Next == 0) {
    if (Length == 0) {
      Insn = HvCoreDecode (Cpu, Vcpu, Exit);
      if (Insn == NULL) {
        return;
      }

      Length = Insn->Length;
    }

    Next = Vcpu->Regs.Rip + Length;
  }

  if (RShiftU64 (Next ^ Vcpu->Regs.Rip, 32) != 0) {
    // Outside of 64-bit code EIP wraps, and no entry takes more (SDM 27.3.1.4).
    Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_CONTROL | HV_STATE_CODE, &State);
    if (((State.Efer & HV_EFER_LMA) == 0) || ((State.Segment[HvSegmentCs].Attributes & HV_SEGMENT_LONG) == 0)) {
      Next = (UINT32)Next;
    }
  }

  Vcpu->Regs.Rip = Next;
  HvCoreRetireInPlace (Vcpu);
}

VOID
HvCoreRetireInPlace (
  IN OUT HV_VCPU  *Vcpu
  )
{
  CONST HV_BACKEND_OPS  *Ops;
  HV_VCPU_STATE         State;

  Ops                = Vcpu->Cpu->Host->Ops;
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
