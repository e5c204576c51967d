/** @file
  The state of a processor after INIT.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define ATTRIBUTES_CODE  0x09B // present, code, readable, accessed
#define ATTRIBUTES_DATA  0x093 // present, data, writable, accessed
#define ATTRIBUTES_LDT   0x082
#define ATTRIBUTES_TSS   0x08B // busy 32-bit TSS

STATIC CONST UINT16  mAttributes[HvSegmentCount] = {
  [HvSegmentEs]   = ATTRIBUTES_DATA,
  [HvSegmentCs]   = ATTRIBUTES_CODE,
  [HvSegmentSs]   = ATTRIBUTES_DATA,
  [HvSegmentDs]   = ATTRIBUTES_DATA,
  [HvSegmentFs]   = ATTRIBUTES_DATA,
  [HvSegmentGs]   = ATTRIBUTES_DATA,
  [HvSegmentLdtr] = ATTRIBUTES_LDT,
  [HvSegmentTr]   = ATTRIBUTES_TSS,
};

VOID
HvCoreInitState (
  IN OUT HV_VCPU_STATE  *State,
  OUT    HV_REGS        *Regs,
  IN     UINT32         Model
  )
{
  UINTN  Index;

  for (Index = 0; Index < HvSegmentCount; Index++) {
    State->Segment[Index].Selector   = 0;
    State->Segment[Index].Attributes = mAttributes[Index];
    State->Segment[Index].Limit      = 0xFFFF;
    State->Segment[Index].Base       = 0;
  }

  State->Segment[HvSegmentCs].Selector = 0xF000;
  State->Segment[HvSegmentCs].Base     = 0xFFFF0000;
  State->GdtBase                       = 0;
  State->GdtLimit                      = 0xFFFF;
  State->IdtBase                       = 0;
  State->IdtLimit                      = 0xFFFF;
  State->Cpl                           = 0;
  State->InterruptShadow               = FALSE;
  State->NmiBlocked                    = FALSE;
  State->Activity                      = HvActivityRunning;
  State->Cr0                           = (State->Cr0 & (HV_CR0_CD | HV_CR0_NW)) | HV_CR0_ET;
  State->Cr2                           = 0;
  State->Cr3                           = 0;
  State->Cr4                           = 0;
  State->Efer                          = 0;
  State->Dr6                           = 0xFFFF0FF0;
  State->Dr7                           = 0x400;

  ZeroMem (Regs, sizeof (*Regs));
  Regs->Rdx    = Model;
  Regs->Rip    = 0xFFF0;
  Regs->Rflags = BIT1;
}
