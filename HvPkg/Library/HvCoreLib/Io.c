/** @file
  The ports by which the root asks for a sleep state. No other port exits.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

STATIC
UINT32
ReadPort (
  IN UINT16  Port,
  IN UINT8   Size
  )
{
  switch (Size) {
    case sizeof (UINT8):
      return IoRead8 (Port);
    case sizeof (UINT16):
      return IoRead16 (Port);
    default:
      return IoRead32 (Port);
  }
}

STATIC
VOID
WritePort (
  IN UINT16  Port,
  IN UINT8   Size,
  IN UINT32  Value
  )
{
  switch (Size) {
    case sizeof (UINT8):
      IoWrite8 (Port, (UINT8)Value);
      break;
    case sizeof (UINT16):
      IoWrite16 (Port, (UINT16)Value);
      break;
    default:
      IoWrite32 (Port, Value);
  }
}

VOID
HvCoreMarkPorts (
  IN     CONST HV_SLEEP  *Sleep,
  IN OUT UINT8           *Map
  )
{
  UINT32  Row;
  UINT8   Bit;

  for (Row = 0; Row < Sleep->Count; Row++) {
    Bit = (UINT8)(1 << (Sleep->Port[Row].Port % 8));
    if ((Map[Sleep->Port[Row].Port / 8] & Bit) == 0) {
      Map[Sleep->Port[Row].Port / 8] |= Bit;
    }
  }
}

VOID
HvOnIo (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  UINT64  Mask;
  UINT32  Value;

  if ((Exit->IoFlags & HV_IO_STRING) != 0) {
    // Nobody programs this register so.
    HV_LOG_GUEST (Cpu, SleepRefused, Exit->IoPort, Vcpu->Regs.Rax, Vcpu->Regs.Rip);
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  if ((Exit->IoFlags & HV_IO_IN) != 0) {
    // 32 bits clear the upper half of RAX, fewer leave the rest of it.
    Mask           = (Exit->IoSize == sizeof (UINT32)) ? MAX_UINT64 : LShiftU64 (1, 8 * Exit->IoSize) - 1;
    Vcpu->Regs.Rax = (Vcpu->Regs.Rax & ~Mask) | ReadPort (Exit->IoPort, Exit->IoSize);
    HvCoreRetire (Cpu, Vcpu, Exit, 0);
    return;
  }

  Value = (UINT32)Vcpu->Regs.Rax;
  if (HvSleepRefuse (&Cpu->Host->Sleep, Exit->IoPort, Exit->IoSize, &Value)) {
    HV_LOG_GUEST (Cpu, SleepRefused, Exit->IoPort, Vcpu->Regs.Rax, Vcpu->Regs.Rip);
  }

  WritePort (Exit->IoPort, Exit->IoSize, Value);
  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}
