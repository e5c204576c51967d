/** @file
  Offsets and constants that C and NASM share; VmxInternal.h asserts them.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_VMX_ASM_H_
#define HV_VMX_ASM_H_

#define VMX_VCPU_HOST_RSP  0x00
#define VMX_VCPU_LAUNCHED  0x08

#define VMX_SWITCH_EXIT          0
#define VMX_SWITCH_NMI           1
#define VMX_SWITCH_FAIL_INVALID  2
#define VMX_SWITCH_FAIL_VALID    3

#endif // HV_VMX_ASM_H_
