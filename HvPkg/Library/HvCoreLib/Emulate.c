/** @file
  Carries out what the guest's instruction does to memory that it may not write by itself.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

typedef struct {
  HV_CPU             *Cpu;
  HV_GUEST_PAGING    Paging;
  HV_APIC_STORE      *Store;
} MEMORY;

STATIC
BOOLEAN
IsApicPage (
  IN CONST HV_CPU  *Cpu,
  IN UINT64        Gpa
  )
{
  return (BOOLEAN)((Gpa & ~(UINT64)EFI_PAGE_MASK) == Cpu->Host->ApicPage);
}

BOOLEAN
HvCoreIsApicAccess (
  IN CONST HV_CPU  *Cpu,
  IN UINT32        Offset,
  IN UINTN         Size
  )
{
  // Registers have 32 bits, at multiples of 16 bytes, and must be accessed so; what another access does is undefined
  // (SDM volume 3, 10.4.1; APM2 16.3.2). In x2APIC mode the page is not the APIC's.
  return (BOOLEAN)(!Cpu->X2Apic && ((Offset & 0xF) == 0) && (Size == sizeof (UINT32)));
}

BOOLEAN
HvCoreIsWhole (
  IN CONST HV_VCPU  *Vcpu,
  IN CONST HV_EXIT  *Exit,
  IN CONST HV_INSN  *Insn
  )
{
  UINT32  Offset;

  Offset = (UINT32)(Exit->Gpa & EFI_PAGE_MASK);
  if (Offset != 0) {
    return (BOOLEAN)(Offset + Insn->OperandSize <= EFI_PAGE_SIZE);
  }

  // It may be the second half of an operand that begins on the page before.
  return (BOOLEAN)((Insn->Mode == 64) && (Insn->Memory.Segment < HV_SEGMENT_FS) &&
                   ((HvInsnOffset (Insn, &Insn->Memory, Vcpu->Regs.Index, Vcpu->Regs.Rip, 0) & EFI_PAGE_MASK) == 0));
}

STATIC
RETURN_STATUS
EFIAPI
Map (
  IN  VOID           *Context,
  IN  UINT64         Linear,
  IN  HV_ACCESS      Access,
  OUT UINT64         *Gpa,
  OUT HV_PAGE_FAULT  *Fault
  )
{
  MEMORY         *Memory;
  HV_HOST        *Host;
  RETURN_STATUS  Status;

  Memory = Context;
  Host   = Memory->Cpu->Host;
  Status = HvGuestWalk (&Memory->Paging, Linear, Access, HvCoreReadGuest, Host, Gpa, Fault);
  if (RETURN_ERROR (Status)) {
    return Status;
  }

  return (HvCoreIsHostMemory (Host, *Gpa) || IsApicPage (Memory->Cpu, *Gpa) || HvCoreIsRam (Host, *Gpa))
         ? RETURN_SUCCESS : RETURN_DEVICE_ERROR;
}

STATIC
VOID
EFIAPI
Read (
  IN     VOID    *Context,
  IN     UINT64  Gpa,
  IN OUT VOID    *Buffer,
  IN     UINTN   Size
  )
{
  MEMORY  *Memory;
  UINT32  Offset;
  UINT64  Value;

  Memory = Context;
  if (!IsApicPage (Memory->Cpu, Gpa)) {
    HvCoreReadGuest (Memory->Cpu->Host, Gpa, Buffer, Size);
    return;
  }

  Offset = (UINT32)(Gpa & EFI_PAGE_MASK);
  Value  = MAX_UINT64;
  if (HvCoreIsApicAccess (Memory->Cpu, Offset, Size)) {
    Value = HvHostApicRead (Memory->Cpu, Offset);
  }

  CopyMem (Buffer, &Value, Size);
}

STATIC
VOID
EFIAPI
Write (
  IN     VOID    *Context,
  IN     UINT64  Gpa,
  IN OUT VOID    *Buffer,
  IN     UINTN   Size
  )
{
  MEMORY         *Memory;
  HV_APIC_STORE  *Store;
  UINT32         Offset;

  Memory = Context;
  if (HvCoreIsHostMemory (Memory->Cpu->Host, Gpa)) {
    return;
  }

  if (!IsApicPage (Memory->Cpu, Gpa)) {
    CopyMem ((VOID *)(UINTN)Gpa, Buffer, Size);
    return;
  }

  Store  = Memory->Store;
  Offset = (UINT32)(Gpa & EFI_PAGE_MASK);
  if ((Store != NULL) && HvCoreIsApicAccess (Memory->Cpu, Offset, Size)) {
    Store->Written = TRUE;
    Store->Offset  = Offset;
    CopyMem (&Store->Value, Buffer, Size);
  }
}

BOOLEAN
HvCoreEmulate (
  IN OUT HV_CPU         *Cpu,
  IN OUT HV_VCPU        *Vcpu,
  IN     HV_EXIT        *Exit,
  IN     CONST HV_INSN  *Insn,
  IN     UINT32         Repeats,
  OUT    HV_APIC_STORE  *Store OPTIONAL
  )
{
  HV_VCPU_STATE  State;
  HV_EMULATE     Emulate;
  MEMORY         Memory;

  Cpu->Host->Ops->StateGet (
                    Vcpu,
                    HV_STATE_CONTROL | HV_STATE_SEGMENTS | HV_STATE_SYSTEM | HV_STATE_PDPTE,
                    &State
                    );
  Memory.Cpu   = Cpu;
  Memory.Store = Store;
  HvCoreGuestPaging (Vcpu, &State, &Memory.Paging);

  ZeroMem (&Emulate, sizeof (Emulate));
  Emulate.Regs           = &Vcpu->Regs;
  Emulate.Segment        = State.Segment;
  Emulate.Protected      = (BOOLEAN)((State.Cr0 & HV_CR0_PE) != 0);
  Emulate.AlignmentCheck = (BOOLEAN)(((State.Cr0 & HV_CR0_AM) != 0) && (State.Cpl == 3));
  // Each element of a string instruction traps when the guest steps.
  Emulate.Repeats        = ((Vcpu->Regs.Rflags & HV_RFLAGS_TF) != 0) ? 1 : Repeats;
  Emulate.Map            = Map;
  Emulate.Read           = Read;
  Emulate.Write          = Write;
  Emulate.Context        = &Memory;

  switch (HvEmulate (Insn, &Emulate)) {
    case HvEmulateDone:
      HvCoreRetire (Cpu, Vcpu, Exit, Insn->Length);
      return TRUE;
    case HvEmulateAgain:
      HvCoreRetireInPlace (Vcpu);
      return TRUE;
    case HvEmulateFault:
      if (Emulate.Fault.Vector == HV_VECTOR_PF) {
        HvCoreRaisePageFault (Vcpu, Emulate.Fault.ErrorCode, Emulate.Fault.Cr2);
      } else {
        HvCoreRaise (Vcpu, Emulate.Fault.Vector);
      }

      return FALSE;
    default:
      HV_LOG_GUEST (Cpu, DecodeFailed, Vcpu->Regs.Rip, Insn->Op, HV_STR ("an access that is not carried out"));
      HvCoreRaise (Vcpu, HV_VECTOR_GP);
      return FALSE;
  }
}
