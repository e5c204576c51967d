/** @file
  Executes each form of store on the local APIC page and on the hypervisor's memory, where the hypervisor carries it out,
  and on ordinary memory, where the processor does: registers, flags and what is in memory must be the same.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>
#include <Generated/HvStatus.h>
#include <Library/HvApicLib.h>

#define LVT_MASKED   BIT16
#define REGISTER     HV_APIC_REG_TIMER_INITIAL // 32 bits that read as they were written
#define ROUNDS       16
#define COUNT        5     // of a repeated instruction
#define WINDOW       64    // bytes that are compared
#define ADDRESS      0xEE  // place of an absolute address in the code

#define ARITHMETIC  (HV_RFLAGS_CF | HV_RFLAGS_PF | HV_RFLAGS_AF | HV_RFLAGS_ZF | HV_RFLAGS_SF | HV_RFLAGS_OF)

typedef struct {
  UINT64    Rax;
  UINT64    Rcx;
  UINT64    Rdx;
  UINT64    Rsi;
  UINT64    Rdi;
  UINT64    Rflags;
} PROBE_REGS;

/**
  Runs code with registers.

  @param[in,out] Regs  The registers before and after.
  @param[in]     Code  Ends with RET.

  @par Context: Boot
**/
VOID
EFIAPI
HvProbeRun (
  IN OUT PROBE_REGS  *Regs,
  IN     VOID        *Code
  );

///
/// A form. The operand is at RDI; RDX is a bit offset, RCX the count of what is repeated. Flags: those that are defined.
///
typedef struct {
  CONST CHAR16    *Name;
  UINT8           Bytes[12];
  UINT8           Length;
  BOOLEAN         Wide;    ///< 32 bits, as the local APIC wants it
  UINT64          Flags;
} FORM;

#define LOGIC  (ARITHMETIC & ~HV_RFLAGS_AF)

#define CODE(...)  { __VA_ARGS__ }, sizeof ((UINT8[]){ __VA_ARGS__ })

STATIC CONST FORM  mForms[] = {
  { L"mov [rdi], ecx",           CODE (0x89, 0x0F),                               TRUE,  ARITHMETIC   },
  { L"mov dword [rdi], imm",     CODE (0xC7, 0x07, 1, 2, 3, 0x84),                TRUE,  ARITHMETIC   },
  { L"mov [edi], ecx",           CODE (0x67, 0x89, 0x0F),                         TRUE,  ARITHMETIC   },
  { L"mov [abs], eax",           CODE (0xA3, ADDRESS, 0, 0, 0, 0, 0, 0, 0),       TRUE,  ARITHMETIC   },
  { L"movnti [rdi], ecx",        CODE (0x0F, 0xC3, 0x0F),                         TRUE,  ARITHMETIC   },
  { L"xchg [rdi], ecx",          CODE (0x87, 0x0F),                               TRUE,  ARITHMETIC   },
  { L"add [rdi], ecx",           CODE (0x01, 0x0F),                               TRUE,  ARITHMETIC   },
  { L"or [rdi], ecx",            CODE (0x09, 0x0F),                               TRUE,  LOGIC        },
  { L"lock or [rdi], ecx",       CODE (0xF0, 0x09, 0x0F),                         TRUE,  LOGIC        },
  { L"adc [rdi], ecx",           CODE (0x11, 0x0F),                               TRUE,  ARITHMETIC   },
  { L"sbb [rdi], ecx",           CODE (0x19, 0x0F),                               TRUE,  ARITHMETIC   },
  { L"and [rdi], ecx",           CODE (0x21, 0x0F),                               TRUE,  LOGIC        },
  { L"sub [rdi], ecx",           CODE (0x29, 0x0F),                               TRUE,  ARITHMETIC   },
  { L"xor [rdi], ecx",           CODE (0x31, 0x0F),                               TRUE,  LOGIC        },
  { L"add dword [rdi], imm8",    CODE (0x83, 0x07, 0xF5),                         TRUE,  ARITHMETIC   },
  { L"and dword [rdi], imm32",   CODE (0x81, 0x27, 0xF0, 0xFF, 0x0F, 0xFF),       TRUE,  LOGIC        },
  { L"inc dword [rdi]",          CODE (0xFF, 0x07),                               TRUE,  ARITHMETIC   },
  { L"dec dword [rdi]",          CODE (0xFF, 0x0F),                               TRUE,  ARITHMETIC   },
  { L"not dword [rdi]",          CODE (0xF7, 0x17),                               TRUE,  ARITHMETIC   },
  { L"neg dword [rdi]",          CODE (0xF7, 0x1F),                               TRUE,  ARITHMETIC   },
  { L"lock xadd [rdi], ecx",     CODE (0xF0, 0x0F, 0xC1, 0x0F),                   TRUE,  ARITHMETIC   },
  { L"lock cmpxchg [rdi], ecx",  CODE (0xF0, 0x0F, 0xB1, 0x0F),                   TRUE,  ARITHMETIC   },
  { L"bts [rdi], edx",           CODE (0x0F, 0xAB, 0x17),                         TRUE,  HV_RFLAGS_CF },
  { L"btr [rdi], edx",           CODE (0x0F, 0xB3, 0x17),                         TRUE,  HV_RFLAGS_CF },
  { L"lock btc [rdi], edx",      CODE (0xF0, 0x0F, 0xBB, 0x17),                   TRUE,  HV_RFLAGS_CF },
  { L"bts dword [rdi], imm",     CODE (0x0F, 0xBA, 0x2F, 29),                     TRUE,  HV_RFLAGS_CF },
  { L"shl dword [rdi], 1",       CODE (0xD1, 0x27),                               TRUE,  LOGIC        },
  { L"sar dword [rdi], 1",       CODE (0xD1, 0x3F),                               TRUE,  LOGIC        },
  { L"rol dword [rdi], 1",       CODE (0xD1, 0x07),                               TRUE,  ARITHMETIC   },
  { L"stosd",                    CODE (0xAB),                                     TRUE,  ARITHMETIC   },
  { L"movsd",                    CODE (0xA5),                                     TRUE,  ARITHMETIC   },
  { L"rep stosd",                CODE (0xF3, 0xAB),                               TRUE,  ARITHMETIC   },
  { L"rep movsd",                CODE (0xF3, 0xA5),                               TRUE,  ARITHMETIC   },
  { L"mov [rdi], cl",            CODE (0x88, 0x0F),                               FALSE, ARITHMETIC   },
  { L"mov [rdi], ch",            CODE (0x88, 0x2F),                               FALSE, ARITHMETIC   },
  { L"mov [rdi], cx",            CODE (0x66, 0x89, 0x0F),                         FALSE, ARITHMETIC   },
  { L"mov [rdi], rcx",           CODE (0x48, 0x89, 0x0F),                         FALSE, ARITHMETIC   },
  { L"mov qword [rdi], imm",     CODE (0x48, 0xC7, 0x07, 1, 2, 3, 0x84),          FALSE, ARITHMETIC   },
  { L"mov byte [rdi], imm",      CODE (0xC6, 0x07, 7),                            FALSE, ARITHMETIC   },
  { L"xchg [rdi], rcx",          CODE (0x48, 0x87, 0x0F),                         FALSE, ARITHMETIC   },
  { L"add [rdi], cl",            CODE (0x00, 0x0F),                               FALSE, ARITHMETIC   },
  { L"sub [rdi], cx",            CODE (0x66, 0x29, 0x0F),                         FALSE, ARITHMETIC   },
  { L"lock xadd [rdi], rcx",     CODE (0xF0, 0x48, 0x0F, 0xC1, 0x0F),             FALSE, ARITHMETIC   },
  { L"lock cmpxchg [rdi], rcx",  CODE (0xF0, 0x48, 0x0F, 0xB1, 0x0F),             FALSE, ARITHMETIC   },
  { L"setbe [rdi]",              CODE (0x0F, 0x96, 0x07),                         FALSE, ARITHMETIC   },
  { L"rep stosb",                CODE (0xF3, 0xAA),                               FALSE, ARITHMETIC   },
  { L"rep movsb",                CODE (0xF3, 0xA4),                               FALSE, ARITHMETIC   },
  { L"rep stosq",                CODE (0xF3, 0x48, 0xAB),                         FALSE, ARITHMETIC   },
  { L"mov [rdi-2], ecx",         CODE (0x89, 0x4F, 0xFE),                         FALSE, ARITHMETIC   },
};

STATIC UINT64  mSeed = 1;
STATIC UINT8   *mCode;
STATIC UINT8   *mMemory;  ///< a page; what is compared begins in its middle
STATIC UINT8   mSource[WINDOW];

STATIC
UINT64
Random (
  VOID
  )
{
  mSeed = mSeed * 6364136223846793005ULL + 1442695040888963407ULL;
  return RShiftU64 (mSeed, 20) ^ LShiftU64 (mSeed, 31);
}

///
/// Runs a form on an operand. RDI comes back as its distance.
///
STATIC
VOID
Run (
  IN     CONST FORM  *Form,
  IN OUT PROBE_REGS  *Regs,
  IN     UINTN       Address
  )
{
  UINTN  Index;

  CopyMem (mCode, Form->Bytes, Form->Length);
  mCode[Form->Length] = 0xC3; // RET
  for (Index = 1; Index + sizeof (UINT64) <= Form->Length; Index++) {
    if (mCode[Index] == ADDRESS) {
      CopyMem (&mCode[Index], &Address, sizeof (UINT64));
      break;
    }
  }

  Regs->Rdi = Address;
  HvProbeRun (Regs, mCode);
  Regs->Rdi -= Address;
}

STATIC
BOOLEAN
SameRegs (
  IN CONST FORM        *Form,
  IN CONST PROBE_REGS  *One,
  IN CONST PROBE_REGS  *Other
  )
{
  return (BOOLEAN)((One->Rax == Other->Rax) && (One->Rcx == Other->Rcx) && (One->Rdx == Other->Rdx) &&
                   (One->Rsi == Other->Rsi) && (One->Rdi == Other->Rdi) &&
                   (((One->Rflags ^ Other->Rflags) & Form->Flags) == 0));
}

STATIC
VOID
Start (
  IN  CONST FORM  *Form,
  OUT PROBE_REGS  *Regs
  )
{
  UINTN  Index;

  for (Index = 0; Index < WINDOW; Index++) {
    mSource[Index] = (UINT8)Random ();
  }

  Regs->Rax    = Random ();
  Regs->Rcx    = (Form->Bytes[0] == 0xF3) ? COUNT : Random ();
  Regs->Rdx    = Random () & 31;
  Regs->Rsi    = (UINTN)mSource;
  Regs->Rflags = HV_RFLAGS_ONE | (Random () & ARITHMETIC);
}

STATIC
BOOLEAN
OnApic (
  IN CONST FORM  *Form,
  IN UINTN       Apic
  )
{
  volatile UINT32  *Register;
  PROBE_REGS       Ours;
  PROBE_REGS       Native;
  UINT32           *Memory;

  Register = (volatile UINT32 *)(Apic + REGISTER);
  Memory   = (UINT32 *)(mMemory + EFI_PAGE_SIZE / 2);
  Start (Form, &Native);
  *Memory   = (UINT32)Random ();
  *Register = *Memory;
  if ((Random () & 1) != 0) {
    Native.Rax = *Memory; // so that CMPXCHG finds it
  }

  Ours = Native;
  Run (Form, &Native, (UINTN)Memory);
  Run (Form, &Ours, (UINTN)Register);
  return (BOOLEAN)(SameRegs (Form, &Native, &Ours) && (*Register == *Memory));
}

STATIC
BOOLEAN
OnHostMemory (
  IN CONST FORM  *Form,
  IN UINTN       Host
  )
{
  PROBE_REGS  Ours;
  PROBE_REGS  Native;
  UINTN       Index;

  // Around the end of a page, too.
  Host += ((Random () & 1) != 0) ? EFI_PAGE_SIZE / 2 : EFI_PAGE_SIZE - 3;
  SetMem (mMemory, EFI_PAGE_SIZE, MAX_UINT8);
  Start (Form, &Native);
  if ((Random () & 1) != 0) {
    Native.Rax = MAX_UINT64;
  }

  Ours = Native;
  Run (Form, &Native, (UINTN)mMemory + EFI_PAGE_SIZE / 2);
  Run (Form, &Ours, Host);
  for (Index = 0; Index < WINDOW; Index++) {
    if (*(volatile UINT8 *)(Host - 2 + Index) != MAX_UINT8) {
      return FALSE;
    }
  }

  return SameRegs (Form, &Native, &Ours);
}

///
/// Runs all forms, and notes those that do not do what they should. Nothing may be printed meanwhile.
///
STATIC
VOID
Probe (
  IN  UINTN    Apic, ///< 0: none in xAPIC mode
  IN  UINTN    Host,
  OUT BOOLEAN  *ApicBad,
  OUT BOOLEAN  *HostBad
  )
{
  UINTN  Form;
  UINTN  Round;

  for (Form = 0; Form < ARRAY_SIZE (mForms); Form++) {
    ApicBad[Form] = FALSE;
    HostBad[Form] = FALSE;
    for (Round = 0; Round < ROUNDS; Round++) {
      ApicBad[Form] |= (BOOLEAN)(mForms[Form].Wide && (Apic != 0) && !OnApic (&mForms[Form], Apic));
      HostBad[Form] |= (BOOLEAN) !OnHostMemory (&mForms[Form], Host);
    }
  }
}

/**
  Executes each form.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS             All do the same as on ordinary memory.
  @retval EFI_NOT_STARTED         There is no hypervisor.
  @retval EFI_SECURITY_VIOLATION  Some do not: a line for each says which.
  @retval Others                  No memory.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvStoreProbeMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  BOOLEAN               ApicBad[ARRAY_SIZE (mForms)];
  BOOLEAN               HostBad[ARRAY_SIZE (mForms)];
  EFI_PHYSICAL_ADDRESS  Pages;
  EFI_STATUS            Status;
  UINT64                Base;
  UINTN                 Apic;
  UINTN                 Form;
  UINTN                 Bad;
  EFI_TPL               Tpl;
  UINT32                Timer;
  UINT32                Count;
  UINT32                Eax;
  UINT32                Ebx;
  UINT32                Ecx;
  UINT32                Edx;

  AsmCpuid (HV_CPUID_40000000, NULL, &Ebx, &Ecx, &Edx);
  if ((Ebx != HV_CPUID_SIGNATURE_EBX) || (Ecx != HV_CPUID_SIGNATURE_ECX) || (Edx != HV_CPUID_SIGNATURE_EDX)) {
    Print (L"HvStoreProbe: no hypervisor\n");
    return EFI_NOT_STARTED;
  }

  Status = gBS->AllocatePages (AllocateAnyPages, EfiBootServicesCode, 2, &Pages);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  mCode   = (UINT8 *)(UINTN)Pages;
  mMemory = mCode + EFI_PAGE_SIZE;

  // The shared part comes first in the block.
  AsmCpuid (HV_CPUID_40000002, &Eax, &Ebx, &Ecx, NULL);
  Base = AsmReadMsr64 (HV_MSR_APIC_BASE);
  Apic = ((Base & HV_APIC_BASE_EXTD) == 0) ? (UINTN)(Base & HV_APIC_BASE_ADDRESS_MASK) : 0;

  // Flags with IF off are given to the code.
  Tpl   = gBS->RaiseTPL (TPL_HIGH_LEVEL);
  Timer = 0;
  Count = 0;
  if (Apic != 0) {
    Timer                                              = *(volatile UINT32 *)(Apic + HV_APIC_REG_LVT_TIMER);
    Count                                              = *(volatile UINT32 *)(Apic + REGISTER);
    *(volatile UINT32 *)(Apic + HV_APIC_REG_LVT_TIMER) = Timer | LVT_MASKED;
  }

  Probe (Apic, (UINTN)(LShiftU64 (Ebx, 32) | Eax) + Ecx, ApicBad, HostBad);
  if (Apic != 0) {
    *(volatile UINT32 *)(Apic + REGISTER)              = Count;
    *(volatile UINT32 *)(Apic + HV_APIC_REG_LVT_TIMER) = Timer;
  }

  gBS->RestoreTPL (Tpl);
  gBS->FreePages (Pages, 2);
  Bad = 0;
  for (Form = 0; Form < ARRAY_SIZE (mForms); Form++) {
    if (ApicBad[Form] || HostBad[Form]) {
      Bad++;
      Print (
        L"HvStoreProbe: %s: local APIC %s, host memory %s\n",
        mForms[Form].Name,
        ApicBad[Form] ? L"bad" : L"good",
        HostBad[Form] ? L"bad" : L"good"
        );
    }
  }

  Print (L"HvStoreProbe: forms=%d bad=%d\n", ARRAY_SIZE (mForms), Bad);
  return (Bad == 0) ? EFI_SUCCESS : EFI_SECURITY_VIOLATION;
}
