;------------------------------------------------------------------------------
; Stubs of the interrupt descriptor table, and the way out of given-up code. Microsoft calling convention.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

DEFAULT REL
SECTION .text

extern ASM_PFX(HvTrapNote)

; Vectors that push an error code: SDM volume 3, table 6-1; APM2 table 8-1.
%define HAS_ERROR_CODE(v) (v == 8 || (v >= 10 && v <= 14) || v == 17 || v == 21 || v == 29 || v == 30)

; The vector goes to memory: the stack may not keep it.
%assign vector 0
%rep 256
Stub%+vector:
    mov     dword [ASM_PFX(mHvTrapVector)], vector
%if !HAS_ERROR_CODE(vector)
    push    0
%endif
    jmp     NoteEvent
%assign vector vector + 1
%endrep

NoteEvent:
    cmp     dword [ASM_PFX(mHvTrapLost)], 0
    jne     Lost
    push    rax
    push    rcx
    push    rdx
    push    rbx
    push    rbp
    push    rsi
    push    rdi
    push    r8
    push    r9
    push    r10
    push    r11
    push    r12
    push    r13
    push    r14
    push    r15
    mov     rcx, rsp
    mov     rbp, rsp
    and     rsp, -16
    sub     rsp, 32
    call    ASM_PFX(HvTrapNote)
    mov     rsp, rbp
    test    al, al
    jz      GiveUp
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rdi
    pop     rsi
    pop     rbp
    pop     rbx
    pop     rdx
    pop     rcx
    pop     rax
    add     rsp, 8
    iretq

Lost:
    mov     rsp, [RunStack]
    sub     rsp, 64
    and     rsp, -16
    xor     ecx, ecx
    call    ASM_PFX(HvTrapNote)

; By IRET, so that NMIs are not blocked any more.
GiveUp:
    mov     rsp, [RunStack]
    mov     rcx, rsp
    mov     eax, ss
    push    rax
    push    rcx
    push    2
    mov     eax, cs
    push    rax
    lea     rax, [Return]
    push    rax
    mov     eax, 1
    iretq

; UINT8 EFIAPI HvTrapCall (HV_TRAP_CODE Code, VOID *Context): 1 if it was given up.
global ASM_PFX(HvTrapCall)
ASM_PFX(HvTrapCall):
    push    rbx
    push    rbp
    push    rdi
    push    rsi
    push    r12
    push    r13
    push    r14
    push    r15
    sub     rsp, 40
    mov     [RunStack], rsp
    mov     rax, rcx
    mov     rcx, rdx
    push    2
    popfq                       ; the same flags in each run
    call    rax
    xor     eax, eax
Return:
    cld
    add     rsp, 40
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rsi
    pop     rdi
    pop     rbp
    pop     rbx
    ret

; VOID EFIAPI HvTrapWithRegs (TRY_CONTEXT *Context): HvTrapCall keeps the caller's registers.
%define TRY_CODE  0
%define TRY_REGS  8
%define REGS_RAX  0
%define REGS_RBX  8
%define REGS_RCX  16
%define REGS_RDX  24
%define REGS_RSI  32
%define REGS_RDI  40
global ASM_PFX(HvTrapWithRegs)
ASM_PFX(HvTrapWithRegs):
    mov     r15, [rcx + TRY_CODE]
    mov     r14, [rcx + TRY_REGS]
    mov     rax, [r14 + REGS_RAX]
    mov     rbx, [r14 + REGS_RBX]
    mov     rcx, [r14 + REGS_RCX]
    mov     rdx, [r14 + REGS_RDX]
    mov     rsi, [r14 + REGS_RSI]
    mov     rdi, [r14 + REGS_RDI]
    call    r15
    mov     [r14 + REGS_RAX], rax
    mov     [r14 + REGS_RBX], rbx
    mov     [r14 + REGS_RCX], rcx
    mov     [r14 + REGS_RDX], rdx
    mov     [r14 + REGS_RSI], rsi
    mov     [r14 + REGS_RDI], rdi
    ret

; UINT64 EFIAPI HvTrapSetPriority (UINT64 Priority): the one before. CR8 is the same in xAPIC and x2APIC mode.
global ASM_PFX(HvTrapSetPriority)
ASM_PFX(HvTrapSetPriority):
    mov     rax, cr8
    mov     cr8, rcx
    ret

SECTION .data

align 8
RunStack:
    dq      0

global ASM_PFX(mHvTrapVector)
ASM_PFX(mHvTrapVector):
    dd      0

global ASM_PFX(mHvTrapLost)
ASM_PFX(mHvTrapLost):
    dd      0

align 8
global ASM_PFX(mHvTrapStubs)
ASM_PFX(mHvTrapStubs):
%assign vector 0
%rep 256
    dq      Stub%+vector
%assign vector vector + 1
%endrep
