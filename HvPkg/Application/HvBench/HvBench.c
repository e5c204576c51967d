/** @file
  Measures what instructions cost that a hypervisor may intercept, in ticks of the time stamp counter.

  One line for each: `hvbench: when=native|hv name=NAME loops=N min=TICKS sum=TICKS`. Run once without and once with the
  hypervisor: the difference of two lines of the same name is what its exit costs, the instruction itself and the loop
  around it apart. What cannot be executed without the hypervisor has a second line, NAME.base: the same with NOP.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <PiDxe.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <IndustryStandard/Acpi.h>
#include <Protocol/Cpu.h>
#include <Protocol/MpService.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvHypercall.h>
#include <Generated/HvMsr.h>
#include <Generated/HvStatus.h>
#include <Library/HvApicLib.h>

#define LOOPS         1000
#define WARM_UP       64 // more than the lines that a guest may cause in the log
#define PIECES        16                    // of the address space that are touched for the first time
#define PIECE_FIRST   8                     // in units of 1 GiB: behind what is mapped from the start
#define PIECE_BYTES   SIZE_1GB
#define MSR_NOWHERE   0x20000000            // outside of every permission map, so that its access always exits
#define IPI_VECTOR    0x55
#define IPI_LOOPS     64
#define NO_TARGET     (0xFEULL << 56)       // an APIC id that no processor has: the IPI is sent, and not accepted
#define ICR_FIXED     (IPI_VECTOR | BIT14)  // asserted, physical destination
#define ALIVE_SPINS   100000000

typedef
VOID
(*OPERATION)(
  IN UINTN  Index
  );

///
/// What an operation works on; set before it is measured.
///
STATIC volatile UINT32  *mApic;
STATIC volatile UINT32  *mHostMemory;
STATIC UINT32           mLeaf;
STATIC UINT32           mMsr;
STATIC UINT64           mValue;
STATIC UINT16           mPort;
STATIC BOOLEAN          mFaulted;
STATIC CONST CHAR16     *mWhen;

STATIC
VOID
Nothing (
  IN UINTN  Index
  )
{
  __asm__ __volatile__ ("nop");
}

STATIC
VOID
Cpuid (
  IN UINTN  Index
  )
{
  UINT32  Eax;
  UINT32  Ecx;

  Eax = mLeaf;
  Ecx = 0;
  __asm__ __volatile__ ("cpuid" : "+a" (Eax), "+c" (Ecx) : : "rbx", "rdx");
}

STATIC
VOID
Rdmsr (
  IN UINTN  Index
  )
{
  __asm__ __volatile__ ("rdmsr" : : "c" (mMsr) : "rax", "rdx");
}

STATIC
VOID
Wrmsr (
  IN UINTN  Index
  )
{
  __asm__ __volatile__ ("wrmsr" : : "c" (mMsr), "a" ((UINT32)mValue), "d" ((UINT32)(mValue >> 32)) : "memory");
}

STATIC
VOID
WrmsrBase (
  IN UINTN  Index
  )
{
  __asm__ __volatile__ ("nop" : : "c" (mMsr), "a" ((UINT32)mValue), "d" ((UINT32)(mValue >> 32)) : "memory");
}

STATIC
VOID
Xsetbv (
  IN UINTN  Index
  )
{
  __asm__ __volatile__ ("xsetbv" : : "c" (0), "a" ((UINT32)mValue), "d" ((UINT32)(mValue >> 32)));
}

STATIC
VOID
Vmcall (
  IN UINTN  Index
  )
{
  UINT64  Rax;

  Rax = HV_HC_NULL;
  __asm__ __volatile__ ("vmcall" : "+a" (Rax) : : "memory");
}

STATIC
VOID
Vmmcall (
  IN UINTN  Index
  )
{
  UINT64  Rax;

  Rax = HV_HC_NULL;
  __asm__ __volatile__ ("vmmcall" : "+a" (Rax) : : "memory");
}

STATIC
VOID
HypercallBase (
  IN UINTN  Index
  )
{
  UINT64  Rax;

  Rax = HV_HC_NULL;
  __asm__ __volatile__ ("nop" : "+a" (Rax) : : "memory");
}

STATIC
VOID
ApicWrite (
  IN UINTN  Index
  )
{
  *mApic = (UINT32)mValue;
}

STATIC
VOID
ApicRead (
  IN UINTN  Index
  )
{
  (VOID)*mApic;
}

STATIC
VOID
HostMemoryRead (
  IN UINTN  Index
  )
{
  (VOID)*mHostMemory;
}

STATIC
VOID
HostMemoryWrite (
  IN UINTN  Index
  )
{
  *mHostMemory = (UINT32)Index;
}

STATIC
VOID
HostMemoryBase (
  IN UINTN  Index
  )
{
  __asm__ __volatile__ ("nop" : : "r" (mHostMemory), "r" ((UINT32)Index));
}

STATIC
VOID
PortWrite (
  IN UINTN  Index
  )
{
  __asm__ __volatile__ ("outb %%al, $0x80" : : "a" (0));
}

STATIC
VOID
PortRead (
  IN UINTN  Index
  )
{
  __asm__ __volatile__ ("inw %0, %%ax" : : "d" (mPort) : "rax");
}

STATIC
VOID
Touch (
  IN UINTN  Index
  )
{
  (VOID)*(volatile UINT32 *)(UINTN)((PIECE_FIRST + Index) * (UINT64)PIECE_BYTES);
}

STATIC
VOID
Say (
  IN CONST CHAR16  *Name,
  IN UINTN         Loops,
  IN UINT64        Least,
  IN UINT64        Sum
  )
{
  Print (L"hvbench: when=%s name=%s loops=%lu min=%lu sum=%lu\n", mWhen, Name, (UINT64)Loops, Least, Sum);
}

///
/// Runs an operation again and again, with interrupts off, and prints what it took.
///
STATIC
VOID
Measure (
  IN CONST CHAR16  *Name,
  IN OPERATION     Operation,
  IN UINTN         WarmUp,
  IN UINTN         Loops
  )
{
  UINTN    Index;
  UINT64   Begin;
  UINT64   Ticks;
  UINT64   Least;
  UINT64   Sum;
  BOOLEAN  Interrupts;

  Interrupts = SaveAndDisableInterrupts ();
  Least      = MAX_UINT64;
  Sum        = 0;
  for (Index = 0; Index < WarmUp; Index++) {
    Operation (Index);
  }

  for (Index = 0; Index < Loops; Index++) {
    Begin = AsmReadTsc ();
    Operation (Index);
    Ticks = AsmReadTsc () - Begin;
    Least = MIN (Least, Ticks);
    Sum  += Ticks;
  }

  SetInterruptState (Interrupts);
  Say (Name, Loops, Least, Sum);
}

STATIC
VOID
MeasureLeaf (
  IN CONST CHAR16  *Name,
  IN UINT32        Leaf
  )
{
  mLeaf = Leaf;
  Measure (Name, Cpuid, WARM_UP, LOOPS);
}

///
/// #GP of an instruction of two bytes, RDMSR: passed over.
///
STATIC
VOID
EFIAPI
OnProtectionFault (
  IN CONST EFI_EXCEPTION_TYPE  Type,
  IN CONST EFI_SYSTEM_CONTEXT  Context
  )
{
  mFaulted                         = TRUE;
  Context.SystemContextX64->Rip   += 2;
}

///
/// MSRs: two that every processor has and nobody has a reason to intercept, and ones that are intercepted.
///
STATIC
VOID
MeasureMsrs (
  IN EFI_CPU_ARCH_PROTOCOL  *CpuArch
  )
{
  mMsr   = HV_MSR_KERNEL_GS_BASE;
  mValue = AsmReadMsr64 (mMsr);
  Measure (L"pass.rdmsr", Rdmsr, WARM_UP, LOOPS);
  Measure (L"pass.wrmsr", Wrmsr, WARM_UP, LOOPS);

  mMsr   = HV_MSR_APIC_BASE;
  mValue = AsmReadMsr64 (mMsr);
  Measure (L"exit.wrmsr", Wrmsr, WARM_UP, LOOPS);

  // A read exits for what no permission map covers, which a processor refuses and the emulators read as 0.
  if (!EFI_ERROR (CpuArch->RegisterInterruptHandler (CpuArch, EXCEPT_X64_GP_FAULT, OnProtectionFault))) {
    mMsr     = MSR_NOWHERE;
    mFaulted = FALSE;
    Rdmsr (0);
    if (!mFaulted) {
      Measure (L"exit.rdmsr", Rdmsr, WARM_UP, LOOPS);
    }

    CpuArch->RegisterInterruptHandler (CpuArch, EXCEPT_X64_GP_FAULT, NULL);
  }
}

STATIC
VOID
MeasureXsetbv (
  VOID
  )
{
  UINTN   Cr4;
  UINT32  Ecx;
  UINT32  Low;
  UINT32  High;

  AsmCpuid (HV_CPUID_1, NULL, NULL, &Ecx, NULL);
  if ((Ecx & HV_CPUID_1_ECX_XSAVE) == 0) {
    return;
  }

  Cr4 = AsmReadCr4 ();
  AsmWriteCr4 (Cr4 | HV_CR4_OSXSAVE);
  __asm__ __volatile__ ("xgetbv" : "=a" (Low), "=d" (High) : "c" (0));
  mValue = LShiftU64 (High, 32) | Low;
  Measure (L"exit.xsetbv", Xsetbv, WARM_UP, LOOPS);
  AsmWriteCr4 (Cr4);
}

///
/// I/O: a port that nobody has a reason to intercept, and the one by which the root asks for a sleep state.
///
STATIC
VOID
MeasureIo (
  VOID
  )
{
  CONST EFI_ACPI_2_0_FIXED_ACPI_DESCRIPTION_TABLE  *Fadt;

  Measure (L"pass.io", PortWrite, WARM_UP, LOOPS);
  Fadt = (CONST VOID *)EfiLocateFirstAcpiTable (EFI_ACPI_2_0_FIXED_ACPI_DESCRIPTION_TABLE_SIGNATURE);
  if ((Fadt != NULL) && (Fadt->Pm1aCntBlk != 0)) {
    mPort = (UINT16)Fadt->Pm1aCntBlk;
    Measure (L"exit.io", PortRead, WARM_UP, LOOPS);
  }
}

///
/// Registers of the local APIC in xAPIC mode. Writes exit while the page is trapped.
///
STATIC
VOID
MeasureXApic (
  VOID
  )
{
  UINTN  Base;

  Base   = AsmReadMsr64 (HV_MSR_APIC_BASE) & HV_APIC_BASE_ADDRESS_MASK;
  mApic  = (volatile UINT32 *)(Base + HV_APIC_REG_EOI);
  mValue = 0;
  Measure (L"exit.apic.eoi", ApicWrite, WARM_UP, LOOPS);
  mApic = (volatile UINT32 *)(Base + HV_APIC_REG_TPR);
  Measure (L"pass.apic.read", ApicRead, WARM_UP, LOOPS);

  *(volatile UINT32 *)(Base + HV_APIC_REG_ICR_HIGH) = (UINT32)RShiftU64 (NO_TARGET, 32);
  mApic                                             = (volatile UINT32 *)(Base + HV_APIC_REG_ICR_LOW);
  mValue                                            = ICR_FIXED;
  Measure (L"exit.icr.xapic", ApicWrite, WARM_UP, LOOPS);
}

///
/// The interrupt command in x2APIC mode. There is no way back to xAPIC mode that keeps the APIC's registers, so this is
/// the last that is measured.
///
STATIC
VOID
MeasureX2Apic (
  VOID
  )
{
  UINT32  Ecx;
  UINT64  Base;

  AsmCpuid (HV_CPUID_1, NULL, NULL, &Ecx, NULL);
  if ((Ecx & HV_CPUID_1_ECX_X2APIC) == 0) {
    return;
  }

  Base = AsmReadMsr64 (HV_MSR_APIC_BASE);
  AsmWriteMsr64 (HV_MSR_APIC_BASE, Base | HV_APIC_BASE_EXTD);
  mMsr   = HV_MSR_X2APIC_ICR;
  mValue = LShiftU64 (0xFFFFFFF0, 32) | ICR_FIXED; // as NO_TARGET
  Measure (L"exit.icr.x2apic.base", WrmsrBase, WARM_UP, LOOPS);
  Measure (L"exit.icr.x2apic", Wrmsr, WARM_UP, LOOPS);
  mMsr   = HV_MSR_X2APIC_EOI;
  mValue = 0;
  Measure (L"pass.eoi.x2apic.base", WrmsrBase, WARM_UP, LOOPS);
  Measure (L"pass.eoi.x2apic", Wrmsr, WARM_UP, LOOPS);
}

///
/// What there is only with the hypervisor.
///
STATIC
VOID
MeasureHypervisor (
  IN UINT32  Backend
  )
{
  UINT32  Eax;
  UINT32  Ebx;
  UINT32  Ecx;

  Measure (L"exit.hypercall.base", HypercallBase, WARM_UP, LOOPS);
  Measure (L"exit.hypercall", (Backend == HV_CPUID_BACKEND_VMX) ? Vmcall : Vmmcall, WARM_UP, LOOPS);

  // Behind the pages that are shared with the root.
  AsmCpuid (HV_CPUID_40000002, &Eax, &Ebx, &Ecx, NULL);
  mHostMemory = (volatile UINT32 *)(UINTN)((LShiftU64 (Ebx, 32) | Eax) + Ecx);
  Measure (L"pass.host-read.base", HostMemoryBase, WARM_UP, LOOPS);
  Measure (L"pass.host-read", HostMemoryRead, WARM_UP, LOOPS);
  Measure (L"exit.host-memory.base", HostMemoryBase, WARM_UP, LOOPS);
  Measure (L"exit.host-memory", HostMemoryWrite, WARM_UP, LOOPS);
}

///
/// Whether the firmware's page tables map the pieces that Touch reads, with 4 levels.
///
STATIC
BOOLEAN
PiecesMapped (
  VOID
  )
{
  CONST UINT64  Frame = 0x000FFFFFFFFFF000ULL;
  UINT64        *Table;
  UINTN         Index;

  if ((AsmReadCr4 () & HV_CR4_LA57) != 0) {
    return FALSE;
  }

  Table = (UINT64 *)(UINTN)(AsmReadCr3 () & Frame);
  if ((Table[0] & BIT0) == 0) {
    return FALSE;
  }

  Table = (UINT64 *)(UINTN)(Table[0] & Frame);
  for (Index = PIECE_FIRST; Index < PIECE_FIRST + PIECES; Index++) {
    if ((Table[Index] & BIT0) == 0) {
      return FALSE;
    }
  }

  return TRUE;
}

///
/// The other end of the IPIs.
///
typedef struct {
  volatile UINT32    *Irr;       ///< the word with the vector's bit
  volatile UINT64    Received;   ///< time of the receiver, 0 until then
  volatile UINT32    Wanted;     ///< IPIs that the receiver is to wait for
  volatile UINT32    Done;       ///< IPIs that it took
  volatile BOOLEAN   Alive;
} IPI_END;

STATIC volatile UINT32  *mEoi;

STATIC
VOID
EFIAPI
OnIpi (
  IN CONST EFI_EXCEPTION_TYPE  Type,
  IN CONST EFI_SYSTEM_CONTEXT  Context
  )
{
  *mEoi = 0;
}

///
/// Waits with interrupts off until the IPI is there, which says when it came, and then takes it.
///
STATIC
VOID
EFIAPI
Receive (
  IN VOID  *Buffer
  )
{
  IPI_END  *End;

  End        = Buffer;
  End->Alive = TRUE;
  DisableInterrupts ();
  while (End->Done < IPI_LOOPS) {
    while ((*End->Irr & (1U << (IPI_VECTOR % 32))) == 0) {
    }

    End->Received = AsmReadTsc ();
    __asm__ __volatile__ ("sti; nop; nop; cli");
    End->Done++;
  }
}

///
/// From the write of the interrupt command to the interrupt's arrival at another processor.
///
STATIC
VOID
MeasureIpi (
  IN EFI_CPU_ARCH_PROTOCOL     *CpuArch,
  IN EFI_MP_SERVICES_PROTOCOL  *Mp
  )
{
  EFI_PROCESSOR_INFORMATION  Target;
  EFI_EVENT                  Event;
  IPI_END                    End;
  UINTN                      Base;
  UINTN                      Index;
  UINT64                     Begin;
  UINT64                     Ticks;
  UINT64                     Least;
  UINT64                     Sum;
  UINTN                      Spin;
  BOOLEAN                    Interrupts;

  Base = AsmReadMsr64 (HV_MSR_APIC_BASE) & HV_APIC_BASE_ADDRESS_MASK;
  ZeroMem (&End, sizeof (End));
  End.Irr = (volatile UINT32 *)(Base + HV_APIC_REG_IRR + (IPI_VECTOR / 32) * 16);
  mEoi    = (volatile UINT32 *)(Base + HV_APIC_REG_EOI);
  if (EFI_ERROR (Mp->GetProcessorInfo (Mp, 1, &Target)) ||
      EFI_ERROR (CpuArch->RegisterInterruptHandler (CpuArch, IPI_VECTOR, OnIpi)))
  {
    return;
  }

  if (EFI_ERROR (gBS->CreateEvent (0, TPL_NOTIFY, NULL, NULL, &Event))) {
    return;
  }

  if (!EFI_ERROR (Mp->StartupThisAP (Mp, Receive, 1, Event, 0, &End, NULL))) {
    for (Spin = 0; !End.Alive && (Spin < ALIVE_SPINS); Spin++) {
      CpuPause ();
    }

    Interrupts = SaveAndDisableInterrupts ();
    Least      = MAX_UINT64;
    Sum        = 0;
    for (Index = 0; Index < IPI_LOOPS; Index++) {
      *(volatile UINT32 *)(Base + HV_APIC_REG_ICR_HIGH) = (UINT32)Target.ProcessorId << 24;
      Begin                                             = AsmReadTsc ();
      *(volatile UINT32 *)(Base + HV_APIC_REG_ICR_LOW)  = ICR_FIXED;
      while (End.Done == Index) {
        CpuPause ();
      }

      Ticks = End.Received - Begin;
      Least = MIN (Least, Ticks);
      Sum  += Ticks;
    }

    SetInterruptState (Interrupts);
    Say (L"ipi", IPI_LOOPS, Least, Sum);
    // The firmware notices by a timer that the processor is idle again.
    for (Spin = 0; EFI_ERROR (gBS->CheckEvent (Event)) && (Spin < ALIVE_SPINS); Spin++) {
      CpuPause ();
    }
  }

  gBS->CloseEvent (Event);
  CpuArch->RegisterInterruptHandler (CpuArch, IPI_VECTOR, NULL);
}

/**
  Measures and prints.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS  All that can be measured on this machine is.
  @retval Others       The firmware has no CPU protocol or no MP services.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvBenchMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  EFI_CPU_ARCH_PROTOCOL     *CpuArch;
  EFI_MP_SERVICES_PROTOCOL  *Mp;
  EFI_STATUS                Status;
  UINTN                     Cpus;
  UINTN                     Enabled;
  UINT32                    Ebx;
  UINT32                    Ecx;
  UINT32                    Edx;
  UINT32                    Backend;

  Status = gBS->LocateProtocol (&gEfiCpuArchProtocolGuid, NULL, (VOID **)&CpuArch);
  if (!EFI_ERROR (Status)) {
    Status = gBS->LocateProtocol (&gEfiMpServiceProtocolGuid, NULL, (VOID **)&Mp);
  }

  if (!EFI_ERROR (Status)) {
    Status = Mp->GetNumberOfProcessors (Mp, &Cpus, &Enabled);
  }

  if (EFI_ERROR (Status)) {
    Print (L"HvBench: no CPU protocol or MP services: %r\n", Status);
    return Status;
  }

  Backend = 0;
  AsmCpuid (HV_CPUID_40000000, NULL, &Ebx, &Ecx, &Edx);
  if ((Ebx == HV_CPUID_SIGNATURE_EBX) && (Ecx == HV_CPUID_SIGNATURE_ECX) && (Edx == HV_CPUID_SIGNATURE_EDX)) {
    AsmCpuid (HV_CPUID_40000001, NULL, NULL, &Backend, NULL);
  }

  mWhen = (Backend != 0) ? L"hv" : L"native";
  Measure (L"nop", Nothing, WARM_UP, LOOPS);
  MeasureLeaf (L"exit.cpuid", HV_CPUID_0);
  MeasureLeaf (L"exit.cpuid.1", HV_CPUID_1);
  MeasureLeaf (L"exit.cpuid.7", HV_CPUID_7);
  MeasureLeaf (L"exit.cpuid.80000001", HV_CPUID_80000001);
  MeasureLeaf (L"exit.cpuid.80000008", HV_CPUID_80000008);
  MeasureMsrs (CpuArch);
  MeasureXsetbv ();
  MeasureIo ();
  if (PiecesMapped ()) {
    Measure (L"exit.npf", Touch, 0, PIECES);
  }

  if ((AsmReadMsr64 (HV_MSR_APIC_BASE) & HV_APIC_BASE_EXTD) == 0) {
    MeasureXApic ();
    if (Cpus > 1) {
      MeasureIpi (CpuArch, Mp);
    }
  }

  if (Backend != 0) {
    MeasureHypervisor (Backend);
    MeasureX2Apic ();
  }

  return EFI_SUCCESS;
}
