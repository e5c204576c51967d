/** @file
  A machine without hardware for HvCoreLib.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <setjmp.h>
#include <sys/mman.h>

// The table of handlers is static.
#include <Run.c>
#include "core_fake.h"

HV_FAKE         gFake;
STATIC jmp_buf  mEnd;

STATIC
HV_FAKE_CPU *
Fake (
  IN CONST HV_VCPU  *Vcpu
  )
{
  return Vcpu->Hw;
}

STATIC
VOID
Note (
  IN OUT HV_FAKE_WRITE  *List,
  IN OUT UINT32         *Count,
  IN     UINT64         Where,
  IN     UINT64         Value
  )
{
  if (*Count == HV_FAKE_LIST) {
    __builtin_trap ();
  }

  List[*Count].Where = Where;
  List[*Count].Value = Value;
  (*Count)++;
}

//
// The backend.
//

STATIC
RETURN_STATUS
FakeEnter (
  IN OUT HV_VCPU  *Vcpu,
  OUT    HV_EXIT  *Exit
  )
{
  if (gFake.ExitsLeft == 0) {
    longjmp (mEnd, HvFakeDone);
  }

  gFake.ExitsLeft--;
  *Exit = *gFake.Exit++;
  return gFake.EnterStatus;
}

//
// Like a real backend, only what the mask names is read or written: the rest is poisoned.
//
STATIC
VOID
Copy (
  OUT HV_VCPU_STATE        *To,
  IN  CONST HV_VCPU_STATE  *From,
  IN  UINT32               Mask
  )
{
  UINTN  Index;

  for (Index = 0; Index < HvSegmentCount; Index++) {
    if ((Mask & ((Index < 4) ? HV_STATE_SEGMENTS : HV_STATE_SYSTEM)) != 0) {
      To->Segment[Index] = From->Segment[Index];
    }
  }

  if ((Mask & HV_STATE_CODE) != 0) {
    To->Segment[HvSegmentCs] = From->Segment[HvSegmentCs];
  }

  if ((Mask & HV_STATE_SYSTEM) != 0) {
    To->Star         = From->Star;
    To->Lstar        = From->Lstar;
    To->Cstar        = From->Cstar;
    To->SfMask       = From->SfMask;
    To->KernelGsBase = From->KernelGsBase;
    To->SysenterCs   = From->SysenterCs;
    To->SysenterEsp  = From->SysenterEsp;
    To->SysenterEip  = From->SysenterEip;
  }

  if ((Mask & HV_STATE_TABLES) != 0) {
    To->GdtBase  = From->GdtBase;
    To->GdtLimit = From->GdtLimit;
    To->IdtBase  = From->IdtBase;
    To->IdtLimit = From->IdtLimit;
  }

  if ((Mask & HV_STATE_CONTROL) != 0) {
    To->Cr0  = From->Cr0;
    To->Cr3  = From->Cr3;
    To->Efer = From->Efer;
  }

  if ((Mask & (HV_STATE_CONTROL | HV_STATE_CR4)) != 0) {
    To->Cr4 = From->Cr4;
  }

  if ((Mask & (HV_STATE_CONTROL | HV_STATE_CPL)) != 0) {
    To->Cpl = From->Cpl;
  }

  if ((Mask & HV_STATE_PDPTE) != 0) {
    To->PdpteLoaded = From->PdpteLoaded;
    CopyMem (To->Pdpte, From->Pdpte, sizeof (To->Pdpte));
  }

  if ((Mask & HV_STATE_CR2) != 0) {
    To->Cr2 = From->Cr2;
  }

  if ((Mask & HV_STATE_DEBUG) != 0) {
    To->Dr6 = From->Dr6;
    To->Dr7 = From->Dr7;
  }

  if ((Mask & HV_STATE_PAT) != 0) {
    To->Pat = From->Pat;
  }

  if ((Mask & HV_STATE_EVENTS) != 0) {
    To->InterruptShadow = From->InterruptShadow;
    To->NmiBlocked      = From->NmiBlocked;
    To->Activity        = From->Activity;
  }
}

STATIC
VOID
FakeStateGet (
  IN  HV_VCPU        *Vcpu,
  IN  UINT32         Mask,
  OUT HV_VCPU_STATE  *State
  )
{
  Copy (State, &Fake (Vcpu)->State, Mask);
}

STATIC
VOID
FakeStateSet (
  IN OUT HV_VCPU              *Vcpu,
  IN     UINT32               Mask,
  IN     CONST HV_VCPU_STATE  *State
  )
{
  Copy (&Fake (Vcpu)->State, State, Mask);
  if (((Mask & HV_STATE_EVENTS) != 0) && (State->Activity == HvActivityWaitForSipi) && (gFake.MailAtSipiWait != 0)) {
    HvMailboxPostSipi (&Vcpu->Cpu->Mailbox, (UINT8)gFake.MailAtSipiWait);
  }
}

STATIC
VOID
FakeInject (
  IN OUT HV_VCPU         *Vcpu,
  IN     CONST HV_EVENT  *Event
  )
{
  Fake (Vcpu)->Event = *Event;
  Fake (Vcpu)->Injections++;
}

STATIC
BOOLEAN
FakeEventQueued (
  IN  HV_VCPU   *Vcpu,
  OUT HV_EVENT  *Event
  )
{
  *Event = Fake (Vcpu)->Event;
  return (BOOLEAN)(Event->Type != HvEventNone);
}

STATIC
VOID
FakeStepTrap (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_EVENT  Event = { HvEventException, HV_VECTOR_DB };

  Fake (Vcpu)->State.Dr6 |= HV_DR6_BS;
  FakeInject (Vcpu, &Event);
}

STATIC
VOID
FakeInterceptIret (
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  On
  )
{
  Fake (Vcpu)->IretIntercept = On;
}

STATIC
VOID
FakeInterceptDebug (
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  On
  )
{
  Fake (Vcpu)->DebugIntercept = On;
}

STATIC
VOID
FakeGuardPorts (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HvCoreMarkPorts (&Vcpu->Cpu->Host->Sleep, gFake.Ports);
  Fake (Vcpu)->Guarded = TRUE;
}

STATIC
VOID
FakeFlush (
  IN OUT HV_VCPU  *Vcpu
  )
{
  Fake (Vcpu)->Flushes++;
}

STATIC
VOID
FakeTakeSignal (
  IN OUT HV_CPU         *Cpu,
  IN     CONST HV_EXIT  *Exit
  )
{
  HV_FAKE_CPU  *Own;

  Own = Fake (Cpu->Vcpu);
  Own->Signals++;
  switch (Exit->Kind) {
    case HvExitInit:
      HvMailboxPostInit (&Cpu->Mailbox);
      break;
    case HvExitSipi:
      HvMailboxPostSipi (&Cpu->Mailbox, (UINT8)Exit->Info1);
      break;
    default:
      Cpu->NmiCount += Own->PendingNmis;
      Own->PendingNmis = 0;
  }
}

STATIC
VOID
FakeNmiWindow (
  IN OUT HV_VCPU  *Vcpu,
  IN     BOOLEAN  On
  )
{
  Fake (Vcpu)->NmiWindow = On;
}

STATIC
BOOLEAN
FakePassDefType (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT32   Ticks
  )
{
  if (gFake.NoTimer) {
    return FALSE;
  }

  Fake (Vcpu)->PassesDefType = (BOOLEAN)(Ticks != 0);
  return TRUE;
}

STATIC
VOID
FakeWaitMail (
  IN OUT HV_CPU  *Cpu
  )
{
  UINT32  Mail;

  Fake (Cpu->Vcpu)->Waits++;
  if (gFake.MailNext == gFake.Mails) {
    longjmp (mEnd, HvFakeWaiting);
  }

  Mail = gFake.Mail[gFake.MailNext++];
  if (Mail == HV_FAKE_MAIL_INIT) {
    HvMailboxPostInit (&Cpu->Mailbox);
  } else if (Mail == HV_FAKE_MAIL_NMI) {
    Cpu->NmiCount++;
  } else {
    HvMailboxPostSipi (&Cpu->Mailbox, (UINT8)Mail);
  }
}

STATIC
VOID
FakeLeave (
  IN OUT HV_VCPU  *Vcpu
  )
{
  longjmp (mEnd, HvFakeLeft);
}

#define OPS(Window, Pass)               \
  {                                     \
    .Name           = "fake",           \
    .Vendor         = "none",           \
    .Id             = 7,                \
    .Enter          = FakeEnter,        \
    .StateGet       = FakeStateGet,     \
    .StateSet       = FakeStateSet,     \
    .Inject         = FakeInject,       \
    .EventQueued    = FakeEventQueued,  \
    .StepTrap       = FakeStepTrap,     \
    .InterceptIret  = FakeInterceptIret,  \
    .InterceptDebug = FakeInterceptDebug, \
    .GuardPorts     = FakeGuardPorts,     \
    .NmiWindow      = Window,           \
    .PassDefType    = Pass,             \
    .Flush          = FakeFlush,        \
    .TakeSignal     = FakeTakeSignal,   \
    .WaitMail       = FakeWaitMail,     \
    .Leave          = FakeLeave,        \
  }

STATIC CONST HV_BACKEND_OPS  mOps        = OPS (NULL, NULL);
STATIC CONST HV_BACKEND_OPS  mOpsVirtual = OPS (FakeNmiWindow, FakePassDefType);

//
// HvHostLib.
//

VOID
HvHostInit (
  VOID
  )
{
}

VOID
HvHostCapture (
  OUT HV_VCPU_STATE  *State
  )
{
  __builtin_trap ();
}

VOID
HvHostLoad (
  IN OUT HV_CPU  *Cpu
  )
{
  __builtin_trap ();
}

VOID
HvHostRestore (
  IN CONST HV_CPU         *Cpu,
  IN CONST HV_VCPU_STATE  *State
  )
{
  __builtin_trap ();
}

STATIC
HV_FAKE_MSR *
FindMsr (
  IN UINT32  Msr
  )
{
  UINT32  Index;

  for (Index = 0; Index < gFake.MsrCount; Index++) {
    if (gFake.Msr[Index].Msr == Msr) {
      return &gFake.Msr[Index];
    }
  }

  return NULL;
}

BOOLEAN
HvHostReadMsr (
  IN  UINT32  Msr,
  OUT UINT64  *Value
  )
{
  HV_FAKE_MSR  *Found;

  Found = FindMsr (Msr);
  if (Found != NULL) {
    *Value = Found->Value;
  }

  return (BOOLEAN)(Found != NULL);
}

BOOLEAN
HvHostWriteMsr (
  IN UINT32  Msr,
  IN UINT64  Value
  )
{
  HV_FAKE_MSR  *Found;

  Found = FindMsr (Msr);
  if ((Found == NULL) || ((Value & Found->Refused) != 0)) {
    return FALSE;
  }

  Note (gFake.MsrWrite, &gFake.MsrWrites, Msr, Value);
  Found->Value = Value;
  return TRUE;
}

UINT64
EFIAPI
AsmReadMsr64 (
  IN UINT32  Msr
  )
{
  UINT64  Value;

  Value = 0;
  if (!HvHostReadMsr (Msr, &Value)) {
    gFake.BadAccesses++;
  }

  return Value;
}

UINT64
EFIAPI
AsmWriteMsr64 (
  IN UINT32  Msr,
  IN UINT64  Value
  )
{
  if (!HvHostWriteMsr (Msr, Value)) {
    gFake.BadAccesses++;
  }

  return Value;
}

BOOLEAN
HvHostXsetbv (
  IN UINT32  Register,
  IN UINT64  Value
  )
{
  Note (gFake.Xsetbv, &gFake.Xsetbvs, Register, Value);
  return (BOOLEAN)!gFake.XsetbvFaults;
}

VOID
HvHostSendNmi (
  IN HV_CPU  *Cpu,
  IN UINT32  ApicId
  )
{
  Note (gFake.Nmi, &gFake.Nmis, Cpu->Index, ApicId);
}

VOID
HvHostSendIcr (
  IN HV_CPU  *Cpu,
  IN UINT64  Icr
  )
{
  Note (gFake.Icr, &gFake.Icrs, Cpu->Index, Icr);
}

UINT32
HvHostApicRead (
  IN HV_CPU  *Cpu,
  IN UINT32  Offset
  )
{
  Fake (Cpu->Vcpu)->ApicReads++;
  return Fake (Cpu->Vcpu)->Apic[Offset / sizeof (UINT32)];
}

VOID
HvHostApicWrite (
  IN HV_CPU  *Cpu,
  IN UINT32  Offset,
  IN UINT32  Value
  )
{
  Note (gFake.ApicWrite, &gFake.ApicWrites, Offset, Value);
  Fake (Cpu->Vcpu)->Apic[Offset / sizeof (UINT32)] = Value;
}

VOID
HvHostApicReset (
  IN OUT HV_CPU  *Cpu
  )
{
  Fake (Cpu->Vcpu)->ApicResets++;
}

VOID
HvHostStop (
  VOID
  )
{
  longjmp (mEnd, HvFakeParked);
}

VOID
HvHostShutdown (
  VOID
  )
{
  longjmp (mEnd, HvFakeShutdown);
}

//
// HvConsoleLib.
//

#define FORMAT_ROW(Name, Level, Text, Format)  Format,

VOID
HvConsoleSetSink (
  IN HV_LOG_SINK  Sink  OPTIONAL
  )
{
}

VOID
HvLogEvent (
  IN UINT32        CpuIndex,
  IN HV_LOG_EVENT  Event,
  IN CONST UINT64  *Args
  )
{
  STATIC CONST CHAR8  *CONST  Formats[] = { HV_LOG_EVENT_LIST (FORMAT_ROW) };
  CONST CHAR8                 *Format;
  HV_FAKE_LINE                *Line;
  UINT32                      Count;

  if (gFake.Lines == HV_FAKE_LIST) {
    __builtin_trap ();
  }

  Line        = &gFake.Line[gFake.Lines++];
  Line->Cpu   = CpuIndex;
  Line->Event = Event;
  Count       = 0;
  for (Format = Formats[Event]; *Format != '\0'; Format++) {
    if (*Format == '%') {
      Line->Args[Count] = Args[Count];
      Count++;
    }
  }
}

VOID
HvLogLimited (
  IN     UINT32        CpuIndex,
  IN     HV_LOG_EVENT  Event,
  IN OUT UINT8         *Logged,
  IN     CONST UINT64  *Args
  )
{
  if (*Logged < HV_LOG_LIMIT) {
    ++*Logged;
    HvLogEvent (CpuIndex, Event, Args);
  }
}

//
// BaseLib and its kin.
//

UINT32
EFIAPI
AsmCpuidEx (
  IN  UINT32  Index,
  IN  UINT32  SubIndex,
  OUT UINT32  *Eax  OPTIONAL,
  OUT UINT32  *Ebx  OPTIONAL,
  OUT UINT32  *Ecx  OPTIONAL,
  OUT UINT32  *Edx  OPTIONAL
  )
{
  STATIC CONST UINT32  None[4];
  CONST UINT32         *Registers;
  UINT32               Row;

  Registers = None;
  for (Row = 0; Row < gFake.LeafCount; Row++) {
    if ((gFake.Leaf[Row].Leaf == Index) && (gFake.Leaf[Row].SubLeaf == SubIndex)) {
      Registers = gFake.Leaf[Row].Registers;
    }
  }

  if (Eax != NULL) {
    *Eax = Registers[0];
  }

  if (Ebx != NULL) {
    *Ebx = Registers[1];
  }

  if (Ecx != NULL) {
    *Ecx = Registers[2];
  }

  if (Edx != NULL) {
    *Edx = Registers[3];
  }

  return Index;
}

UINT32
EFIAPI
AsmCpuid (
  IN  UINT32  Index,
  OUT UINT32  *Eax  OPTIONAL,
  OUT UINT32  *Ebx  OPTIONAL,
  OUT UINT32  *Ecx  OPTIONAL,
  OUT UINT32  *Edx  OPTIONAL
  )
{
  return AsmCpuidEx (Index, 0, Eax, Ebx, Ecx, Edx);
}

//
// Ports.
//

UINT8
EFIAPI
IoRead8 (
  IN UINTN  Port
  )
{
  return (UINT8)gFake.IoValue;
}

UINT8
EFIAPI
IoWrite8 (
  IN UINTN   Port,
  IN UINT8  Value
  )
{
  Note (gFake.IoWrite, &gFake.IoWrites, Port | sizeof (Value) << 16, Value);
  return Value;
}

UINT16
EFIAPI
IoRead16 (
  IN UINTN  Port
  )
{
  return (UINT16)gFake.IoValue;
}

UINT16
EFIAPI
IoWrite16 (
  IN UINTN   Port,
  IN UINT16  Value
  )
{
  Note (gFake.IoWrite, &gFake.IoWrites, Port | sizeof (Value) << 16, Value);
  return Value;
}

UINT32
EFIAPI
IoRead32 (
  IN UINTN  Port
  )
{
  return (UINT32)gFake.IoValue;
}

UINT32
EFIAPI
IoWrite32 (
  IN UINTN   Port,
  IN UINT32  Value
  )
{
  Note (gFake.IoWrite, &gFake.IoWrites, Port | sizeof (Value) << 16, Value);
  return Value;
}

UINT64
EFIAPI
AsmReadTsc (
  VOID
  )
{
  return ++gFake.Ticks;
}

VOID
EFIAPI
AsmWbinvd (
  VOID
  )
{
  gFake.Wbinvds++;
}

UINTN
EFIAPI
AsmReadCr0 (
  VOID
  )
{
  return gFake.Cr0;
}

UINTN
EFIAPI
AsmWriteCr0 (
  UINTN  Cr0
  )
{
  gFake.Cr0 = Cr0;
  return Cr0;
}

#define WRITE_DR(Number)                    \
  UINTN                                     \
  EFIAPI                                    \
  AsmWriteDr##Number (                      \
    UINTN  Value                            \
    )                                       \
  {                                         \
    gFake.Dr[Number] = Value;               \
    return Value;                           \
  }

WRITE_DR (0)
WRITE_DR (1)
WRITE_DR (2)
WRITE_DR (3)

VOID
EFIAPI
CpuPause (
  VOID
  )
{
}

UINT64
EFIAPI
LShiftU64 (
  IN UINT64  Operand,
  IN UINTN   Count
  )
{
  return Operand << Count;
}

UINT64
EFIAPI
RShiftU64 (
  IN UINT64  Operand,
  IN UINTN   Count
  )
{
  return Operand >> Count;
}

VOID *
EFIAPI
CopyMem (
  OUT VOID        *Destination,
  IN  CONST VOID  *Source,
  IN  UINTN       Length
  )
{
  return __builtin_memmove (Destination, Source, Length);
}

INTN
EFIAPI
CompareMem (
  IN CONST VOID  *Destination,
  IN CONST VOID  *Source,
  IN UINTN       Length
  )
{
  return __builtin_memcmp (Destination, Source, Length);
}

VOID *
EFIAPI
SetMem (
  OUT VOID   *Buffer,
  IN  UINTN  Length,
  IN  UINT8  Value
  )
{
  return __builtin_memset (Buffer, Value, Length);
}

UINT32
EFIAPI
InterlockedIncrement (
  IN volatile UINT32  *Value
  )
{
  return __sync_add_and_fetch (Value, 1);
}

UINT32
EFIAPI
InterlockedDecrement (
  IN volatile UINT32  *Value
  )
{
  return __sync_sub_and_fetch (Value, 1);
}

//
// For the tests.
//

///
/// Page tables that map the guest's first 512 GiB one to one, writable for everybody, in its memory.
///
STATIC
UINT64
IdentityTables (
  VOID
  )
{
  STATIC UINT64  *Tables;
  UINTN          Index;

  if (Tables == NULL) {
    Tables    = (UINT64 *)(UINTN)HvFakeRam (2 * EFI_PAGE_SIZE);
    Tables[0] = ((UINTN)Tables + EFI_PAGE_SIZE) | 7;
    for (Index = 0; Index < 512; Index++) {
      Tables[512 + Index] = (Index * SIZE_1GB) | 0x87;
    }
  }

  gFake.Host.RamCount    = 1;
  gFake.Host.Ram[0].Base = (UINTN)Tables;
  gFake.Host.Ram[0].End  = (UINTN)Tables + 2 * EFI_PAGE_SIZE;
  return (UINTN)Tables;
}

///
/// The rows of CPUID on a processor that has all that they are about.
///
STATIC
VOID
PrepareCpuid (
  VOID
  )
{
  STATIC CONST UINT32  Leaves[][2] = { { 0, 0 }, { 0x80000000, 0 }, { 7, 0 }, { 7, 1 }, { 0xD, 1 } };
  UINTN                Index;

  for (Index = 0; Index < ARRAY_SIZE (Leaves); Index++) {
    gFake.Leaf[Index].Leaf    = Leaves[Index][0];
    gFake.Leaf[Index].SubLeaf = Leaves[Index][1];
    SetMem (gFake.Leaf[Index].Registers, sizeof (gFake.Leaf[Index].Registers), 0xFF);
  }

  gFake.LeafCount = ARRAY_SIZE (Leaves);
  HvCoreCpuidPrepare (&gFake.Host);
  gFake.LeafCount = 0;
}

VOID
HvFakeReset (
  IN UINT32   CpuCount,
  IN BOOLEAN  X2Apic,
  IN BOOLEAN  VirtualNmis
  )
{
  UINT32   Index;
  HV_HOST  *Host;
  HV_CPU   *Cpu;
  HV_VCPU  *Vcpu;

  ZeroMem (&gFake, sizeof (gFake));
  Host              = &gFake.Host;
  Host->Ops         = VirtualNmis ? &mOpsVirtual : &mOps;
  Host->Base        = 0x70000000;
  Host->Bytes       = 0x200000;
  Host->SharedBase  = Host->Base;
  Host->SharedBytes = 0x11000;
  Host->ApicPage    = 0xFEE00000;
  Host->Status      = (HV_STATUS_HEADER *)gFake.Status;
  Host->CpuCount    = CpuCount;
  Host->FailCpu     = MAX_UINT32;
  Host->AddressBits = 40;
  Host->Cpu         = gFake.Cpu;
  Host->CpuStride   = sizeof (HV_CPU);

  PrepareCpuid ();
  Host->Status->Virtualised = CpuCount;
  Host->Root.Nested.AddressBits = 40;
  for (Index = 0; Index < CpuCount; Index++) {
    Cpu              = &gFake.Cpu[Index];
    Vcpu             = &gFake.Vcpu[Index];
    Cpu->Self        = Cpu;
    Cpu->Host        = Host;
    Cpu->Vcpu        = Vcpu;
    Cpu->Exits       = (UINT64 *)((UINT8 *)gFake.Status + HV_STATUS_EXITS_OFFSET (CpuCount)) + Index * HV_EXIT_KIND_MAX;
    Cpu->Index       = Index;
    Cpu->Apic.ApicId = Index;
    Cpu->Apic.Ldr    = 1u << (24 + Index);
    Cpu->Apic.Dfr    = MAX_UINT32;
    Cpu->X2Apic      = X2Apic;
    Cpu->Bsp         = (BOOLEAN)(Index == 0);
    Cpu->Entered     = TRUE;
    Cpu->State       = HvMpRunning;
    Vcpu->Hw         = &gFake.Fake[Index];
    Vcpu->Vm         = &Host->Root;
    Vcpu->Cpu        = Cpu;
    Vcpu->Index      = Index;
    Vcpu->Regs.Rflags = 2;
    gFake.Fake[Index].State.Efer                           = 0x500;      // LME, LMA
    gFake.Fake[Index].State.Cr0                            = 0x80000031; // PG, NE, ET, PE
    gFake.Fake[Index].State.Cr4                            = 0x20;       // PAE
    gFake.Fake[Index].State.Cr3                            = IdentityTables ();
    gFake.Fake[Index].State.Dr6                            = 0xFFFF0FF0;
    gFake.Fake[Index].State.Segment[HvSegmentCs].Attributes = 0x29B;     // 64-bit code
  }
}

HV_FAKE_END
HvFakeRun (
  IN UINT32         Index,
  IN CONST HV_EXIT  *Exits,
  IN UINT32         Count
  )
{
  int  Reason;

  gFake.Exit      = Exits;
  gFake.ExitsLeft = Count;
  Reason          = setjmp (mEnd);
  if (Reason == 0) {
    HvCoreRun (&gFake.Cpu[Index]);
    Reason = HvFakeReturned;
  }

  return (HV_FAKE_END)Reason;
}

BOOLEAN
HvFakeHasHandler (
  IN UINT32  Kind
  )
{
  return (BOOLEAN)(mHandlers[Kind] != NULL);
}

BOOLEAN
HvFakeIsQuickCall (
  IN CONST HV_VCPU  *Vcpu,
  IN UINT8          Cpl
  )
{
  return HvCoreIsQuickCall (Vcpu, Cpl);
}

BOOLEAN
HvFakeIsQuickWrmsr (
  IN CONST HV_VCPU  *Vcpu
  )
{
  return HvCoreIsQuickWrmsr (Vcpu);
}

CONST HV_INSN *
HvFakeKnown (
  IN CONST HV_VCPU  *Vcpu,
  IN UINT64         Rip,
  IN UINT64         Cr3,
  IN UINT64         Cr4,
  IN UINT64         Efer,
  IN UINT16         CsAttributes
  )
{
  return HvCoreKnownInsn (Vcpu, Rip, Cr3, Cr4, Efer, CsAttributes);
}

UINT64
HvFakeRam (
  IN UINT64  Bytes
  )
{
  VOID  *Memory;

  Memory = mmap (NULL, Bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  if (Memory == MAP_FAILED) {
    return 0;
  }

  gFake.Host.Ram[gFake.Host.RamCount].Base = (UINTN)Memory;
  gFake.Host.Ram[gFake.Host.RamCount].End  = (UINTN)Memory + Bytes;
  gFake.Host.RamCount++;
  return (UINTN)Memory;
}
