/** @file
  Task switches, which the processor leaves to the host under VMX (SDM volume 3, 26.4.2). It has checked the gate, the
  privilege and the descriptor of the new TSS before the exit.

  SDM volume 3, 8.3 says what is saved, loaded and checked, and which exceptions are the old and which the new task's.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define TSS_LINK        0x00
#define TSS_IMAGE_MAX   104
#define TSS_TYPE_32     BIT3 // of the descriptor's type
#define TSS_TYPE_BUSY   BIT1
#define TSS_TRAP        0x64 // the word whose bit 0 is the T flag, of a 32-bit TSS

#define TYPE_MASK       0x0F
#define TYPE_SYSTEM     0x10 // clear: a system descriptor
#define TYPE_LDT        0x02
#define TYPE_CODE       BIT3
#define TYPE_CONFORMING BIT2 // of code
#define TYPE_DOWN       BIT2 // of data: expands down
#define TYPE_WRITE      BIT1 // of data: writable, of code: readable
#define TYPE_ACCESSED   BIT0
#define RIGHTS_BYTE     5    // of a descriptor

#define SELECTOR_LDT    BIT2
#define SELECTOR_RPL    3
#define DPL(Segment)    ((UINT8)((Segment)->Attributes >> 5 & 3))

#define DR7_LOCAL       0x155 // L0 to L3 and LE (SDM volume 3, 18.2.4)

#define EFLAGS_DEFINED  (HV_RFLAGS_CF | HV_RFLAGS_PF | HV_RFLAGS_AF | HV_RFLAGS_ZF | HV_RFLAGS_SF | HV_RFLAGS_TF | \
                         HV_RFLAGS_IF | HV_RFLAGS_DF | HV_RFLAGS_OF | HV_RFLAGS_IOPL_MASK | HV_RFLAGS_NT | HV_RFLAGS_RF | \
                         HV_RFLAGS_VM | HV_RFLAGS_AC | HV_RFLAGS_VIF | HV_RFLAGS_VIP | HV_RFLAGS_ID)

///
/// Where a TSS has its fields (SDM volume 3, figures 8-2 and 8-10). The registers are in the order of HV_REGS, the
/// selectors in that of HV_SEGMENT_NAME. What a switch saves is from Ip to the last selector.
///
typedef struct {
  UINT8    Bytes;
  UINT8    Width; ///< of a register
  UINT8    Cr3;   ///< 0: none
  UINT8    Ip;
  UINT8    Flags;
  UINT8    Registers;
  UINT8    Selectors;
  UINT8    SelectorCount;
  UINT8    Ldt;
} TSS_LAYOUT;

STATIC CONST TSS_LAYOUT  mTss16 = { 44, 2, 0, 0x0E, 0x10, 0x12, 0x22, 4, 0x2A };
STATIC CONST TSS_LAYOUT  mTss32 = { TSS_IMAGE_MAX, 4, 0x1C, 0x20, 0x24, 0x28, 0x48, 6, 0x60 };

///
/// A switch that goes on, and the exception that ends it.
///
typedef struct {
  HV_CPU             *Cpu;
  HV_VCPU            *Vcpu;
  HV_VCPU_STATE      State;
  HV_GUEST_PAGING    Paging;
  UINT8              Vector;
  UINT32             ErrorCode;
} TASK;

STATIC
BOOLEAN
Fail (
  IN OUT TASK    *Task,
  IN     UINT8   Vector,
  IN     UINT32  ErrorCode
  )
{
  Task->Vector    = Vector;
  Task->ErrorCode = ErrorCode;
  return FALSE;
}

///
/// Writes guest memory by its physical address, within a page. What is no memory of the guest's stays as it is.
///
STATIC
VOID
WriteGuest (
  IN CONST HV_HOST  *Host,
  IN UINT64         Gpa,
  IN CONST VOID     *Buffer,
  IN UINTN          Size
  )
{
  if (HvCoreIsRam (Host, Gpa) && !HvCoreIsHostMemory (Host, Gpa)) {
    CopyMem ((VOID *)(UINTN)Gpa, Buffer, Size);
  }
}

///
/// Reads (Access without HV_ACCESS_WRITE), writes, or, without a buffer, only tries.
///
STATIC
BOOLEAN
Touch (
  IN OUT TASK       *Task,
  IN     UINT32     Linear,
  IN OUT VOID       *Buffer  OPTIONAL,
  IN     UINTN      Size,
  IN     HV_ACCESS  Access
  )
{
  HV_HOST        *Host;
  HV_PAGE_FAULT  Fault;
  RETURN_STATUS  Status;
  UINT64         Gpa;
  UINTN          Part;
  UINT8          *Byte;

  Host = Task->Cpu->Host;
  Byte = Buffer;
  for ( ; Size > 0; Size -= Part, Linear += (UINT32)Part) {
    Part   = MIN (Size, EFI_PAGE_SIZE - (Linear & EFI_PAGE_MASK));
    Status = HvGuestWalk (&Task->Paging, Linear, Access, HvCoreReadGuest, Host, &Gpa, &Fault);
    if (Status == RETURN_ACCESS_DENIED) {
      Task->State.Cr2 = Fault.Cr2;
      return Fail (Task, HV_VECTOR_PF, Fault.ErrorCode);
    }

    if (!RETURN_ERROR (Status) && (Byte != NULL)) {
      if ((Access & HV_ACCESS_WRITE) != 0) {
        WriteGuest (Host, Gpa, Byte, Part);
      } else {
        Status = HvCoreReadGuest (Host, Gpa, Byte, Part);
      }

      Byte += Part;
    }

    if (RETURN_ERROR (Status)) {
      return Fail (Task, HV_VECTOR_GP, 0); // no memory: a processor would read whatever the bus says
    }
  }

  return TRUE;
}

STATIC
BOOLEAN
Get (
  IN OUT TASK    *Task,
  IN     UINT32  Linear,
  OUT    VOID    *Buffer,
  IN     UINTN   Size
  )
{
  return Touch (Task, Linear, Buffer, Size, HV_ACCESS_READ | HV_ACCESS_SYSTEM);
}

STATIC
BOOLEAN
Put (
  IN OUT TASK    *Task,
  IN     UINT32  Linear,
  IN     VOID    *Buffer,
  IN     UINTN   Size
  )
{
  return Touch (Task, Linear, Buffer, Size, HV_ACCESS_WRITE | HV_ACCESS_SYSTEM);
}

STATIC
UINT32
Field (
  IN CONST UINT8  *Image,
  IN UINTN        Offset,
  IN UINTN        Width
  )
{
  UINT32  Value;

  Value = 0;
  CopyMem (&Value, Image + Offset, Width);
  return Value;
}

///
/// Reads the descriptor of a selector; Vector is the exception where its table has none.
///
STATIC
BOOLEAN
GetDescriptor (
  IN OUT TASK        *Task,
  IN     UINT16      Selector,
  IN     UINT8       Vector,
  OUT    HV_SEGMENT  *Segment,
  OUT    UINT32      *Linear
  )
{
  CONST HV_SEGMENT  *Ldt;
  UINT64            Base;
  UINT32            Limit;
  UINT32            Word[2];

  Base  = Task->State.GdtBase;
  Limit = Task->State.GdtLimit;
  if ((Selector & SELECTOR_LDT) != 0) {
    Ldt   = &Task->State.Segment[HvSegmentLdtr];
    Base  = Ldt->Base;
    Limit = Ldt->Limit;
    if ((Ldt->Attributes & HV_SEGMENT_PRESENT) == 0) {
      return Fail (Task, Vector, Selector & ~SELECTOR_RPL);
    }
  }

  if ((UINT32)(Selector | 7) > Limit) {
    return Fail (Task, Vector, Selector & ~SELECTOR_RPL);
  }

  *Linear = (UINT32)Base + (Selector & ~7U);
  if (!Get (Task, *Linear, Word, sizeof (Word))) {
    return FALSE;
  }

  Segment->Selector   = Selector;
  Segment->Base       = (Word[0] >> 16) | ((Word[1] & 0xFF) << 16) | (Word[1] & 0xFF000000);
  Segment->Attributes = (UINT16)((Word[1] >> 8 & 0xFF) | (Word[1] >> 12 & 0xF00));
  Segment->Limit      = (Word[0] & 0xFFFF) | (Word[1] & 0xF0000);
  if ((Word[1] & BIT23) != 0) {
    Segment->Limit = (Segment->Limit << 12) | 0xFFF;
  }

  return TRUE;
}

STATIC
BOOLEAN
SetRights (
  IN OUT TASK        *Task,
  IN     UINT32      Descriptor,
  IN     CONST HV_SEGMENT  *Segment
  )
{
  UINT8  Rights;

  Rights = (UINT8)Segment->Attributes;
  return Put (Task, Descriptor + RIGHTS_BYTE, &Rights, sizeof (Rights));
}

///
/// What the old task has to have where the switch finds it again.
///
STATIC
VOID
SaveImage (
  IN  CONST TASK        *Task,
  IN  CONST HV_EXIT     *Exit,
  IN  CONST TSS_LAYOUT  *Layout,
  OUT UINT8             *Image
  )
{
  UINT32  Flags;
  UINT32  Rip;
  UINT32  Selector;
  UINTN   Index;

  Rip   = (UINT32)Exit->NextRip;
  Flags = (UINT32)Task->Vcpu->Regs.Rflags;
  if (Exit->TaskSource == HvTaskIret) {
    Flags &= ~(UINT32)HV_RFLAGS_NT;
  }

  CopyMem (Image + Layout->Ip, &Rip, Layout->Width);
  CopyMem (Image + Layout->Flags, &Flags, Layout->Width);
  for (Index = 0; Index < 8; Index++) {
    CopyMem (Image + Layout->Registers + Index * Layout->Width, &Task->Vcpu->Regs.Index[Index], Layout->Width);
  }

  for (Index = 0; Index < Layout->SelectorCount; Index++) {
    Selector = Task->State.Segment[Index].Selector;
    CopyMem (Image + Layout->Selectors + Index * Layout->Width, &Selector, Layout->Width);
  }
}

///
/// All that is still the old task's: nothing has changed when it fails.
///
STATIC
BOOLEAN
LeaveTask (
  IN OUT TASK              *Task,
  IN     CONST HV_EXIT     *Exit,
  OUT    HV_SEGMENT        *Tss,
  OUT    UINT8             *Image
  )
{
  CONST TSS_LAYOUT  *OldLayout;
  CONST TSS_LAYOUT  *Layout;
  HV_SEGMENT        *Old;
  UINT8             OldImage[TSS_IMAGE_MAX];
  UINT32            OldLinear;
  UINT32            Linear;
  UINT16            Link;
  UINTN             Saved;
  BOOLEAN           Nests;
  BOOLEAN           Busy;

  Old       = &Task->State.Segment[HvSegmentTr];
  OldLayout = ((Old->Attributes & TSS_TYPE_32) != 0) ? &mTss32 : &mTss16;
  Nests     = (BOOLEAN)((Exit->TaskSource == HvTaskCall) || (Exit->TaskSource == HvTaskGate));
  if (!GetDescriptor (Task, Exit->TaskSelector, HV_VECTOR_TS, Tss, &Linear)) {
    return FALSE;
  }

  // The processor has just checked it; another one may have changed it since.
  Busy = (BOOLEAN)((Tss->Attributes & TSS_TYPE_BUSY) != 0);
  if (((Tss->Attributes & (TYPE_SYSTEM | TYPE_MASK) & ~(TSS_TYPE_32 | TSS_TYPE_BUSY)) != 1) ||
      (Busy != (Exit->TaskSource == HvTaskIret)) || ((Tss->Attributes & HV_SEGMENT_PRESENT) == 0))
  {
    return Fail (Task, HV_VECTOR_TS, Exit->TaskSelector & ~SELECTOR_RPL);
  }

  Layout = ((Tss->Attributes & TSS_TYPE_32) != 0) ? &mTss32 : &mTss16;
  Saved  = OldLayout->Selectors + OldLayout->SelectorCount * OldLayout->Width - OldLayout->Ip;
  if (Tss->Limit < Layout->Bytes - 1U) {
    return Fail (Task, HV_VECTOR_TS, Exit->TaskSelector & ~SELECTOR_RPL);
  }

  if (Old->Limit < OldLayout->Bytes - 1U) {
    return Fail (Task, HV_VECTOR_TS, Old->Selector & ~SELECTOR_RPL);
  }

  OldLinear = (UINT32)Task->State.GdtBase + (Old->Selector & ~7U);
  if (!Get (Task, (UINT32)Tss->Base, Image, Layout->Bytes) ||
      !Touch (Task, (UINT32)Tss->Base, NULL, sizeof (Link), HV_ACCESS_WRITE | HV_ACCESS_SYSTEM) ||
      !Touch (Task, (UINT32)Old->Base + OldLayout->Ip, NULL, Saved, HV_ACCESS_WRITE | HV_ACCESS_SYSTEM) ||
      !Touch (Task, OldLinear, NULL, sizeof (UINT64), HV_ACCESS_WRITE | HV_ACCESS_SYSTEM) ||
      !Touch (Task, Linear, NULL, sizeof (UINT64), HV_ACCESS_WRITE | HV_ACCESS_SYSTEM))
  {
    return FALSE;
  }

  SaveImage (Task, Exit, OldLayout, OldImage);
  Put (Task, (UINT32)Old->Base + OldLayout->Ip, OldImage + OldLayout->Ip, Saved);
  if (!Nests) {
    Old->Attributes &= ~(UINT16)TSS_TYPE_BUSY;
    SetRights (Task, OldLinear, Old);
  }

  if (Nests) {
    Link = Old->Selector;
    Put (Task, (UINT32)Tss->Base + TSS_LINK, &Link, sizeof (Link));
  }

  Tss->Attributes |= TSS_TYPE_BUSY;
  return SetRights (Task, Linear, Tss);
}

///
/// The registers of the new task. The hidden parts of its segments come later: CS and SS keep theirs, the others have none.
///
STATIC
BOOLEAN
TakeRegisters (
  IN OUT TASK              *Task,
  IN     CONST HV_EXIT     *Exit,
  IN     CONST TSS_LAYOUT  *Layout,
  IN     CONST UINT8       *Image
  )
{
  HV_VCPU_STATE  *State;
  UINT64         Flags;
  UINT64         OldCr3;
  UINTN          Index;

  State       = &Task->State;
  State->Cr0 |= HV_CR0_TS;
  State->Dr7 &= ~(UINT64)DR7_LOCAL;

  Flags = (Field (Image, Layout->Flags, Layout->Width) & EFLAGS_DEFINED) | HV_RFLAGS_ONE;
  if ((Exit->TaskSource == HvTaskCall) || (Exit->TaskSource == HvTaskGate)) {
    Flags |= HV_RFLAGS_NT;
  }

  if ((Task->Vcpu->Regs.Rflags & HV_RFLAGS_VM) != 0) {
    // What CS keeps until it is loaded has to be a code segment outside of virtual 8086 mode (SDM 27.3.1.2).
    State->Segment[HvSegmentCs].Attributes |= TYPE_CODE;
  }

  Task->Vcpu->Regs.Rflags = Flags;
  Task->Vcpu->Regs.Rip    = Field (Image, Layout->Ip, Layout->Width);
  for (Index = 0; Index < 8; Index++) {
    Task->Vcpu->Regs.Index[Index] = Field (Image, Layout->Registers + Index * Layout->Width, Layout->Width);
  }

  for (Index = 0; Index < HvSegmentLdtr; Index++) {
    State->Segment[Index].Selector = 0;
    if (Index < Layout->SelectorCount) {
      State->Segment[Index].Selector = (UINT16)Field (Image, Layout->Selectors + Index * Layout->Width, sizeof (UINT16));
    }

    if ((Index != HvSegmentCs) && (Index != HvSegmentSs)) {
      State->Segment[Index].Attributes = 0;
    }
  }

  State->Segment[HvSegmentLdtr].Selector   = (UINT16)Field (Image, Layout->Ldt, sizeof (UINT16));
  State->Segment[HvSegmentLdtr].Attributes = 0;

  if ((Layout->Cr3 != 0) && ((State->Cr0 & HV_CR0_PG) != 0)) {
    OldCr3     = State->Cr3;
    State->Cr3 = Field (Image, Layout->Cr3, sizeof (UINT32));
    if (((State->Cr4 & HV_CR4_PAE) != 0) && !HvCoreLoadPdptes (Task->Cpu, State)) {
      State->Cr3 = OldCr3;
      Task->Cpu->Host->Ops->StateGet (Task->Vcpu, HV_STATE_PDPTE, State);
      return Fail (Task, HV_VECTOR_GP, 0);
    }

    Task->Paging.Cr3 = State->Cr3;
    CopyMem (Task->Paging.Pdpte, State->Pdpte, sizeof (Task->Paging.Pdpte));
  }

  return TRUE;
}

STATIC
BOOLEAN
LoadLdtr (
  IN OUT TASK  *Task
  )
{
  HV_SEGMENT  Segment;
  UINT32      Linear;
  UINT16      Selector;

  Selector = Task->State.Segment[HvSegmentLdtr].Selector;
  if ((Selector & ~SELECTOR_RPL) == 0) {
    return TRUE;
  }

  if ((Selector & SELECTOR_LDT) != 0) {
    return Fail (Task, HV_VECTOR_TS, Selector & ~SELECTOR_RPL);
  }

  if (!GetDescriptor (Task, Selector, HV_VECTOR_TS, &Segment, &Linear)) {
    return FALSE;
  }

  if (((Segment.Attributes & (TYPE_SYSTEM | TYPE_MASK)) != TYPE_LDT) || ((Segment.Attributes & HV_SEGMENT_PRESENT) == 0)) {
    return Fail (Task, HV_VECTOR_TS, Selector & ~SELECTOR_RPL);
  }

  Task->State.Segment[HvSegmentLdtr] = Segment;
  return TRUE;
}

///
/// Whether the type and the privilege of a segment fit its register.
///
STATIC
BOOLEAN
Fits (
  IN UINTN             Index,
  IN CONST HV_SEGMENT  *Segment,
  IN UINT8             Cpl
  )
{
  UINT8    Rpl;
  BOOLEAN  Code;

  Rpl  = Segment->Selector & SELECTOR_RPL;
  Code = (BOOLEAN)((Segment->Attributes & TYPE_CODE) != 0);
  if ((Segment->Attributes & TYPE_SYSTEM) == 0) {
    return FALSE;
  }

  switch (Index) {
    case HvSegmentCs:
      return (BOOLEAN)(Code && (((Segment->Attributes & TYPE_CONFORMING) != 0) ? (DPL (Segment) <= Rpl)
                                                                                 : (DPL (Segment) == Rpl)));
    case HvSegmentSs:
      return (BOOLEAN)(!Code && ((Segment->Attributes & TYPE_WRITE) != 0) && (DPL (Segment) == Cpl) && (Rpl == Cpl));
    default:
      if (!Code) {
        return (BOOLEAN)(DPL (Segment) >= MAX (Rpl, Cpl));
      }

      return (BOOLEAN)(((Segment->Attributes & TYPE_WRITE) != 0) &&
                       (((Segment->Attributes & TYPE_CONFORMING) != 0) || (DPL (Segment) >= MAX (Rpl, Cpl))));
  }
}

STATIC
BOOLEAN
LoadSegment (
  IN OUT TASK   *Task,
  IN     UINTN  Index
  )
{
  HV_SEGMENT  Segment;
  UINT32      Linear;
  UINT16      Selector;

  Selector = Task->State.Segment[Index].Selector;
  if ((Selector & ~SELECTOR_RPL) == 0) {
    return ((Index != HvSegmentCs) && (Index != HvSegmentSs)) ? TRUE : Fail (Task, HV_VECTOR_TS, 0);
  }

  if (!GetDescriptor (Task, Selector, HV_VECTOR_TS, &Segment, &Linear)) {
    return FALSE;
  }

  if (!Fits (Index, &Segment, Task->State.Cpl)) {
    return Fail (Task, HV_VECTOR_TS, Selector & ~SELECTOR_RPL);
  }

  if ((Segment.Attributes & HV_SEGMENT_PRESENT) == 0) {
    return Fail (Task, (Index == HvSegmentSs) ? HV_VECTOR_SS : HV_VECTOR_NP, Selector & ~SELECTOR_RPL);
  }

  if ((Segment.Attributes & TYPE_ACCESSED) == 0) {
    Segment.Attributes |= TYPE_ACCESSED;
    if (!SetRights (Task, Linear, &Segment)) {
      return FALSE;
    }
  }

  Task->State.Segment[Index] = Segment;
  return TRUE;
}

STATIC
VOID
SetCpl (
  IN OUT TASK   *Task,
  IN     UINT8  Cpl
  )
{
  HV_SEGMENT  *Stack;

  // The hidden part of SS holds it (SDM 25.4.1), also while SS itself is not loaded yet.
  Stack              = &Task->State.Segment[HvSegmentSs];
  Stack->Attributes  = (UINT16)((Stack->Attributes & ~0x60) | Cpl << 5);
  Task->State.Cpl    = Cpl;
  Task->Paging.Cpl   = Cpl;
}

///
/// Virtual 8086 mode (SDM volume 3, 21.2.1, 27.3.1.2).
///
STATIC
VOID
LoadSegments86 (
  IN OUT TASK  *Task
  )
{
  HV_SEGMENT  *Segment;
  UINTN       Index;

  for (Index = HvSegmentEs; Index <= HvSegmentGs; Index++) {
    Segment             = &Task->State.Segment[Index];
    Segment->Base       = (UINT32)Segment->Selector << 4;
    Segment->Limit      = 0xFFFF;
    Segment->Attributes = 0xF3;
  }

  SetCpl (Task, 3);
}

STATIC
BOOLEAN
LoadSegments (
  IN OUT TASK  *Task
  )
{
  STATIC CONST UINT8  Order[] = { HvSegmentSs, HvSegmentDs, HvSegmentEs, HvSegmentFs, HvSegmentGs };
  UINTN               Index;

  if ((Task->Vcpu->Regs.Rflags & HV_RFLAGS_VM) != 0) {
    // First: whatever fails, an entry takes no other segments with EFLAGS.VM (SDM 27.3.1.2).
    LoadSegments86 (Task);
    return LoadLdtr (Task);
  }

  if (!LoadLdtr (Task) || !LoadSegment (Task, HvSegmentCs)) {
    return FALSE;
  }

  SetCpl (Task, Task->State.Segment[HvSegmentCs].Selector & SELECTOR_RPL);
  for (Index = 0; Index < ARRAY_SIZE (Order); Index++) {
    if (!LoadSegment (Task, Order[Index])) {
      return FALSE;
    }
  }

  return TRUE;
}

///
/// The error code of the exception that the task is to handle.
///
STATIC
BOOLEAN
PushErrorCode (
  IN OUT TASK    *Task,
  IN     UINT32  ErrorCode,
  IN     UINTN   Width
  )
{
  CONST HV_SEGMENT  *Stack;
  UINT64            *Rsp;
  UINT32            Mask;
  UINT32            Top;
  UINT32            Last;
  BOOLEAN           Inside;

  Stack = &Task->State.Segment[HvSegmentSs];
  Rsp   = &Task->Vcpu->Regs.Rsp;
  Mask  = ((Stack->Attributes & HV_SEGMENT_DB) != 0) ? MAX_UINT32 : MAX_UINT16;
  Top   = (UINT32)(*Rsp - Width) & Mask;
  Last  = Top + (UINT32)Width - 1;
  if ((Stack->Attributes & TYPE_DOWN) != 0) {
    Inside = (BOOLEAN)((Top > Stack->Limit) && (Last <= Mask) && (Last >= Top));
  } else {
    Inside = (BOOLEAN)((Last <= Stack->Limit) && (Last >= Top));
  }

  if (!Inside) {
    return Fail (Task, HV_VECTOR_SS, 0);
  }

  if (!Touch (Task, (UINT32)Stack->Base + Top, &ErrorCode, Width, HV_ACCESS_WRITE)) {
    return FALSE;
  }

  *Rsp = (*Rsp & ~(UINT64)Mask) | Top;
  return TRUE;
}

STATIC
VOID
Prepare (
  OUT TASK     *Task,
  IN  HV_CPU   *Cpu,
  IN  HV_VCPU  *Vcpu
  )
{
  ZeroMem (Task, sizeof (*Task));
  Task->Cpu  = Cpu;
  Task->Vcpu = Vcpu;
  Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_ALL | HV_STATE_PDPTE, &Task->State);
  HvCoreGuestPaging (Vcpu, &Task->State, &Task->Paging);
}

VOID
HvOnTaskSwitch (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  CONST HV_BACKEND_OPS  *Ops;
  CONST TSS_LAYOUT      *Layout;
  HV_EVENT              Event;
  HV_SEGMENT            Tss;
  TASK                  Task;
  UINT8                 Image[TSS_IMAGE_MAX];
  UINT32                Parts;
  BOOLEAN               Done;

  // An event that the switch is to deliver is queued: on a failure the two become what they are together.
  Ops        = Cpu->Host->Ops;
  Event.Type = HvEventNone;
  if (!Ops->EventQueued (Vcpu, &Event)) {
    Event.Type = HvEventNone;
  }

  Prepare (&Task, Cpu, Vcpu);
  if (!LeaveTask (&Task, Exit, &Tss, Image)) {
    Ops->StateSet (Vcpu, HV_STATE_CR2, &Task.State);
    HvCoreRaiseWithCode (Vcpu, Task.Vector, Task.ErrorCode);
    return;
  }

  Task.State.Segment[HvSegmentTr] = Tss;
  Task.State.InterruptShadow      = FALSE;
  if (Exit->TaskSource == HvTaskIret) {
    Task.State.NmiBlocked = FALSE;
  } else if (Event.Type == HvEventNmi) {
    Task.State.NmiBlocked = TRUE;
  }

  Layout = ((Tss.Attributes & TSS_TYPE_32) != 0) ? &mTss32 : &mTss16;
  Done   = (BOOLEAN)(TakeRegisters (&Task, Exit, Layout, Image) && LoadSegments (&Task));
  if (Done && (Event.Type == HvEventException) && Event.HasErrorCode) {
    Done = PushErrorCode (&Task, Event.ErrorCode, Layout->Width);
  }

  if (Done && (Vcpu->Regs.Rip > Task.State.Segment[HvSegmentCs].Limit)) {
    Done = Fail (&Task, HV_VECTOR_GP, 0);
  }

  if (Done && (Layout->Cr3 != 0) && ((Image[TSS_TRAP] & BIT0) != 0)) {
    // The one that comes behind the switch: a trap of the new task.
    Task.State.Dr6 |= HV_DR6_BT;
  }

  Parts = HV_STATE_SEGMENTS | HV_STATE_SYSTEM | HV_STATE_CONTROL | HV_STATE_CR2 | HV_STATE_DEBUG | HV_STATE_EVENTS;
  if (((Task.State.Cr0 & HV_CR0_PG) != 0) && ((Task.State.Cr4 & HV_CR4_PAE) != 0)) {
    Parts |= HV_STATE_PDPTE;
  }

  Ops->StateSet (Vcpu, Parts, &Task.State);
  if (!Done) {
    HvCoreRaiseWithCode (Vcpu, Task.Vector, Task.ErrorCode);
    return;
  }

  Event.Type = HvEventNone;
  Ops->Inject (Vcpu, &Event);
  if ((Layout->Cr3 != 0) && ((Image[TSS_TRAP] & BIT0) != 0)) {
    HvCoreRaise (Vcpu, HV_VECTOR_DB);
  }
}
