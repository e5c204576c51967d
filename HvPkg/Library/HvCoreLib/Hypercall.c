/** @file
  Hypercalls of the root.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

STATIC
VOID
BootDone (
  IN OUT HV_CPU  *Cpu
  )
{
  HV_HOST  *Host;
  UINT8    *Status;

  Host = Cpu->Host;
  if (Host->BootDone == 0) {
    Host->BootDone = 1;
    Status         = (UINT8 *)Host->Status;
    CopyMem (
      Status + HV_STATUS_AT_EXIT_BOOT_SERVICES_OFFSET (Host->CpuCount),
      Status + HV_STATUS_EXITS_OFFSET (Host->CpuCount),
      Host->CpuCount * HV_EXIT_KIND_MAX * sizeof (UINT64)
      );
    Host->Status->BootDone = 1;
    HV_LOG (Cpu->Index, BootDone);
  }
}

///
/// Whether the driver itself calls, in boot life.
///
STATIC
BOOLEAN
IsDriver (
  IN CONST HV_HOST  *Host,
  IN UINT64         Rip
  )
{
  return (BOOLEAN)((Host->BootDone == 0) && (Rip >= Host->BootTextBase) && (Rip < Host->BootTextEnd));
}

///
/// Up to now no port exits, so no processor uses the permission map that this changes (SDM 25.11.4). That is why all
/// come in one call.
///
STATIC
UINT64
SleepPorts (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_SLEEP  *Sleep;
  UINT64    Ports[HV_SLEEP_PORTS_MAX];
  UINT32    Index;

  Sleep    = &Cpu->Host->Sleep;
  Ports[0] = Vcpu->Regs.R8;
  Ports[1] = Vcpu->Regs.R9;
  if (!Cpu->Bsp || (Sleep->Count != 0)) {
    return HV_HC_DENIED;
  }

  for (Index = 0; Index < HV_SLEEP_PORTS_MAX; Index++) {
    if ((Ports[Index] >> 24) != 0) {
      return HV_HC_BAD_ARGUMENT;
    }
  }

  for (Index = 0; Index < HV_SLEEP_PORTS_MAX; Index++) {
    if (Ports[Index] != 0) {
      Sleep->Port[Sleep->Count].Port    = (UINT16)Ports[Index];
      Sleep->Port[Sleep->Count].Allowed = (UINT8)(Ports[Index] >> 16);
      HV_LOG (Cpu->Index, Sleep, Sleep->Port[Sleep->Count].Port, Sleep->Port[Sleep->Count].Allowed);
      Sleep->Count++;
    }
  }

  HvCoreGuardAll (Cpu, Vcpu);
  return HV_HC_OK;
}

VOID
HvOnHypercall (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  HV_HOST        *Host;
  HV_VCPU_STATE  State;
  UINT64         Call;
  UINT64         Rip;

  Host = Cpu->Host;
  Call = Vcpu->Regs.Rax;
  Rip  = Vcpu->Regs.Rip;
  Host->Ops->StateGet (Vcpu, HV_STATE_CPL, &State);
  if ((State.Cpl != 0) || ((Call & ~(UINT64)MAX_UINT16) != HV_HC_MAGIC)) {
    // As on a processor without VMX or SVM.
    HvCoreRaise (Vcpu, HV_VECTOR_UD);
    return;
  }

  HvCoreRetire (Cpu, Vcpu, Exit, 0);
  switch (Call) {
    case HV_HC_NULL:
      Vcpu->Regs.Rax = HV_HC_OK;
      break;
    case HV_HC_VERSION:
      Vcpu->Regs.Rax = HV_CPUID_INTERFACE_VERSION;
      break;
    case HV_HC_BOOT_DONE:
      BootDone (Cpu);
      Vcpu->Regs.Rax = HV_HC_OK;
      break;
    case HV_HC_FIRMWARE_DONE:
      if (Host->BootDone == 0) {
        Vcpu->Regs.Rax = HV_HC_DENIED;
        break;
      }

      Host->FirmwareDone = 1;
      HvCoreOsStarted (Cpu);
      Vcpu->Regs.Rax = HV_HC_OK;
      break;
    case HV_HC_LEAVE:
      if (!IsDriver (Host, Rip)) {
        Vcpu->Regs.Rax = HV_HC_DENIED;
        break;
      }

      Vcpu->Regs.Rax = HV_HC_OK;
      Cpu->State     = HvMpNative;
      // A kick that is on its way is the host's, not the firmware's.
      Host->Ops->TakeSignal (Cpu, Exit);
      HvCoreSettleNmis (Cpu, Vcpu);
      InterlockedDecrement (&Host->Status->Virtualised);
      HV_LOG (Cpu->Index, CpuDown, Cpu->Index);
      Host->Ops->Leave (Vcpu);
      break;
    case HV_HC_CRASH:
      Vcpu->Regs.Rax = HvCoreInject (Host, Vcpu->Regs.Rbx);
      break;
    case HV_HC_SLEEP_PORTS:
      Vcpu->Regs.Rax = IsDriver (Host, Rip) ? SleepPorts (Cpu, Vcpu) : HV_HC_DENIED;
      break;
    default:
      Vcpu->Regs.Rax = HV_HC_UNKNOWN;
  }
}
