/** @file
  Events for the guest: the exceptions that the host raises, and what they become on top of a queued one.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define BIT_OF(Vector)  (1u << HV_VECTOR_##Vector)

// SDM volume 3, 6.15 tables 6-4 and 6-5; APM2 8.2.9.
#define CONTRIBUTORY  (BIT_OF (DE) | BIT_OF (TS) | BIT_OF (NP) | BIT_OF (SS) | BIT_OF (GP) | BIT_OF (CP))
#define PAGE_FAULTS   (BIT_OF (PF) | BIT_OF (VE))

// Those that can push an error code (SDM volume 3, table 6-1; APM2 table 8-1), and whose error code says that another
// event was being delivered (SDM volume 3, 6.13; APM2 8.4.1).
#define WITH_ERROR_CODE  (BIT_OF (DF) | BIT_OF (TS) | BIT_OF (NP) | BIT_OF (SS) | BIT_OF (GP) | BIT_OF (PF) | \
                          BIT_OF (AC) | BIT_OF (CP))
#define WITH_SELECTOR    (BIT_OF (TS) | BIT_OF (NP) | BIT_OF (SS) | BIT_OF (GP))
#define ERROR_CODE_EXT   BIT0

// SDM volume 3, table 6-1. #DB is a fault for instruction breakpoints alone, and those push RF as it is.
#define FAULTS  (BIT_OF (DE) | BIT_OF (BR) | BIT_OF (UD) | BIT_OF (NM) | BIT_OF (TS) | BIT_OF (NP) | BIT_OF (SS) | \
                 BIT_OF (GP) | BIT_OF (PF) | BIT_OF (MF) | BIT_OF (AC) | BIT_OF (XF) | BIT_OF (VE) | BIT_OF (CP))

STATIC
BOOLEAN
IsOneOf (
  IN UINT8   Vector,
  IN UINT32  Set
  )
{
  return (BOOLEAN)((Vector < 32) && (((Set >> Vector) & 1) != 0));
}

HV_COMBINED
HvCoreCombine (
  IN CONST HV_EVENT  *First,
  IN UINT8           Second
  )
{
  BOOLEAN  Serious;

  // Interrupts, and NMIs with them, are benign whatever their vector is.
  if (First->Type != HvEventException) {
    return HvCombinedSecond;
  }

  Serious = IsOneOf (Second, CONTRIBUTORY | PAGE_FAULTS);
  if ((First->Vector == HV_VECTOR_DF) && Serious) {
    return HvCombinedShutdown;
  }

  if ((IsOneOf (First->Vector, CONTRIBUTORY) && IsOneOf (Second, CONTRIBUTORY)) ||
      (IsOneOf (First->Vector, PAGE_FAULTS) && Serious))
  {
    return HvCombinedDoubleFault;
  }

  return HvCombinedSecond;
}

VOID
HvCoreRaiseWithCode (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT8    Vector,
  IN     UINT32   ErrorCode
  )
{
  CONST HV_BACKEND_OPS  *Ops;
  HV_EVENT              First;
  HV_EVENT              Event;

  Ops             = Vcpu->Cpu->Host->Ops;
  Event.Type      = HvEventException;
  Event.Vector    = Vector;
  Event.ErrorCode = ErrorCode;
  if (Ops->EventQueued (Vcpu, &First)) {
    // The exit came in the middle of its delivery, so this exception is one of the delivery.
    switch (HvCoreCombine (&First, Vector)) {
      case HvCombinedShutdown:
        HvCoreShutdown (Vcpu);
        return;
      case HvCombinedDoubleFault:
        Event.Vector    = HV_VECTOR_DF;
        Event.ErrorCode = 0;
        break;
      case HvCombinedSecond:
        Event.ErrorCode |= IsOneOf (Vector, WITH_SELECTOR) ? ERROR_CODE_EXT : 0;
        break;
    }
  }

  Event.HasErrorCode = IsOneOf (Event.Vector, WITH_ERROR_CODE);
  if (IsOneOf (Event.Vector, FAULTS)) {
    // A fault pushes it, and an injection pushes what is in the register (SDM volume 3, 18.3.1.1, 27.6.1.2).
    Vcpu->Regs.Rflags |= HV_RFLAGS_RF;
  }

  Ops->Inject (Vcpu, &Event);
}

VOID
HvCoreRaise (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT8    Vector
  )
{
  HvCoreRaiseWithCode (Vcpu, Vector, 0);
}

VOID
HvCoreShutdown (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_LOG (Vcpu->Cpu->Index, Shutdown, Vcpu->Regs.Rip);
  HvHostShutdown ();
}
