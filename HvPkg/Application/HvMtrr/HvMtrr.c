/** @file
  Turns the MTRRs off and on as operating systems do it: with the same default type, with another one and a CPUID behind
  it, and with another one and nothing behind it that a hypervisor would see, until its timer has run off.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Library/BaseLib.h>
#include <Library/UefiLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>

#define TIMER_TICKS  (BIT30 + BIT26) // a bit more than the UNSEEN_TICKS of HvCoreLib

///
/// The sequence of SDM 12.11.8. Interrupts are off.
///
STATIC
VOID
TurnOffAndOn (
  IN UINT64  DefType
  )
{
  AsmDisableCache ();
  AsmWriteCr3 (AsmReadCr3 ());
  AsmWriteMsr64 (HV_MSR_MTRR_DEF_TYPE, DefType & ~HV_MTRR_DEF_TYPE_E);
  AsmWriteMsr64 (HV_MSR_MTRR_DEF_TYPE, DefType);
  AsmWriteCr3 (AsmReadCr3 ());
  AsmEnableCache ();
}

STATIC
VOID
Exit (
  VOID
  )
{
  AsmCpuid (HV_CPUID_0, NULL, NULL, NULL, NULL);
}

/**
  Runs the sequences. The MTRRs are at the end what they were.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS       The default type was each time what was written.
  @retval EFI_UNSUPPORTED   There are no MTRRs, or the firmware has them off.
  @retval EFI_DEVICE_ERROR  It was not.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvMtrrMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  UINT64   Before;
  UINT64   Other;
  UINT64   Start;
  UINT32   Edx;
  BOOLEAN  Interrupts;
  BOOLEAN  Good;

  AsmCpuid (HV_CPUID_1, NULL, NULL, NULL, &Edx);
  Before = ((Edx & HV_CPUID_1_EDX_MTRR) != 0) ? AsmReadMsr64 (HV_MSR_MTRR_DEF_TYPE) : 0;
  if ((Before & HV_MTRR_DEF_TYPE_E) == 0) {
    Print (L"HvMtrr: the MTRRs are off\n");
    return EFI_UNSUPPORTED;
  }

  Other = Before ^ HV_MEMORY_TYPE_WB; // of UC and WB the other one
  // The firmware's interrupts would exit, and use devices with types that are not theirs.
  Interrupts = SaveAndDisableInterrupts ();
  TurnOffAndOn (Before);
  Exit ();

  TurnOffAndOn (Other);
  Exit ();
  Good = (BOOLEAN)(AsmReadMsr64 (HV_MSR_MTRR_DEF_TYPE) == Other);
  TurnOffAndOn (Before);
  Exit ();

  TurnOffAndOn (Other);
  Start = AsmReadTsc ();
  while (AsmReadTsc () - Start < TIMER_TICKS) {
    CpuPause ();
  }

  Good &= (BOOLEAN)(AsmReadMsr64 (HV_MSR_MTRR_DEF_TYPE) == Other);
  TurnOffAndOn (Before);
  Exit ();
  Good &= (BOOLEAN)(AsmReadMsr64 (HV_MSR_MTRR_DEF_TYPE) == Before);
  SetInterruptState (Interrupts);
  Print (L"HvMtrr: def-type=%lx other=%lx result=%r\n", Before, Other, Good ? EFI_SUCCESS : EFI_DEVICE_ERROR);
  return Good ? EFI_SUCCESS : EFI_DEVICE_ERROR;
}
