# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The numbers of the tables against what other people wrote down: Linux's headers and EDK2's.

Each check counts the names that both have, and proves that a change of any of them would be found.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hvtools import edk2, linux
from hvtools.errors import NetworkError, NotThereError
from hvtools.generated import cpuid, msr, svm_exit, vmcb, vmcs, vmx_controls, vmx_exit
from tests.unit import gen_tables

Numbers = dict[str, int]

UAPI = Path("/usr/include/x86_64-linux-gnu/asm")


def absent(what: str, reason: object) -> None:
    pytest.skip(f"{what} is not here ({reason}); `./hv test` brings it, or `./hv setup` with a network")


@pytest.fixture(scope="session")
def uapi() -> Path:
    if not (UAPI / "vmx.h").is_file():
        absent("linux-libc-dev", f"no {UAPI}/vmx.h")
    return UAPI


@pytest.fixture(scope="session")
def kernel() -> Path:
    try:
        return linux.headers() / "arch" / "x86" / "include" / "asm"
    except (NetworkError, NotThereError) as error:
        absent("the kernel's headers", error)
        raise


@pytest.fixture(scope="session")
def edk2_include() -> Path:
    try:
        return edk2.provide().path / "MdePkg" / "Include"
    except (NetworkError, NotThereError) as error:
        absent("EDK2", error)
        raise


def differences(ours: Numbers, theirs: Numbers) -> tuple[list[str], list[str]]:
    """Return the names that both have, and a line for each whose numbers differ."""
    common = sorted(set(ours) & set(theirs))
    return common, [
        f"{name}: ours {ours[name]:#x}, theirs {theirs[name]:#x}" for name in common if ours[name] != theirs[name]
    ]


def compare(ours: Numbers, theirs: Numbers, least: int) -> None:
    """Compare by name, demand a number of names, and prove that a change of any of them shows."""
    common, wrong = differences(ours, theirs)
    print(f"{len(common)} names compared")
    assert wrong == []
    assert len(common) >= least, f"only {len(common)} names in common: {common}"
    for name in common:
        assert len(differences({**ours, name: ours[name] ^ 1}, theirs)[1]) == 1


def renamed(numbers: Numbers, rules: list[tuple[str, str]], names: dict[str, str]) -> Numbers:
    """Return their numbers under our names: whole names first, else the rules one after the other."""
    result: Numbers = {}
    for name, value in numbers.items():
        new = names.get(name)
        if new is None:
            new = name
            for pattern, replacement in rules:
                new = re.sub(pattern, replacement, new)
        result[new] = value
    return result


def defines(path: Path, prefix: str) -> Numbers:
    """Return the plain numbers that a header defines under a prefix; later ones win as in C."""
    number = r"(?:(\d+)\*32\+)?[ \t]*(0[xX][0-9a-fA-F]+|\d+)(?:ULL|UL|U)?"
    pattern = rf"^[ \t]*#define[ \t]+({prefix}\w+)[ \t]+\(?{number}\)?[ \t]*(?:/|$)"
    return {
        match[1]: int(match[3], 0) + 32 * int(match[2] or 0)
        for match in re.finditer(pattern, path.read_text().replace("( ", "("), re.MULTILINE)
    }


def under(prefix: str, numbers: Numbers) -> Numbers:
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}


def by_name(numbers: dict[int, str]) -> Numbers:
    return {name: value for value, name in numbers.items()}


# ---------------------------------------------------------------------------------------------------------------
# Exit codes

SVM_RULES = [
    (r"^SVM_EXIT_", ""),
    (r"^(READ|WRITE)_([CD]R\d+)$", r"\2_\1"),
]
SVM_NAMES = {
    "SVM_EXIT_EXCP_BASE": "EXCEPTION_0",
    "SVM_EXIT_LAST_EXCP": "EXCEPTION_31",
    "SVM_EXIT_MWAIT_COND": "MWAIT_ARMED",
    "SVM_EXIT_AVIC_UNACCELERATED_ACCESS": "AVIC_NOACCEL",
    "SVM_EXIT_IOIO_PROT": "IOIO",
}
VMX_NAMES = {
    "EXIT_REASON_INIT_SIGNAL": "INIT",
    "EXIT_REASON_SIPI_SIGNAL": "SIPI",
    "EXIT_REASON_VMOFF": "VMXOFF",
    "EXIT_REASON_VMON": "VMXON",
    "EXIT_REASON_IO_INSTRUCTION": "IO",
    "EXIT_REASON_MSR_READ": "RDMSR",
    "EXIT_REASON_MSR_WRITE": "WRMSR",
    "EXIT_REASON_INVALID_STATE": "INVALID_GUEST_STATE",
    "EXIT_REASON_MSR_LOAD_FAIL": "MSR_LOADING",
    "EXIT_REASON_MWAIT_INSTRUCTION": "MWAIT",
    "EXIT_REASON_MONITOR_INSTRUCTION": "MONITOR",
    "EXIT_REASON_PAUSE_INSTRUCTION": "PAUSE",
    "EXIT_REASON_MCE_DURING_VMENTRY": "MACHINE_CHECK",
    "EXIT_REASON_EOI_INDUCED": "VIRTUALIZED_EOI",
    "EXIT_REASON_NOTIFY": "INSTRUCTION_TIMEOUT",
}


def test_svm_exits_linux(uapi: Path) -> None:
    compare(by_name(svm_exit.EXITS), renamed(defines(uapi / "svm.h", "SVM_EXIT_"), SVM_RULES, SVM_NAMES), 95)


def test_svm_exits_edk2(edk2_include: Path) -> None:
    theirs = defines(edk2_include / "Register" / "Amd" / "Ghcb.h", "SVM_EXIT_")
    compare(by_name(svm_exit.EXITS), renamed(theirs, SVM_RULES, SVM_NAMES), 14)


def test_vmx_exits_linux(uapi: Path) -> None:
    theirs = defines(uapi / "vmx.h", "EXIT_REASON_")
    compare(by_name(vmx_exit.EXITS), renamed(theirs, [(r"^EXIT_REASON_", "")], VMX_NAMES), 60)


# ---------------------------------------------------------------------------------------------------------------
# VMCB

VMCB_NAMES = {
    "pause_filter_thresh": "PauseFilterThreshold",
    "pause_filter_count": "PauseFilterCount",
    "iopm_base_pa": "IopmBase",
    "msrpm_base_pa": "MsrpmBase",
    "tsc_offset": "TscOffset",
    "asid": "GuestAsid",
    "tlb_ctl": "TlbControl",
    "int_ctl": "VIntr",
    "int_state": "InterruptShadow",
    "exit_code": "ExitCode",
    "exit_info_1": "ExitInfo1",
    "exit_info_2": "ExitInfo2",
    "exit_int_info": "ExitIntInfo",
    "nested_ctl": "NestedControl",
    "avic_vapic_bar": "AvicApicBar",
    "ghcb_gpa": "Ghcb",
    "event_inj": "EventInj",
    "nested_cr3": "NCr3",
    "virt_ext": "VirtExt",
    "clean": "CleanBits",
    "next_rip": "NextRip",
    "insn_len": "FetchedBytes",
    "insn_bytes": "InstructionBytes",
    "avic_backing_page": "AvicBackingPage",
    "avic_logical_id": "AvicLogicalTable",
    "avic_physical_id": "AvicPhysicalTable",
    "vmsa_pa": "VmsaPointer",
    "sfmask": "SfMask",
    "dbgctl": "DbgCtl",
}


def kernel_struct(path: Path, name: str) -> Numbers:
    """Return the offsets of a packed kernel structure's fields up to a union, and of what its segments consist of."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    match = re.search(rf"^struct[^\n{{]*\b{name} {{\n(.*?)^}}", text, re.MULTILINE | re.DOTALL)
    assert match, f"{path} has no struct {name}"
    sizes = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "struct vmcb_seg": 16}
    at = 0
    result: Numbers = {}
    for line in match[1].splitlines():
        if line.strip().startswith("union"):
            break
        field = re.match(r"\s*(u\d+|struct vmcb_seg) (\w+)(?:\[(.+)\])?;", line)
        if field is None:
            assert not line.strip(), f"{path}: what is {line!r}?"
            continue
        result[field[2]] = at
        # The number of intercept words is an enumerator.
        count = eval(field[3], {"MAX_INTERCEPT": 6}) if field[3] else 1
        at += sizes[field[1]] * count
    return result


@pytest.mark.parametrize(
    ("struct", "theirs", "least"),
    [("HV_VMCB_CONTROL", "vmcb_control_area", 27), ("HV_VMCB_SAVE", "vmcb_save_area", 40)],
)
def test_vmcb_layout_linux(kernel: Path, struct: str, theirs: str, least: int) -> None:
    offsets = kernel_struct(kernel / "svm.h", theirs)
    layout = {path.removesuffix(".Selector"): at for path, at, _, _ in vmcb.LAYOUT[struct]}
    compare(layout, {VMCB_NAMES.get(name, name.title().replace("_", "")): at for name, at in offsets.items()}, least)


INTERCEPT_NAMES = {
    "INTERCEPT_SELECTIVE_CR0": "CR0_SEL_WRITE",
    "INTERCEPT_INTn": "SWINT",
    "INTERCEPT_MWAIT_COND": "MWAIT_ARMED",
}


def test_intercepts_linux(kernel: Path) -> None:
    text = (kernel / "svm.h").read_text()
    bit = 0
    theirs: Numbers = {}
    for name, start in re.findall(r"^\t((?:INTERCEPT|TRAP)_\w+)(?: = (\d+))?,", text, re.MULTILINE):
        bit = int(start) if start else bit + 1
        new = INTERCEPT_NAMES.get(name, re.sub(r"^INTERCEPT_", "", name))
        new = re.sub(r"^(STORE|LOAD)_(.+)$", lambda part: part[2] + {"STORE": "_READ", "LOAD": "_WRITE"}[part[1]], new)
        theirs[re.sub(r"^TRAP_(.+)_WRITE$", r"\1_WRITE_TRAP", new)] = bit
    ours: Numbers = {}
    for word in (3, 4, 5):
        for name, low, high in vmcb.WORDS[f"HV_SVM_INTERCEPT{word}"]:
            if low == high:
                ours[name] = 32 * word + low
            else:
                ours |= {f"CR{bit - low}_WRITE_TRAP": 32 * word + bit for bit in range(low, high + 1)}
    compare(ours, theirs, 60)


FEATURE_NAMES = {
    "NPT": "NP",
    "NRIPS": "NRIP",
    "TSCRATEMSR": "TSC_RATE_MSR",
    "VMCBCLEAN": "VMCB_CLEAN",
    "FLUSHBYASID": "FLUSH_BY_ASID",
    "DECODEASSISTS": "DECODE_ASSISTS",
    "PAUSEFILTER": "PAUSE_FILTER",
    "PFTHRESHOLD": "PAUSE_FILTER_THRESHOLD",
    "V_VMSAVE_VMLOAD": "VMLOAD_VMSAVE",
    "V_SPEC_CTRL": "SPEC_CTRL",
}


def test_svm_features_linux(kernel: Path) -> None:
    # Word 15 is CPUID 8000000A EDX.
    bits = under("X86_FEATURE_", defines(kernel / "cpufeatures.h", "X86_FEATURE_"))
    theirs = {FEATURE_NAMES.get(name, name): 1 << bit % 32 for name, bit in bits.items() if bit // 32 == 15}
    compare(under("HV_SVM_FEATURE_", vmcb.CONSTANTS), theirs, 13)


# ---------------------------------------------------------------------------------------------------------------
# VMCS

VMCS_RULES = [
    (r"_IA32_", "_"),
    (r"^VM_(?=EXIT_|ENTRY_|INSTRUCTION_)", ""),
    (r"_ADDR$", "_ADDRESS"),
    (r"_AR_BYTES$", "_ACCESS_RIGHTS"),
    (r"_LEN$", "_LENGTH"),
    (r"(?<=INTR)_INFO(_FIELD)?$", "_INFO"),
    (r"^(EXIT|ENTRY)_INTR_", r"\1_INTERRUPTION_"),
    (r"_INFO_FIELD$", "_INFO"),
    (r"_ERROR_CODE$", "_ERROR"),
    (r"_GUEST_HOST_MASK$", "_MASK"),
    (r"_READ_SHADOW$", "_SHADOW"),
    (r"^CR3_TARGET_VALUE", "CR3_TARGET"),
    (r"^GUEST_PDPTR", "GUEST_PDPTE"),
    (r"_EXIT_BITMAP$", "_EXITING_BITMAP"),
]
VMCS_NAMES = {
    "VIRTUAL_PROCESSOR_ID": "VPID",
    "POSTED_INTR_NV": "POSTED_INTERRUPT_VECTOR",
    "GUEST_INTR_STATUS": "GUEST_INTERRUPT_STATUS",
    "GUEST_PML_INDEX": "PML_INDEX",
    "VIRTUAL_APIC_PAGE_ADDR": "VIRTUAL_APIC_ADDRESS",
    "POSTED_INTR_DESC_ADDR": "POSTED_INTERRUPT_DESCRIPTOR",
    "VM_FUNCTION_CONTROL": "VM_FUNCTION_CONTROLS",
    "TERTIARY_VM_EXEC_CONTROL": "PROCBASED_CTLS3",
    "SECONDARY_VM_EXEC_CONTROL": "PROCBASED_CTLS2",
    "CPU_BASED_VM_EXEC_CONTROL": "PROCBASED_CTLS",
    "PIN_BASED_VM_EXEC_CONTROL": "PINBASED_CTLS",
    "VM_EXIT_CONTROLS": "EXIT_CTLS",
    "VM_ENTRY_CONTROLS": "ENTRY_CTLS",
    "VMCS_LINK_POINTER": "LINK_POINTER",
    "PAGE_FAULT_ERROR_CODE_MASK": "PAGE_FAULT_ERROR_MASK",
    "PAGE_FAULT_ERROR_CODE_MATCH": "PAGE_FAULT_ERROR_MATCH",
    "VMX_INSTRUCTION_INFO": "EXIT_INSTRUCTION_INFO",
    "GUEST_INTERRUPTIBILITY_INFO": "GUEST_INTERRUPTIBILITY",
    "GUEST_ACTIVITY_STATE": "GUEST_ACTIVITY",
    "VMX_PREEMPTION_TIMER_VALUE": "PREEMPTION_TIMER",
    "GUEST_PENDING_DBG_EXCEPTIONS": "GUEST_PENDING_DEBUG",
    "NOTIFY_WINDOW": "INSTRUCTION_TIMEOUT",
}


def test_vmcs_linux(kernel: Path) -> None:
    text = (kernel / "vmx.h").read_text()
    found = re.findall(r"^\t([A-Z0-9_]+)\s*=\s*(0[xX][0-9a-fA-F]{8}),", text, re.MULTILINE)
    theirs = {name: int(value, 16) for name, value in found if not name.endswith("_HIGH")}
    compare(
        {name: encoding for encoding, (name, _, _) in vmcs.FIELDS.items()}, renamed(theirs, VMCS_RULES, VMCS_NAMES), 150
    )


CONTROL_NAMES = {
    "INTR_EXITING": "PIN_EXTERNAL_INTERRUPT",
    "NMI_EXITING": "PIN_NMI",
    "VIRTUAL_NMIS": "PIN_VIRTUAL_NMI",
    "PREEMPTION_TIMER": "PIN_PREEMPTION_TIMER",
    "POSTED_INTR": "PIN_POSTED_INTERRUPTS",
    "INTR_WINDOW_EXITING": "PROC_INTERRUPT_WINDOW",
    "USE_TSC_OFFSETTING": "PROC_TSC_OFFSET",
    "TERTIARY_CONTROLS": "PROC_TERTIARY",
    "SEC_CONTROLS": "PROC_SECONDARY",
    "VIRTUAL_TPR": "PROC_TPR_SHADOW",
    "UNCOND_IO_EXITING": "PROC_UNCONDITIONAL_IO",
    "USE_IO_BITMAPS": "PROC_IO_BITMAPS",
    "USE_MSR_BITMAPS": "PROC_MSR_BITMAPS",
    "VIRT_APIC_ACCESSES": "PROC2_APIC_ACCESSES",
    "DESC_EXITING": "PROC2_DESCRIPTOR_TABLES",
    "VIRTUAL_X2APIC": "PROC2_X2APIC",
    "APIC_REGISTER_VIRT": "PROC2_APIC_REGISTERS",
    "VIRT_INTR_DELIVERY": "PROC2_VIRTUAL_INTERRUPTS",
    "SHADOW_VMCS": "PROC2_VMCS_SHADOWING",
    "PAGE_MOD_LOGGING": "PROC2_PML",
    "EPT_VIOLATION_VE": "PROC2_VE",
    "PT_CONCEAL_VMX": "PROC2_CONCEAL_FROM_PT",
    "MODE_BASED_EPT_EXEC": "PROC2_MODE_BASED_EXECUTE",
    "PT_USE_GPA": "PROC2_PT_GUEST_PHYSICAL",
    "USR_WAIT_PAUSE": "PROC2_USER_WAIT",
    "BUS_LOCK_DETECTION": "PROC2_BUS_LOCK",
    "NOTIFY_VM_EXITING": "PROC2_INSTRUCTION_TIMEOUT",
    "IPI_VIRT": "PROC3_IPI",
}
EXIT_ENTRY_NAMES = {
    "VM_EXIT_SAVE_DEBUG_CONTROLS": "EXIT_CTL_SAVE_DEBUG",
    "VM_EXIT_HOST_ADDR_SPACE_SIZE": "EXIT_CTL_HOST_64",
    "VM_EXIT_ACK_INTR_ON_EXIT": "EXIT_CTL_ACKNOWLEDGE",
    "VM_EXIT_SAVE_VMX_PREEMPTION_TIMER": "EXIT_CTL_SAVE_PREEMPTION_TIMER",
    "VM_EXIT_PT_CONCEAL_PIP": "EXIT_CTL_CONCEAL_FROM_PT",
    "VM_ENTRY_LOAD_DEBUG_CONTROLS": "ENTRY_CTL_LOAD_DEBUG",
    "VM_ENTRY_IA32E_MODE": "ENTRY_CTL_GUEST_64",
    "VM_ENTRY_DEACT_DUAL_MONITOR": "ENTRY_CTL_DEACTIVATE_DUAL_MONITOR",
    "VM_ENTRY_PT_CONCEAL_PIP": "ENTRY_CTL_CONCEAL_FROM_PT",
}


def test_vmx_controls_linux(kernel: Path) -> None:
    words = ("PIN", "PROC", "PROC2", "PROC3")
    theirs: Numbers = {}
    for name, bit in defines(kernel / "vmxfeatures.h", "VMX_FEATURE_").items():
        short = name.removeprefix("VMX_FEATURE_")
        theirs[CONTROL_NAMES.get(short, f"{words[bit // 32]}_{short.removesuffix('_EXITING')}")] = 1 << bit % 32
    theirs |= renamed(
        defines(kernel / "vmx.h", "VM_E(?:XIT|NTRY)_"),
        [(r"_IA32_", "_"), (r"^VM_(EXIT|ENTRY)_", r"\1_CTL_")],
        EXIT_ENTRY_NAMES,
    )
    compare(under("HV_VMX_", vmx_controls.CONSTANTS), theirs, 72)


# ---------------------------------------------------------------------------------------------------------------
# MSRs, CPUID, control registers

MSR_RULES = [
    (r"^MSR_(IA32_|AMD64_|K7_|K8_|CORE_)?", ""),
    (r"^AMD_64_", ""),
    (r"^MTRRfix(\d+)K_", r"MTRR_FIX\1K_"),
]
MSR_NAMES = {
    "MSR_IA32_APICBASE": "APIC_BASE",
    "MSR_MTRRcap": "MTRR_CAP",
    "MSR_MTRRdefType": "MTRR_DEF_TYPE",
    "MSR_IA32_DEBUGCTLMSR": "DEBUGCTL",
    "MSR_IA32_CR_PAT": "PAT",
    "MSR_IA32_INT_SSP_TAB": "ISST_ADDR",
    "MSR_SYSCALL_MASK": "SFMASK",
    "MSR_IA32_FEAT_CTL": "FEATURE_CONTROL",
    "MSR_K8_TOP_MEM1": "TOP_MEM",
    "MSR_K8_TSEG_ADDR": "SMM_ADDR",
    "MSR_K8_TSEG_MASK": "SMM_MASK",
    "MSR_VM_IGNNE": "IGNNE",
    "MSR_AMD64_SEV_ES_GHCB": "GHCB",
    "MSR_AMD64_SEV": "SEV_STATUS",
    "MSR_IA32_TIME_STAMP_COUNTER": "TSC",
    "MSR_IA32_MTRRCAP": "MTRR_CAP",
    "MSR_IA32_FMASK": "SFMASK",
    "MSR_IA32_PERF_GLOBAL_CTRL": "PERF_GLOBAL_CTRL",
    "MSR_IA32_X2APIC_APICID": "X2APIC_ID",
    "MSR_IA32_X2APIC_SIVR": "X2APIC_SVR",
    "MSR_SEV_ES_GHCB": "GHCB",
}


def test_msrs_linux(kernel: Path) -> None:
    compare(by_name(msr.MSRS), renamed(defines(kernel / "msr-index.h", "MSR_"), MSR_RULES, MSR_NAMES), 75)


def test_msrs_edk2(edk2_include: Path) -> None:
    theirs: Numbers = {}
    for vendor, prefix in (("Intel", "MSR_IA32_"), ("Amd", "AMD_64_")):
        theirs |= defines(edk2_include / "Register" / vendor / "ArchitecturalMsr.h", prefix)
    compare(by_name(msr.MSRS), renamed(theirs, MSR_RULES, MSR_NAMES), 115)


UNIONS = {
    "IA32_CR0": ("HV_CR0", "PE MP EM TS ET NE WP AM NW CD PG"),
    "IA32_CR4": (
        "HV_CR4",
        "VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT UMIP LA57 VMXE SMXE FSGSBASE PCIDE OSXSAVE SMEP SMAP PKE",
    ),
    "IA32_EFLAGS32": ("HV_RFLAGS", "CF PF AF ZF SF TF IF DF OF IOPL NT RF VM AC VIF VIP ID"),
    "MSR_IA32_EFER_REGISTER": ("HV_EFER", "SCE LME LMA NXE"),
    "MSR_IA32_APIC_BASE_REGISTER": ("HV_APIC_BASE", "BSP EXTD EN"),
    "MSR_IA32_FEATURE_CONTROL_REGISTER": (
        "HV_FEATURE_CONTROL",
        "LOCK=Lock VMX_INSIDE_SMX=EnableVmxInsideSmx VMX_OUTSIDE_SMX=EnableVmxOutsideSmx",
    ),
    "MSR_IA32_MTRRCAP_REGISTER": ("HV_MTRR_CAP", "VCNT FIX WC SMRR"),
    "MSR_IA32_MTRR_DEF_TYPE_REGISTER": ("HV_MTRR_DEF_TYPE", "FE E"),
    "MSR_IA32_MTRR_PHYSMASK_REGISTER": ("HV_MTRR_PHYSMASK", "VALID=V"),
    "MSR_IA32_VMX_BASIC_REGISTER": (
        "HV_VMX_BASIC",
        "REVISION=VmcsRevisonId REGION_SIZE=VmcsSize ADDRESS32=VmcsAddressWidth DUAL_MONITOR=DualMonitor"
        " MEMORY_TYPE=MemoryType INS_OUTS=InsOutsReporting TRUE_CTLS=VmxControls",
    ),
    "CPUID_VERSION_INFO_EBX": (
        "HV_CPUID_1_EBX",
        "CLFLUSH=CacheLineSize LOGICAL_CPUS=MaximumAddressableIdsForLogicalProcessors APIC_ID=InitialLocalApicId",
    ),
    "CPUID_VERSION_INFO_ECX": (
        "HV_CPUID_1_ECX",
        "MONITOR VMX SMX PCID X2APIC=x2APIC TSC_DEADLINE=TSC_Deadline XSAVE OSXSAVE HYPERVISOR=ParaVirtualized",
    ),
    "CPUID_VERSION_INFO_EDX": ("HV_CPUID_1_EDX", "PSE MSR PAE APIC MTRR PGE PAT"),
    "CPUID_STRUCTURED_EXTENDED_FEATURE_FLAGS_EBX": ("HV_CPUID_7_EBX", "INVPCID"),
    "CPUID_STRUCTURED_EXTENDED_FEATURE_FLAGS_ECX": ("HV_CPUID_7_ECX", "PKU OSPKE LA57=FiveLevelPage"),
    "CPUID_EXTENDED_STATE_SUB_LEAF_EAX": ("HV_CPUID_D_1_EAX", "XSAVEOPT XSAVEC XGETBV1=XGETBV XSAVES"),
    "CPUID_AMD_EXTENDED_CPU_SIG_ECX": ("HV_CPUID_80000001_ECX", "SVM SKINIT"),
    "CPUID_AMD_EXTENDED_CPU_SIG_EDX": ("HV_CPUID_80000001_EDX", "NX FFXSR PAGE1GB=Page1GB RDTSCP LM"),
    "CPUID_EXTENDED_TIME_STAMP_COUNTER_EDX": ("HV_CPUID_80000007_EDX", "INVARIANT_TSC=InvariantTsc"),
    "CPUID_AMD_VIR_PHY_ADDRESS_SIZE_EAX": (
        "HV_CPUID_80000008_EAX",
        "PHYSICAL_BITS=PhysicalAddressBits LINEAR_BITS=LinearAddressBits GUEST_PHYSICAL_BITS=GuestPhysAddrSize",
    ),
    "CPUID_MEMORY_ENCRYPTION_INFO_EAX": ("HV_CPUID_8000001F_EAX", "SME=SmeBit SEV=SevBit SEV_ES=SevEsBit"),
    "CPUID_MEMORY_ENCRYPTION_INFO_EBX": ("HV_CPUID_8000001F_EBX", "C_BIT=PtePosBits"),
}
"""Fields of EDK2's unions by our prefix: our name, or `ours=theirs`.

Two fields are left out: EDK2 gives the default memory type 3 bits and the address reduction 5, the manuals 8 and 6
(SDM 12.11.2.1, APM3 E.4.17).
"""


def test_bits_edk2(edk2_include: Path, tmp_path: Path) -> None:
    body: list[str] = []
    for union, (prefix, fields) in UNIONS.items():
        for field in fields.split():
            mine, _, other = field.partition("=")
            body.append(
                f"  {{ union {{ {union} Field; UINT64 Whole; }} U; U.Whole = 0; U.Field.Bits.{other or mine} = -1;"
                f' printf ("{prefix}_{mine} %llu\\n", (unsigned long long)U.Whole); }}'
            )
    headers = (
        "Base.h",
        "Library/BaseLib.h",
        "Register/Intel/ArchitecturalMsr.h",
        "Register/Intel/Cpuid.h",
        "Register/Amd/Cpuid.h",
    )
    source = tmp_path / "bits.c"
    source.write_text(
        "".join(f"#include <{header}>\n" for header in headers)
        + "extern int printf (const char *, ...);\nint main (void)\n{\n"
        + "\n".join(body)
        + "\n  return 0;\n}\n"
    )
    command = [
        "gcc",
        "-w",
        "-fshort-wchar",
        f"-I{edk2_include}",
        f"-I{edk2_include / 'X64'}",
        "-o",
        str(tmp_path / "bits"),
    ]
    subprocess.run([*command, str(source)], check=True)
    output = subprocess.run([tmp_path / "bits"], check=True, capture_output=True, text=True).stdout
    theirs = {name: int(value) for name, value in map(str.split, output.splitlines())}
    ours = {name.removesuffix("_MASK"): value for name, value in (cpuid.CONSTANTS | msr.CONSTANTS).items()}
    assert set(theirs) <= set(ours)
    compare(ours, theirs, 100)


# ---------------------------------------------------------------------------------------------------------------
# From the table to the finding


@pytest.mark.parametrize(
    ("table", "old", "new", "module", "check"),
    [
        (
            "svm_exit.toml",
            'name = "CPUID"\ncode = 0x72',
            'name = "CPUID"\ncode = 0x1072',
            "svm_exit.py",
            lambda values, asm: differences(
                by_name(values["EXITS"]), renamed(defines(asm / "svm.h", "SVM_EXIT_"), SVM_RULES, SVM_NAMES)
            ),
        ),
        (
            "vmx_exit.toml",
            'name = "CPUID"\ncode = 10',
            'name = "CPUID"\ncode = 1010',
            "vmx_exit.py",
            lambda values, asm: differences(
                by_name(values["EXITS"]),
                renamed(defines(asm / "vmx.h", "EXIT_REASON_"), [(r"^EXIT_REASON_", "")], VMX_NAMES),
            ),
        ),
    ],
)
def test_changed_row_is_found(
    uapi: Path,
    tmp_path: Path,
    table: str,
    old: str,
    new: str,
    module: str,
    check: Callable[[dict[str, dict[int, str]], Path], tuple[list[str], list[str]]],
) -> None:
    files = gen_tables.changed(tmp_path, table, old, new)
    values: dict[str, dict[int, str]] = {}
    exec(files[Path("tools/hvtools/generated") / module], values)
    _, wrong = check(values, uapi)
    assert len(wrong) == 1 and wrong[0].startswith("CPUID:")
