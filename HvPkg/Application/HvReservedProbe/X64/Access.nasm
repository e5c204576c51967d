;------------------------------------------------------------------------------
; Accesses that HvReservedProbe tries under HvTrapTry.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

DEFAULT REL
SECTION .text

global ASM_PFX(HvTryLoad)
ASM_PFX(HvTryLoad):
    mov     rax, [rsi]
    ret

global ASM_PFX(HvTryStore)
ASM_PFX(HvTryStore):
    mov     [rdi], rax
    ret

; Vector registers: RBX is TRUE if all 16 bytes at RSI are FFh.
global ASM_PFX(HvTryLoadVector)
ASM_PFX(HvTryLoadVector):
    sub     rsp, 16
    movdqu  [rsp], xmm0
    movdqu  xmm0, [rsi]
    movq    rax, xmm0
    psrldq  xmm0, 8
    movq    rbx, xmm0
    and     rbx, rax
    inc     rbx
    mov     eax, 0
    setz    al
    mov     rbx, rax
    movdqu  xmm0, [rsp]
    add     rsp, 16
    ret
