/** @file
  Offsets and constants that C and NASM share; HvTypes.h asserts each offset.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_ASM_H_
#define HV_ASM_H_

#define HV_CPU_SELF        0x00
#define HV_CPU_LAUNCH_RSP  0x08
#define HV_CPU_LAUNCH_RIP  0x10
#define HV_CPU_STACK_TOP   0x18
#define HV_CPU_NMI_COUNT   0x20
#define HV_CPU_NMI_SETTLED 0x28

#define HV_REGS_RAX     0x00
#define HV_REGS_RCX     0x08
#define HV_REGS_RDX     0x10
#define HV_REGS_RBX     0x18
#define HV_REGS_RSP     0x20
#define HV_REGS_RBP     0x28
#define HV_REGS_RSI     0x30
#define HV_REGS_RDI     0x38
#define HV_REGS_R8      0x40
#define HV_REGS_R9      0x48
#define HV_REGS_R10     0x50
#define HV_REGS_R11     0x58
#define HV_REGS_R12     0x60
#define HV_REGS_R13     0x68
#define HV_REGS_R14     0x70
#define HV_REGS_R15     0x78
#define HV_REGS_RIP     0x80
#define HV_REGS_RFLAGS  0x88

#define HV_VCPU_HW            0x90
#define HV_VCPU_HOST_HW       0x98
#define HV_VCPU_QUICK         0xA0

#define HV_HOST_CS   0x08
#define HV_HOST_DS   0x10
#define HV_HOST_TSS  0x18

#define HV_IST_FAULT  1 // double fault and machine check: the stack cannot be trusted
#define HV_IST_NMI    2

#endif // HV_ASM_H_
