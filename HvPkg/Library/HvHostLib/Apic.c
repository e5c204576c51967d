/** @file
  This processor's local APIC, in both modes.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HostInternal.h"

#define ICR_NMI          ((HV_IPI_NMI << 8) | BIT14)
#define ICR_BUSY         BIT12
#define ICR_SPIN_MAX     1000000
#define SVR_RESET        0xFF
#define LVT_MASKED       BIT16
#define VERSION_MAX_LVT(Version)  (((Version) >> 16) & 0xFF)

STATIC
volatile UINT32 *
Register (
  IN HV_CPU  *Cpu,
  IN UINT32  Offset
  )
{
  return (volatile UINT32 *)(UINTN)(Cpu->Host->ApicPage + Offset);
}

UINT32
HvHostApicRead (
  IN HV_CPU  *Cpu,
  IN UINT32  Offset
  )
{
  if (Cpu->X2Apic) {
    return (UINT32)AsmReadMsr64 (HvApicRegisterMsr (Offset));
  }

  return *Register (Cpu, Offset);
}

VOID
HvHostApicWrite (
  IN HV_CPU  *Cpu,
  IN UINT32  Offset,
  IN UINT32  Value
  )
{
  if (Cpu->X2Apic) {
    AsmWriteMsr64 (HvApicRegisterMsr (Offset), Value);
  } else {
    *Register (Cpu, Offset) = Value;
  }
}

STATIC
VOID
WaitIcrIdle (
  IN HV_CPU  *Cpu
  )
{
  UINTN  Spin;

  for (Spin = 0; Spin < ICR_SPIN_MAX; Spin++) {
    if ((*Register (Cpu, HV_APIC_REG_ICR_LOW) & ICR_BUSY) == 0) {
      return;
    }

    CpuPause ();
  }
}

VOID
HvHostSendIcr (
  IN HV_CPU  *Cpu,
  IN UINT64  Icr
  )
{
  UINT32  High;

  if (Cpu->X2Apic) {
    // WRMSR to the ICR does not serialise: what was stored before must be seen first (SDM volume 3, 10.12.3).
    __asm__ __volatile__ ("mfence; lfence" : : : "memory");
    AsmWriteMsr64 (HV_X2APIC_MSR_ICR, Icr);
    return;
  }

  // The guest may be between its writes to the two halves.
  WaitIcrIdle (Cpu);
  High = *Register (Cpu, HV_APIC_REG_ICR_HIGH);
  *Register (Cpu, HV_APIC_REG_ICR_HIGH) = (UINT32)(Icr >> 32);
  *Register (Cpu, HV_APIC_REG_ICR_LOW)  = (UINT32)Icr;
  WaitIcrIdle (Cpu);
  *Register (Cpu, HV_APIC_REG_ICR_HIGH) = High;
}

VOID
HvHostSendNmi (
  IN HV_CPU  *Cpu,
  IN UINT32  ApicId
  )
{
  HvHostSendIcr (Cpu, LShiftU64 (ApicId, Cpu->X2Apic ? 32 : 56) | ICR_NMI);
}

VOID
HvHostApicReset (
  IN OUT HV_CPU  *Cpu
  )
{
  UINT32  MaxLvt;
  UINT32  Offset;
  UINT32  Count;

  // Each EOI ends the highest interrupt in service.
  Count = 0;
  for (Offset = HV_APIC_REG_TMR; Offset > HV_APIC_REG_ISR; Offset -= 16) {
    while ((HvHostApicRead (Cpu, Offset - 16) != 0) && (Count++ < 256)) {
      HvHostApicWrite (Cpu, HV_APIC_REG_EOI, 0);
    }
  }

  MaxLvt = VERSION_MAX_LVT (HvHostApicRead (Cpu, HV_APIC_REG_VERSION));
  HvHostApicWrite (Cpu, HV_APIC_REG_TIMER_INITIAL, 0);
  HvHostApicWrite (Cpu, HV_APIC_REG_TIMER_DIVIDE, 0);
  HvHostApicWrite (Cpu, HV_APIC_REG_LVT_TIMER, LVT_MASKED);
  HvHostApicWrite (Cpu, HV_APIC_REG_LVT_LINT0, LVT_MASKED);
  HvHostApicWrite (Cpu, HV_APIC_REG_LVT_LINT1, LVT_MASKED);
  if (MaxLvt >= 3) {
    HvHostApicWrite (Cpu, HV_APIC_REG_LVT_ERROR, LVT_MASKED);
  }

  if (MaxLvt >= 4) {
    HvHostApicWrite (Cpu, HV_APIC_REG_LVT_PERFMON, LVT_MASKED);
  }

  if (MaxLvt >= 5) {
    HvHostApicWrite (Cpu, HV_APIC_REG_LVT_THERMAL, LVT_MASKED);
  }

  if (MaxLvt >= 6) {
    HvHostApicWrite (Cpu, HV_APIC_REG_LVT_CMCI, LVT_MASKED);
  }

  HvHostApicWrite (Cpu, HV_APIC_REG_TPR, 0);
  HvHostApicWrite (Cpu, HV_APIC_REG_ESR, 0);
  if (!Cpu->X2Apic) {
    Cpu->Apic.Ldr = 0;
    Cpu->Apic.Dfr = MAX_UINT32;
    HvHostApicWrite (Cpu, HV_APIC_REG_LDR, Cpu->Apic.Ldr);
    HvHostApicWrite (Cpu, HV_APIC_REG_DFR, Cpu->Apic.Dfr);
  }

  HvHostApicWrite (Cpu, HV_APIC_REG_SVR, SVR_RESET);
}
