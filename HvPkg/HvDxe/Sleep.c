/** @file
  The sleep states from which a processor comes back without a hypervisor: found in the ACPI tables, and hidden there.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HvDxe.h"
#include <IndustryStandard/Acpi.h>
#include <Protocol/S3SaveState.h>

#define STATE_FIRST_HIDDEN  1
#define STATE_LAST_HIDDEN   3
#define STATE_LAST          5

STATIC BOOLEAN  mFound;  ///< the ports are guarded
STATIC BOOLEAN  mAlways; ///< also where nothing resumes

typedef EFI_ACPI_DESCRIPTION_HEADER                ACPI_TABLE;
typedef EFI_ACPI_6_5_FIXED_ACPI_DESCRIPTION_TABLE  ACPI_FADT;
typedef EFI_ACPI_6_5_GENERIC_ADDRESS_STRUCTURE     ACPI_ADDRESS;

#define HAS_FIELD(Fadt, Field)  ((Fadt)->Header.Length >= OFFSET_OF (ACPI_FADT, Field) + sizeof ((Fadt)->Field))

///
/// The tables with AML, one after the other: the DSDT, then the SSDTs.
///
STATIC
ACPI_TABLE *
NextAml (
  IN ACPI_TABLE  *Previous  OPTIONAL
  )
{
  if (Previous == NULL) {
    return (ACPI_TABLE *)EfiLocateFirstAcpiTable (EFI_ACPI_6_5_DIFFERENTIATED_SYSTEM_DESCRIPTION_TABLE_SIGNATURE);
  }

  if (Previous->Signature != EFI_ACPI_6_5_SECONDARY_SYSTEM_DESCRIPTION_TABLE_SIGNATURE) {
    return (ACPI_TABLE *)EfiLocateFirstAcpiTable (EFI_ACPI_6_5_SECONDARY_SYSTEM_DESCRIPTION_TABLE_SIGNATURE);
  }

  return (ACPI_TABLE *)EfiLocateNextAcpiTable (Previous->Signature, (EFI_ACPI_COMMON_HEADER *)Previous);
}

STATIC
BOOLEAN
FindTypes (
  IN  UINT8  State,
  OUT UINT8  Types[2]
  )
{
  ACPI_TABLE  *Table;

  for (Table = NextAml (NULL); Table != NULL; Table = NextAml (Table)) {
    if (!RETURN_ERROR (HvSleepTypes ((UINT8 *)Table, Table->Length, State, Types))) {
      return TRUE;
    }
  }

  return FALSE;
}

///
/// Whether a sleep can end in an operating system: its tables have such a state, or the firmware keeps what a resume
/// takes (PI 1.6 volume 5, S3 save state protocol). Where neither is so, the machine boots again.
///
STATIC
BOOLEAN
Resumes (
  VOID
  )
{
  VOID   *Protocol;
  UINT8  Types[2];
  UINT8  State;

  for (State = STATE_FIRST_HIDDEN; State <= STATE_LAST_HIDDEN; State++) {
    if (FindTypes (State, Types)) {
      return TRUE;
    }
  }

  return (BOOLEAN)!EFI_ERROR (gBS->LocateProtocol (&gEfiS3SaveStateProtocolGuid, NULL, &Protocol));
}

///
/// The port of a register, 0 if it has none.
///
STATIC
UINT64
PortOf (
  IN UINT32              Legacy,
  IN CONST ACPI_ADDRESS  *Extended OPTIONAL
  )
{
  if ((Extended != NULL) && (Extended->Address != 0)) {
    return (Extended->AddressSpaceId == EFI_ACPI_6_5_SYSTEM_IO) ? Extended->Address : 0;
  }

  return Legacy;
}

STATIC
VOID
AddPort (
  IN OUT HV_SLEEP  *Sleep,
  IN     UINT64    Port,
  IN     UINT8     Allowed
  )
{
  if ((Port != 0) && (Port <= MAX_UINT16)) {
    Sleep->Port[Sleep->Count].Port    = (UINT16)Port;
    Sleep->Port[Sleep->Count].Allowed = Allowed;
    Sleep->Count++;
  }
}

///
/// Why there is no port, or NULL.
///
STATIC
CONST CHAR8 *
Find (
  OUT HV_SLEEP  *Sleep
  )
{
  ACPI_FADT  *Fadt;
  UINT64     Port;
  UINT8      Types[2];
  UINT8      Allowed[2];
  UINT8      State;

  Sleep->Count = 0;
  Fadt         = (ACPI_FADT *)EfiLocateFirstAcpiTable (EFI_ACPI_6_5_FIXED_ACPI_DESCRIPTION_TABLE_SIGNATURE);
  if (Fadt == NULL) {
    return "no ACPI tables";
  }

  if (!mAlways && !Resumes ()) {
    return "the firmware resumes nothing";
  }

  // What is left to the operating system: the states in which the machine forgets everything.
  ZeroMem (Allowed, sizeof (Allowed));
  for (State = STATE_LAST_HIDDEN + 1; State <= STATE_LAST; State++) {
    if (FindTypes (State, Types)) {
      Allowed[0] |= (UINT8)(1 << Types[0]);
      Allowed[1] |= (UINT8)(1 << Types[1]);
    }
  }

  if (Allowed[0] == 0) {
    return "the ACPI tables do not say how the machine is switched off";
  }

  if (HAS_FIELD (Fadt, SleepControlReg) && ((Fadt->Flags & EFI_ACPI_6_5_HW_REDUCED_ACPI) != 0)) {
    AddPort (Sleep, PortOf (0, &Fadt->SleepControlReg), Allowed[0]);
  } else {
    // SLP_TYP and SLP_EN are in the second byte of PM1_CNT.
    Port = PortOf (Fadt->Pm1aCntBlk, HAS_FIELD (Fadt, XPm1aCntBlk) ? &Fadt->XPm1aCntBlk : NULL);
    AddPort (Sleep, (Port == 0) ? 0 : Port + 1, Allowed[0]);
    Port = PortOf (Fadt->Pm1bCntBlk, HAS_FIELD (Fadt, XPm1bCntBlk) ? &Fadt->XPm1bCntBlk : NULL);
    AddPort (Sleep, (Port == 0) ? 0 : Port + 1, Allowed[1]);
  }

  return (Sleep->Count == 0) ? "the sleep registers are not at ports" : NULL;
}

VOID
HvSleepFind (
  IN  BOOLEAN   Always,
  OUT HV_SLEEP  *Sleep
  )
{
  CONST CHAR8  *Reason;
  UINT32       Index;

  mAlways = Always;
  Reason  = Find (Sleep);
  mFound  = (BOOLEAN)(Reason == NULL);
  if (Reason != NULL) {
    HV_LOG (0, SleepUnguarded, HV_STR (Reason));
  }

  for (Index = 0; Index < Sleep->Count; Index++) {
    HV_LOG (0, Sleep, Sleep->Port[Index].Port, Sleep->Port[Index].Allowed);
  }
}

///
/// A port as the hypercall takes it.
///
STATIC
UINT64
Packed (
  IN CONST HV_SLEEP  *Sleep,
  IN UINT32          Index
  )
{
  if (Index >= Sleep->Count) {
    return 0;
  }

  return Sleep->Port[Index].Port | LShiftU64 (Sleep->Port[Index].Allowed, 16);
}

VOID
HvSleepFindLate (
  IN UINT64  Backend
  )
{
  HV_SLEEP  Sleep;

  if (!mFound && (Find (&Sleep) == NULL)) {
    mFound = (BOOLEAN)(HvHypercall (HV_HC_SLEEP_PORTS, Backend, Packed (&Sleep, 0), Packed (&Sleep, 1)) == HV_HC_OK);
  }
}

VOID
HvSleepHideStates (
  VOID
  )
{
  ACPI_TABLE  *Table;
  UINT8       State;

  for (Table = NextAml (NULL); Table != NULL; Table = NextAml (Table)) {
    for (State = STATE_FIRST_HIDDEN; State <= STATE_LAST_HIDDEN; State++) {
      HvSleepHide ((UINT8 *)Table, Table->Length, State);
    }
  }
}
