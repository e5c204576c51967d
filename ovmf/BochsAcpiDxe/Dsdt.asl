/** @file
  What Bochs' i440FX machine has that an operating system cannot find out by itself.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

// Interrupt pins A to D of one slot: the PCI-to-ISA bridge turns them by one for each slot. With the 8259s they are what
// OVMF programs into its routing registers, with the I/O APIC its inputs 16 to 19.
#define SLOT(Address, A, B, C, D) \
  Package () { Address, 0, 0, A }, Package () { Address, 1, 0, B }, \
  Package () { Address, 2, 0, C }, Package () { Address, 3, 0, D }

#define ALL_SLOTS(A, B, C, D) \
  SLOT (0x0001FFFF, A, B, C, D), SLOT (0x0002FFFF, B, C, D, A), \
  SLOT (0x0003FFFF, C, D, A, B), SLOT (0x0004FFFF, D, A, B, C), \
  SLOT (0x0005FFFF, A, B, C, D), SLOT (0x0006FFFF, B, C, D, A), \
  SLOT (0x0007FFFF, C, D, A, B)

DefinitionBlock ("Dsdt.aml", "DSDT", 1, "HVPKG ", "HVBOCHS ", 1)
{
  // Sleep type 0 of the PIIX4 is the soft power-off.
  Name (\_S5, Package () { 0, 0, 0, 0 })

  // The model of interrupts: 0 the 8259s, 1 the I/O APIC.
  Name (\PICM, 0)
  Method (\_PIC, 1)
  {
    Store (Arg0, \PICM)
  }

  Scope (\_SB)
  {
    Device (PCI0)
    {
      Name (_HID, EisaId ("PNP0A03"))
      Name (_UID, 0)
      Name (_BBN, 0)

      // Where the window for memory of PCI devices begins. The driver puts the value in.
      Name (MEMB, 0x80000000)

      Name (RSRC, ResourceTemplate () {
        WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0x0000, 0x00FF, 0, 0x0100)
        IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
        WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0000, 0x0CF7, 0, 0x0CF8)
        WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0D00, 0xFFFF, 0, 0xF300)
        DWordMemory (
          ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
          0, 0x000A0000, 0x000BFFFF, 0, 0x00020000
          )
        DWordMemory (
          ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
          0, 0x80000000, 0xFBFFFFFF, 0, 0x7C000000, , , WIND
          )
      })

      Method (_CRS, 0, Serialized)
      {
        CreateDWordField (RSRC, \_SB.PCI0.WIND._MIN, WMIN)
        CreateDWordField (RSRC, \_SB.PCI0.WIND._LEN, WLEN)
        Store (MEMB, WMIN)
        Subtract (0xFC000000, MEMB, WLEN)
        Return (RSRC)
      }

      Name (PRTP, Package () { ALL_SLOTS (10, 10, 11, 11) })
      Name (PRTA, Package () { ALL_SLOTS (16, 17, 18, 19) })

      Method (_PRT, 0)
      {
        If (\PICM)
        {
          Return (PRTA)
        }

        Return (PRTP)
      }

      Device (ISA)
      {
        Name (_ADR, 0x00010000)

        Device (COM1)
        {
          Name (_HID, EisaId ("PNP0501"))
          Name (_UID, 1)
          Name (_CRS, ResourceTemplate () {
            IO (Decode16, 0x03F8, 0x03F8, 1, 8)
            IRQNoFlags () { 4 }
          })
        }

        Device (RTC)
        {
          Name (_HID, EisaId ("PNP0B00"))
          Name (_CRS, ResourceTemplate () {
            IO (Decode16, 0x0070, 0x0070, 1, 2)
            IRQNoFlags () { 8 }
          })
        }
      }
    }
  }
}
