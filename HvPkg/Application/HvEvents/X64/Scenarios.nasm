;------------------------------------------------------------------------------
; Pieces of code whose events HvEvents notes. Microsoft calling convention; RCX is the SCENARIO_CONTEXT.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

#include "../Scenarios.h"

DEFAULT REL
SECTION .text

extern ASM_PFX(HvTrapSend)

[SECTION .data.table align=8]
global ASM_PFX(mScenarios)
ASM_PFX(mScenarios):
__?SECT?__

%define TF              0x100
%define MSR_APIC_BASE   0x1B
%define MSR_DEBUGCTL    0x1D9
%define MSR_MTRR_BASE0  0x200
%define MSR_MTRR_FIX64K 0x250
%define MSR_PAT         0x277
%define MSR_EFER        0xC0000080
%define DEBUGCTL_BTF    2
%define DR7_GD          0x2400
%define CR0_NE          0x20
%define CR4_OSXSAVE     0x40000

; SCENARIO name, flags
%macro SCENARIO 2
%defstr %%text %1
[SECTION .data]
%%name:
    db      %%text, 0
[SECTION .data.table]
    dq      %%name, %1, %2
__?SECT?__
%1:
%endmacro

%macro STEP 0
    pushfq
    or      dword [rsp], TF
    popfq
%endmacro

%macro STEP_END 0
    pushfq
    and     dword [rsp], ~TF
    popfq
    ret
%endmacro

%macro CPUID_0 0
    xor     eax, eax
    cpuid
%endmacro

; The interrupt or NMI is pending, or on its way, when this returns.
%macro SEND 1
    mov     ecx, %1
    sub     rsp, 40
    call    ASM_PFX(HvTrapSend)
    add     rsp, 40
%endmacro

%macro WRMSR_OF 2
    mov     ecx, %1
    mov     rax, %2
    mov     rdx, rax
    shr     rdx, 32
    wrmsr
%endmacro

;
; Single steps over instructions that exit.
;

SCENARIO step_nop, 0
    STEP
    nop
    nop
    STEP_END

SCENARIO step_cpuid, 0
    STEP
    CPUID_0
    nop
    STEP_END

SCENARIO step_two_cpuids, 0
    xor     eax, eax
    STEP
    cpuid
    cpuid
    STEP_END

SCENARIO step_efer, 0
    mov     ecx, MSR_EFER
    STEP
    rdmsr
    wrmsr
    nop
    STEP_END

SCENARIO step_apic_base, 0
    mov     ecx, MSR_APIC_BASE
    STEP
    rdmsr
    wrmsr
    nop
    STEP_END

SCENARIO step_cr0, 0
    mov     rax, cr0
    mov     rcx, rax
    xor     rcx, CR0_NE
    STEP
    mov     cr0, rcx
    mov     cr0, rax
    nop
    STEP_END

SCENARIO step_xsetbv, 0
    mov     rax, cr4
    or      rax, CR4_OSXSAVE
    mov     cr4, rax
    xor     ecx, ecx
    xgetbv
    STEP
    xsetbv
    nop
    STEP_END

SCENARIO step_wbinvd, 0
    STEP
    wbinvd
    nop
    STEP_END

; MOV SS holds the trap behind itself back; the next one comes behind the instruction in its shadow.
SCENARIO step_mov_ss_nop, 0
    mov     eax, ss
    STEP
    mov     ss, eax
    nop
    nop
    STEP_END

SCENARIO step_mov_ss_cpuid, 0
    mov     ecx, ss
    xor     eax, eax
    STEP
    mov     ss, ecx
    cpuid
    nop
    STEP_END

SCENARIO step_sti_cpuid, 0
    xor     eax, eax
    STEP
    sti
    cpuid
    cli
    STEP_END

; A step that raises a fault takes TF and RF into the frame.
SCENARIO step_gp, 0
    STEP
    WRMSR_OF MSR_EFER, 0x8000000000000000
    STEP_END

SCENARIO step_ud, 0
    STEP
    vmcall
    STEP_END

SCENARIO step_int3, 0
    STEP
    int3
    nop
    STEP_END

SCENARIO step_int, 0
    STEP
    int     0x80
    nop
    STEP_END

; With BTF, only a branch that is taken traps, and the trap clears BTF.
SCENARIO step_btf, 0
    WRMSR_OF MSR_DEBUGCTL, DEBUGCTL_BTF
    STEP
    CPUID_0
    nop
    jmp     .next
.next:
    nop
    STEP_END

; Each #DB clears GD.
SCENARIO step_gd, 0
    xor     eax, eax
    mov     edx, DR7_GD
    STEP
    mov     dr7, rdx
    cpuid
    nop
    STEP_END

SCENARIO step_cpuid_gd, 0
    mov     edx, DR7_GD
    xor     eax, eax
    pushfq
    or      dword [rsp], TF
    mov     dr7, rdx
    popfq
    cpuid
    nop
    STEP_END

;
; Interrupt shadows: an interrupt that is pending comes behind the instruction in the shadow.
;

SCENARIO shadow_sti_nop, 0
    SEND    INTERRUPT
    sti
    nop
    nop
    cli
    ret

SCENARIO shadow_sti_cpuid, 0
    SEND    INTERRUPT
    xor     eax, eax
    sti
    cpuid
    nop
    cli
    ret

SCENARIO shadow_sti_efer, 0
    SEND    INTERRUPT
    mov     ecx, MSR_EFER
    sti
    rdmsr
    nop
    cli
    ret

SCENARIO shadow_sti_fault, 0
    SEND    INTERRUPT
    sti
    vmcall
    nop
    cli
    ret

SCENARIO shadow_mov_ss_cpuid, 0
    SEND    INTERRUPT
    mov     ecx, ss
    xor     eax, eax
    sti
    mov     ss, ecx
    cpuid
    nop
    cli
    ret

SCENARIO shadow_cli, 0
    SEND    INTERRUPT
    xor     eax, eax
    sti
    cli
    cpuid
    sti
    nop
    cli
    ret

SCENARIO halt_with_interrupt, 0
    SEND    INTERRUPT
    sti
    hlt
    cli
    ret

;
; Faults that the processor, or the hypervisor for it, raises: the instruction has changed nothing.
;

SCENARIO gp_efer_reserved, 0
    WRMSR_OF MSR_EFER, 0x0000000100000000
    ret

SCENARIO gp_efer_lme, 0
    mov     ecx, MSR_EFER
    rdmsr
    and     eax, ~0x100
    wrmsr
    ret

SCENARIO gp_apic_base_reserved, 0
    mov     ecx, MSR_APIC_BASE
    rdmsr
    or      eax, 1
    wrmsr
    ret

SCENARIO gp_pat_type, 0
    WRMSR_OF MSR_PAT, 0x0007040600070402
    ret

SCENARIO gp_mtrr_type, 0
    WRMSR_OF MSR_MTRR_BASE0, 0x0000000000000003
    ret

SCENARIO gp_mtrr_fixed_type, 0
    WRMSR_OF MSR_MTRR_FIX64K, 0x0606060606060602
    ret

SCENARIO gp_star_noncanonical, 0
    WRMSR_OF 0xC0000082, 0x8000000000000000
    ret

SCENARIO gp_xsetbv, 0
    mov     rax, cr4
    or      rax, CR4_OSXSAVE
    mov     cr4, rax
    xor     ecx, ecx
    xor     eax, eax
    xor     edx, edx
    xsetbv
    ret

SCENARIO gp_cr0_nw_without_cd, 0
    mov     rax, cr0
    or      rax, 0x20000000
    mov     cr0, rax
    ret

SCENARIO ud_vmcall, 0
    vmcall
    ret

SCENARIO ud_vmmcall, 0
    vmmcall
    ret

SCENARIO ud_vmrun, 0
    xor     eax, eax
    vmrun
    ret

SCENARIO ud_vmload, 0
    xor     eax, eax
    vmload
    ret

SCENARIO ud_vmsave, 0
    xor     eax, eax
    vmsave
    ret

SCENARIO ud_stgi, 0
    stgi
    ret

SCENARIO ud_clgi, 0
    clgi
    ret

SCENARIO ud_invlpga, 0
    xor     eax, eax
    invlpga
    ret

SCENARIO ud_vmxon, 0
    sub     rsp, 8
    mov     qword [rsp], 0
    vmxon   [rsp]
    add     rsp, 8
    ret

SCENARIO ud_vmread, 0
    vmread  rax, rax
    ret

SCENARIO ud_vmlaunch, 0
    vmlaunch
    ret

SCENARIO ud_vmxoff, 0
    vmxoff
    ret

SCENARIO ud_invept, 0
    invept  rax, [rsp]
    ret

SCENARIO ud_getsec, 0
    xor     eax, eax
    db      0x0F, 0x37
    ret

SCENARIO ud2_frame, 0
    ud2

SCENARIO divide, 0
    xor     edx, edx
    xor     ecx, ecx
    div     ecx
    ret

SCENARIO int3_frame, 0
    int3
    nop
    ret

SCENARIO int_frame, 0
    int     0x80
    nop
    ret

SCENARIO int1_frame, 0
    db      0xF1
    nop
    ret

SCENARIO page_fault, 0
    mov     rax, UNMAPPED
    mov     [rax], eax
    ret

;
; A fault during the delivery of a fault: the gate of the first one is not present.
;

SCENARIO df_of_gp, NO_GATE_GP
    WRMSR_OF MSR_EFER, 0x0000000100000000
    ret

SCENARIO df_of_segment, NO_GATE_GP
    mov     eax, 0xFFF8
    mov     ds, eax
    ret

SCENARIO np_of_ud, NO_GATE_UD
    vmcall
    ret

SCENARIO np_of_ud2, NO_GATE_UD
    ud2

SCENARIO np_of_interrupt, NO_GATE_INTERRUPT
    SEND    INTERRUPT
    sti
    nop
    nop
    ret

SCENARIO df_of_pf, NO_GATE_PF
    mov     rax, UNMAPPED
    mov     [rax], eax
    ret

;
; Events whose delivery begins with a nested fault: the stack is at an address that the host maps on first use. They
; arrive once, as what they are.
;

SCENARIO nested_int3, LOST
    mov     rsp, [rcx + CONTEXT_STACK]
    int3
    ud2

SCENARIO nested_int, LOST
    mov     rsp, [rcx + CONTEXT_STACK]
    int     0x80
    ud2

SCENARIO nested_int1, LOST
    mov     rsp, [rcx + CONTEXT_STACK]
    db      0xF1
    ud2

SCENARIO nested_ud2, LOST
    mov     rsp, [rcx + CONTEXT_STACK]
    ud2

SCENARIO nested_divide, LOST
    mov     rsp, [rcx + CONTEXT_STACK]
    xor     edx, edx
    xor     ecx, ecx
    div     ecx
    ud2

SCENARIO nested_gp, LOST
    mov     rsp, [rcx + CONTEXT_STACK]
    mov     eax, 0xFFF8
    mov     ds, eax
    ud2

; Here the host raises it.
SCENARIO nested_gp_of_host, LOST
    mov     rsp, [rcx + CONTEXT_STACK]
    WRMSR_OF MSR_EFER, 0x0000000100000000
    ud2

SCENARIO nested_ud_of_host, LOST
    mov     rsp, [rcx + CONTEXT_STACK]
    vmcall
    ud2

SCENARIO nested_page_fault, LOST
    mov     rsp, [rcx + CONTEXT_STACK]
    mov     rax, UNMAPPED
    mov     [rax], eax
    ud2

SCENARIO nested_step, LOST
    mov     rbx, [rcx + CONTEXT_STACK]
    STEP
    mov     rsp, rbx
    nop
    ud2

SCENARIO nested_step_cpuid, LOST
    mov     rbx, [rcx + CONTEXT_STACK]
    mov     eax, ss
    STEP
    mov     ss, eax
    mov     rsp, rbx ; in the shadow of MOV SS: the first trap comes behind this one
    cpuid
    ud2

SCENARIO nested_interrupt, LOST
    mov     rbx, rcx
    SEND    INTERRUPT
    mov     rsp, [rbx + CONTEXT_STACK]
    sti
    nop
    nop
    ud2

SCENARIO nested_gp_of_gate, LOST | NO_GATE_UD
    mov     rsp, [rcx + CONTEXT_STACK]
    vmcall
    ud2

SCENARIO nested_df, LOST | NO_GATE_GP
    mov     rsp, [rcx + CONTEXT_STACK]
    WRMSR_OF MSR_EFER, 0x0000000100000000
    ud2

;
; NMIs. Where one comes is not compared, only that it comes.
;

SCENARIO nmi_once, ASYNC
    SEND    NMI
    call    Idle
    ret

SCENARIO nmi_once_over_cpuids, ASYNC
    SEND    NMI
    mov     esi, 100
.again:
    CPUID_0
    dec     esi
    jnz     .again
    call    Idle
    ret

SCENARIO nmi_ten, ASYNC
    mov     edi, 10
.again:
    SEND    NMI
    call    Idle
    dec     edi
    jnz     .again
    ret

; Each of ten thousand comes, and none twice.
SCENARIO nmi_ten_thousand, ASYNC
    mov     edi, 10000
.again:
    SEND    NMI
    mov     esi, 5
.cpuids:
    CPUID_0
    dec     esi
    jnz     .cpuids
    dec     edi
    jnz     .again
    call    Idle
    ret

SCENARIO nmi_behind_mov_ss, ASYNC
    SEND    NMI
    mov     ecx, ss
    xor     eax, eax
    mov     ss, ecx
    cpuid
    call    Idle
    ret

SCENARIO nested_nmi, LOST | ASYNC
    mov     rdx, [rcx + CONTEXT_ICR]
    mov     rsp, [rcx + CONTEXT_STACK]
    mov     dword [rdx], ICR_NMI
    mov     ecx, 2000
.again:
    pause
    dec     ecx
    jnz     .again
    ud2

Idle:
    mov     ecx, 2000
.again:
    pause
    dec     ecx
    jnz     .again
    ret

[SECTION .data.table]
global ASM_PFX(mScenariosEnd)
ASM_PFX(mScenariosEnd):
