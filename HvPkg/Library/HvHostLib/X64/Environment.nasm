;------------------------------------------------------------------------------
; Descriptor tables and the jump back into native life. System V calling convention.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

#include <Hv/HvAsm.h>

DEFAULT REL
SECTION .text

; VOID HvHostLoadTables (CONST IA32_DESCRIPTOR *Gdtr, CONST IA32_DESCRIPTOR *Idtr, CONST UINT16 *Selectors)
; Selectors: ES CS SS DS FS GS LDTR TR
global ASM_PFX(HvHostLoadTables)
ASM_PFX(HvHostLoadTables):
    lgdt    [rdi]
    lidt    [rsi]
    movzx   eax, word [rdx + 2]
    lea     rcx, [.reload]
    push    rax
    push    rcx
    retfq
.reload:
    mov     es, [rdx]
    mov     ss, [rdx + 4]
    mov     ds, [rdx + 6]
    mov     fs, [rdx + 8]
    mov     gs, [rdx + 10]
    lldt    [rdx + 12]
    movzx   eax, word [rdx + 14]
    test    eax, eax
    jz      .done
    ; LTR refuses a busy TSS (SDM volume 2, LTR).
    mov     rcx, [rdi + 2]
    and     eax, 0xFFF8
    and     byte [rcx + rax + 5], 0xFD
    ltr     [rdx + 14]
.done:
    ret

; VOID HvHostJump (CONST HV_REGS *Regs, UINT64 Cs, UINT64 Ss): into the registers, on the stack they name.
global ASM_PFX(HvHostJump)
ASM_PFX(HvHostJump):
    push    rdx
    push    qword [rdi + HV_REGS_RSP]
    push    qword [rdi + HV_REGS_RFLAGS]
    push    rsi
    push    qword [rdi + HV_REGS_RIP]
    mov     rax, [rdi + HV_REGS_RAX]
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
    iretq
