/** @file
  The rules that VMRUN applies to a VMCB, run in software.

  APM2 is the AMD64 Architecture Programmer's Manual, volume 2; each rule cites its section (svm_checks.toml of the
  tables). Not covered, because HvPkg uses none of it: AVIC (15.29), VMLOAD and VMSAVE virtualization (15.33), SEV and
  what belongs to it (15.34 to 15.36), PDPTEs of a guest without nested paging, and the enables for which the manual
  leaves open what a processor without the feature does. A finding is a state that the manual forbids, whether or not a
  processor or an emulator refuses it.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_SVM_CHECK_LIB_H_
#define HV_SVM_CHECK_LIB_H_

#include <Hv/HvFinding.h>
#include <Generated/HvVmcb.h>

///
/// CPUID of the processor: fills EAX, EBX, ECX, EDX; all 0 for a leaf above the highest.
///
typedef VOID (EFIAPI *HV_SVM_CHECK_CPUID)(
  IN  UINT32  Leaf,
  IN  UINT32  SubLeaf,
  OUT UINT32  Registers[4]
  );

///
/// What the rules depend on besides the VMCB.
///
typedef struct {
  UINT64     Cr4Valid;     ///< CR4 bits that the processor does not reserve
  UINT64     EferValid;    ///< EFER bits that the processor does not reserve
  UINT64     HostCr0;      ///< CR0 at VMRUN
  UINT32     Asids;        ///< CPUID 8000000Ah EBX
  UINT32     Features;     ///< CPUID 8000000Ah EDX, HV_SVM_FEATURE_*
  UINT8      AddressBits;  ///< physical address width, 32 to 52
  BOOLEAN    LongMode;     ///< the processor has it
} HV_SVM_CHECK_ENV;

/**
  Derives the environment from what a processor reports.

  @param[out] Env      The environment.
  @param[in]  Cpuid    Reads CPUID.
  @param[in]  HostCr0  CR0 at VMRUN.

  @retval RETURN_SUCCESS      Env is set.
  @retval RETURN_UNSUPPORTED  There is no leaf 8000000Ah: not a processor with SVM.

  @par Context: Any
**/
RETURN_STATUS
EFIAPI
HvSvmCheckEnv (
  OUT HV_SVM_CHECK_ENV    *Env,
  IN  HV_SVM_CHECK_CPUID  Cpuid,
  IN  UINT64              HostCr0
  );

/**
  Checks a VMCB as VMRUN would get it.

  @param[in]  Vmcb      The VMCB.
  @param[in]  Env       The environment.
  @param[in]  Parts     HvPartControl, HvPartGuest or HvPartAll.
  @param[out] Findings  The first Max rules that do not hold, in the order of the table.
  @param[in]  Max       Entries in Findings; 0 to count only.

  @return  How many rules do not hold, which may be more than Max.

  @par Context: Any
**/
UINTN
EFIAPI
HvSvmCheck (
  IN  CONST HV_VMCB           *Vmcb,
  IN  CONST HV_SVM_CHECK_ENV  *Env,
  IN  UINT32                  Parts,
  OUT HV_FINDING              *Findings,
  IN  UINTN                   Max
  );

#endif // HV_SVM_CHECK_LIB_H_
