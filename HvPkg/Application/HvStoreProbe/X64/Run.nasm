;; @file
;  Runs one instruction with given registers and flags.
;
;  Calling convention: Microsoft (EFIAPI).
;
;  SPDX-License-Identifier: BSD-2-Clause-Patent
;;

    DEFAULT REL
    SECTION .text

;
; VOID EFIAPI HvProbeRun (PROBE_REGS *Regs, VOID *Code)
;
; Regs: RAX, RCX, RDX, RSI, RDI, RFLAGS. The code ends with RET.
;
global ASM_PFX(HvProbeRun)
ASM_PFX(HvProbeRun):
    push    rsi
    push    rdi
    push    rbx
    pushfq
    push    rcx
    mov     rbx, rdx
    mov     r11, rcx
    mov     rax, [r11]
    mov     rcx, [r11 + 8]
    mov     rdx, [r11 + 16]
    mov     rsi, [r11 + 24]
    mov     rdi, [r11 + 32]
    push    qword [r11 + 40]
    popfq
    call    rbx
    pushfq
    cld
    pop     rbx
    pop     r11
    mov     [r11], rax
    mov     [r11 + 8], rcx
    mov     [r11 + 16], rdx
    mov     [r11 + 24], rsi
    mov     [r11 + 32], rdi
    mov     [r11 + 40], rbx
    popfq
    pop     rbx
    pop     rdi
    pop     rsi
    ret
