/** @file
  The reserved memory: how much, what is where, and the tables that describe it.

  It is one block: [shared with the root: status, log ring][host block][image copy][VM pages][processors][page pool].

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HvDxe.h"

#define STACK_PAGES         4
#define FAULT_STACK_PAGES   2
#define NMI_STACK_PAGES     1
#define GUARD_PAGES         1
#define LARGE_PAGE_PAGES    EFI_SIZE_TO_PAGES (SIZE_2MB)
#define PAGES_ON_DEMAND     64  // tables for holes of the address space that the root touches later
#define PAGES_TO_SPLIT      64  // tables that carve-outs add: host block, APIC page, guard pages, memory types

STATIC UINT64   mBase;
STATIC UINTN    mPages;

typedef struct {
  UINT64    Next;
} CURSOR;

STATIC
VOID *
Take (
  IN OUT CURSOR  *Cursor,
  IN     UINTN   Pages
  )
{
  UINT64  Address;

  Address       = Cursor->Next;
  Cursor->Next += EFI_PAGES_TO_SIZE (Pages);
  return (VOID *)(UINTN)Address;
}

STATIC
BOOLEAN
IsMemory (
  IN CONST EFI_MEMORY_DESCRIPTOR  *Entry
  )
{
  EFI_GCD_MEMORY_SPACE_DESCRIPTOR  Space;

  switch (Entry->Type) {
    case EfiMemoryMappedIO:
    case EfiMemoryMappedIOPortSpace:
    case EfiUnusableMemory:
    case EfiUnacceptedMemoryType:
      return FALSE;
    case EfiReservedMemoryType:
      // Taken from memory, as ours is, or a hole such as HyperTransport's below 1 TiB, where nothing may be read.
      return !EFI_ERROR (gDS->GetMemorySpaceDescriptor (Entry->PhysicalStart, &Space)) &&
             (Space.GcdMemoryType == EfiGcdMemoryTypeSystemMemory);
    default:
      return TRUE;
  }
}

///
/// Puts a range among the sorted ones and joins what touches.
///
STATIC
BOOLEAN
AddRam (
  IN OUT HV_RANGE  *Ranges,
  IN OUT UINT32    *Count,
  IN     UINT64    Base,
  IN     UINT64    End
  )
{
  UINT32  Index;
  UINT32  First;

  for (First = 0; (First < *Count) && (Ranges[First].End < Base); First++) {
  }

  for (Index = First; (Index < *Count) && (Ranges[Index].Base <= End); Index++) {
    Base = MIN (Base, Ranges[Index].Base);
    End  = MAX (End, Ranges[Index].End);
  }

  if ((Index == First) && (*Count == HV_RAM_RANGES_MAX)) {
    return FALSE;
  }

  CopyMem (&Ranges[First + 1], &Ranges[Index], (*Count - Index) * sizeof (*Ranges));
  *Count             += First + 1 - Index;
  Ranges[First].Base  = Base;
  Ranges[First].End   = End;
  return TRUE;
}

EFI_STATUS
HvMemoryMap (
  OUT EFI_MEMORY_DESCRIPTOR  **Map,
  OUT UINTN                  *Size,
  OUT UINTN                  *EntrySize
  )
{
  UINTN       Key;
  UINT32      Version;
  EFI_STATUS  Status;

  *Map  = NULL;
  *Size = 0;
  while ((Status = gBS->GetMemoryMap (Size, *Map, &Key, EntrySize, &Version)) == EFI_BUFFER_TOO_SMALL) {
    if (*Map != NULL) {
      FreePool (*Map);
    }

    // The allocation itself can add entries.
    *Size += 8 * *EntrySize;
    *Map   = AllocatePool (*Size);
    if (*Map == NULL) {
      return EFI_OUT_OF_RESOURCES;
    }
  }

  return Status;
}

STATIC
EFI_STATUS
FindRam (
  OUT HV_RANGE  *Ranges,
  OUT UINT32    *Count
  )
{
  EFI_MEMORY_DESCRIPTOR  *Map;
  EFI_MEMORY_DESCRIPTOR  *Entry;
  UINTN                  Size;
  UINTN                  EntrySize;
  EFI_STATUS             Status;

  *Count = 0;
  Status = HvMemoryMap (&Map, &Size, &EntrySize);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  for (Entry = Map; (UINTN)Entry < (UINTN)Map + Size; Entry = NEXT_MEMORY_DESCRIPTOR (Entry, EntrySize)) {
    if (IsMemory (Entry) &&
        !AddRam (Ranges, Count, Entry->PhysicalStart, Entry->PhysicalStart + EFI_PAGES_TO_SIZE (Entry->NumberOfPages)))
    {
      Status = EFI_OUT_OF_RESOURCES;
      break;
    }
  }

  FreePool (Map);
  return Status;
}

STATIC
UINT8
PhysicalAddressBits (
  VOID
  )
{
  UINT64  Tme;
  UINT32  Max;
  UINT32  Eax;
  UINT32  Ebx;
  UINT32  Ecx;
  UINT8   Bits;

  AsmCpuid (HV_CPUID_80000000, &Max, NULL, NULL, NULL);
  Bits = 36; // SDM volume 2, CPUID: what a processor has that does not say
  if (Max >= HV_CPUID_80000008) {
    AsmCpuid (HV_CPUID_80000008, &Eax, NULL, NULL, NULL);
    Bits = (UINT8)(Eax & HV_CPUID_80000008_EAX_PHYSICAL_BITS_MASK);
  }

  if ((Max >= HV_CPUID_8000001F) && ((AsmReadMsr64 (HV_MSR_SYSCFG) & HV_SYSCFG_MEM_ENCRYPT) != 0)) {
    // Memory encryption takes address bits away while it is on (APM2 7.10.1).
    AsmCpuid (HV_CPUID_8000001F, NULL, &Ebx, NULL, NULL);
    Bits -= (UINT8)((Ebx & HV_CPUID_8000001F_EBX_ADDRESS_REDUCTION_MASK) >> HV_CPUID_8000001F_EBX_ADDRESS_REDUCTION_SHIFT);
  }

  AsmCpuid (HV_CPUID_0, &Max, NULL, NULL, NULL);
  if (Max >= HV_CPUID_7) {
    AsmCpuidEx (HV_CPUID_7, 0, NULL, NULL, &Ecx, NULL);
    Tme = ((Ecx & HV_CPUID_7_ECX_TME) != 0) ? AsmReadMsr64 (HV_MSR_TME_ACTIVATE) : 0;
    if ((Tme & (HV_TME_ACTIVATE_LOCK | HV_TME_ACTIVATE_ENABLE)) == (HV_TME_ACTIVATE_LOCK | HV_TME_ACTIVATE_ENABLE)) {
      // The upper bits are key ids then: other names of the same memory. CPUID counts them in.
      Bits -= (UINT8)((Tme & HV_TME_ACTIVATE_KEY_ID_BITS_MASK) >> HV_TME_ACTIVATE_KEY_ID_BITS_SHIFT);
    }
  }

  return Bits;
}

///
/// The largest page of the host's own tables: those are the processor's, whatever its nested ones can do.
///
STATIC
UINT8
HostLevel (
  IN CONST HV_PROBE  *Probe
  )
{
  UINT32  Edx;

  AsmCpuid (HV_CPUID_80000001, NULL, NULL, NULL, &Edx);
  return ((Edx & HV_CPUID_80000001_EDX_PAGE1GB) != 0) ? Probe->LargestLevel : MIN (Probe->LargestLevel, HV_PAGING_LEVEL_2M);
}

///
/// Reserved pages, on a 2 MiB boundary, so that the nested tables split as little as can be.
///
STATIC
EFI_STATUS
AllocateBlock (
  IN  UINTN   Pages,
  OUT UINT64  *Base
  )
{
  EFI_PHYSICAL_ADDRESS  Address;
  EFI_STATUS            Status;
  UINTN                 Head;

  Status = gBS->AllocatePages (AllocateAnyPages, EfiReservedMemoryType, Pages + LARGE_PAGE_PAGES - 1, &Address);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  *Base = ALIGN_VALUE (Address, SIZE_2MB);
  Head  = EFI_SIZE_TO_PAGES (*Base - Address);
  if (Head > 0) {
    gBS->FreePages (Address, Head);
  }

  if (Head < LARGE_PAGE_PAGES - 1) {
    gBS->FreePages (*Base + EFI_PAGES_TO_SIZE (Pages), LARGE_PAGE_PAGES - 1 - Head);
  }

  return EFI_SUCCESS;
}

///
/// One processor's part: its block, three stacks with a guard page below each, the backend's pages.
///
STATIC
EFI_STATUS
BuildCpu (
  IN     HV_HOST                   *Host,
  IN     UINT32                    Index,
  IN     CONST HV_PROBE            *Probe,
  IN     EFI_MP_SERVICES_PROTOCOL  *Mp,
  IN OUT CURSOR                    *Cursor
  )
{
  EFI_PROCESSOR_INFORMATION  Information;
  HV_CPU                     *Cpu;
  HV_VCPU                    *Vcpu;
  EFI_STATUS                 Status;
  UINT8                      *Guard;
  UINTN                      Stack;
  STATIC CONST UINTN         Stacks[] = { STACK_PAGES, FAULT_STACK_PAGES, NMI_STACK_PAGES };
  UINT64                     *Tops[3];

  Status = Mp->GetProcessorInfo (Mp, Index, &Information);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Cpu  = Take (Cursor, EFI_SIZE_TO_PAGES (sizeof (HV_CPU) + sizeof (HV_VCPU)));
  Vcpu = (HV_VCPU *)(Cpu + 1);

  Cpu->Self        = Cpu;
  Cpu->Host        = Host;
  Cpu->Vcpu        = Vcpu;
  Cpu->Index       = Index;
  Cpu->Apic.ApicId = (UINT32)Information.ProcessorId;
  Cpu->State       = HvMpNative;
  Cpu->Exits       = (UINT64 *)((UINT8 *)Host->Status + HV_STATUS_EXITS_OFFSET (Host->CpuCount)) +
                     Index * HV_EXIT_KIND_MAX;
  ((UINT32 *)((UINT8 *)Host->Status + HV_STATUS_APIC_ID_OFFSET (Host->CpuCount)))[Index] = Cpu->Apic.ApicId;

  Vcpu->Cpu   = Cpu;
  Vcpu->Vm    = &Host->Root;
  Vcpu->Index = Index;

  Tops[0] = &Cpu->StackTop;
  Tops[1] = &Cpu->FaultStackTop;
  Tops[2] = &Cpu->NmiStackTop;
  for (Stack = 0; Stack < ARRAY_SIZE (Stacks); Stack++) {
    Guard  = Take (Cursor, GUARD_PAGES);
    Status = HvPagingUnmap (&Host->HostPaging, (UINTN)Guard, EFI_PAGES_TO_SIZE (GUARD_PAGES));
    if (EFI_ERROR (Status)) {
      return Status;
    }

    *Tops[Stack] = (UINTN)Take (Cursor, Stacks[Stack]) + EFI_PAGES_TO_SIZE (Stacks[Stack]);
  }

  Cpu->BackendPages = Take (Cursor, Probe->CpuPages);
  return EFI_SUCCESS;
}

STATIC
UINTN
CpuPages (
  IN CONST HV_PROBE  *Probe
  )
{
  return EFI_SIZE_TO_PAGES (sizeof (HV_CPU) + sizeof (HV_VCPU)) + 3 * GUARD_PAGES + STACK_PAGES + FAULT_STACK_PAGES +
         NMI_STACK_PAGES + Probe->CpuPages;
}

///
/// The host's tables: memory read-write, the image by its sections, the local APIC. Nothing else is executable.
///
STATIC
EFI_STATUS
BuildHostTables (
  IN OUT HV_HOST         *Host,
  IN     CONST HV_IMAGE  *Image,
  IN     UINT8           LargestLevel
  )
{
  EFI_STATUS  Status;
  UINT32      Index;
  UINT32      Ecx;
  BOOLEAN     La57;

  La57   = (BOOLEAN)((AsmReadCr4 () & HV_CR4_LA57) != 0);
  Status = HvPagingInit (
             &Host->HostPaging,
             La57 ? HvPagingHost5 : HvPagingHost4,
             &Host->Pool,
             LargestLevel,
             MIN (Host->AddressBits, HvPagingFormatBits (La57 ? HvPagingHost5 : HvPagingHost4))
             );
  for (Index = 0; !EFI_ERROR (Status) && (Index < Host->RamCount); Index++) {
    Status = HvPagingMap (
               &Host->HostPaging,
               Host->Ram[Index].Base,
               Host->Ram[Index].Base,
               Host->Ram[Index].End - Host->Ram[Index].Base,
               HV_PAGE_READ | HV_PAGE_WRITE | HV_PAGE_TYPE_WB
               );
  }

  if (!EFI_ERROR (Status)) {
    Status = HvPagingMap (
               &Host->HostPaging,
               Host->ApicPage,
               Host->ApicPage,
               EFI_PAGE_SIZE,
               HV_PAGE_READ | HV_PAGE_WRITE | HV_PAGE_TYPE_UC
               );
  }

  if (!EFI_ERROR (Status)) {
    Status = HvImageMap (Image, &Host->HostPaging);
  }

  // XSETBV is executed for the root.
  AsmCpuid (HV_CPUID_1, NULL, NULL, &Ecx, NULL);
  Host->Cr0 = HV_CR0_PE | HV_CR0_MP | HV_CR0_ET | HV_CR0_NE | HV_CR0_WP | HV_CR0_PG | Host->RootCr0;
  Host->Cr3 = Host->HostPaging.Root;
  Host->Cr4 = HV_CR4_PAE | HV_CR4_MCE | (La57 ? HV_CR4_LA57 : 0) | Host->RootCr4 |
              (((Ecx & HV_CPUID_1_ECX_XSAVE) != 0) ? HV_CR4_OSXSAVE : 0);
  return Status;
}

///
/// The root's tables: identity, but the host's block reads as ones, what is shared is read-only, and the xAPIC page
/// is read-only so that interrupt commands are seen.
///
STATIC
EFI_STATUS
BuildNestedTables (
  IN OUT HV_HOST  *Host,
  IN     UINT64   End
  )
{
  EFI_STATUS      Status;
  HV_PAGING       *Nested;
  HV_PAGING_LEAF  Leaf;
  UINT64          Page;

  Nested = &Host->Root.Nested;
  Status = HvCoreMapStart (Host, &Host->Root, End);
  for (Page = Host->Base; !EFI_ERROR (Status) && (Page < Host->Base + Host->Bytes); Page += EFI_PAGE_SIZE) {
    Status = HvPagingMap (
               Nested,
               Page,
               Page - Host->SharedBase < Host->SharedBytes ? Page : Host->OnesPage,
               EFI_PAGE_SIZE,
               HV_PAGE_READ | HV_PAGE_EXECUTE | HV_PAGE_TYPE_WB
               );
  }

  if (!EFI_ERROR (Status) && (Host->CpuCount > 1)) {
    HvPagingQuery (Nested, Host->ApicPage, &Leaf);
    Status = HvPagingProtect (Nested, Host->ApicPage, EFI_PAGE_SIZE, (Leaf.Attributes & ~HV_PAGE_RWX) | HV_PAGE_READ);
  }

  return Status;
}

STATIC
VOID
LogNested (
  IN HV_HOST  *Host
  )
{
  STATIC CONST CHAR8  *CONST  Names[] = { "", "4k", "2m", "1g" };
  HV_PAGING                   *Nested;

  Nested = &Host->Root.Nested;
  HV_LOG (
    0,
    Nested,
    HV_STR (Names[Nested->LargestLevel]),
    HV_PAGING_LEVEL_SIZE (Nested->LargestLevel),
    Nested->Count[0],
    Nested->Count[1],
    Nested->Count[2],
    Host->Pool.Used
    );
}

EFI_STATUS
HvMemoryBuild (
  IN     CONST HV_BACKEND_OPS      *Ops,
  IN     CONST HV_PROBE            *Probe,
  IN     CONST HV_OPTIONS          *Options,
  IN OUT HV_IMAGE                  *Image,
  IN     EFI_MP_SERVICES_PROTOCOL  *Mp,
  OUT    HV_HOST                   **Result
  )
{
  HV_HOST          *Scratch;
  HV_HOST          *Host;
  HV_CPU           *Cpu;
  HV_PAGING_RANGE  Range;
  CURSOR           Cursor;
  EFI_STATUS       Status;
  UINTN            Cpus;
  UINTN            Enabled;
  UINTN            SharedPages;
  UINTN            TracePages;
  UINTN            DmaPages;
  UINTN            Pool;
  UINT64           NestedPages;
  UINT64           End;
  UINT64           Used;
  UINT32           Index;
  UINT8            Level;

  Status = Mp->GetNumberOfProcessors (Mp, &Cpus, &Enabled);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Scratch = AllocateZeroPool (sizeof (*Scratch));
  if (Scratch == NULL) {
    return EFI_OUT_OF_RESOURCES;
  }

  Scratch->AddressBits = PhysicalAddressBits ();
  Status               = FindRam (Scratch->Ram, &Scratch->RamCount);
  if (EFI_ERROR (Status)) {
    FreePool (Scratch);
    return Status;
  }

  Level = Probe->LargestLevel;
  if (Options->Value[HvOptionNestedPage] != HV_OPTION_NESTED_PAGE_AUTO) {
    // The choices are in the order of the levels.
    Level = (UINT8)MIN (Level, Options->Value[HvOptionNestedPage]);
  }

  // Memory and the windows below 4 GiB are mapped at the start, the rest on first use (HvCoreMapStart).
  End         = MAX (SIZE_4GB, Scratch->Ram[Scratch->RamCount - 1].End);
  End         = MIN (ALIGN_VALUE (End, SIZE_1GB), LShiftU64 (1, MIN (Scratch->AddressBits, HvPagingFormatBits (Probe->Format))));
  ZeroMem (&Range, sizeof (Range));
  Range.Length = End;
  HvPagingEstimate (Probe->Format, Level, &Range, 1, &NestedPages);

  SharedPages = EFI_SIZE_TO_PAGES (HV_STATUS_BYTES (Cpus)) + EFI_SIZE_TO_PAGES (HV_RING_BYTES);
  Pool        = (UINTN)NestedPages + PAGES_ON_DEMAND + PAGES_TO_SPLIT;
  HvPagingEstimate (HvPagingHost4, HostLevel (Probe), &Range, 1, &NestedPages);
  Pool += (UINTN)NestedPages + PAGES_TO_SPLIT + 4 * Scratch->RamCount;
  if (Level != HV_PAGING_LEVEL_1G) {
    // A piece on demand is a table of its own: 1 GiB with leaves of 2 MiB, 2 MiB with leaves of 4 KiB.
    Pool += 4 * PAGES_ON_DEMAND;
  }

  DmaPages   = HvDmaPages (Options, ALIGN_VALUE (MAX (SIZE_4GB, Scratch->Ram[Scratch->RamCount - 1].End), SIZE_1GB));
  TracePages = 0;
  if (Options->Value[HvOptionTrace] != 0) {
    TracePages = EFI_SIZE_TO_PAGES ((UINTN)HvCoreTraceBytes (Options->Value[HvOptionTrace]));
  }

  mPages  = SharedPages + EFI_SIZE_TO_PAGES (sizeof (HV_HOST)) + EFI_SIZE_TO_PAGES (sizeof (HV_CRASH_RECORD)) +
            EFI_SIZE_TO_PAGES (Image->Bytes) + Probe->SharedPages + DmaPages + 1 +
            Cpus * (CpuPages (Probe) + TracePages) + Pool;
  mPages += mPages / 512 * 2; // tables for the 4 KiB mappings of the block itself, nested and host
  Status  = (Options->Value[HvOptionFailAt] == HV_OPTION_FAIL_AT_MEMORY) ? EFI_OUT_OF_RESOURCES
                                                                         : AllocateBlock (mPages, &mBase);
  if (EFI_ERROR (Status)) {
    mPages = 0;
    FreePool (Scratch);
    return Status;
  }

  ZeroMem ((VOID *)(UINTN)mBase, EFI_PAGES_TO_SIZE (mPages));
  Cursor.Next          = mBase;
  Scratch->Status      = Take (&Cursor, SharedPages);
  Host                 = Take (&Cursor, EFI_SIZE_TO_PAGES (sizeof (HV_HOST)));
  CopyMem (Host, Scratch, sizeof (*Host));
  FreePool (Scratch);

  Host->Crash          = Take (&Cursor, EFI_SIZE_TO_PAGES (sizeof (HV_CRASH_RECORD)));
  Image->CopyBase      = (UINTN)Take (&Cursor, EFI_SIZE_TO_PAGES (Image->Bytes));
  Host->Ops            = HV_IN_COPY (Image, Ops);
  Host->Base           = mBase;
  Host->Bytes          = EFI_PAGES_TO_SIZE (mPages);
  Host->SharedBase     = (UINTN)Host->Status;
  Host->SharedBytes    = EFI_PAGES_TO_SIZE (SharedPages);
  Host->ApicPage       = AsmReadMsr64 (HV_MSR_APIC_BASE) & HV_APIC_BASE_ADDRESS_MASK;
  Host->BootTextBase   = Image->TextBase;
  Host->BootTextEnd    = Image->TextEnd;
  Host->CpuCount       = (UINT32)Cpus;
  Host->RootCr0        = Probe->RootCr0;
  Host->RootCr4        = Probe->RootCr4;
  Host->LiftApicTrap   = (BOOLEAN)(Probe->SipiExits && (Options->Value[HvOptionApicTrap] == HV_OPTION_APIC_TRAP_AUTO));
  Host->HiddenCount    = Probe->HiddenCount;
  CopyMem (Host->Hidden, Probe->Hidden, sizeof (Host->Hidden));
  HvCoreCpuidPrepare (Host);
  Host->FailCpu        = (UINT32)MIN (Options->Value[HvOptionFailCpu], MAX_UINT32);
  Host->FailAt         = (UINT32)Options->Value[HvOptionFailAt];
  Host->Corrupt        = (UINT32)Options->Value[HvOptionCorrupt];
  Host->CorruptCpu     = (UINT32)Options->Value[HvOptionCorruptCpu];
  Host->Inject         = (BOOLEAN)(Options->Value[HvOptionInject] == HV_OPTION_INJECT_ON);
  Host->ResetOnCrash   = (BOOLEAN)(Options->Value[HvOptionOnCrash] == HV_OPTION_ON_CRASH_RESET);
  Host->EntryCheck     = (BOOLEAN)(Options->Value[HvOptionEntryCheck] == HV_OPTION_ENTRY_CHECK_ON);
  Host->Root.Shared    = Take (&Cursor, Probe->SharedPages);
  Host->TraceBase      = (TracePages == 0) ? 0 : (UINTN)Take (&Cursor, Cpus * TracePages);
  Host->DmaPages       = DmaPages;
  Host->DmaBase        = (UINTN)Take (&Cursor, DmaPages);
  Host->TraceStride    = EFI_PAGES_TO_SIZE (TracePages);
  Host->OnesPage       = (UINTN)Take (&Cursor, 1);
  SetMem ((VOID *)(UINTN)Host->OnesPage, EFI_PAGE_SIZE, 0xFF);
  HvCoreReadMtrrs (&Host->Mtrrs);
  HvSleepFind ((BOOLEAN)(Options->Value[HvOptionSleepGuard] == HV_OPTION_SLEEP_GUARD_ALWAYS), &Host->Sleep);

  Host->Status->Signature     = HV_STATUS_SIGNATURE;
  Host->Status->Version       = HV_STATUS_VERSION;
  Host->Status->CpuCount      = Host->CpuCount;
  Host->Status->KindCount     = HvExitKindCount;
  Host->Status->Vendor        = Ops->Id;
  Host->Status->ReservedBytes = Host->Bytes;

  // The pool is the rest, behind the processors.
  Used = Cursor.Next + EFI_PAGES_TO_SIZE (Cpus * CpuPages (Probe));
  HvPagePoolInit (&Host->Pool, Used, (UINT32)EFI_SIZE_TO_PAGES (mBase + Host->Bytes - Used));
  Status = HvPagingInit (
             &Host->Root.Nested,
             Probe->Format,
             &Host->Pool,
             Level,
             MIN (Host->AddressBits, HvPagingFormatBits (Probe->Format))
             );
  if (!EFI_ERROR (Status)) {
    Status = BuildNestedTables (Host, End);
  }

  Host->Status->NestedBytes     = EFI_PAGES_TO_SIZE (Host->Pool.Used);
  Host->Status->NestedPageSizes = ((Host->Root.Nested.Count[0] != 0) ? HV_STATUS_NESTED_4K : 0) |
                                  ((Host->Root.Nested.Count[1] != 0) ? HV_STATUS_NESTED_2M : 0) |
                                  ((Host->Root.Nested.Count[2] != 0) ? HV_STATUS_NESTED_1G : 0);
  if (!EFI_ERROR (Status)) {
    Status = BuildHostTables (Host, Image, HostLevel (Probe));
  }

  Host->CpuStride = EFI_PAGES_TO_SIZE (CpuPages (Probe));
  Host->Cpu       = (HV_CPU *)(UINTN)Cursor.Next;
  for (Index = 0; !EFI_ERROR (Status) && (Index < Cpus); Index++) {
    Status = BuildCpu (Host, Index, Probe, Mp, &Cursor);
  }

  if (EFI_ERROR (Status)) {
    HvMemoryFree ();
    return Status;
  }

  Ops->VmInit (Host, &Host->Root);
  HV_LOG (0, Memory, Host->Base, Host->Bytes, Host->SharedBase, Host->SharedBytes);
  HV_LOG (
    0,
    Image,
    Image->CopyBase,
    Image->Bytes,
    (UINT64)(UINTN)HV_IN_COPY (Image, HvCoreLaunch),
    Image->TextBase - Image->Base + Image->CopyBase
    );
  HV_LOG (
    0,
    Tables,
    Host->Cr3,
    ((Host->Cr4 & HV_CR4_LA57) != 0) ? 5 : 4,
    Host->Root.Nested.Root,
    ((Probe->Format == HvPagingNpt5) || (Probe->Format == HvPagingEpt5)) ? 5 : 4,
    Host->OnesPage
    );
  for (Index = 0; Index < Cpus; Index++) {
    Cpu = HvHostCpu (Host, Index);
    HV_LOG (0, Stacks, Index, Cpu->StackTop, Cpu->FaultStackTop, Cpu->NmiStackTop);
  }

  LogNested (Host);
  *Result = Host;
  return EFI_SUCCESS;
}

HV_LOG_RING *
HvMemoryRing (
  IN CONST HV_HOST  *Host
  )
{
  return (HV_LOG_RING *)(UINTN)(Host->SharedBase + Host->SharedBytes - HV_RING_BYTES);
}

VOID
HvMemoryFree (
  VOID
  )
{
  if (mPages != 0) {
    gBS->FreePages (mBase, mPages);
    mPages = 0;
  }
}
