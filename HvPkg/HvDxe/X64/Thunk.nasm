;------------------------------------------------------------------------------
; Into the hypervisor and back as its guest. Callers use the Microsoft calling convention (EFIAPI); the entry in the
; host's copy of the image uses System V.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

#include <Hv/HvAsm.h>

DEFAULT REL
SECTION .text

; RETURN_STATUS EFIAPI HvLaunchThunk (HV_CPU *Cpu, VOID *Entry)
; The guest's first instruction is at .guest, in boot life's image: the guest cannot see the copy. RAX is 0 there.
global ASM_PFX(HvLaunchThunk)
ASM_PFX(HvLaunchThunk):
    pushfq
    push    rbx
    push    rbp
    push    rdi
    push    rsi
    push    r12
    push    r13
    push    r14
    push    r15
    cli
    cld
    mov     [rcx + HV_CPU_LAUNCH_RSP], rsp
    lea     rax, [.guest]
    mov     [rcx + HV_CPU_LAUNCH_RIP], rax
    mov     rsp, [rcx + HV_CPU_STACK_TOP]
    mov     rbx, rcx
    mov     rdi, rcx
    call    rdx
    mov     rsp, [rbx + HV_CPU_LAUNCH_RSP]
.guest:
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rsi
    pop     rdi
    pop     rbp
    pop     rbx
    popfq
    ret

; UINT64 EFIAPI HvHypercall (UINT64 Call, UINT64 Backend, UINT64 First, UINT64 Second)
; Call 2 (leave) comes back natively, so the registers that it may change are those of any call.
global ASM_PFX(HvHypercall)
ASM_PFX(HvHypercall):
    mov     rax, rcx
    cmp     rdx, 1
    je      .vmx
    vmmcall
    ret
.vmx:
    vmcall
    ret
