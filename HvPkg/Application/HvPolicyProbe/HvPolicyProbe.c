/** @file
  Tries what would hand over the machine: instructions and MSRs of virtualization, of SMM, of microcode. Each
  instruction prints what it raised; where there is no hypervisor that is all, for a comparison.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvTrapLib.h>
#include <Library/UefiLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>

#define VECTOR_UD  6
#define VECTOR_GP  13

#define INSTRUCTION_LIST(X)                                                                                  \
  X (Vmrun) X (Vmload) X (Vmsave) X (Stgi) X (Clgi) X (Skinit) X (Invlpga) X (Vmmcall) X (Vmcall)            \
  X (Vmlaunch) X (Vmresume) X (Vmxoff) X (Vmxon) X (Vmptrld) X (Vmptrst) X (Vmclear) X (Vmread) X (Vmwrite)  \
  X (Invept) X (Invvpid) X (Vmfunc) X (Getsec)

#define DECLARE(Name)  extern CONST UINT8 HvTry##Name[];
#define ENTRY(Name)    { #Name, HvTry##Name },

extern CONST UINT8  HvTryRdmsr[];
extern CONST UINT8  HvTryWrmsr[];
extern CONST UINT8  HvTryWriteCr4[];
INSTRUCTION_LIST (DECLARE);

STATIC CONST struct {
  CONST CHAR8    *Name;
  CONST UINT8    *Code;
} mInstructions[] = {
  INSTRUCTION_LIST (ENTRY)
};

#define MSR_ROW(Msr, SvmRead, SvmWrite, SvmRule, VmxRead, VmxWrite, VmxRule, Name)  { Msr, SvmRule, VmxRule, Name },

STATIC CONST struct {
  UINT32         Msr;
  HV_MSR_RULE    Svm;
  HV_MSR_RULE    Vmx;
  CONST CHAR8    *Name;
} mMsrs[] = {
  HV_MSR_ROOT_POLICY_LIST (MSR_ROW)
};

STATIC UINTN  mChecks;
STATIC UINTN  mBad;

STATIC
VOID
Check (
  IN BOOLEAN      Good,
  IN CONST CHAR8  *Name,
  IN CONST CHAR8  *What
  )
{
  mChecks++;
  if (!Good) {
    mBad++;
    Print (L"HvPolicyProbe: %a: %a\n", Name, What);
  }
}

///
/// Runs code with values in all registers, which an exception must leave as they are.
///
STATIC
UINT64
Try (
  IN     CONST CHAR8   *Name,
  IN     CONST UINT8   *Code,
  IN OUT HV_TRAP_REGS  *Regs
  )
{
  HV_TRAP_REGS  Before;
  UINT64        Vector;

  CopyMem (&Before, Regs, sizeof (Before));
  HvTrapBegin ();
  Vector = HvTrapTry (Code, Regs);
  HvTrapEnd ();
  if (Vector != HV_TRAP_NONE) {
    Check (Regs->Rip == (UINTN)Code, Name, "the exception is not at the instruction");
    Check (CompareMem (&Before, Regs, OFFSET_OF (HV_TRAP_REGS, ErrorCode)) == 0, Name, "the exception changed a register");
  }

  return Vector;
}

STATIC
VOID
TryInstructions (
  VOID
  )
{
  STATIC UINT8  Pages[2 * EFI_PAGE_SIZE];
  HV_TRAP_REGS  Regs;
  UINTN         Index;
  UINT64        Vector;
  UINTN         Operand;

  // An address that VMRUN, VMLOAD and VMSAVE take: QEMU looks at it before it looks at the intercept.
  Operand = ALIGN_VALUE ((UINTN)Pages, EFI_PAGE_SIZE);
  for (Index = 0; Index < ARRAY_SIZE (mInstructions); Index++) {
    SetMem (&Regs, sizeof (Regs), 0x5A);
    Regs.Rax = Operand;
    Regs.Rcx = 1;
    Regs.Rsi = Operand;
    Vector   = Try (mInstructions[Index].Name, mInstructions[Index].Code, &Regs);
    Check (Vector == VECTOR_UD, mInstructions[Index].Name, "is not #UD");
    Print (L"HvPolicyProbe: instruction %a vector=%d\n", mInstructions[Index].Name, (UINTN)Vector);
  }
}

STATIC
BOOLEAN
ReadMsr (
  IN  CONST CHAR8  *Name,
  IN  UINT32       Msr,
  OUT UINT64       *Value
  )
{
  HV_TRAP_REGS  Regs;
  UINT64        Vector;

  SetMem (&Regs, sizeof (Regs), 0xA5);
  Regs.Rcx = Msr;
  Vector   = Try (Name, HvTryRdmsr, &Regs);
  *Value   = LShiftU64 (Regs.Rdx, 32) | (UINT32)Regs.Rax;
  Check ((Vector == HV_TRAP_NONE) || ((Vector == VECTOR_GP) && (Regs.ErrorCode == 0)), Name, "a read raises another exception than #GP(0)");
  return (BOOLEAN)(Vector == HV_TRAP_NONE);
}

STATIC
BOOLEAN
WriteMsr (
  IN CONST CHAR8  *Name,
  IN UINT32       Msr,
  IN UINT64       Value
  )
{
  HV_TRAP_REGS  Regs;
  UINT64        Vector;

  SetMem (&Regs, sizeof (Regs), 0xA5);
  Regs.Rcx = Msr;
  Regs.Rax = (UINT32)Value;
  Regs.Rdx = RShiftU64 (Value, 32);
  Vector   = Try (Name, HvTryWrmsr, &Regs);
  Check ((Vector == HV_TRAP_NONE) || ((Vector == VECTOR_GP) && (Regs.ErrorCode == 0)), Name, "a write raises another exception than #GP(0)");
  return (BOOLEAN)(Vector == HV_TRAP_NONE);
}

STATIC
VOID
TryRule (
  IN CONST CHAR8  *Name,
  IN UINT32       Msr,
  IN HV_MSR_RULE  Rule
  )
{
  UINT64   Value;
  UINT64   After;
  BOOLEAN  There;

  switch (Rule) {
    case HvMsrDeny:
      Check (!ReadMsr (Name, Msr, &Value), Name, "can be read");
      Check (!WriteMsr (Name, Msr, 0), Name, "can be written");
      break;
    case HvMsrReadOnly:
      There = ReadMsr (Name, Msr, &Value);
      Check (!WriteMsr (Name, Msr, There ? Value : 0), Name, "can be written");
      break;
    case HvMsrFrozen:
      There = ReadMsr (Name, Msr, &Value);
      Check (!WriteMsr (Name, Msr, Value ^ BIT20), Name, "another value can be written");
      if (There) {
        Check (ReadMsr (Name, Msr, &After) && (After == Value), Name, "changed");
      }

      break;
    case HvMsrDrop:
      Check (WriteMsr (Name, Msr, SIZE_4KB), Name, "a write that has no effect raises #GP");
      break;
    default:
      break;
  }
}

///
/// What the core answers with code of its own, with values that would do harm.
///
STATIC
VOID
TryHooks (
  IN UINT32  Backend,
  IN UINT64  HostPage
  )
{
  HV_TRAP_REGS  Regs;
  UINT64        Value;
  UINT64        After;

  // SVME is the host's, and under VMX there is none (SDM 2.2.1: reserved).
  Check (ReadMsr ("EFER", HV_MSR_EFER, &Value), "EFER", "cannot be read");
  Check (
    WriteMsr ("EFER", HV_MSR_EFER, Value ^ HV_EFER_SVME) == (BOOLEAN)(Backend == HV_CPUID_BACKEND_SVM),
    "EFER",
    "takes SVME, or does not"
    );
  Check (ReadMsr ("EFER", HV_MSR_EFER, &After) && (After == Value), "EFER", "changed");

  Check (ReadMsr ("APIC_BASE", HV_MSR_APIC_BASE, &Value), "APIC_BASE", "cannot be read");
  Check (
    !WriteMsr ("APIC_BASE", HV_MSR_APIC_BASE, (Value & ~HV_APIC_BASE_ADDRESS_MASK) | HostPage),
    "APIC_BASE",
    "can be moved onto the host"
    );
  Check (ReadMsr ("APIC_BASE", HV_MSR_APIC_BASE, &After) && (After == Value), "APIC_BASE", "changed");
  if ((Value & HV_APIC_BASE_EXTD) == 0) {
    Check (!WriteMsr ("X2APIC_ICR", HV_MSR_X2APIC_ICR, 0), "X2APIC_ICR", "can be written in xAPIC mode");
  }

  Check (!WriteMsr ("HW_FEEDBACK_PTR", HV_MSR_HW_FEEDBACK_PTR, HostPage | BIT0), "HW_FEEDBACK_PTR", "can point to the host");
  ReadMsr ("SYSCFG", HV_MSR_SYSCFG, &Value);
  Check (!WriteMsr ("SYSCFG", HV_MSR_SYSCFG, Value ^ HV_SYSCFG_MEM_ENCRYPT), "SYSCFG", "memory encryption can be changed");
  Check (!WriteMsr ("SYSCFG", HV_MSR_SYSCFG, Value ^ HV_SYSCFG_MTRR_TOM2_EN), "SYSCFG", "TOP_MEM2 can be changed");
  // Reserved on every processor (SDM 2.5; APM2 3.1.3). On QEMU without a hypervisor these end the machine.
  SetMem (&Regs, sizeof (Regs), 0xA5);
  Regs.Rax = AsmReadCr4 () | BIT15;
  Check (Try ("CR4", HvTryWriteCr4, &Regs) == VECTOR_GP, "CR4", "bit 15 can be set");
  Regs.Rax = AsmReadCr4 () | BIT63;
  Check (Try ("CR4", HvTryWriteCr4, &Regs) == VECTOR_GP, "CR4", "bit 63 can be set");
  if (Backend == HV_CPUID_BACKEND_VMX) {
    Check (
      ReadMsr ("FEATURE_CONTROL", HV_MSR_FEATURE_CONTROL, &Value) && ((Value & HV_FEATURE_CONTROL_LOCK) != 0),
      "FEATURE_CONTROL",
      "is not locked"
      );
    Check (!WriteMsr ("FEATURE_CONTROL", HV_MSR_FEATURE_CONTROL, Value), "FEATURE_CONTROL", "can be written");

    SetMem (&Regs, sizeof (Regs), 0xA5);
    Regs.Rax = AsmReadCr4 () | HV_CR4_VMXE;
    Check (Try ("CR4", HvTryWriteCr4, &Regs) == VECTOR_GP, "CR4", "VMXE can be set");
    Regs.Rax = AsmReadCr4 () | HV_CR4_SMXE;
    Check (Try ("CR4", HvTryWriteCr4, &Regs) == VECTOR_GP, "CR4", "SMXE can be set");
  }
}

/**
  Tries everything once.

  @param[in] ImageHandle  Of the application.
  @param[in] SystemTable  The system table.

  @retval EFI_SUCCESS             All is refused as it should be.
  @retval EFI_SECURITY_VIOLATION  Something is not: a line says what.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvPolicyProbeMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  UINT32  Backend;
  UINT32  Low;
  UINT32  High;
  UINT32  Bytes;
  UINT32  Ebx;
  UINT32  Ecx;
  UINT32  Edx;
  UINTN   Index;

  TryInstructions ();
  AsmCpuid (HV_CPUID_40000000, NULL, &Ebx, &Ecx, &Edx);
  if ((Ebx == HV_CPUID_SIGNATURE_EBX) && (Ecx == HV_CPUID_SIGNATURE_ECX) && (Edx == HV_CPUID_SIGNATURE_EDX)) {
    AsmCpuid (HV_CPUID_40000001, NULL, NULL, &Backend, NULL);
    AsmCpuid (HV_CPUID_40000002, &Low, &High, &Bytes, NULL);
    for (Index = 0; Index < ARRAY_SIZE (mMsrs); Index++) {
      TryRule (mMsrs[Index].Name, mMsrs[Index].Msr, (Backend == HV_CPUID_BACKEND_VMX) ? mMsrs[Index].Vmx : mMsrs[Index].Svm);
    }

    TryHooks (Backend, (LShiftU64 (High, 32) | Low) + Bytes);
  }

  Print (L"HvPolicyProbe: checks=%d bad=%d\n", mChecks, mBad);
  return (mBad == 0) ? EFI_SUCCESS : EFI_SECURITY_VIOLATION;
}
