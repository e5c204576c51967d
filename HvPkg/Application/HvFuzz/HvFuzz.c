/** @file
  Gives everything that the root can reach values of every kind, and prints what came of it. The same lines have to come
  with the hypervisor and without, but for what the tables of MSRs and CPUID bits name.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "Fuzz.h"
#include <Library/UefiBootServicesTableLib.h>
#include <Protocol/LoadedImage.h>

#define DEFAULT_SEED   1
#define DEFAULT_CALLS  20000
#define PART_CPUID     BIT0
#define PART_MSRS      BIT1
#define PART_REGISTERS BIT2
#define PART_CALLS     BIT3
#define PART_ALL       (PART_CPUID | PART_MSRS | PART_REGISTERS | PART_CALLS)
#define BATCH          1000
#define NOT_CANONICAL  0x8000000000000000ULL
#define CALL_NUMBERS   0x10000

FUZZ  gFuzz;

UINT64
FuzzRandom (
  IN OUT UINT64  *State
  )
{
  *State ^= *State << 13;
  *State ^= *State >> 7;
  *State ^= *State << 17;
  return *State;
}

UINT64
FuzzSequence (
  IN UINT64  Number
  )
{
  UINT64  State;
  UINTN   Index;

  State = ((gFuzz.Seed << 32) ^ Number) * 0x9E3779B97F4A7C15ULL + 1;
  State = (State == 0) ? 1 : State;
  for (Index = 0; Index < 4; Index++) {
    FuzzRandom (&State);
  }

  return State;
}

UINT64
FuzzDigest (
  IN UINT64  Digest,
  IN UINT64  Word
  )
{
  return (Digest ^ Word) * 1099511628211ULL;
}

BOOLEAN
FuzzReadMsr (
  IN  UINT32  Msr,
  OUT UINT64  *Value
  )
{
  HV_TRAP_REGS  Regs;
  UINT32        Vector;

  ZeroMem (&Regs, sizeof (Regs));
  Regs.Rcx = Msr;
  Vector   = HvTrapTry (HvTryRdmsr, &Regs);
  *Value   = LShiftU64 (Regs.Rdx, 32) | (UINT32)Regs.Rax;
  return (BOOLEAN)(Vector == HV_TRAP_NONE);
}

UINT32
FuzzWriteMsr (
  IN UINT32  Msr,
  IN UINT64  Value
  )
{
  HV_TRAP_REGS  Regs;

  ZeroMem (&Regs, sizeof (Regs));
  Regs.Rcx = Msr;
  Regs.Rax = (UINT32)Value;
  Regs.Rdx = RShiftU64 (Value, 32);
  return HvTrapTry (HvTryWrmsr, &Regs);
}

///
/// Hypercalls with random registers, whose RAX has not the magic: #UD as where there is no hypervisor, and nothing else.
///
STATIC
VOID
FuzzHypercalls (
  IN CONST CHAR8  *Name,
  IN CONST UINT8  *Code
  )
{
  HV_TRAP_REGS  Regs;
  HV_TRAP_REGS  Before;
  UINT64        Sequence;
  UINT64        Left;
  UINTN         Batch;
  UINTN         Undefined;
  UINTN         Changed;
  UINTN         Index;

  Sequence  = FuzzSequence (Code[2]);
  Undefined = 0;
  Changed   = 0;
  for (Left = gFuzz.Calls; Left > 0; Left -= Batch) {
    Batch = (UINTN)MIN (Left, BATCH);
    HvTrapBegin ();
    for (Index = 0; Index < Batch; Index++) {
      Regs.Rax = FuzzRandom (&Sequence) >> (FuzzRandom (&Sequence) % 64);
      Regs.Rbx = FuzzRandom (&Sequence);
      Regs.Rcx = FuzzRandom (&Sequence);
      Regs.Rdx = FuzzRandom (&Sequence);
      Regs.Rsi = FuzzRandom (&Sequence);
      Regs.Rdi = FuzzRandom (&Sequence);
      if ((Regs.Rax & ~(UINT64)MAX_UINT16) == HV_HC_MAGIC) {
        Regs.Rax ^= BIT63;
      }

      CopyMem (&Before, &Regs, sizeof (Before));
      Undefined += (HvTrapTry (Code, &Regs) == HV_VECTOR_UD) ? 1 : 0;
      Changed   += (CompareMem (&Before, &Regs, OFFSET_OF (HV_TRAP_REGS, ErrorCode)) != 0) ? 1 : 0;
    }

    HvTrapEnd ();
  }

  Print (L"HvFuzz: %a calls=%ld ud=%ld changed=%ld\n", Name, gFuzz.Calls, Undefined, Changed);
}

///
/// All numbers of hypercalls, but for those that end the firmware's life, which have tests of their own.
///
STATIC
VOID
FuzzNumbers (
  VOID
  )
{
  HV_TRAP_REGS  Regs;
  UINT64        Sequence;
  UINT64        Call;
  UINTN         Undefined;
  UINTN         Unknown;
  UINTN         Denied;
  UINTN         Done;

  Sequence  = FuzzSequence (HV_HC_MAGIC);
  Undefined = 0;
  Unknown   = 0;
  Denied    = 0;
  Done      = 0;
  HvTrapBegin ();
  for (Call = HV_HC_MAGIC; Call < HV_HC_MAGIC + CALL_NUMBERS; Call++) {
    if ((Call == HV_HC_BOOT_DONE) || (Call == HV_HC_FIRMWARE_DONE)) {
      continue;
    }

    Regs.Rax = Call;
    Regs.Rbx = FuzzRandom (&Sequence);
    Regs.Rcx = FuzzRandom (&Sequence);
    Regs.Rdx = FuzzRandom (&Sequence);
    Regs.Rsi = FuzzRandom (&Sequence);
    Regs.Rdi = FuzzRandom (&Sequence);
    if (HvTrapTry (gFuzz.Amd ? HvTryVmmcall : HvTryVmcall, &Regs) != HV_TRAP_NONE) {
      Undefined++;
    } else if (Regs.Rax == HV_HC_UNKNOWN) {
      Unknown++;
    } else if (Regs.Rax == HV_HC_DENIED) {
      Denied++;
    } else {
      Done++;
    }
  }

  HvTrapEnd ();
  Print (L"HvFuzz: numbers ud=%d unknown=%d denied=%d done=%d\n", Undefined, Unknown, Denied, Done);
}

///
/// The number behind `Name=` in the command line, or what it is without.
///
STATIC
UINT64
Argument (
  IN CONST CHAR16  *Line,
  IN CONST CHAR16  *Name,
  IN UINT64        Default
  )
{
  CONST CHAR16  *Found;

  Found = (Line == NULL) ? NULL : StrStr (Line, Name);
  return (Found == NULL) ? Default : StrDecimalToUint64 (Found + StrLen (Name));
}

/**
  Tries everything and prints the outcomes.

  @param[in] ImageHandle  Of the application; its command line may have seed=N, calls=N and parts=N, the sum of PART_*.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS  It came to its end; what the outcomes should be is for who reads the lines.
  @retval Others       The image has no protocol of its own.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvFuzzMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  EFI_LOADED_IMAGE_PROTOCOL  *Image;
  EFI_STATUS                 Status;
  UINT32                     Vendor;
  UINT64                     Held;
  UINT64                     Parts;

  Status = gBS->HandleProtocol (ImageHandle, &gEfiLoadedImageProtocolGuid, (VOID **)&Image);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  AsmCpuid (HV_CPUID_0, NULL, &Vendor, NULL, NULL);
  gFuzz.Amd   = (BOOLEAN)(Vendor == SIGNATURE_32 ('A', 'u', 't', 'h'));
  gFuzz.Seed  = Argument (Image->LoadOptions, L"seed=", DEFAULT_SEED);
  Parts       = Argument (Image->LoadOptions, L"parts=", PART_ALL);
  gFuzz.Calls = Argument (Image->LoadOptions, L"calls=", DEFAULT_CALLS);

  // The hypervisor leaves this MSR alone. SDM volume 2, WRMSR; APM3, WRMSR: an address that is not canonical is #GP.
  HvTrapBegin ();
  FuzzReadMsr (HV_MSR_LSTAR, &Held);
  gFuzz.Strict = (BOOLEAN)(FuzzWriteMsr (HV_MSR_LSTAR, NOT_CANONICAL) == HV_VECTOR_GP);
  FuzzWriteMsr (HV_MSR_LSTAR, Held);
  HvTrapEnd ();

  Print (L"HvFuzz: seed=%ld calls=%ld strict=%d\n", gFuzz.Seed, gFuzz.Calls, gFuzz.Strict);
  if ((Parts & PART_CPUID) != 0) {
    FuzzCpuid ();
  }

  if ((Parts & PART_MSRS) != 0) {
    FuzzMsrs ();
  }

  if ((Parts & PART_REGISTERS) != 0) {
    FuzzRegisters ();
  }

  if ((Parts & PART_CALLS) != 0) {
    FuzzHypercalls ("vmcall", HvTryVmcall);
    FuzzHypercalls ("vmmcall", HvTryVmmcall);
    FuzzNumbers ();
  }

  Print (L"HvFuzz: done\n");
  return EFI_SUCCESS;
}
