;------------------------------------------------------------------------------
; The VMX world switch. System V calling convention.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

#include <Hv/HvAsm.h>
#include <Generated/HvVmcs.h>
#include "../VmxAsm.h"

DEFAULT REL
SECTION .text

; What a C function keeps, and what it may change; each but RDI, which points to the vCPU.
%macro LOAD_KEPT 0
    mov     rbp, [rdi + HV_REGS_RBP]
    mov     r12, [rdi + HV_REGS_R12]
    mov     r13, [rdi + HV_REGS_R13]
    mov     r14, [rdi + HV_REGS_R14]
    mov     r15, [rdi + HV_REGS_R15]
%endmacro

%macro SAVE_KEPT 0
    mov     [rdi + HV_REGS_RBP], rbp
    mov     [rdi + HV_REGS_R12], r12
    mov     [rdi + HV_REGS_R13], r13
    mov     [rdi + HV_REGS_R14], r14
    mov     [rdi + HV_REGS_R15], r15
%endmacro

%macro LOAD_CHANGED 0
    mov     rax, [rdi + HV_REGS_RAX]
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

; UINT64 HvVmxSwitch (HV_VCPU *Vcpu)
;
; An entry moves RSP, RIP, RFLAGS, segments, tables, control registers, DR7, PAT, EFER and the SYSENTER MSRs; an exit
; moves them back, but gives DR7 its reset value (SDM 27.3.2, 28.3, 28.5). The rest is moved here or is the guest's all
; the time.
;
; An exit that HV_VCPU.Quick deals with is followed by the next entry at once. What a C function keeps is the guest's
; meanwhile, and RBX, which CPUID changes, is moved with what it does not keep.
global ASM_PFX(HvVmxSwitch)
ASM_PFX(HvVmxSwitch):
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    push    rdi
    mov     rax, [rdi + HV_VCPU_HW]
    cmp     rsp, [rax + VMX_VCPU_HOST_RSP]
    je      Load
    mov     [rax + VMX_VCPU_HOST_RSP], rsp
    mov     ecx, HV_VMCS_HOST_RSP
    vmwrite rcx, rsp
Load:
    LOAD_KEPT
    cmp     byte [rax + VMX_VCPU_LAUNCHED], 0
    je      Launch

; An NMI that the host took is looked at before the guest runs: it may be a kick.
global ASM_PFX(HvVmxGuardBegin)
ASM_PFX(HvVmxGuardBegin):
    mov     rcx, [gs:HV_CPU_NMI_COUNT]
    cmp     rcx, [gs:HV_CPU_NMI_SETTLED]
    jne     ASM_PFX(HvVmxGuardTarget)
    LOAD_CHANGED
    vmresume
    jmp     Failed
Launch:
    mov     rcx, [gs:HV_CPU_NMI_COUNT]
    cmp     rcx, [gs:HV_CPU_NMI_SETTLED]
    jne     ASM_PFX(HvVmxGuardTarget)
    LOAD_CHANGED
    vmlaunch
global ASM_PFX(HvVmxGuardEnd)
ASM_PFX(HvVmxGuardEnd):

; SDM 31.2: CF is VMfailInvalid, ZF is VMfailValid.
Failed:
    mov     eax, VMX_SWITCH_FAIL_INVALID
    jc      Return
    mov     eax, VMX_SWITCH_FAIL_VALID
    jmp     Return

global ASM_PFX(HvVmxGuardTarget)
ASM_PFX(HvVmxGuardTarget):
    mov     eax, VMX_SWITCH_NMI
    jmp     Return

global ASM_PFX(HvVmxExited)
ASM_PFX(HvVmxExited):
    push    rdi
    mov     rdi, [rsp + 8]
    mov     [rdi + HV_REGS_RAX], rax
    mov     [rdi + HV_REGS_RCX], rcx
    mov     [rdi + HV_REGS_RDX], rdx
    mov     [rdi + HV_REGS_RBX], rbx
    mov     [rdi + HV_REGS_RSI], rsi
    mov     [rdi + HV_REGS_R8], r8
    mov     [rdi + HV_REGS_R9], r9
    mov     [rdi + HV_REGS_R10], r10
    mov     [rdi + HV_REGS_R11], r11
    pop     qword [rdi + HV_REGS_RDI]
    call    [rdi + HV_VCPU_QUICK]
    mov     rdi, [rsp]
    test    al, al
    jne     ASM_PFX(HvVmxGuardBegin)
    xor     eax, eax

Return:
    mov     rdi, [rsp]
    SAVE_KEPT
    add     rsp, 8
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret
