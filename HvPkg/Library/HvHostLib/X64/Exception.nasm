;------------------------------------------------------------------------------
; Exceptions of the host. System V calling convention.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

#include <Hv/HvAsm.h>

DEFAULT REL
SECTION .text

extern ASM_PFX(HvHostException)

; Vectors that push an error code: 8, 10-14, 17, 21, 29, 30 (SDM volume 3, table 6-1; APM2 8.2, table 8-1).
%define HAS_ERROR_CODE(v) (v == 8 || (v >= 10 && v <= 14) || v == 17 || v == 21 || v == 29 || v == 30)

%assign vector 0
%rep 256
Stub%+vector:
%if vector == 2
    jmp     NmiStub
%else
%if !HAS_ERROR_CODE(vector)
    push    0
%endif
    push    vector
    jmp     CommonStub
%endif
%assign vector vector + 1
%endrep

CommonStub:
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
    mov     rdi, rsp
    mov     rbp, rsp
    and     rsp, -16
    cld
    call    ASM_PFX(HvHostException)
    mov     rsp, rbp
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
    add     rsp, 16
    iretq

; An NMI only counts. One that arrives between the look into the mailbox and HLT must not be slept over, so it
; moves the interrupted code behind the HLT. The same for the look and the entry that HvHostNmiGuard named.
NmiStub:
    push    rax
    push    rcx
    mov     rax, [rsp + 16]
    lea     rcx, [WaitBegin]
    cmp     rax, rcx
    jb      .guard
    lea     rcx, [WaitEnd]
    cmp     rax, rcx
    jae     .guard
    mov     [rsp + 16], rcx
    jmp     .count
.guard:
    cmp     rax, [GuardBegin]
    jb      .count
    cmp     rax, [GuardEnd]
    jae     .count
    mov     rcx, [GuardTarget]
    mov     [rsp + 16], rcx
.count:
    inc     qword [gs:HV_CPU_NMI_COUNT]
    pop     rcx
    pop     rax
    iretq

; VOID HvHostWaitNmi (volatile UINT32 *Word): returns when Word is not 0 or an NMI came. NMIs must not be masked.
global ASM_PFX(HvHostWaitNmi)
ASM_PFX(HvHostWaitNmi):
WaitBegin:
    cmp     dword [rdi], 0
    jne     WaitEnd
    hlt
global ASM_PFX(HvHostWaitNmiEnd)
ASM_PFX(HvHostWaitNmiEnd):
WaitEnd:
    ret

; VOID HvHostNmiGuard (CONST VOID *Begin, CONST VOID *End, CONST VOID *Target)
global ASM_PFX(HvHostNmiGuard)
ASM_PFX(HvHostNmiGuard):
    mov     [GuardBegin], rdi
    mov     [GuardTarget], rdx
    mov     [GuardEnd], rsi
    ret

; UINT32 HvHostReadMsrRaw (UINT32 Msr, UINT64 *Value)
global ASM_PFX(HvHostReadMsrRaw)
ASM_PFX(HvHostReadMsrRaw):
    mov     ecx, edi
FaultRdmsr:
    rdmsr
    shl     rdx, 32
    or      rax, rdx
    mov     [rsi], rax
    mov     eax, 1
    ret

; UINT32 HvHostWriteMsrRaw (UINT32 Msr, UINT64 Value)
global ASM_PFX(HvHostWriteMsrRaw)
ASM_PFX(HvHostWriteMsrRaw):
    mov     ecx, edi
    mov     eax, esi
    mov     rdx, rsi
    shr     rdx, 32
FaultWrmsr:
    wrmsr
    mov     eax, 1
    ret

; UINT32 HvHostXsetbvRaw (UINT32 Register, UINT64 Value)
global ASM_PFX(HvHostXsetbvRaw)
ASM_PFX(HvHostXsetbvRaw):
    mov     ecx, edi
    mov     eax, esi
    mov     rdx, rsi
    shr     rdx, 32
FaultXsetbv:
    xsetbv
    mov     eax, 1
    ret

; UINT32 HvHostPeekRaw (UINT64 Address, UINT64 *Value)
global ASM_PFX(HvHostPeekRaw)
ASM_PFX(HvHostPeekRaw):
FaultPeek:
    mov     rax, [rdi]
    mov     [rsi], rax
    mov     eax, 1
    ret

Faulted:
    xor     eax, eax
    ret

SECTION .data

align 8
GuardBegin:
    dq      0
GuardEnd:
    dq      0
GuardTarget:
    dq      0

global ASM_PFX(HvHostFixups)
ASM_PFX(HvHostFixups):
    dq      FaultRdmsr, Faulted
    dq      FaultWrmsr, Faulted
    dq      FaultXsetbv, Faulted
    dq      FaultPeek, Faulted
    dq      0, 0

global ASM_PFX(HvHostVectors)
ASM_PFX(HvHostVectors):
%assign vector 0
%rep 256
    dq      Stub%+vector
%assign vector vector + 1
%endrep
