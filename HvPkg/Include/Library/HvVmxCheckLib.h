/** @file
  The rules that a VM entry applies to a VMCS, run in software over an image of its fields.

  SDM is Intel's manual, volume 3, chapter "VM Entries"; each rule cites its section (vmx_checks.toml of the tables).
  Not covered: what needs memory besides the VMCS (the virtual TPR against the threshold, the revision in the VMCS that
  the link pointer names, PDPTEs without EPT, the MSR lists' contents: 27.4), entries inside SMM, and the controls for
  HLAT, IPI virtualization, PASID translation, IA32_SPEC_CTRL virtualization, the instruction timeout, LBR and processor
  trace state but for the rule that ties trace to EPT. IA32_DEBUGCTL is checked against the bits that any processor has.

  A backend calls HvVmxCheckEnv, HvVmxImageFill over VMREAD, HvVmxCheck and HvCoreLogFindings: before a changed state is
  entered in a DEBUG build, and after VMfailValid with error 7 or 8 (parts control and host) or exit reason 33 (part
  guest) in any build. It needs no copy: of what the rules look at, a failed entry changes nothing (SDM 27.8).

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_VMX_CHECK_LIB_H_
#define HV_VMX_CHECK_LIB_H_

#include <Hv/HvFinding.h>
#include <Generated/HvVmcs.h>

#define HV_VMCS_INDEX_ROW(Field, Bytes, Name)  Field##_INDEX,

///
/// A dense index of the fields: HV_VMCS_GUEST_CR0_INDEX and so on, in the order of HV_VMCS_LIST.
///
typedef enum {
  HV_VMCS_LIST (HV_VMCS_INDEX_ROW)
  HvVmcsIndexCount
} HV_VMCS_INDEX;

///
/// All fields of a VMCS; a field that a processor does not have is 0.
///
typedef struct {
  UINT64    Value[HvVmcsIndexCount];
} HV_VMCS_IMAGE;

///
/// Reads a field. FALSE: the processor does not have it.
///
typedef BOOLEAN (EFIAPI *HV_VMX_CHECK_READ)(
  IN  VOID    *Context,
  IN  UINT32  Encoding,
  OUT UINT64  *Value
  );

///
/// Reads an MSR that exists, by what the others say.
///
typedef UINT64 (EFIAPI *HV_VMX_CHECK_MSR)(
  IN UINT32  Msr
  );

///
/// CPUID of the processor: fills EAX, EBX, ECX, EDX; all 0 for a leaf above the highest.
///
typedef VOID (EFIAPI *HV_VMX_CHECK_CPUID)(
  IN  UINT32  Leaf,
  IN  UINT32  SubLeaf,
  OUT UINT32  Registers[4]
  );

///
/// What the rules depend on besides the VMCS. The first part are the capability MSRs as they are, the TRUE ones where
/// the processor has them, 0 where it has none.
///
typedef struct {
  UINT64     Basic;
  UINT64     Pin;
  UINT64     Proc;
  UINT64     Proc2;
  UINT64     Proc3;
  UINT64     Exit;
  UINT64     Exit2;
  UINT64     Entry;
  UINT64     Misc;
  UINT64     Cr0Fixed0;
  UINT64     Cr0Fixed1;
  UINT64     Cr4Fixed0;
  UINT64     Cr4Fixed1;
  UINT64     EptVpidCap;
  UINT64     VmFunc;
  UINT64     Cr3Valid;         ///< CR3 bits that are not reserved
  UINT64     EferValid;        ///< EFER bits that are not reserved
  UINT64     DebugCtlValid;    ///< IA32_DEBUGCTL bits that are not reserved
  UINT64     PerfGlobalValid;  ///< IA32_PERF_GLOBAL_CTRL bits that are not reserved
  UINT8      AddressBits;      ///< physical address width, 32 to 52
  UINT8      LinearBits;       ///< linear address width, 48 or 57
  BOOLEAN    HostLong;         ///< EFER.LMA at the entry
  BOOLEAN    Sgx;
} HV_VMX_CHECK_ENV;

/**
  Derives the environment from what a processor reports.

  @param[out] Env       The environment.
  @param[in]  Msr       Reads an MSR.
  @param[in]  Cpuid     Reads CPUID.
  @param[in]  HostEfer  EFER at the entry.

  @retval RETURN_SUCCESS      Env is set.
  @retval RETURN_UNSUPPORTED  The processor has no VMX.

  @par Context: Any
**/
RETURN_STATUS
EFIAPI
HvVmxCheckEnv (
  OUT HV_VMX_CHECK_ENV    *Env,
  IN  HV_VMX_CHECK_MSR    Msr,
  IN  HV_VMX_CHECK_CPUID  Cpuid,
  IN  UINT64              HostEfer
  );

/**
  Fills an image, field by field.

  @param[out] Image    Every field.
  @param[in]  Read     Reads a field.
  @param[in]  Context  For Read.

  @return  How many fields the processor has.

  @par Context: Any
**/
UINTN
EFIAPI
HvVmxImageFill (
  OUT HV_VMCS_IMAGE      *Image,
  IN  HV_VMX_CHECK_READ  Read,
  IN  VOID               *Context
  );

/**
  Checks an image as VMLAUNCH or VMRESUME would get the VMCS.

  @param[in]  Image     The fields.
  @param[in]  Env       The environment.
  @param[in]  Parts     HvPartControl, HvPartHost, HvPartGuest, or some of them.
  @param[out] Findings  The first Max rules that do not hold, in the order of the manual's sections.
  @param[in]  Max       Entries in Findings; 0 to count only.

  @return  How many rules do not hold, which may be more than Max. A rule counts once for each field that breaks it.

  @par Context: Any
**/
UINTN
EFIAPI
HvVmxCheck (
  IN  CONST HV_VMCS_IMAGE     *Image,
  IN  CONST HV_VMX_CHECK_ENV  *Env,
  IN  UINT32                  Parts,
  OUT HV_FINDING              *Findings,
  IN  UINTN                   Max
  );

#endif // HV_VMX_CHECK_LIB_H_
