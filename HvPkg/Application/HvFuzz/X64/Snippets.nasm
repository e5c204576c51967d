;------------------------------------------------------------------------------
; What HvFuzz tries under HvTrapTry, each piece with its RET.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

DEFAULT REL
SECTION .text

%macro Snippet 1
global ASM_PFX(%1)
ASM_PFX(%1):
%endmacro

; One instruction.
%macro Simple 2+
Snippet %1
    %2
    ret
%endmacro

; A register gets RAX, says in RDX what it then holds, and gets RBX: nothing but registers is used in between.
%macro Flip 2
Snippet %1
    mov     %2, rax
    mov     rdx, %2
    mov     %2, rbx
    ret
%endmacro

    Simple HvTryRdmsr,   rdmsr
    Simple HvTryWrmsr,   wrmsr
    Simple HvTryXsetbv,  xsetbv
    Simple HvTryXgetbv,  xgetbv
    Simple HvTryVmcall,  vmcall
    Simple HvTryVmmcall, vmmcall
    Simple HvTryIn8,     in al, dx
    Simple HvTryIn16,    in ax, dx
    Simple HvTryIn32,    in eax, dx
    Simple HvTryOut8,    out dx, al
    Simple HvTryOut16,   out dx, ax
    Simple HvTryOut32,   out dx, eax
    Simple HvTryIns8,    rep insb
    Simple HvTryIns16,   rep insw
    Simple HvTryIns32,   rep insd
    Simple HvTryOuts8,   rep outsb
    Simple HvTryLoad8,   movzx eax, byte [rsi]
    Simple HvTryLoad16,  movzx eax, word [rsi]
    Simple HvTryLoad32,  mov eax, [rsi]
    Simple HvTryLoad64,  mov rax, [rsi]
    Simple HvTryStore8,  mov [rdi], al
    Simple HvTryStore16, mov [rdi], ax
    Simple HvTryStore32, mov [rdi], eax
    Simple HvTryStore64, mov [rdi], rax
    Simple HvTryXchg32,  xchg [rdi], eax
    Simple HvTryAdd16,   add [rdi], ax
    Simple HvTryStos32,  rep stosd

    Flip HvTryCr0, cr0
    Flip HvTryCr4, cr4
    Flip HvTryDr0, dr0
    Flip HvTryDr1, dr1
    Flip HvTryDr2, dr2
    Flip HvTryDr3, dr3
    Flip HvTryDr6, dr6
    Flip HvTryDr7, dr7

; By bytes: for some assemblers DR4 and DR5 have no names.
Snippet HvTryDr4
    db      0x0F, 0x23, 0xE0    ; mov dr4, rax
    db      0x0F, 0x21, 0xE2    ; mov rdx, dr4
    db      0x0F, 0x23, 0xE3    ; mov dr4, rbx
    ret

; As Flip, for the MSR in ECX: EDX:EAX goes in, EDI:EBX was there, EDI:ESI is what it was.
Snippet HvTryFlipMsr
    wrmsr
    rdmsr
    mov     ebx, eax
    mov     eax, esi
    xchg    edx, edi
    wrmsr
    ret
