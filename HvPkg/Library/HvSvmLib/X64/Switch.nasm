;------------------------------------------------------------------------------
; The SVM world switch. System V calling convention.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

#include <Hv/HvAsm.h>

DEFAULT REL
SECTION .text

; VOID HvSvmSwitch (HV_VCPU *Vcpu)
;
; VMRUN moves RAX, RSP, RIP, RFLAGS, CS, SS, DS, ES, the tables and control registers; VMLOAD and VMSAVE move FS, GS,
; TR, LDTR and the SYSCALL and SYSENTER MSRs; the rest is moved here (APM2 15.5.1, 15.5.2).
global ASM_PFX(HvSvmSwitch)
ASM_PFX(HvSvmSwitch):
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    push    qword [rdi + HV_VCPU_HOST_HW]
    push    rdi
    mov     rax, [rdi + HV_VCPU_HW]
    vmload
    mov     rcx, [rdi + HV_REGS_RCX]
    mov     rdx, [rdi + HV_REGS_RDX]
    mov     rbx, [rdi + HV_REGS_RBX]
    mov     rbp, [rdi + HV_REGS_RBP]
    mov     rsi, [rdi + HV_REGS_RSI]
    mov     r8, [rdi + HV_REGS_R8]
    mov     r9, [rdi + HV_REGS_R9]
    mov     r10, [rdi + HV_REGS_R10]
    mov     r11, [rdi + HV_REGS_R11]
    mov     r12, [rdi + HV_REGS_R12]
    mov     r13, [rdi + HV_REGS_R13]
    mov     r14, [rdi + HV_REGS_R14]
    mov     r15, [rdi + HV_REGS_R15]
    mov     rdi, [rdi + HV_REGS_RDI]
    vmrun
    vmsave
    xchg    rdi, [rsp]
    mov     [rdi + HV_REGS_RCX], rcx
    mov     [rdi + HV_REGS_RDX], rdx
    mov     [rdi + HV_REGS_RBX], rbx
    mov     [rdi + HV_REGS_RBP], rbp
    mov     [rdi + HV_REGS_RSI], rsi
    mov     [rdi + HV_REGS_R8], r8
    mov     [rdi + HV_REGS_R9], r9
    mov     [rdi + HV_REGS_R10], r10
    mov     [rdi + HV_REGS_R11], r11
    mov     [rdi + HV_REGS_R12], r12
    mov     [rdi + HV_REGS_R13], r13
    mov     [rdi + HV_REGS_R14], r14
    mov     [rdi + HV_REGS_R15], r15
    pop     qword [rdi + HV_REGS_RDI]
    pop     rax
    vmload
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    cld
    ret
