;------------------------------------------------------------------------------
; The SVM world switch. System V calling convention.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

#include <Hv/HvAsm.h>
#include <Generated/HvVmcbOffsets.h>
#include "../SvmAsm.h"

DEFAULT REL
SECTION .text

EXIT_INVALID    equ     -1 ; 64 bits by the manual, 32 in QEMU (APM2 15.5.1)

; What a C function may change; RAX stays the VMCB's address.
%macro LOAD_CHANGED 0
    mov     rcx, [rdi + HV_REGS_RCX]
    mov     rdx, [rdi + HV_REGS_RDX]
    mov     rbx, [rdi + HV_REGS_RBX]
    mov     rsi, [rdi + HV_REGS_RSI]
    mov     r8, [rdi + HV_REGS_R8]
    mov     r9, [rdi + HV_REGS_R9]
    mov     r10, [rdi + HV_REGS_R10]
    mov     r11, [rdi + HV_REGS_R11]
    mov     rdi, [rdi + HV_REGS_RDI]
%endmacro

; VOID HvSvmSwitch (HV_VCPU *Vcpu)
;
; VMRUN moves RAX, RSP, RIP, RFLAGS (so DF is 0 again), CS, SS, DS, ES, the tables and control registers; VMLOAD and VMSAVE move FS, GS,
; TR, LDTR and the SYSCALL and SYSENTER MSRs; the rest is moved here (APM2 15.5.1, 15.5.2).
;
; An exit that HV_VCPU.Quick deals with is followed by the next entry at once. What VMLOAD moves is the guest's meanwhile,
; and so is what a C function keeps; RBX, which CPUID changes, is moved with what it does not keep. GIF is 0, so no NMI
; and no machine check needs the host's GS and TR there (APM2 15.17).
global ASM_PFX(HvSvmSwitch)
ASM_PFX(HvSvmSwitch):
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    push    rdi
    mov     rax, [rdi + HV_VCPU_HW]
    vmload
    mov     rbp, [rdi + HV_REGS_RBP]
    mov     r12, [rdi + HV_REGS_R12]
    mov     r13, [rdi + HV_REGS_R13]
    mov     r14, [rdi + HV_REGS_R14]
    mov     r15, [rdi + HV_REGS_R15]

    LOAD_CHANGED
    vmrun

    ; What this entry was asked for, a flush or an event, the next one is not. A VMCB that was refused stays as it is.
    cmp     dword [rax + HV_VMCB_CONTROL_EXIT_CODE], EXIT_INVALID
    je      Exited
    mov     byte [rax + HV_VMCB_CONTROL_TLB_CONTROL], 0
    mov     qword [rax + HV_VMCB_CONTROL_EVENT_INJ], 0
    mov     dword [rax + HV_VMCB_CONTROL_CLEAN_BITS], SVM_CLEAN
    jmp     Exited

Again:
    LOAD_CHANGED
    vmrun

Exited:
    push    rdi
    mov     rdi, [rsp + 8]
    mov     [rdi + HV_REGS_RCX], rcx
    mov     rcx, [rax + HV_VMCB_SAVE_RAX]
    mov     [rdi + HV_REGS_RAX], rcx
    mov     [rdi + HV_REGS_RDX], rdx
    mov     [rdi + HV_REGS_RBX], rbx
    mov     [rdi + HV_REGS_RSI], rsi
    mov     [rdi + HV_REGS_R8], r8
    mov     [rdi + HV_REGS_R9], r9
    mov     [rdi + HV_REGS_R10], r10
    mov     [rdi + HV_REGS_R11], r11
    pop     qword [rdi + HV_REGS_RDI]
    call    [rdi + HV_VCPU_QUICK]
    test    al, al
    mov     rdi, [rsp]
    mov     rax, [rdi + HV_VCPU_HW]
    mov     rcx, [rdi + HV_REGS_RAX]
    mov     [rax + HV_VMCB_SAVE_RAX], rcx
    jne     Again

    vmsave
    mov     [rdi + HV_REGS_RBP], rbp
    mov     [rdi + HV_REGS_R12], r12
    mov     [rdi + HV_REGS_R13], r13
    mov     [rdi + HV_REGS_R14], r14
    mov     [rdi + HV_REGS_R15], r15
    mov     rax, [rdi + HV_VCPU_HOST_HW]
    vmload
    add     rsp, 8
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret
