/** @file
  Enters and leaves the host's own tables on a processor.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HostInternal.h"

#define GATE_INTERRUPT  0x8E00ULL

#define GDT_CODE64      0x00AF9B000000FFFFULL
#define GDT_DATA        0x00CF93000000FFFFULL
#define TSS_AVAILABLE   0x89ULL

typedef struct {
  UINT64    Low;
  UINT64    High;
} IDT_GATE;

STATIC IDT_GATE  mIdt[256];

VOID
HvHostInit (
  VOID
  )
{
  UINTN   Vector;
  UINT64  Ist;
  UINT64  Stub;

  for (Vector = 0; Vector < ARRAY_SIZE (mIdt); Vector++) {
    Ist = 0;
    if ((Vector == HV_VECTOR_DF) || (Vector == HV_VECTOR_MC)) {
      Ist = HV_IST_FAULT;
    } else if (Vector == HV_VECTOR_NMI) {
      Ist = HV_IST_NMI;
    }

    Stub              = HvHostVectors[Vector];
    mIdt[Vector].Low  = (Stub & 0xFFFF) | (HV_HOST_CS << 16) | (Ist << 32) | (GATE_INTERRUPT << 32) |
                        ((Stub & 0xFFFF0000) << 32);
    mIdt[Vector].High = Stub >> 32;
  }
}

STATIC
VOID
CaptureSegment (
  IN  CONST IA32_DESCRIPTOR  *Gdtr,
  IN  UINT16                 Selector,
  OUT HV_SEGMENT             *Segment
  )
{
  CONST UINT64  *Entry;

  ZeroMem (Segment, sizeof (*Segment));
  if ((Selector | 7U) > Gdtr->Limit) {
    // It could not be loaded again; what runs with it has no use for it.
    return;
  }

  Segment->Selector = Selector;
  if ((Selector & ~7U) == 0) {
    return;
  }

  Entry               = (CONST UINT64 *)(Gdtr->Base + (Selector & ~7U));
  Segment->Attributes = (UINT16)(RShiftU64 (*Entry, 40) & 0xFF) | (UINT16)(RShiftU64 (*Entry, 44) & 0xF00);
  Segment->Limit      = (UINT32)((*Entry & 0xFFFF) | (RShiftU64 (*Entry, 32) & 0xF0000));
  if ((*Entry & BIT55) != 0) {
    Segment->Limit = (Segment->Limit << 12) | 0xFFF;
  }

  Segment->Base = (RShiftU64 (*Entry, 16) & 0xFFFFFF) | (RShiftU64 (*Entry, 32) & 0xFF000000);
  if ((*Entry & BIT44) == 0) {
    // A system descriptor has 16 bytes in long mode (SDM volume 3, 8.2.3).
    Segment->Base |= LShiftU64 (Entry[1] & MAX_UINT32, 32);
  }
}

VOID
HvHostCapture (
  OUT HV_VCPU_STATE  *State
  )
{
  IA32_DESCRIPTOR  Gdtr;
  IA32_DESCRIPTOR  Idtr;
  HV_SEGMENT       *Segment;

  ZeroMem (State, sizeof (*State));
  AsmReadGdtr (&Gdtr);
  AsmReadIdtr (&Idtr);
  State->GdtBase  = Gdtr.Base;
  State->GdtLimit = Gdtr.Limit;
  State->IdtBase  = Idtr.Base;
  State->IdtLimit = Idtr.Limit;

  Segment = State->Segment;
  CaptureSegment (&Gdtr, AsmReadEs (), &Segment[HvSegmentEs]);
  CaptureSegment (&Gdtr, AsmReadCs (), &Segment[HvSegmentCs]);
  CaptureSegment (&Gdtr, AsmReadSs (), &Segment[HvSegmentSs]);
  CaptureSegment (&Gdtr, AsmReadDs (), &Segment[HvSegmentDs]);
  CaptureSegment (&Gdtr, AsmReadFs (), &Segment[HvSegmentFs]);
  CaptureSegment (&Gdtr, AsmReadGs (), &Segment[HvSegmentGs]);
  CaptureSegment (&Gdtr, AsmReadLdtr (), &Segment[HvSegmentLdtr]);
  CaptureSegment (&Gdtr, AsmReadTr (), &Segment[HvSegmentTr]);
  Segment[HvSegmentFs].Base = AsmReadMsr64 (HV_MSR_FS_BASE);
  Segment[HvSegmentGs].Base = AsmReadMsr64 (HV_MSR_GS_BASE);

  State->Cpl          = 0;
  State->Cr0          = AsmReadCr0 ();
  State->Cr2          = AsmReadCr2 ();
  State->Cr3          = AsmReadCr3 ();
  State->Cr4          = AsmReadCr4 ();
  State->Dr6          = AsmReadDr6 ();
  State->Dr7          = AsmReadDr7 ();
  State->Efer         = AsmReadMsr64 (HV_MSR_EFER);
  State->Pat          = AsmReadMsr64 (HV_MSR_PAT);
  State->Star         = AsmReadMsr64 (HV_MSR_STAR);
  State->Lstar        = AsmReadMsr64 (HV_MSR_LSTAR);
  State->Cstar        = AsmReadMsr64 (HV_MSR_CSTAR);
  State->SfMask       = AsmReadMsr64 (HV_MSR_SFMASK);
  State->KernelGsBase = AsmReadMsr64 (HV_MSR_KERNEL_GS_BASE);
  State->SysenterCs   = AsmReadMsr64 (HV_MSR_SYSENTER_CS);
  State->SysenterEsp  = AsmReadMsr64 (HV_MSR_SYSENTER_ESP);
  State->SysenterEip  = AsmReadMsr64 (HV_MSR_SYSENTER_EIP);
}

VOID
HvHostLoad (
  IN OUT HV_CPU  *Cpu
  )
{
  STATIC CONST UINT16  Selectors[HvSegmentCount] = {
    HV_HOST_DS, HV_HOST_CS, HV_HOST_DS, HV_HOST_DS, 0, 0, 0, HV_HOST_TSS
  };
  IA32_DESCRIPTOR      Gdtr;
  IA32_DESCRIPTOR      Idtr;
  HV_TSS               *Tss;
  UINT64               TssBase;

  Tss                        = (HV_TSS *)Cpu->Tss;
  Tss->Ist[HV_IST_FAULT - 1] = Cpu->FaultStackTop;
  Tss->Ist[HV_IST_NMI - 1]   = Cpu->NmiStackTop;
  Tss->IoMap                 = sizeof (HV_TSS);
  TssBase                    = (UINTN)Tss;

  Cpu->Gdt[HV_HOST_CS / 8]      = GDT_CODE64;
  Cpu->Gdt[HV_HOST_DS / 8]      = GDT_DATA;
  Cpu->Gdt[HV_HOST_TSS / 8]     = (sizeof (HV_TSS) - 1) | ((TssBase & 0xFFFFFF) << 16) | (TSS_AVAILABLE << 40) |
                                  ((TssBase & 0xFF000000) << 32);
  Cpu->Gdt[HV_HOST_TSS / 8 + 1] = TssBase >> 32;

  // The host's tables use NX, so it comes before them.
  AsmWriteMsr64 (HV_MSR_EFER, AsmReadMsr64 (HV_MSR_EFER) | HV_EFER_NXE);
  AsmWriteCr0 (Cpu->Host->Cr0);
  AsmWriteCr3 (Cpu->Host->Cr3);
  AsmWriteCr4 (Cpu->Host->Cr4);

  Gdtr.Base  = (UINTN)Cpu->Gdt;
  Gdtr.Limit = sizeof (Cpu->Gdt) - 1;
  Idtr.Base  = (UINTN)mIdt;
  Idtr.Limit = sizeof (mIdt) - 1;
  HvHostLoadTables (&Gdtr, &Idtr, Selectors);
  AsmWriteMsr64 (HV_MSR_GS_BASE, (UINTN)Cpu);
}

VOID
HvHostRestore (
  IN CONST HV_CPU         *Cpu,
  IN CONST HV_VCPU_STATE  *State
  )
{
  IA32_DESCRIPTOR  Gdtr;
  IA32_DESCRIPTOR  Idtr;
  UINT16           Selectors[HvSegmentCount];
  UINTN            Index;

  for (Index = 0; Index < HvSegmentCount; Index++) {
    Selectors[Index] = State->Segment[Index].Selector;
  }

  // CR4 first: PCIDE may only be set while CR3 bits 11:0 are 0 (SDM volume 3, 4.10.1), as the host's are.
  AsmWriteCr4 (State->Cr4 | Cpu->Host->RootCr4);
  AsmWriteCr3 (State->Cr3);
  AsmWriteCr0 (State->Cr0 | Cpu->Host->RootCr0);
  Gdtr.Base  = State->GdtBase;
  Gdtr.Limit = State->GdtLimit;
  Idtr.Base  = State->IdtBase;
  Idtr.Limit = State->IdtLimit;
  HvHostLoadTables (&Gdtr, &Idtr, Selectors);
  AsmWriteMsr64 (HV_MSR_FS_BASE, State->Segment[HvSegmentFs].Base);
  AsmWriteMsr64 (HV_MSR_GS_BASE, State->Segment[HvSegmentGs].Base);
  AsmWriteMsr64 (HV_MSR_EFER, State->Efer | (AsmReadMsr64 (HV_MSR_EFER) & HV_EFER_SVME));
}
