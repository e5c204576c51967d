;------------------------------------------------------------------------------
; Counts NMIs of the processor that takes them.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

SECTION .text

; Behind the interrupt descriptor table, which each processor has for itself: NMI_CPU of HvNmi.c.
%define NMI_COUNT  4096

global ASM_PFX(HvNmiStub)
ASM_PFX(HvNmiStub):
    sub     rsp, 16
    push    rax
    sidt    [rsp + 8]
    mov     rax, [rsp + 10]
    inc     qword [rax + NMI_COUNT]
    pop     rax
    add     rsp, 16
    iretq
