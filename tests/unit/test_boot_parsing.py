# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Reading the hypervisor's log and the self-check's lines."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvtools.boot.checks import parse_checks
from hvtools.boot.hvlog import LogLine, parse_log, reasons

CONSOLE = """\
[    1.2] Run /hvtools/init as init process
hvcheck: init version=1 kernel=6.1.0-56-cloud-amd64 online=2
hvcheck: online count=2
hvcheck: exits when=boot cpu=0 cpuid=100 rdmsr=3 total=103
hvcheck: exits when=boot cpu=1 cpuid=10 total=10
hvcheck: exits when=init cpu=0 cpuid=150 rdmsr=3 xsetbv=1 total=154
hvcheck: exits when=init cpu=1 cpuid=20 apic-write=7 total=27
hvcheck: cpu when=start id=0 apic=0 signature=HvPkgHvPkgHv interface=1 features=0x1 backend=svm index=0 svm=0 vmx=0
hvcheck: cpu when=start id=1 apic=1 signature=HvPkgHvPkgHv interface=1 features=0x1 backend=svm index=1 svm=0 vmx=0
hvcheck: status version=1 vendor=svm cpus=2 kinds=29 virtualised=2 reserved=8388608 nested=65536 page_sizes=4k,2m \
dma=0 boot_done=1
hvcheck: exits when=start cpu=0 cpuid=160 rdmsr=3 xsetbv=1 total=164
hvcheck: exits when=start cpu=1 cpuid=30 apic-write=7 total=37
hvcheck: script-begin
hvcheck| one
[    2.0] the kernel says something
hvcheck| hvcheck: script-end exit=0
hvcheck|
hvcheck: script-end exit=3
hvcheck: cpu when=end id=0 apic=0 signature=HvPkgHvPkgHv interface=1 features=0x1 backend=svm index=0 svm=0 vmx=0
hvcheck: exits when=end cpu=0 cpuid=170 rdmsr=3 xsetbv=1 total=174
hvcheck: exits when=end cpu=1 cpuid=40 apic-write=7 total=47
hvcheck: done
"""


def test_the_whole_of_a_boot_is_read() -> None:
    report = parse_checks(CONSOLE)
    assert report.errors == []
    assert (report.kernel, report.online, report.done) == ("6.1.0-56-cloud-amd64", 2, True)
    assert [check.cpu for check in report.cpus["start"] if check.virtualised] == [0, 1]
    assert report.status is not None
    assert report.status.dma == "off: no IOMMU"
    assert report.status.page_sizes == ("4k", "2m")
    assert (report.status.reserved_bytes, report.status.nested_bytes) == (8388608, 65536)
    assert report.latest_exits()[1] == {"cpuid": 40, "apic-write": 7}


def test_exits_of_the_boot_are_the_difference_over_all_processors() -> None:
    assert parse_checks(CONSOLE).boot_exits() == {"cpuid": 60, "xsetbv": 1, "apic-write": 7}


def test_without_both_counts_there_are_no_exits_of_the_boot() -> None:
    assert parse_checks(CONSOLE.replace("when=boot", "when=now")).boot_exits() is None


def test_counters_that_an_efi_program_printed_count_until_linux_has_its_own() -> None:
    shell = "hvcheck: exits when=shell cpu=0 cpuid=9 host-memory=2 total=11\n"
    assert parse_checks(shell).latest_exits() == {0: {"cpuid": 9, "host-memory": 2}}
    assert parse_checks(shell + CONSOLE).latest_exits()[0]["cpuid"] == 170


def test_the_script_cannot_forge_marks() -> None:
    report = parse_checks(CONSOLE)
    assert report.script_exit == 3
    assert report.script_output == "one\nhvcheck: script-end exit=0\n\n"


def test_a_line_that_lost_a_part_is_an_error_and_not_a_number() -> None:
    report = parse_checks("hvcheck: exits when=end cpu=0 cpuid=17 total=174\n")
    assert report.exits == {}
    assert report.errors == ["not understood: hvcheck: exits when=end cpu=0 cpuid=17 total=174"]


@pytest.mark.parametrize(
    "line", ["hvcheck: cpu when=end id=x", "hvcheck: status version=1", "hvcheck: something new=1", "hvcheck: init"]
)
def test_what_is_not_understood_is_an_error(line: str) -> None:
    assert parse_checks(line + "\n").errors == [f"not understood: {line}"]


def test_a_foreign_hypervisor_is_not_ours() -> None:
    line = "hvcheck: cpu when=start id=0 apic=0 signature=TCGTCGTCGTCG interface=0 features=0x0 backend=none index=0"
    report = parse_checks(f"{line} svm=1 vmx=0\nhvcheck: no-status reason=no-hypervisor\n")
    (check,) = report.cpus["start"]
    assert not check.virtualised and check.svm
    assert report.missing_status == "no-hypervisor"


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    parse_checks(text)
    parse_log(text)


@given(st.dictionaries(st.sampled_from(["cpuid", "rdmsr", "apic-write", "nested-fault"]), st.integers(1, 1 << 64)))
def test_counters_are_read_as_they_were_written(counts: dict[str, int]) -> None:
    words = "".join(f" {kind}={count}" for kind, count in counts.items())
    report = parse_checks(f"hvcheck: exits when=end cpu=3{words} total={sum(counts.values())}\n")
    assert report.exits["end"][3] == Counter(counts)


def test_log_lines_are_split() -> None:
    text = (
        'hv: info cpu0 start version=0.1 build="DEBUG GCC5"\r\n'
        "\x1b[1mBdsDxe: hv: warn cpu12 npf-unexpected gpa=0x10 error=0x4 rip=0x0\n"
        "hv: info cpu0 boot-done\n"
        "hv: loud cpu0 what\n"
        "hv: info cpuX what\n"
    )
    assert parse_log(text) == [
        LogLine("info", 0, "start", {"version": "0.1", "build": "DEBUG GCC5"}),
        LogLine("warn", 12, "npf-unexpected", {"gpa": "0x10", "error": "0x4", "rip": "0x0"}),
        LogLine("info", 0, "boot-done", {}),
    ]


def test_unmet_requirements_are_the_reason_before_other_errors() -> None:
    unmet = 'hv: error cpu0 requirement-unmet backend=svm name=svm source=80000001.ecx value=0x0 expected="bit 2"\n'
    other = "hv: error cpu0 launch-failed index=0 reason=unsupported\n"
    assert reasons(parse_log(other + unmet)) == [
        "requirement-unmet backend=svm name=svm source=80000001.ecx value=0x0 expected=bit 2"
    ]
    assert reasons(parse_log("hv: info cpu0 start\n" + other)) == ["launch-failed index=0 reason=unsupported"]
