;------------------------------------------------------------------------------
; The instructions that HvPolicyProbe tries, one after the other, each with its RET.
;
; SPDX-License-Identifier: BSD-2-Clause-Patent
;------------------------------------------------------------------------------

DEFAULT REL
SECTION .text

%macro Snippet 2+
global ASM_PFX(%1)
ASM_PFX(%1):
    %2
    ret
%endmacro

    Snippet HvTryVmrun,    vmrun
    Snippet HvTryVmload,   vmload
    Snippet HvTryVmsave,   vmsave
    Snippet HvTryStgi,     stgi
    Snippet HvTryClgi,     clgi
    Snippet HvTrySkinit,   skinit
    Snippet HvTryInvlpga,  invlpga
    Snippet HvTryVmmcall,  vmmcall
    Snippet HvTryVmcall,   vmcall
    Snippet HvTryVmlaunch, vmlaunch
    Snippet HvTryVmresume, vmresume
    Snippet HvTryVmxoff,   vmxoff
    Snippet HvTryVmxon,    vmxon [rsi]
    Snippet HvTryVmptrld,  vmptrld [rsi]
    Snippet HvTryVmptrst,  vmptrst [rsi]
    Snippet HvTryVmclear,  vmclear [rsi]
    Snippet HvTryVmread,   vmread rax, rcx
    Snippet HvTryVmwrite,  vmwrite rcx, rax
    Snippet HvTryInvept,   invept rcx, [rsi]
    Snippet HvTryInvvpid,  invvpid rcx, [rsi]
    Snippet HvTryVmfunc,   vmfunc
    Snippet HvTryGetsec,   getsec
    Snippet HvTryRdmsr,    rdmsr
    Snippet HvTryWrmsr,    wrmsr
    Snippet HvTryWriteCr4, mov cr4, rax
