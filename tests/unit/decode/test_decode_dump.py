# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Dumps of refused states: what the hypervisor writes is what the tool reads, and both find the same rule."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import cffi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvtools.boot.hvlog import parse_log
from hvtools.decode import reader
from hvtools.decode.dump import Dump, Dumps
from hvtools.decode.hypervisor import typed
from hvtools.decode.report import Report
from hvtools.generated import vmcb, vmcs
from tests.unit.c.core_host import CORE, declarations
from tests.unit.c.host import HERE, ROOT, run_gcc

SAMPLES = Path(__file__).parent / "samples"
DUMPS_MAX, RING = 4, 0x10000


class Log:
    """HvCoreLib's Dump.c over HvConsoleLib and its fake ports."""

    def __init__(self, folder: Path) -> None:
        """Compiles into a folder and loads the result."""
        target = folder / "libdump.so"
        sources = [CORE / "Dump.c", ROOT / "HvPkg" / "Library" / "HvConsoleLib" / "Console.c"]
        fakes = [HERE / "console_fake.c", HERE / "shim.c"]
        run_gcc("-shared", "-o", target, "-include", "Base.h", f"-I{CORE}", *sources, *fakes)
        self.ffi: Any = cffi.FFI()
        include = f'#include <Base.h>\n#include "{HERE / "console_fake.h"}"\n#include <Library/HvCoreLib.h>\n'
        self.ffi.cdef(declarations(include))
        self.lib: Any = self.ffi.dlopen(str(target))
        self.host = self.ffi.new("HV_HOST *")
        self.cpu = self.ffi.new("HV_CPU *", {"Host": self.host, "Index": 3})

    def start(self) -> None:
        """Begins a new log."""
        ports = self.ffi.addressof(self.lib.gPorts)
        self.ffi.memmove(ports, bytes(self.ffi.sizeof("HV_PORTS")), self.ffi.sizeof("HV_PORTS"))
        self.lib.gPorts.DebugPort = True
        self.lib.HvPortsStart(3, self.ffi.NULL, 0, False)
        self.host.Dumps = 0

    def dump(self, words: dict[int, int], kind: bytes = b"vmcs", parts: int = 7) -> bool:
        """Writes a dump; FALSE when there were enough."""
        dump = self.ffi.new("HV_DUMP *")
        if not self.lib.HvCoreDumpBegin(self.cpu, dump):
            return False
        for key, value in words.items():
            self.lib.HvCoreDumpWord(dump, key, value)
        self.text = self.ffi.new("char[]", kind)
        self.lib.HvCoreDumpEnd(dump, self.text, parts)
        return True

    def written(self) -> str:
        """The log."""
        return bytes(self.ffi.buffer(self.lib.gPorts.DebugText))[: self.lib.gPorts.DebugLength].decode()


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("dump"))


def collect(text: str) -> list[Dump]:
    """The dumps in a log."""
    dumps = Dumps()
    found = []
    for line in parse_log(text):
        values = typed(line)
        assert values is not None
        found += [dump for dump in [dumps.feed(line.cpu, line.event, values)] if dump]
    return found


@given(
    words=st.dictionaries(
        st.integers(0, 0xFFFF), st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 1 << 63]), max_size=60
    )
)
def test_words_come_back(log: Log, words: dict[int, int]) -> None:
    log.start()
    assert log.dump(words, b"vmcb", 5)
    (dump,) = collect(log.written())
    assert (dump.cpu, dump.kind, dump.parts) == (3, "vmcb", 5)
    assert dump.words == {key: value for key, value in words.items() if value}
    assert all(len(line) < 320 for line in log.written().splitlines())


def test_dumps_are_few_and_leave_room_in_the_ring(log: Log) -> None:
    full = {0xFFFF - number: 2**64 - 1 for number in range(max(len(vmcs.FIELDS), 0x670 // 8))}
    log.start()
    sizes = []
    for number in range(DUMPS_MAX + 2):
        log.lib.gPorts.DebugLength = 0
        assert log.dump(full) == (number < DUMPS_MAX)
        sizes.append(log.lib.gPorts.DebugLength)
    assert sum(sizes) < RING / 2 and sizes[-1] == 0


def decode(name: str) -> Report:
    """The report of a sample."""
    (report,) = reader.read(io.BytesIO((SAMPLES / name).read_bytes()))
    return report


@pytest.mark.parametrize(
    ("name", "cpu", "rule", "field", "value"),
    [
        ("hv-vmcb-refused.log", 1, "cr0-nw", "Save.Cr0", 0xA0010033),
        ("hv-vmcs-refused.log", 0, "guest-rip", "GUEST_RIP", 0x400000001E13D85E),
    ],
)
def test_the_rules_run_over_a_dump_find_what_the_hypervisor_found(
    name: str, cpu: int, rule: str, field: str, value: int
) -> None:
    report = decode(name)
    assert report.explanations[0].startswith(f"cpu{cpu}: ")
    assert f"breaks {rule} (" in report.explanations[0] and report.explanations[0].endswith("; as the log says")
    (dump,) = report.data["dumps"]
    (broken,) = dump["broken"]
    assert (broken["rule"], broken["field"], broken["value"]) == (rule, field, value)
    assert dump["fields"][field] == f"{value:#x}"
    rows = {row[0]: row[2] for row in report.tables[0].rows}
    assert rows[field].endswith("<- breaks a rule")
    assert [key for key, text in rows.items() if "<-" in text] == [field]


def test_a_healed_dump_breaks_nothing_and_contradicts_the_log() -> None:
    text = (SAMPLES / "hv-vmcb-refused.log").read_text().replace("558:a0010033", "558:80010033")
    (report,) = reader.read(io.BytesIO(text.encode()))
    assert report.explanations[0].startswith("cpu1: VMCB: the log says that it breaks cr0-nw (")
    assert report.data["dumps"][0]["broken"] == []


def test_a_dump_is_compared_with_the_rules_before_it() -> None:
    """Two launches in one log, of which each broke another rule."""
    first = (SAMPLES / "hv-vmcb-refused.log").read_text()
    second = first.replace("558:a0010033", "558:80010033").replace("58:100000001", "58:100000000")
    second = second.replace("rule=cr0-nw", "rule=asid-zero")
    second = second.replace("field=Save.Cr0 value=0xa0010033", "field=Control.GuestAsid value=0x0")
    second = second.replace('expected="NW = 0 while CD = 0"', 'expected="not 0"')
    (report,) = reader.read(io.BytesIO((first + second).encode()))
    assert [dump["broken"][0]["rule"] for dump in report.data["dumps"]] == ["cr0-nw", "asid-zero"]
    assert report.explanations[0].endswith("as the log says")


@pytest.mark.parametrize("name", ["hv-vmcb-refused.log", "hv-vmcs-refused.log"])
def test_a_dump_without_one_of_its_lines_is_not_checked(name: str) -> None:
    lines = (SAMPLES / name).read_text().splitlines()
    kept = [line for line in lines if " dump " in line or "-processor " in line or "vmx-" in line]
    for gone in kept:
        (report,) = reader.read(io.BytesIO("\n".join(line for line in lines if line != gone).encode()))
        assert any("damaged or not whole" in line for line in report.explanations), gone
        assert report.data["dumps"][0]["broken"] is None


@pytest.mark.parametrize("parts", ["99999999999", "-1", "9" * 30])
def test_a_dump_with_parts_that_cannot_be_is_not_checked(parts: str) -> None:
    text = (SAMPLES / "hv-vmcs-refused.log").read_text()
    damaged = re.sub(r"parts=\d+", f"parts={parts}", text)
    assert damaged != text
    (report,) = reader.read(io.BytesIO(damaged.encode()))
    assert any(word in line for line in report.explanations for word in ("damaged or not whole", "cut off"))
    assert not any(dump["broken"] for dump in report.data["dumps"])


def test_a_dump_without_its_end_is_named() -> None:
    lines = (SAMPLES / "hv-vmcs-refused.log").read_text().splitlines()
    text = "\n".join(line for line in lines if "dump-end" not in line)
    (report,) = reader.read(io.BytesIO(text.encode()))
    assert any("a dump was cut off after 64 words" in line for line in report.explanations)


@given(words=st.dictionaries(st.integers(0, 0x2000), st.integers(0, 2**64 - 1)), kind=st.sampled_from(["vmcs", "vmcb"]))
def test_any_words_are_checked(words: dict[int, int], kind: str) -> None:
    sample = Dump(0, kind, 7, {"address-bits": 40, "linear-bits": 48}, words, True)
    known = {name for name, *_ in (vmcs.FIELDS.values() if kind == "vmcs" else vmcb.LAYOUT["HV_VMCB"])}
    assert {finding.field for finding in sample.check()} <= known
    assert {name.partition("[")[0] for name, _ in sample.fields()} <= known
