/** @file
  CPUID and XSETBV for the root.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "CoreInternal.h"

#define POLICY_ROW(Leaf, SubLeaf, Register, Clear, Set, Text)  { Leaf, SubLeaf, Register, Clear, Set },

STATIC CONST struct {
  UINT32    Leaf;
  UINT32    SubLeaf;
  UINT32    Register;
  UINT32    Clear;
  UINT32    Set;
} mPolicy[] = {
  HV_CPUID_ROOT_POLICY_LIST (POLICY_ROW)
};

///
/// Bits that mirror CR4: the processor looks at the host's.
///
STATIC CONST struct {
  UINT32    Leaf;
  UINT32    SubLeaf;
  UINT32    SubLeafMask;
  UINT32    Bit; ///< of ECX
  UINT32    Cr4;
} mMirrors[] = {
  { HV_CPUID_1, 0, 0,          HV_CPUID_1_ECX_OSXSAVE, HV_CR4_OSXSAVE },
  { HV_CPUID_7, 0, MAX_UINT32, HV_CPUID_7_ECX_OSPKE,   HV_CR4_PKE     },
};

STATIC_ASSERT (ARRAY_SIZE (mPolicy) + ARRAY_SIZE (mMirrors) + HV_CPUID_HIDDEN_MAX < HV_CPUID_ROWS_MAX, "HvTypes.h");

///
/// The entry of a leaf in Host->CpuidFirst; NULL for one that cannot have rows.
///
STATIC
UINT8 *
FirstRow (
  IN HV_HOST  *Host,
  IN UINT32   Leaf
  )
{
  // Most leaves are basic ones.
  if (Leaf < HV_CPUID_LEAVES) {
    return &Host->CpuidFirst[Leaf];
  }

  Leaf -= HV_CPUID_80000000;
  return (Leaf < HV_CPUID_LEAVES) ? &Host->CpuidFirst[HV_CPUID_LEAVES + Leaf] : NULL;
}

///
/// The row for a leaf: a new one, if there is none. The rows of a leaf stand together, and all that match are applied.
///
STATIC
HV_CPUID_ROW *
RowFor (
  IN OUT HV_HOST  *Host,
  IN     UINT32   Leaf,
  IN     UINT32   SubLeaf,
  IN     UINT32   SubLeafMask
  )
{
  HV_CPUID_ROW  *Row;
  HV_CPUID_ROW  *End;
  UINTN         Index;

  for (Row = Host->CpuidRow; (Row->Leaf != HV_CPUID_NO_LEAF) && (Row->Leaf <= Leaf); Row++) {
    if ((Row->Leaf == Leaf) && (Row->SubLeaf == SubLeaf) && (Row->SubLeafMask == SubLeafMask)) {
      return Row;
    }
  }

  for (End = Row; End->Leaf != HV_CPUID_NO_LEAF; End++) {
  }

  CopyMem (Row + 1, Row, (UINTN)(End + 1) - (UINTN)Row);
  ZeroMem (Row, sizeof (*Row));
  SetMem (Row->Keep, sizeof (Row->Keep), 0xFF);
  Row->Leaf        = Leaf;
  Row->SubLeaf     = SubLeaf;
  Row->SubLeafMask = SubLeafMask;
  for (Index = ARRAY_SIZE (Host->CpuidRow) - 1; Index-- > 0;) {
    if (Host->CpuidRow[Index].Leaf != HV_CPUID_NO_LEAF) {
      *FirstRow (Host, Host->CpuidRow[Index].Leaf) = (UINT8)(Index + 1);
      Host->CpuidRow[Index].More                   = (Host->CpuidRow[Index + 1].Leaf == Host->CpuidRow[Index].Leaf) ? 1 : 0;
    }
  }

  return Row;
}

STATIC
BOOLEAN
HasLeaf (
  IN UINT32  Leaf
  )
{
  UINT32  Max;

  AsmCpuid (Leaf & HV_CPUID_80000000, &Max, NULL, NULL, NULL);
  return (BOOLEAN)(Leaf <= Max);
}

STATIC
BOOLEAN
HasBits (
  IN UINT32  Leaf,
  IN UINT32  SubLeaf,
  IN UINT32  Register,
  IN UINT32  Bits
  )
{
  UINT32  Value[4];

  AsmCpuidEx (Leaf, SubLeaf, &Value[0], &Value[1], &Value[2], &Value[3]);
  return (BOOLEAN)((Value[Register] & Bits) != 0);
}

///
/// FALSE for a row that changes nothing on this processor. What is asked often has the fewest rows, and a leaf that is
/// not there gives what another one has (SDM volume 2, CPUID).
///
STATIC
BOOLEAN
IsNeeded (
  IN UINTN  Index
  )
{
  if (!HasLeaf (mPolicy[Index].Leaf)) {
    return FALSE;
  }

  if ((mPolicy[Index].SubLeaf == HV_CPUID_ANY_SUBLEAF) || (mPolicy[Index].Set != 0)) {
    return TRUE;
  }

  return HasBits (mPolicy[Index].Leaf, mPolicy[Index].SubLeaf, mPolicy[Index].Register, mPolicy[Index].Clear);
}

VOID
HvCoreCpuidPrepare (
  IN OUT HV_HOST  *Host
  )
{
  CONST HV_CPUID_HIDDEN  *Hidden;
  HV_CPUID_ROW           *Row;
  UINTN                  Index;
  BOOLEAN                Any;

  ZeroMem (Host->CpuidFirst, sizeof (Host->CpuidFirst));
  for (Index = 0; Index < ARRAY_SIZE (Host->CpuidRow); Index++) {
    Host->CpuidRow[Index].Leaf = HV_CPUID_NO_LEAF;
  }

  for (Index = 0; Index < ARRAY_SIZE (mPolicy); Index++) {
    if (!IsNeeded (Index)) {
      continue;
    }

    Any = (BOOLEAN)(mPolicy[Index].SubLeaf == HV_CPUID_ANY_SUBLEAF);
    Row = RowFor (Host, mPolicy[Index].Leaf, Any ? 0 : mPolicy[Index].SubLeaf, Any ? 0 : MAX_UINT32);

    Row->Keep[mPolicy[Index].Register] &= ~mPolicy[Index].Clear;
    Row->Set[mPolicy[Index].Register]  |= mPolicy[Index].Set;
  }

  for (Index = 0; Index < ARRAY_SIZE (mMirrors); Index++) {
    Row                          = RowFor (Host, mMirrors[Index].Leaf, mMirrors[Index].SubLeaf, mMirrors[Index].SubLeafMask);
    Row->Keep[HV_CPUID_REG_ECX] &= ~mMirrors[Index].Bit;
    Row->Mirror                  = mMirrors[Index].Bit;
    Row->Cr4                     = mMirrors[Index].Cr4;
  }

  for (Index = 0; Index < Host->HiddenCount; Index++) {
    Hidden = &Host->Hidden[Index];
    if (HasLeaf (Hidden->Leaf) && HasBits (Hidden->Leaf, Hidden->SubLeaf, Hidden->Register, Hidden->Bits)) {
      Row                          = RowFor (Host, Hidden->Leaf, Hidden->SubLeaf, MAX_UINT32);
      Row->Keep[Hidden->Register] &= ~Hidden->Bits;
    }
  }
}

///
/// Applies the rows of a leaf to the processor's answer.
///
STATIC
HV_NOINLINE
BOOLEAN
Change (
  IN OUT HV_REGS             *Regs,
  IN     UINT64              Cr4,
  IN     CONST HV_CPUID_ROW  *Row
  )
{
  UINT32  SubLeaf;
  UINT64  Rax;
  UINT64  Rbx;
  UINT64  Rcx;
  UINT64  Rdx;

  SubLeaf = (UINT32)Regs->Rcx;
  Rax     = Regs->Rax;
  Rcx     = Regs->Rcx;
  HvHostCpuid (&Rax, &Rbx, &Rcx, &Rdx);
  for ( ; ; Row++) {
    if (((Row->SubLeaf ^ SubLeaf) & Row->SubLeafMask) == 0) {
      Rax = ((UINT32)Rax & Row->Keep[HV_CPUID_REG_EAX]) | Row->Set[HV_CPUID_REG_EAX];
      Rbx = ((UINT32)Rbx & Row->Keep[HV_CPUID_REG_EBX]) | Row->Set[HV_CPUID_REG_EBX];
      Rcx = ((UINT32)Rcx & Row->Keep[HV_CPUID_REG_ECX]) | Row->Set[HV_CPUID_REG_ECX];
      Rdx = ((UINT32)Rdx & Row->Keep[HV_CPUID_REG_EDX]) | Row->Set[HV_CPUID_REG_EDX];
      if ((Cr4 & Row->Cr4) != 0) {
        Rcx |= Row->Mirror;
      }
    }

    if (Row->More == 0) {
      break;
    }
  }

  Regs->Rax = Rax;
  Regs->Rbx = Rbx;
  Regs->Rcx = Rcx;
  Regs->Rdx = Rdx;
  return TRUE;
}

///
/// Leaves of our own. What a hypervisor below offers is not for our root.
///
STATIC
HV_NOINLINE
BOOLEAN
AnswerOwn (
  IN OUT HV_VCPU  *Vcpu
  )
{
  HV_REGS  *Regs;
  UINT64   Status;

  Regs = &Vcpu->Regs;
  switch ((UINT32)Regs->Rax) {
    case HV_CPUID_40000000:
      Regs->Rax = HV_CPUID_HYPERVISOR_MAX;
      Regs->Rbx = HV_CPUID_SIGNATURE_EBX;
      Regs->Rcx = HV_CPUID_SIGNATURE_ECX;
      Regs->Rdx = HV_CPUID_SIGNATURE_EDX;
      break;
    case HV_CPUID_40000001:
      Regs->Rax = HV_CPUID_INTERFACE_VERSION;
      Regs->Rbx = HV_CPUID_FEATURE_STATUS | HV_CPUID_FEATURE_HYPERCALL;
      Regs->Rcx = Vcpu->Cpu->Host->Ops->Id;
      Regs->Rdx = Vcpu->Cpu->Index;
      break;
    case HV_CPUID_40000002:
      Status    = (UINTN)Vcpu->Cpu->Host->Status;
      Regs->Rax = (UINT32)Status;
      Regs->Rbx = RShiftU64 (Status, 32);
      Regs->Rcx = (UINT32)Vcpu->Cpu->Host->SharedBytes;
      Regs->Rdx = 0;
      break;
    default:
      Regs->Rax = 0;
      Regs->Rbx = 0;
      Regs->Rcx = 0;
      Regs->Rdx = 0;
  }

  return TRUE;
}

///
/// The processor's own answer.
///
STATIC HV_INLINE
BOOLEAN
AnswerProcessors (
  IN OUT HV_REGS  *Regs
  )
{
  UINT64  Rax;
  UINT64  Rbx;
  UINT64  Rcx;
  UINT64  Rdx;

  Rax = Regs->Rax;
  Rcx = Regs->Rcx;
  HvHostCpuid (&Rax, &Rbx, &Rcx, &Rdx);
  Regs->Rax = Rax;
  Regs->Rbx = Rbx;
  Regs->Rcx = Rcx;
  Regs->Rdx = Rdx;
  return TRUE;
}

///
/// Answers in the vCPU's registers. TRUE always, so that HvCoreQuickCpuid can end in it.
///
STATIC HV_INLINE
BOOLEAN
Answer (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT64   Cr4,
  IN     HV_HOST  *Host
  )
{
  CONST UINT8  *First;
  UINT32       Leaf;

  Leaf  = (UINT32)Vcpu->Regs.Rax;
  First = FirstRow (Host, Leaf);
  if ((First != NULL) && (*First != 0)) {
    return Change (&Vcpu->Regs, Cr4, Host->CpuidRow + *First - 1);
  }

  return ((Leaf & 0xF0000000) == HV_CPUID_40000000) ? AnswerOwn (Vcpu) : AnswerProcessors (&Vcpu->Regs);
}

BOOLEAN
HvCoreQuickCpuid (
  IN OUT HV_VCPU  *Vcpu,
  IN     UINT64   Cr4
  )
{
  HV_CPU   *Cpu;
  HV_HOST  *Host;

  Cpu  = Vcpu->Cpu;
  Host = Cpu->Host;
  HvCoreCountQuick (Cpu, HvExitCpuid);
  return Answer (Vcpu, Cr4, Host);
}

VOID
HvOnCpuid (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  HV_VCPU_STATE  State;

  State.Cr4 = 0;
  if (HvCoreCpuidMirrorsCr4 ((UINT32)Vcpu->Regs.Rax)) {
    Cpu->Host->Ops->StateGet (Vcpu, HV_STATE_CR4, &State);
  }

  Answer (Vcpu, State.Cr4, Cpu->Host);
  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}

BOOLEAN
HvCoreXcr0IsValid (
  IN UINT32  Register,
  IN UINT64  Value,
  IN UINT64  Supported
  )
{
  UINT64  Group;

  if ((Register != 0) || ((Value & ~Supported) != 0) || ((Value & HV_XCR0_X87) == 0)) {
    return FALSE;
  }

  if (((Value & HV_XCR0_AVX) != 0) && ((Value & HV_XCR0_SSE) == 0)) {
    return FALSE;
  }

  Group = Value & (HV_XCR0_BNDREGS | HV_XCR0_BNDCSR);
  if ((Group != 0) && (Group != (HV_XCR0_BNDREGS | HV_XCR0_BNDCSR))) {
    return FALSE;
  }

  Group = Value & (HV_XCR0_OPMASK | HV_XCR0_ZMM_HI256 | HV_XCR0_HI16_ZMM);
  if (Group != 0) {
    if ((Group != (HV_XCR0_OPMASK | HV_XCR0_ZMM_HI256 | HV_XCR0_HI16_ZMM)) || ((Value & HV_XCR0_AVX) == 0)) {
      return FALSE;
    }
  }

  Group = Value & (HV_XCR0_TILECFG | HV_XCR0_TILEDATA);
  return (BOOLEAN)((Group == 0) || (Group == (HV_XCR0_TILECFG | HV_XCR0_TILEDATA)));
}

VOID
HvOnXsetbv (
  IN OUT HV_CPU   *Cpu,
  IN OUT HV_VCPU  *Vcpu,
  IN     HV_EXIT  *Exit
  )
{
  UINT32  Low;
  UINT32  High;
  UINT64  Value;

  AsmCpuidEx (HV_CPUID_D, 0, &Low, NULL, NULL, &High);
  Value = LShiftU64 ((UINT32)Vcpu->Regs.Rdx, 32) | (UINT32)Vcpu->Regs.Rax;
  if (!HvCoreXcr0IsValid ((UINT32)Vcpu->Regs.Rcx, Value, LShiftU64 (High, 32) | Low) ||
      !HvHostXsetbv ((UINT32)Vcpu->Regs.Rcx, Value))
  {
    HvCoreRaise (Vcpu, HV_VECTOR_GP);
    return;
  }

  HvCoreRetire (Cpu, Vcpu, Exit, 0);
}
