/** @file
  Which VM-execution, exit and entry controls the root runs with, and why.

  A control that is in no row is 0 where it can be 0. An exit that a control asks for and nobody needs costs time, so
  the controls that make the root exit are rows of their own.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "VmxInternal.h"

typedef enum {
  VmxRequired,  ///< the backend cannot do without
  VmxWanted,    ///< set where it can be; without it the CPUID bits of its row are hidden
  VmxForbidden  ///< must be able to be 0
} VMX_NEED;

typedef struct {
  VMX_WORD           Word;
  VMX_NEED           Need;
  UINT64             Bit;
  CONST CHAR8        *Name;
  HV_CPUID_HIDDEN    Gate;  ///< Bits 0: nothing depends on it
} VMX_CONTROL_ROW;

// The reason is for who reads the table.
#define CONTROL(Word, Need, Bit, Name, Reason)  { VmxWord ## Word, Vmx ## Need, Bit, Name, { 0, 0, 0, 0 } },
#define GATE(Word, Bit, Name, Reason, Leaf, SubLeaf, Register, Bits) \
  { VmxWord ## Word, VmxWanted, Bit, Name, { Leaf, SubLeaf, Register, Bits } },

STATIC CONST VMX_CONTROL_ROW  mControls[] = {
  CONTROL (Pin, Required, HV_VMX_PIN_NMI, "nmi-exiting", "an NMI is how another processor is made to leave its guest")
  CONTROL (Pin, Required, HV_VMX_PIN_VIRTUAL_NMI, "virtual-nmis", "the guest's own NMIs, once, in their window")
  CONTROL (Pin, Forbidden, HV_VMX_PIN_EXTERNAL_INTERRUPT, "no-external-interrupt-exiting",
           "the root takes its interrupts itself")
  CONTROL (Pin, Forbidden, HV_VMX_PIN_PREEMPTION_TIMER, "no-preemption-timer",
           "nothing stops the root, but VmxPassDefType")

  CONTROL (Proc, Required, HV_VMX_PROC_SECONDARY, "secondary-controls", "EPT is one of them")
  CONTROL (Proc, Required, HV_VMX_PROC_MSR_BITMAPS, "msr-bitmaps", "else every RDMSR exits")
  CONTROL (Proc, Required, HV_VMX_PROC_IO_BITMAPS, "io-bitmaps", "a sleep request of the root must not reach the machine")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_HLT, "no-hlt-exiting", "the root halts itself")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_INVLPG, "no-invlpg-exiting", "EPT makes it the guest's own business")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_MWAIT, "no-mwait-exiting", "the root waits itself")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_MONITOR, "no-monitor-exiting", "the root waits itself")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_RDPMC, "no-rdpmc-exiting", "the counters are the root's")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_RDTSC, "no-rdtsc-exiting", "the root's time is the machine's")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_CR3_LOAD, "no-cr3-load-exiting", "EPT makes CR3 the guest's own business")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_CR3_STORE, "no-cr3-store-exiting", "EPT makes CR3 the guest's own business")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_CR8_LOAD, "no-cr8-load-exiting", "the local APIC is the root's")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_CR8_STORE, "no-cr8-store-exiting", "the local APIC is the root's")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_MOV_DR, "no-mov-dr-exiting", "the host uses no debug register")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_UNCONDITIONAL_IO, "no-io-exiting", "the ports are the root's")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_PAUSE, "no-pause-exiting", "every vCPU has a processor")
  CONTROL (Proc, Forbidden, HV_VMX_PROC_MONITOR_TRAP_FLAG, "no-monitor-trap-flag", "the root does not single-step")

  CONTROL (Proc2, Required, HV_VMX_PROC2_EPT, "ept", "the host's memory is kept from the root by it")
  CONTROL (Proc2, Required, HV_VMX_PROC2_UNRESTRICTED_GUEST, "unrestricted-guest", "processors start in real mode")
  CONTROL (Proc2, Required, HV_VMX_PROC2_VPID, "vpid", "an exit must not cost the root its translations")
  GATE (Proc2, HV_VMX_PROC2_RDTSCP, "rdtscp", "without it the instruction raises #UD",
        HV_CPUID_80000001, 0, HV_CPUID_REG_EDX, HV_CPUID_80000001_EDX_RDTSCP)
  GATE (Proc2, HV_VMX_PROC2_RDTSCP, "rdpid", "the same control",
        HV_CPUID_7, 0, HV_CPUID_REG_ECX, HV_CPUID_7_ECX_RDPID)
  GATE (Proc2, HV_VMX_PROC2_INVPCID, "invpcid", "without it the instruction raises #UD",
        HV_CPUID_7, 0, HV_CPUID_REG_EBX, HV_CPUID_7_EBX_INVPCID)
  GATE (Proc2, HV_VMX_PROC2_XSAVES, "xsaves", "without it XSAVES and XRSTORS raise #UD",
        HV_CPUID_D, 1, HV_CPUID_REG_EAX, HV_CPUID_D_1_EAX_XSAVES)
  GATE (Proc2, HV_VMX_PROC2_USER_WAIT, "user-wait", "without it TPAUSE, UMONITOR and UMWAIT raise #UD",
        HV_CPUID_7, 0, HV_CPUID_REG_ECX, HV_CPUID_7_ECX_WAITPKG)
  GATE (Proc2, HV_VMX_PROC2_PCONFIG, "pconfig", "without it the instruction raises #UD",
        HV_CPUID_7, 0, HV_CPUID_REG_EDX, HV_CPUID_7_EDX_PCONFIG)
  CONTROL (Proc2, Forbidden, HV_VMX_PROC2_WBINVD, "no-wbinvd-exiting", "it does the host no harm")
  CONTROL (Proc2, Forbidden, HV_VMX_PROC2_DESCRIPTOR_TABLES, "no-descriptor-table-exiting",
           "the tables are the guest's own")


  CONTROL (Exit, Required, HV_VMX_EXIT_CTL_HOST_64, "exit-host-64", "the host runs in 64-bit mode")
  CONTROL (Exit, Required, HV_VMX_EXIT_CTL_SAVE_DEBUG, "exit-save-debug", "DR7 and IA32_DEBUGCTL are the root's")
  CONTROL (Exit, Required, HV_VMX_EXIT_CTL_SAVE_PAT, "exit-save-pat", "IA32_PAT is the root's")
  CONTROL (Exit, Required, HV_VMX_EXIT_CTL_LOAD_PAT, "exit-load-pat",
           "the host's pages are made for the PAT of the launch")
  CONTROL (Exit, Required, HV_VMX_EXIT_CTL_SAVE_EFER, "exit-save-efer", "so that EFER needs no intercept")
  CONTROL (Exit, Required, HV_VMX_EXIT_CTL_LOAD_EFER, "exit-load-efer", "the host needs NXE")
  CONTROL (Exit, Wanted, HV_VMX_EXIT_CTL_CLEAR_BNDCFGS, "exit-clear-bndcfgs",
           "the host's branches would reset the root's bounds")
  CONTROL (Exit, Wanted, HV_VMX_EXIT_CTL_CLEAR_RTIT_CTL, "exit-clear-rtit-ctl", "the root must not trace the host")
  CONTROL (Exit, Wanted, HV_VMX_EXIT_CTL_CLEAR_LBR_CTL, "exit-clear-lbr-ctl",
           "the root must not record the host's branches")

  CONTROL (Entry, Required, HV_VMX_ENTRY_CTL_LOAD_DEBUG, "entry-load-debug", "as exit-save-debug")
  CONTROL (Entry, Required, HV_VMX_ENTRY_CTL_LOAD_PAT, "entry-load-pat", "as exit-save-pat")
  CONTROL (Entry, Required, HV_VMX_ENTRY_CTL_LOAD_EFER, "entry-load-efer", "as exit-save-efer")
  CONTROL (Entry, Wanted, HV_VMX_ENTRY_CTL_LOAD_BNDCFGS, "entry-load-bndcfgs", "as exit-clear-bndcfgs")
  CONTROL (Entry, Wanted, HV_VMX_ENTRY_CTL_LOAD_RTIT_CTL, "entry-load-rtit-ctl", "as exit-clear-rtit-ctl")
  CONTROL (Entry, Wanted, HV_VMX_ENTRY_CTL_LOAD_LBR_CTL, "entry-load-lbr-ctl", "as exit-clear-lbr-ctl")
};

///
/// The MSRs of each word: with and without IA32_VMX_BASIC bit 55 (SDM A.2 to A.5).
///
STATIC CONST struct {
  UINT32         Msr;
  UINT32         TrueMsr;
  CONST CHAR8    *Source;
} mWords[VmxWordCount] = {
  [VmxWordPin] = { HV_MSR_VMX_PINBASED_CTLS, HV_MSR_VMX_TRUE_PINBASED_CTLS,
    "MSR 48Dh, without it 481h (IA32_VMX_PINBASED_CTLS)" },
  [VmxWordProc] = { HV_MSR_VMX_PROCBASED_CTLS, HV_MSR_VMX_TRUE_PROCBASED_CTLS,
    "MSR 48Eh, without it 482h (IA32_VMX_PROCBASED_CTLS)" },
  [VmxWordProc2] = { HV_MSR_VMX_PROCBASED_CTLS2, HV_MSR_VMX_PROCBASED_CTLS2,
    "MSR 48Bh (IA32_VMX_PROCBASED_CTLS2)" },
  [VmxWordProc3] = { HV_MSR_VMX_PROCBASED_CTLS3, HV_MSR_VMX_PROCBASED_CTLS3,
    "MSR 492h (IA32_VMX_PROCBASED_CTLS3)" },
  [VmxWordExit] = { HV_MSR_VMX_EXIT_CTLS, HV_MSR_VMX_TRUE_EXIT_CTLS,
    "MSR 48Fh, without it 483h (IA32_VMX_EXIT_CTLS)" },
  [VmxWordEntry] = { HV_MSR_VMX_ENTRY_CTLS, HV_MSR_VMX_TRUE_ENTRY_CTLS,
    "MSR 490h, without it 484h (IA32_VMX_ENTRY_CTLS)" },
};

VOID
VmxCapability (
  IN  VMX_WORD        Word,
  OUT VMX_CAPABILITY  *Capability
  )
{
  VMX_CAPABILITY  Proc;

  ZeroMem (Capability, sizeof (*Capability));
  if ((Word == VmxWordProc2) || (Word == VmxWordProc3)) {
    // The MSR exists where the word can be activated (SDM A.3.3, A.3.4).
    VmxCapability (VmxWordProc, &Proc);
    if ((Proc.May & ((Word == VmxWordProc2) ? HV_VMX_PROC_SECONDARY : HV_VMX_PROC_TERTIARY)) == 0) {
      return;
    }
  }

  Capability->Msr = mWords[Word].Msr;
  if ((AsmReadMsr64 (HV_MSR_VMX_BASIC) & HV_VMX_BASIC_TRUE_CTLS) != 0) {
    Capability->Msr = mWords[Word].TrueMsr;
  }

  Capability->Value = AsmReadMsr64 (Capability->Msr);
  if (Word == VmxWordProc3) {
    Capability->May = Capability->Value;
  } else {
    Capability->Must = (UINT32)Capability->Value;
    Capability->May  = RShiftU64 (Capability->Value, 32);
  }
}

STATIC
BOOLEAN
IsGiven (
  IN CONST VMX_CONTROL_ROW  *Row,
  IN CONST VMX_CAPABILITY   *Capability
  )
{
  if (Row->Need == VmxForbidden) {
    return (BOOLEAN)((Capability->Must & Row->Bit) == 0);
  }

  return (BOOLEAN)((Capability->May & Row->Bit) != 0);
}

CONST CHAR8 *
VmxControls (
  OUT VMX_CONTROLS  *Controls
  )
{
  VMX_CAPABILITY  Capability[VmxWordCount];
  CONST CHAR8     *Missing;
  UINTN           Index;

  Missing = NULL;
  for (Index = 0; Index < VmxWordCount; Index++) {
    VmxCapability ((VMX_WORD)Index, &Capability[Index]);
    Controls->Word[Index] = Capability[Index].Must;
  }

  for (Index = 0; Index < ARRAY_SIZE (mControls); Index++) {
    if (!IsGiven (&mControls[Index], &Capability[mControls[Index].Word])) {
      if ((mControls[Index].Need != VmxWanted) && (Missing == NULL)) {
        Missing = mControls[Index].Name;
      }
    } else if (mControls[Index].Need != VmxForbidden) {
      Controls->Word[mControls[Index].Word] |= mControls[Index].Bit;
    }
  }

  if (Controls->Word[VmxWordProc3] != 0) {
    Controls->Word[VmxWordProc] |= HV_VMX_PROC_TERTIARY;
  }

  return Missing;
}

///
/// "bit N = V" for the bit of the MSR that decides about a row.
///
STATIC
CONST CHAR8 *
Expectation (
  IN UINTN                  Index,
  IN CONST VMX_CONTROL_ROW  *Row
  )
{
  STATIC CHAR8  Texts[ARRAY_SIZE (mControls)][sizeof ("bit 63 = 1")];
  UINTN         Bit;

  Bit = (UINTN)HighBitSet64 (Row->Bit) + ((Row->Need == VmxForbidden) || (Row->Word == VmxWordProc3) ? 0 : 32);
  AsciiStrCpyS (Texts[Index], sizeof (Texts[Index]), "bit 00 = 1");
  Texts[Index][4] = (CHAR8)('0' + Bit / 10);
  Texts[Index][5] = (CHAR8)('0' + Bit % 10);
  Texts[Index][9] = (Row->Need == VmxForbidden) ? '0' : '1';
  return Texts[Index];
}

VOID
VmxProbeControls (
  IN OUT HV_PROBE  *Probe
  )
{
  VMX_CAPABILITY         Capability;
  CONST VMX_CONTROL_ROW  *Row;
  UINTN                  Index;
  BOOLEAN                Given;

  for (Index = 0; Index < ARRAY_SIZE (mControls); Index++) {
    Row = &mControls[Index];
    VmxCapability (Row->Word, &Capability);
    Given = IsGiven (Row, &Capability);
    switch (Row->Need) {
      case VmxRequired:
        VmxRequire (Probe, Row->Name, mWords[Row->Word].Source, Capability.Value, Expectation (Index, Row), Given);
        break;
      case VmxForbidden:
        // Every processor can leave these off; one that cannot is worth a line, the others are not.
        if (!Given) {
          VmxRequire (Probe, Row->Name, mWords[Row->Word].Source, Capability.Value, Expectation (Index, Row), Given);
        }

        break;
      case VmxWanted:
        if (!Given && (Row->Gate.Bits != 0)) {
          ASSERT (Probe->HiddenCount < HV_CPUID_HIDDEN_MAX);
          CopyMem (&Probe->Hidden[Probe->HiddenCount++], &Row->Gate, sizeof (Row->Gate));
        }

        break;
    }
  }
}
