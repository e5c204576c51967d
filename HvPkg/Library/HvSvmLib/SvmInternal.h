/** @file
  What the parts of the SVM backend share.

  APM2 is the AMD64 Architecture Programmer's Manual, volume 2, in the revision that the tables name.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_SVM_INTERNAL_H_
#define HV_SVM_INTERNAL_H_

#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/DebugLib.h>
#include <Library/HvCoreLib.h>
#include <Library/HvHostLib.h>
#include <Library/HvSvmCheckLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>
#include <Generated/HvSvmExit.h>
#include <Generated/HvVmcb.h>
#include "SvmAsm.h"

// Of each processor's pages.
#define SVM_PAGE_GUEST   0 // the root vCPU's VMCB
#define SVM_PAGE_HOST    1 // what VMLOAD brings back after an exit
#define SVM_PAGE_HSAVE   2 // what #VMEXIT brings back (APM2 15.5.1)
#define SVM_PAGE_NATIVE  3 // what VMLOAD gives back to a processor that leaves
#define SVM_PAGE_INPUT   4 // the VMCB as the host last changed it: QEMU and Bochs overwrite one that they refuse
#define SVM_CPU_PAGES    5

// Of each VM's pages: the permission maps.
#define SVM_PAGE_MSRPM    0
#define SVM_PAGE_IOPM     (SVM_PAGE_MSRPM + EFI_SIZE_TO_PAGES (HV_SVM_MSRPM_BYTES))
#define SVM_SHARED_PAGES  (SVM_PAGE_IOPM + EFI_SIZE_TO_PAGES (HV_SVM_IOPM_BYTES))

#define SVM_ROOT_ASID  1

#define SVM_CLEAN_BITS  (HV_SVM_CLEAN_INTERCEPTS | HV_SVM_CLEAN_PERMISSION_MAPS | HV_SVM_CLEAN_ASID | HV_SVM_CLEAN_VINTR | \
                         HV_SVM_CLEAN_NP | HV_SVM_CLEAN_CR | HV_SVM_CLEAN_DR | HV_SVM_CLEAN_DT | HV_SVM_CLEAN_SEG | \
                         HV_SVM_CLEAN_CR2)

STATIC_ASSERT (SVM_CLEAN == SVM_CLEAN_BITS, "SvmAsm.h");

/**
  Checks what SVM needs. Reads only.

  @param[out] Probe  Requirements and sizes.

  @par Context: Boot
**/
VOID
SvmProbe (
  OUT HV_PROBE  *Probe
  );

/**
  Runs the guest once, with interrupts off and GIF 0 before and after. System V calling convention.

  @param[in,out] Vcpu  Registers, Hw and HostHw.

  @par Context: Host
**/
VOID
HvSvmSwitch (
  IN OUT HV_VCPU  *Vcpu
  );

/**
  Keeps the state for the next entry, which the host has changed, for SvmExplain.

  @param[in] Vcpu  The vCPU.

  @par Context: Host
**/
VOID
SvmRemember (
  IN HV_VCPU  *Vcpu
  );

/**
  The last step before a changed state is entered, in a DEBUG build: the test option corrupt, and the checks.

  @param[in,out] Vcpu  The vCPU.

  @retval TRUE   The state breaks a rule, which is in the log.
  @retval FALSE  It may be entered.

  @par Context: Host
**/
BOOLEAN
SvmRefuses (
  IN OUT HV_VCPU  *Vcpu
  );

/**
  Logs which rules the state breaks that the processor has just refused.

  @param[in] Vcpu  The vCPU.

  @par Context: Host
**/
VOID
SvmExplain (
  IN HV_VCPU  *Vcpu
  );

#endif // HV_SVM_INTERNAL_H_
