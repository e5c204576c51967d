/** @file
  What the parts of the VMX backend share.

  SDM is the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, in the revision that the tables
  name.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_VMX_INTERNAL_H_
#define HV_VMX_INTERNAL_H_

#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/DebugLib.h>
#include <Library/HvCoreLib.h>
#include <Library/HvHostLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>
#include <Generated/HvVmcs.h>
#include <Generated/HvVmxControls.h>
#include <Generated/HvVmxExit.h>

#include "VmxAsm.h"

// Of each processor's pages.
#define VMX_PAGE_VMXON  0 // the VMXON region; when VMX is off again, a GDT for a moment
#define VMX_PAGE_VMCS   1 // the root vCPU's VMCS
#define VMX_PAGE_VCPU   2 // VMX_VCPU
#define VMX_CPU_PAGES   3

// Of each VM's pages.
#define VMX_PAGE_MSR_BITMAPS  0
#define VMX_PAGE_IO_BITMAPS   1 // two: ports 0 to 7FFFh, 8000h to FFFFh (SDM 25.6.4)
#define VMX_PAGE_MSR_UNSEEN   3 // MSR bitmaps that pass writes of MTRR_DEF_TYPE, too
#define VMX_SHARED_PAGES      4

typedef enum {
  VmxWordPin,
  VmxWordProc,
  VmxWordProc2,
  VmxWordProc3,
  VmxWordExit,
  VmxWordEntry,
  VmxWordCount
} VMX_WORD;

///
/// The control words for the root.
///
typedef struct {
  UINT64    Word[VmxWordCount];
} VMX_CONTROLS;

///
/// What a capability MSR allows: a control may be 0 where Must is 0, and 1 where May is 1.
///
typedef struct {
  UINT32    Msr;   ///< 0: there is none on this processor, and no control of the word can be 1
  UINT64    Value; ///< of the MSR
  UINT64    Must;
  UINT64    May;
} VMX_CAPABILITY;

///
/// What the backend keeps of a vCPU beside its VMCS. Only the processor that holds the vCPU touches it.
///
typedef struct {
  UINT64     HostRsp;   ///< what the VMCS holds
  BOOLEAN    Launched;
  UINT32     Pin;       ///< pin-based controls without the preemption timer
  UINT32     Proc;      ///< primary processor-based controls, as in the VMCS
  UINT64     Cr0Mask;   ///< bits of CR0 that are 1 whatever the guest sees
  UINT64     Cr4Must;   ///< the same for CR4
  UINT64     Cr4Mask;   ///< bits of CR4 that the guest does not write
  UINT64     Caps;      ///< IA32_VMX_EPT_VPID_CAP
  UINT64     EptPointer;
  UINT16     Vpid;
  BOOLEAN    HasTimer;  ///< the preemption timer
} VMX_VCPU;

STATIC_ASSERT (OFFSET_OF (VMX_VCPU, HostRsp) == VMX_VCPU_HOST_RSP, "VmxAsm.h");
STATIC_ASSERT (OFFSET_OF (VMX_VCPU, Launched) == VMX_VCPU_LAUNCHED, "VmxAsm.h");

/**
  What the backend keeps of a vCPU.

  @param[in] Vcpu  The vCPU.

  @return  The block.

  @par Context: Host
**/
STATIC inline VMX_VCPU *
VmxVcpu (
  IN CONST HV_VCPU  *Vcpu
  )
{
  return (VMX_VCPU *)Vcpu->Hw;
}

/**
  One of a processor's pages.

  @param[in] Cpu   The processor.
  @param[in] Page  VMX_PAGE_*.

  @return  The page.

  @par Context: Any
**/
STATIC inline VOID *
VmxCpuPage (
  IN CONST HV_CPU  *Cpu,
  IN UINTN         Page
  )
{
  return (UINT8 *)Cpu->BackendPages + EFI_PAGES_TO_SIZE (Page);
}

/**
  VMREAD of the current VMCS.

  @param[in] Field  HV_VMCS_*.

  @return  What it holds; 0 where the processor does not have the field.

  @par Context: Host
**/
STATIC inline UINT64
VmxRead (
  IN UINT32  Field
  )
{
  UINT64  Value;

  Value = 0;
  __asm__ __volatile__ ("vmread %1, %0" : "+r" (Value) : "r" ((UINT64)Field) : "cc");
  return Value;
}

/**
  VMREAD of a field that every processor with VMX has.

  @param[in] Field  HV_VMCS_*.

  @return  What it holds.

  @par Context: Host
**/
STATIC inline UINT64
VmxReadBasic (
  IN UINT32  Field
  )
{
  UINT64  Value;

  __asm__ __volatile__ ("vmread %1, %0" : "=r" (Value) : "r" ((UINT64)Field) : "cc");
  return Value;
}

/**
  The guest's CR4: of the bits that it does not write what it wrote, of the others what the register has.

  @param[in] Vcpu  The vCPU; its VMCS is current.

  @return  CR4 as the guest reads it.

  @par Context: Host
**/
STATIC inline UINT64
VmxCr4 (
  IN CONST HV_VCPU  *Vcpu
  )
{
  UINT64  Mask;

  Mask = VmxVcpu (Vcpu)->Cr4Mask;
  return (VmxReadBasic (HV_VMCS_GUEST_CR4) & ~Mask) | (VmxReadBasic (HV_VMCS_CR4_SHADOW) & Mask);
}

/**
  VMWRITE to the current VMCS. A field that the processor does not have is ignored.

  @param[in] Field  HV_VMCS_*.
  @param[in] Value  What to write.

  @par Context: Host
**/
STATIC inline VOID
VmxWrite (
  IN UINT32  Field,
  IN UINT64  Value
  )
{
  __asm__ __volatile__ ("vmwrite %1, %0" : : "r" ((UINT64)Field), "r" (Value) : "cc");
}

/**
  Reads a capability MSR.

  @param[in]  Word        Which one.
  @param[out] Capability  What it allows. All zero, but Must, where the processor has no such MSR.

  @par Context: Any
**/
VOID
VmxCapability (
  IN  VMX_WORD        Word,
  OUT VMX_CAPABILITY  *Capability
  );

/**
  The control words for the root on this processor: required and wanted controls where they can be 1, and what must be.

  @param[out] Controls  The words.

  @return  The name of a control that is missing or forced on, NULL when all are as they have to be.

  @par Context: Any
**/
CONST CHAR8 *
VmxControls (
  OUT VMX_CONTROLS  *Controls
  );

/**
  Adds the controls that decide whether the backend can run, and hides what others make impossible for the root.

  @param[in,out] Probe  The requirements.

  @par Context: Boot
**/
VOID
VmxProbeControls (
  IN OUT HV_PROBE  *Probe
  );

/**
  Adds a requirement.

  @param[in,out] Probe     The requirements.
  @param[in]     Name      Of the requirement.
  @param[in]     Source    CPUID leaf or MSR.
  @param[in]     Value     What was read.
  @param[in]     Expected  What it should be.
  @param[in]     Met       Whether it is.

  @par Context: Boot
**/
VOID
VmxRequire (
  IN OUT HV_PROBE     *Probe,
  IN     CONST CHAR8  *Name,
  IN     CONST CHAR8  *Source,
  IN     UINT64       Value,
  IN     CONST CHAR8  *Expected,
  IN     BOOLEAN      Met
  );

/**
  HV_BACKEND_OPS.Probe.

  @param[out] Probe  The requirements.

  @par Context: Boot
**/
VOID
VmxProbe (
  OUT HV_PROBE  *Probe
  );

/**
  HV_BACKEND_OPS.VcpuInit: writes the whole VMCS, which is current.

  @param[in,out] Vcpu   The vCPU.
  @param[in]     State  Its state.

  @par Context: Host
**/
VOID
VmxVcpuInit (
  IN OUT HV_VCPU              *Vcpu,
  IN     CONST HV_VCPU_STATE  *State
  );

/**
  HV_BACKEND_OPS.StateGet.

  @param[in]  Vcpu   The vCPU.
  @param[in]  Mask   HV_STATE_*.
  @param[out] State  The parts.

  @par Context: Host
**/
VOID
VmxStateGet (
  IN  HV_VCPU        *Vcpu,
  IN  UINT32         Mask,
  OUT HV_VCPU_STATE  *State
  );

/**
  HV_BACKEND_OPS.StateSet.

  @param[in,out] Vcpu   The vCPU.
  @param[in]     Mask   HV_STATE_*.
  @param[in]     State  The parts.

  @par Context: Host
**/
VOID
VmxStateSet (
  IN OUT HV_VCPU              *Vcpu,
  IN     UINT32               Mask,
  IN     CONST HV_VCPU_STATE  *State
  );

/**
  The host has changed the state for the next entry.

  @param[in] Vcpu  The vCPU.

  @par Context: Host
**/
VOID
VmxChanged (
  IN HV_VCPU  *Vcpu
  );

/**
  Forgets this processor's translations of a vCPU's linear addresses.

  @param[in] Vcpu  The vCPU.

  @par Context: Host
**/
VOID
VmxFlushLinear (
  IN HV_VCPU  *Vcpu
  );

/**
  Forgets this processor's translations of a vCPU's guest-physical addresses, and what was combined from them.

  @param[in] Vcpu  The vCPU.

  @par Context: Host
**/
VOID
VmxFlushNested (
  IN HV_VCPU  *Vcpu
  );

/**
  The last step before a changed state is entered, in a DEBUG build: the test option corrupt, and the checks.

  @param[in] Vcpu  The vCPU; its VMCS is current.

  @retval TRUE   The state breaks a rule, which is in the log.
  @retval FALSE  It may be entered.

  @par Context: Host
**/
BOOLEAN
VmxRefuses (
  IN HV_VCPU  *Vcpu
  );

/**
  Logs which rules the state breaks that the processor has just refused.

  @param[in] Vcpu  The vCPU; its VMCS is current.

  @par Context: Host
**/
VOID
VmxExplain (
  IN CONST HV_VCPU  *Vcpu
  );

/**
  Runs the guest once, with interrupts off before and after. System V calling convention.

  @param[in,out] Vcpu  The vCPU; its VMCS is current.

  @return  VMX_SWITCH_*.

  @par Context: Host
**/
UINT64
HvVmxSwitch (
  IN OUT HV_VCPU  *Vcpu
  );

/**
  Where an exit arrives; a place in HvVmxSwitch, not a function to call.

  @par Context: Host
**/
VOID
HvVmxExited (
  VOID
  );

/**
  The first instruction of the piece of HvVmxSwitch that an NMI must not be followed by (HvHostNmiGuard).

  @par Context: Host
**/
VOID
HvVmxGuardBegin (
  VOID
  );

/**
  Behind the last instruction of that piece.

  @par Context: Host
**/
VOID
HvVmxGuardEnd (
  VOID
  );

/**
  Where an interrupted entry goes on.

  @par Context: Host
**/
VOID
HvVmxGuardTarget (
  VOID
  );

#endif // HV_VMX_INTERNAL_H_
