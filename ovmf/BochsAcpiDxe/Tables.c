/** @file
  ACPI tables of Bochs' i440FX machine.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "Tables.h"

#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/IoLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Register/Intel/ArchitecturalMsr.h>

#define PCI_ADDRESS  0xCF8
#define PCI_DATA     0xCFC

#define HOST_BRIDGE          0, 0
#define ISA_BRIDGE           1, 0
#define POWER                1, 3
#define HOST_BRIDGE_ID       0x12378086 // 82441FX
#define POWER_ID             0x71138086 // 82371AB, function 3
#define ISA_BRIDGE_PIRQ      0x60       // PIRQA to PIRQD, one byte each
#define POWER_BASE           0x40
#define POWER_BASE_MASK      0xFFC0

// Offsets from the base of the power management (82371AB, 7.2).
#define PM_EVENT    0x00
#define PM_CONTROL  0x04
#define PM_TIMER    0x08

#define SMI_COMMAND   0xB2
#define ACPI_ENABLE   0xF1
#define ACPI_DISABLE  0xF0

#define CMOS_INDEX         0x70
#define CMOS_DATA          0x71
#define CMOS_ABOVE_16M     0x34 // RAM between 16 MiB and 4 GiB in units of 64 KiB, two bytes
#define CMOS_CENTURY       0x32

#define IO_APIC_BASE    0xFEC00000
#define IO_APIC_SELECT  (IO_APIC_BASE + 0x00)
#define IO_APIC_WINDOW  (IO_APIC_BASE + 0x10)

// ACPI 6.5, 5.2.12.5: flags of an override.
#define LEVEL_HIGH  0x000D

#define XAPIC_ID_LIMIT  0xFF
#define LINT1           1

#define OEM_ID        "HVPKG "
#define OEM_TABLE_ID  SIGNATURE_64 ('H', 'V', 'B', 'O', 'C', 'H', 'S', ' ')
#define CREATOR_ID    SIGNATURE_32 ('H', 'V', 'P', 'K')

// AML of `Name (MEMB, <DWord>)`: NameOp, name, DWordPrefix (ACPI 6.5, 20.2.5.1 and 20.2.3).
STATIC CONST UINT8  mWindowName[] = { 0x08, 'M', 'E', 'M', 'B', 0x0C };

// The build makes it of Dsdt.asl.
extern CONST UINT8  dsdt_aml_code[];

STATIC
UINT32
PciRead (
  IN UINT32  Device,
  IN UINT32  Function,
  IN UINT32  Register
  )
{
  IoWrite32 (PCI_ADDRESS, BIT31 | (Device << 11) | (Function << 8) | Register);
  return IoRead32 (PCI_DATA);
}

STATIC
UINT8
CmosRead (
  IN UINT8  Index
  )
{
  IoWrite8 (CMOS_INDEX, Index);
  return IoRead8 (CMOS_DATA);
}

STATIC
UINT16
PowerBase (
  VOID
  )
{
  return (UINT16)(PciRead (POWER, POWER_BASE) & POWER_BASE_MASK);
}

// The interrupt of the power management (pin A of slot 1: PIRQA), as OVMF routed it.
STATIC
UINT8
SciIrq (
  VOID
  )
{
  return (UINT8)PciRead (ISA_BRIDGE, ISA_BRIDGE_PIRQ);
}

STATIC
VOID
SetHeader (
  OUT EFI_ACPI_DESCRIPTION_HEADER  *Header,
  IN  UINT32                       Signature,
  IN  UINT8                        Revision,
  IN  UINT32                       Length
  )
{
  Header->Signature       = Signature;
  Header->Length          = Length;
  Header->Revision        = Revision;
  Header->OemTableId      = OEM_TABLE_ID;
  Header->OemRevision     = 1;
  Header->CreatorId       = CREATOR_ID;
  Header->CreatorRevision = 1;
  CopyMem (Header->OemId, OEM_ID, sizeof (Header->OemId));
}

STATIC
VOID
SetPort (
  OUT EFI_ACPI_2_0_GENERIC_ADDRESS_STRUCTURE  *Address,
  IN  UINT16                                  Port,
  IN  UINT8                                   Bits
  )
{
  Address->AddressSpaceId   = EFI_ACPI_2_0_SYSTEM_IO;
  Address->RegisterBitWidth = Bits;
  Address->Address          = Port;
}

BOOLEAN
BochsIsI440Fx (
  VOID
  )
{
  return (BOOLEAN)((PciRead (HOST_BRIDGE, 0) == HOST_BRIDGE_ID) &&
                   (PciRead (POWER, 0) == POWER_ID) &&
                   (PowerBase () != 0));
}

EFI_ACPI_DESCRIPTION_HEADER *
BochsMakeFadt (
  VOID
  )
{
  EFI_ACPI_2_0_FIXED_ACPI_DESCRIPTION_TABLE  *Fadt;
  UINT16                                     Base;

  Fadt = AllocateZeroPool (sizeof (*Fadt));
  if (Fadt == NULL) {
    return NULL;
  }

  SetHeader (
    &Fadt->Header,
    EFI_ACPI_2_0_FIXED_ACPI_DESCRIPTION_TABLE_SIGNATURE,
    EFI_ACPI_2_0_FIXED_ACPI_DESCRIPTION_TABLE_REVISION,
    sizeof (*Fadt)
    );
  Base               = PowerBase ();
  Fadt->SciInt       = SciIrq ();
  Fadt->SmiCmd       = SMI_COMMAND;
  Fadt->AcpiEnable   = ACPI_ENABLE;
  Fadt->AcpiDisable  = ACPI_DISABLE;
  Fadt->Pm1aEvtBlk   = Base + PM_EVENT;
  Fadt->Pm1EvtLen    = 4;
  Fadt->Pm1aCntBlk   = Base + PM_CONTROL;
  Fadt->Pm1CntLen    = 2;
  Fadt->PmTmrBlk     = Base + PM_TIMER;
  Fadt->PmTmrLen     = 4;
  Fadt->PLvl2Lat     = MAX_UINT16; // more than 100: no C2
  Fadt->PLvl3Lat     = MAX_UINT16; // more than 1000: no C3
  Fadt->Century      = CMOS_CENTURY;
  Fadt->IaPcBootArch = EFI_ACPI_2_0_LEGACY_DEVICES | EFI_ACPI_2_0_8042;
  Fadt->ResetValue   = BOCHS_RESET_VALUE;
  Fadt->Flags        = EFI_ACPI_2_0_WBINVD | EFI_ACPI_2_0_PROC_C1 | EFI_ACPI_2_0_PWR_BUTTON |
                       EFI_ACPI_2_0_SLP_BUTTON | EFI_ACPI_2_0_FIX_RTC | EFI_ACPI_2_0_RESET_REG_SUP;
  SetPort (&Fadt->ResetReg, BOCHS_RESET_PORT, 8);
  SetPort (&Fadt->XPm1aEvtBlk, Base + PM_EVENT, 32);
  SetPort (&Fadt->XPm1aCntBlk, Base + PM_CONTROL, 16);
  SetPort (&Fadt->XPmTmrBlk, Base + PM_TIMER, 32);
  return &Fadt->Header;
}

EFI_ACPI_DESCRIPTION_HEADER *
BochsMakeFacs (
  VOID
  )
{
  EFI_ACPI_2_0_FIRMWARE_ACPI_CONTROL_STRUCTURE  *Facs;

  Facs = AllocateZeroPool (sizeof (*Facs));
  if (Facs == NULL) {
    return NULL;
  }

  Facs->Signature = EFI_ACPI_2_0_FIRMWARE_ACPI_CONTROL_STRUCTURE_SIGNATURE;
  Facs->Length    = sizeof (*Facs);
  Facs->Version   = EFI_ACPI_2_0_FIRMWARE_ACPI_CONTROL_STRUCTURE_VERSION;
  return (EFI_ACPI_DESCRIPTION_HEADER *)Facs;
}

EFI_ACPI_DESCRIPTION_HEADER *
BochsMakeDsdt (
  VOID
  )
{
  CONST EFI_ACPI_DESCRIPTION_HEADER  *Compiled;
  EFI_ACPI_DESCRIPTION_HEADER        *Dsdt;
  UINT32                             Ram;
  UINTN                              Index;

  Compiled = (CONST EFI_ACPI_DESCRIPTION_HEADER *)dsdt_aml_code;
  Dsdt     = AllocateCopyPool (Compiled->Length, Compiled);
  if (Dsdt == NULL) {
    return NULL;
  }

  // Bochs' RAM below 4 GiB ends at 3 GiB at most.
  Ram = (((UINT32)CmosRead (CMOS_ABOVE_16M + 1) << 8) | CmosRead (CMOS_ABOVE_16M)) * SIZE_64KB + SIZE_16MB;
  for (Index = sizeof (*Dsdt); Index + sizeof (mWindowName) + sizeof (Ram) <= Dsdt->Length; Index++) {
    if (CompareMem ((UINT8 *)Dsdt + Index, mWindowName, sizeof (mWindowName)) == 0) {
      WriteUnaligned32 ((UINT32 *)((UINT8 *)Dsdt + Index + sizeof (mWindowName)), MAX (Ram, (UINT32)SIZE_2GB));
      return Dsdt;
    }
  }

  FreePool (Dsdt);
  return NULL;
}

STATIC
UINT8 *
PutProcessor (
  OUT UINT8                            *Next,
  IN  UINT32                           Uid,
  IN  CONST EFI_PROCESSOR_INFORMATION  *Processor
  )
{
  EFI_ACPI_4_0_PROCESSOR_LOCAL_APIC_STRUCTURE    *Apic;
  EFI_ACPI_4_0_PROCESSOR_LOCAL_X2APIC_STRUCTURE  *X2Apic;
  UINT32                                         Flags;

  Flags = ((Processor->StatusFlag & PROCESSOR_ENABLED_BIT) != 0) ? EFI_ACPI_4_0_LOCAL_APIC_ENABLED : 0;
  if (Processor->ProcessorId < XAPIC_ID_LIMIT) {
    Apic                  = (VOID *)Next;
    Apic->Type            = EFI_ACPI_4_0_PROCESSOR_LOCAL_APIC;
    Apic->Length          = sizeof (*Apic);
    Apic->AcpiProcessorId = (UINT8)Uid;
    Apic->ApicId          = (UINT8)Processor->ProcessorId;
    Apic->Flags           = Flags;
    return Next + sizeof (*Apic);
  }

  X2Apic                   = (VOID *)Next;
  X2Apic->Type             = EFI_ACPI_4_0_PROCESSOR_LOCAL_X2APIC;
  X2Apic->Length           = sizeof (*X2Apic);
  X2Apic->X2ApicId         = (UINT32)Processor->ProcessorId;
  X2Apic->Flags            = Flags;
  X2Apic->AcpiProcessorUid = Uid;
  return Next + sizeof (*X2Apic);
}

STATIC
UINT8 *
PutOverride (
  OUT UINT8   *Next,
  IN  UINT8   Irq,
  IN  UINT32  Input,
  IN  UINT16  Flags
  )
{
  EFI_ACPI_4_0_INTERRUPT_SOURCE_OVERRIDE_STRUCTURE  *Override;

  Override                        = (VOID *)Next;
  Override->Type                  = EFI_ACPI_4_0_INTERRUPT_SOURCE_OVERRIDE;
  Override->Length                = sizeof (*Override);
  Override->Source                = Irq;
  Override->GlobalSystemInterrupt = Input;
  Override->Flags                 = Flags;
  return Next + sizeof (*Override);
}

// Wires NMI to input LINT1 of all processors (ACPI 6.5, 5.2.12.7 and 5.2.12.13).
STATIC
UINT8 *
PutNmi (
  OUT UINT8  *Next
  )
{
  EFI_ACPI_4_0_LOCAL_APIC_NMI_STRUCTURE    *Nmi;
  EFI_ACPI_4_0_LOCAL_X2APIC_NMI_STRUCTURE  *X2Nmi;

  Nmi                  = (VOID *)Next;
  Nmi->Type            = EFI_ACPI_4_0_LOCAL_APIC_NMI;
  Nmi->Length          = sizeof (*Nmi);
  Nmi->AcpiProcessorId = MAX_UINT8;
  Nmi->LocalApicLint   = LINT1;
  Next                += sizeof (*Nmi);

  X2Nmi                   = (VOID *)Next;
  X2Nmi->Type             = EFI_ACPI_4_0_LOCAL_X2APIC_NMI;
  X2Nmi->Length           = sizeof (*X2Nmi);
  X2Nmi->AcpiProcessorUid = MAX_UINT32;
  X2Nmi->LocalX2ApicLint  = LINT1;
  return Next + sizeof (*X2Nmi);
}

EFI_ACPI_DESCRIPTION_HEADER *
BochsMakeMadt (
  IN EFI_MP_SERVICES_PROTOCOL  *Mp
  )
{
  EFI_ACPI_4_0_MULTIPLE_APIC_DESCRIPTION_TABLE_HEADER  *Madt;
  EFI_ACPI_4_0_IO_APIC_STRUCTURE                       *IoApic;
  EFI_PROCESSOR_INFORMATION                            Processor;
  UINTN                                                Count;
  UINTN                                                Enabled;
  UINTN                                                Index;
  UINT8                                                *Next;

  if (EFI_ERROR (Mp->GetNumberOfProcessors (Mp, &Count, &Enabled))) {
    return NULL;
  }

  Madt = AllocateZeroPool (
           sizeof (*Madt) + Count * sizeof (EFI_ACPI_4_0_PROCESSOR_LOCAL_X2APIC_STRUCTURE) + sizeof (*IoApic) +
           2 * sizeof (EFI_ACPI_4_0_INTERRUPT_SOURCE_OVERRIDE_STRUCTURE) +
           sizeof (EFI_ACPI_4_0_LOCAL_APIC_NMI_STRUCTURE) + sizeof (EFI_ACPI_4_0_LOCAL_X2APIC_NMI_STRUCTURE)
           );
  if (Madt == NULL) {
    return NULL;
  }

  Madt->LocalApicAddress = (UINT32)AsmReadMsr64 (MSR_IA32_APIC_BASE) & ~(UINT32)EFI_PAGE_MASK;
  Madt->Flags            = EFI_ACPI_4_0_PCAT_COMPAT;
  Next                   = (UINT8 *)(Madt + 1);
  for (Index = 0; Index < Count; Index++) {
    if (EFI_ERROR (Mp->GetProcessorInfo (Mp, Index, &Processor))) {
      FreePool (Madt);
      return NULL;
    }

    Next = PutProcessor (Next, (UINT32)Index, &Processor);
  }

  MmioWrite32 (IO_APIC_SELECT, 0);
  IoApic                = (VOID *)Next;
  IoApic->Type          = EFI_ACPI_4_0_IO_APIC;
  IoApic->Length        = sizeof (*IoApic);
  IoApic->IoApicId      = (UINT8)(MmioRead32 (IO_APIC_WINDOW) >> 24);
  IoApic->IoApicAddress = IO_APIC_BASE;
  Next                 += sizeof (*IoApic);

  // The timer is wired to input 2, and the power management's interrupt is no ISA edge.
  Next = PutOverride (Next, 0, 2, 0);
  Next = PutOverride (Next, SciIrq (), SciIrq (), LEVEL_HIGH);
  Next = PutNmi (Next);
  SetHeader (
    &Madt->Header,
    EFI_ACPI_4_0_MULTIPLE_APIC_DESCRIPTION_TABLE_SIGNATURE,
    EFI_ACPI_4_0_MULTIPLE_APIC_DESCRIPTION_TABLE_REVISION,
    (UINT32)(Next - (UINT8 *)Madt)
    );
  return &Madt->Header;
}
