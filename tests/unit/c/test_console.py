# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvConsoleLib over fake ports: what it writes is what the tools read back."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import cffi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvtools.boot.hvlog import LEVELS, LogLine, parse_log
from hvtools.generated.log_events import EVENTS
from tests.unit.c.core_host import CData, declarations
from tests.unit.c.host import HERE, ROOT, run_gcc

EVENT_NAMES = list(EVENTS)
LINE_MAX = 320
# INIT and SIPI paths must not wait for a UART.
RING_ONLY = {"init", "sipi", "init-taken", "sipi-taken"}
FOREVER = 2**63


class Console:
    """The console and its ports."""

    def __init__(self, folder: Path) -> None:
        """Compiles into a folder and loads the result."""
        target = folder / "libconsole.so"
        sources = [ROOT / "HvPkg" / "Library" / "HvConsoleLib" / "Console.c", HERE / "console_fake.c", HERE / "shim.c"]
        run_gcc("-shared", "-o", target, "-include", "Base.h", *sources)
        self.ffi: CData = cffi.FFI()
        self.ffi.cdef(declarations(f'#include <Base.h>\n#include "{HERE / "console_fake.h"}"\n'))
        self.lib: CData = self.ffi.dlopen(str(target))

    def start(
        self,
        level: str = "debug",
        *,
        uart: bool = True,
        debug_port: bool = True,
        ring: int = 0,
        sink: bool = False,
        dead_after: int = FOREVER,
        ready_after: int = 0,
    ) -> CData:
        """Starts it over new ports; returns the ring, or None."""
        ports = self.lib.gPorts
        self.ffi.memmove(self.ffi.addressof(ports), bytes(self.ffi.sizeof("HV_PORTS")), self.ffi.sizeof("HV_PORTS"))
        ports.Uart, ports.DebugPort, ports.DeadAfter, ports.ReadyAfter = uart, debug_port, dead_after, ready_after
        self.memory = self.ffi.new("char[]", b"\xa5" * (ring + 64)) if ring else None
        made = self.ffi.cast("HV_LOG_RING *", self.memory) if ring else self.ffi.NULL
        self.lib.HvPortsStart(LEVELS.index(level), made, ring, sink)
        return made

    def log(self, cpu: int, event: str, values: Sequence[int | str]) -> None:
        """Logs an event."""
        kept = [self.ffi.new("char[]", value.encode()) if isinstance(value, str) else None for value in values]
        words = [
            value if isinstance(value, int) else int(self.ffi.cast("uint64_t", text))
            for value, text in zip(values, kept, strict=True)
        ]
        self.lib.HvLogEvent(cpu, EVENT_NAMES.index(event), self.ffi.new("UINT64[]", [*words, 0]))

    def uart(self) -> str:
        """What the serial port got."""
        ports = self.lib.gPorts
        return bytes(self.ffi.buffer(ports.UartText))[: ports.UartLength].decode()

    def debug(self) -> str:
        """What the debug port got."""
        ports = self.lib.gPorts
        return bytes(self.ffi.buffer(ports.DebugText))[: ports.DebugLength].decode()

    def ring(self, ring: CData) -> bytes:
        """The text of the ring, oldest byte first."""
        text = bytes(self.ffi.buffer(ring.Text, ring.Size))
        head, size = ring.Head, ring.Size
        return text[:head] if head <= size else text[head % size :] + text[: head % size]


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Console:
    return Console(tmp_path_factory.mktemp("console"))


numbers = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 9, 10, 15, 16, 2**63, 2**64 - 1]))
# What a value of the log can be: printable ASCII without quotation marks, which strings of the sources do not have.
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"'), max_size=40)


@st.composite
def lines(draw: st.DrawFn, events: Sequence[str] = EVENT_NAMES) -> tuple[int, str, list[int | str]]:
    event = draw(st.sampled_from(events))
    values = [draw(texts) if kind == "s" else draw(numbers) for _, kind in EVENTS[event].fields]
    return draw(st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 9))), event, values


def expected(cpu: int, event: str, values: Sequence[int | str]) -> LogLine:
    fields = {}
    for (key, kind), value in zip(EVENTS[event].fields, values, strict=True):
        fields[key] = str(value) if kind in ("s", "u") else f"{value:#x}"
    return LogLine(EVENTS[event].level, cpu, event, fields)


@given(line=lines())
def test_what_is_written_is_read_back(console: Console, line: tuple[int, str, list[int | str]]) -> None:
    ring = console.start(ring=4096, sink=True)
    console.log(*line)
    text = console.ring(ring).decode()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert parse_log(text) == [expected(*line)]
    # The sink gets the same without the line's end.
    ports = console.lib.gPorts
    assert console.ffi.string(ports.SinkText).decode() + "\n" == text
    assert (ports.SinkLines, LEVELS[ports.SinkLevel]) == (1, EVENTS[line[1]].level)
    assert list(EVENTS)[ports.SinkEvent] == line[1]


@pytest.mark.parametrize("event", EVENT_NAMES)
def test_every_event_is_read_back(console: Console, event: str) -> None:
    """Also with a value in each field that fits no other, so that two fields are not exchanged."""
    values = [f"text {n}" if kind == "s" else 1000 + n for n, (_, kind) in enumerate(EVENTS[event].fields)]
    console.start()
    ring = console.start(ring=4096)
    console.log(31, event, values)
    assert parse_log(console.ring(ring).decode()) == [expected(31, event, values)]
    wire = "" if event in RING_ONLY else console.ring(ring).decode()
    assert (console.uart(), console.debug()) == (wire, wire)


@given(length=st.integers(200, 1000), fill=st.sampled_from("ax "))
def test_a_line_that_is_too_long_is_cut_and_the_next_is_whole(console: Console, length: int, fill: str) -> None:
    console.start(sink=True)
    console.log(0, "option-bad", [fill * length, "long"])
    console.log(1, "unload", [4])
    first, second, rest = console.uart().split("\n")
    assert len(first) < LINE_MAX
    assert first.startswith("hv: error cpu0 option-bad text=")
    assert (second, rest) == ("hv: info cpu1 unload cpus=4", "")


@given(items=st.lists(lines(), min_size=1, max_size=12), size=st.sampled_from([100, 280, 281, 536, 1000]))
def test_the_ring_wraps(console: Console, items: list[tuple[int, str, list[int | str]]], size: int) -> None:
    whole = console.start(ring=1 << 16)
    for item in items:
        console.log(*item)
    text = console.ring(whole)
    ring = console.start(ring=size)
    header = console.ffi.offsetof("HV_LOG_RING", "Text")
    for item in items:
        console.log(*item)
    # The largest power of two that fits behind the head.
    assert ring.Size & (ring.Size - 1) == 0
    assert ring.Size <= size - header < 2 * ring.Size
    assert ring.Head == len(text)
    assert bytes(console.ffi.buffer(ring, 8)) == b"HvLogRng"
    assert console.ring(ring) == text[-ring.Size :]
    # Nothing is written behind it.
    behind = bytes(console.ffi.buffer(console.memory))[header + ring.Size :]
    assert behind.strip(b"\xa5") in (b"", b"\0")


@pytest.mark.parametrize(("level", "event"), list(itertools.product(LEVELS, EVENT_NAMES)))
def test_levels(console: Console, level: str, event: str) -> None:
    ring = console.start(level, ring=4096, sink=True)
    console.log(0, event, ["t" if kind == "s" else 1 for _, kind in EVENTS[event].fields])
    logged = LEVELS.index(EVENTS[event].level) <= LEVELS.index(level)
    assert bool(console.ring(ring)) == logged
    assert console.lib.gPorts.SinkLines == int(logged)


def test_each_port_by_itself(console: Console) -> None:
    for uart, debug_port in itertools.product([False, True], repeat=2):
        console.start(uart=uart, debug_port=debug_port)
        console.log(0, "unload", [4])
        assert bool(console.uart()) == uart
        assert bool(console.debug()) == debug_port


def test_a_slow_uart_is_waited_for(console: Console) -> None:
    console.start(ready_after=500)
    console.log(0, "unload", [4])
    assert console.uart() == "hv: info cpu0 unload cpus=4\n"
    assert console.lib.gPorts.Overruns == 0


@given(after=st.integers(0, 60))
def test_a_dead_uart_is_given_up(console: Console, after: int) -> None:
    """It is waited for once, not for each byte, and the debug port still gets everything."""
    ring = console.start(ring=4096, dead_after=after)
    for _ in range(5):
        console.log(0, "unload", [4])
    ports = console.lib.gPorts
    assert console.uart() == ("hv: info cpu0 unload cpus=4\n" * 5)[:after]
    assert ports.Overruns == 0
    assert console.debug() == "hv: info cpu0 unload cpus=4\n" * 5 == console.ring(ring).decode()
    assert ports.StatusReads < 200_000
    reads = ports.StatusReads
    console.log(0, "unload", [4])
    assert ports.StatusReads == reads


def test_without_a_uart_nothing_is_waited_for(console: Console) -> None:
    console.start(uart=False)
    console.log(0, "unload", [4])
    assert console.lib.gPorts.StatusReads == 0


def test_a_guest_gets_a_limited_number_of_lines(console: Console) -> None:
    """What is below the level does not count, and the last line says that it is the last."""
    logged = console.ffi.new("UINT8 *")
    words = console.ffi.new("UINT64[]", [1, 2, 3, 0])
    console.start("info")
    msr = EVENT_NAMES.index("msr-gp")
    npf = EVENT_NAMES.index("npf-unexpected")
    for _ in range(300):
        console.lib.HvLogLimited(3, msr, logged, words)
    assert (logged[0], console.lib.gPorts.UartLength) == (0, 0)
    for _ in range(300):
        console.lib.HvLogLimited(3, npf, logged, words)
    lines = parse_log(console.ffi.string(console.lib.gPorts.UartText).decode())
    assert [line.event for line in lines] == ["npf-unexpected"] * 16 + ["log-limit"]
    assert lines[-1].fields == {"event": "npf-unexpected"} and lines[-1].cpu == 3


def test_the_same_ring_goes_on_after_a_new_level(console: Console) -> None:
    ring = console.start("info", ring=4096)
    console.log(0, "unload", [1])
    console.lib.HvPortsLevel(LEVELS.index("error"), ring, 4096)
    console.log(0, "unload", [2])
    console.log(0, "host-park", ["x"])
    assert console.ring(ring).decode() == "hv: info cpu0 unload cpus=1\nhv: error cpu0 host-park reason=x\n"
