# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Figures, budgets and reports of `hv bench`. No machine runs here."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hvtools import cli, ui
from hvtools.bench import budgets, linux, nested, plan, plot, show
from hvtools.bench.budgets import Budget, over_budget, read_budgets
from hvtools.bench.figures import HOST, Figure, figure, read_report, report_of
from hvtools.bench.shell import costs, parse
from hvtools.errors import HvError, UsageError
from hvtools.guest.build import program
from hvtools.machines.registry import PLATFORMS

CONSOLE = """\
hvbench: when=native name=nop loops=10 min=10 sum=100
hvbench: when=native name=exit.cpuid loops=10 min=17 sum=170
hvbench: when=native name=ipi loops=10 min=5 sum=70
hvbench: when=hv name=nop loops=10 min=10 sum=100
hvbench: when=hv name=exit.cpuid loops=10 min=97 sum=980
hvbench: when=hv name=ipi loops=10 min=500 sum=5000
hvbench: when=hv name=exit.hypercall.base loops=10 min=12 sum=120
hvbench: when=hv name=exit.hypercall loops=10 min=99 sum=990
hvbench: when=hv name=alone loops=10 min=99 sum=990
"""


def test_a_loop_without_the_hypervisor_is_taken_off() -> None:
    assert costs(parse(CONSOLE.replace("\n", "\r\n"))) == {
        "nop": 0,
        "exit.cpuid": 81,
        "ipi": 493,
        "exit.hypercall": 87,
    }


def test_without_a_second_pass_there_is_no_figure() -> None:
    assert costs(parse(CONSOLE.replace("when=hv", "when=native"))) == {}


def test_the_value_is_the_median_and_whole_where_it_can_be() -> None:
    assert figure("x", "p", 1, "exits", [3, 1, 2]).value == 2
    assert isinstance(figure("x", "p", 1, "exits", [3, 1, 2.0]).value, int)
    assert figure("x", "p", 1, "seconds", [1, 2]).value == 1.5


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report = report_of([figure("exit.cpuid", "bochs-vmx", 1, "instructions", [80])])
    path.write_text(json.dumps(report.as_json()))
    assert read_report(path) == report
    assert set(json.loads(path.read_text())["figures"][0]) == {"name", "platform", "cpus", "unit", "value", "runs"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"commit": "", "date": "", "figures": [{"name": "x"}]}'])
def test_what_is_no_report_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no report of `hv bench --json FILE`"):
        read_report(path)


def test_a_file_of_brackets_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    assert cli.run(["bench", "--compare", str(path)]) == 2
    assert "no report of `hv bench --json FILE`" in capsys.readouterr().err


def test_the_report_is_there_when_the_reader_of_the_table_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gone(*arguments: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(plan, "QUICK", (plan.Part("x", lambda platforms, folder, step: [LIMIT_FIGURE]),))
    monkeypatch.setattr(show, "print_whole", gone)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # it is replaced
    path = tmp_path / "out.json"
    assert cli.run(["bench", "--quick", "--keep", str(tmp_path), "--json", str(path)]) == 1
    assert read_report(path).figures == (LIMIT_FIGURE,)


LIMIT_FIGURE = figure("exit.cpuid", "bochs-vmx", 1, "instructions", [110])
LIMIT = Budget("exit.cpuid", "bochs-vmx", 1, "instructions", 110)


@pytest.mark.parametrize(
    ("measured", "complaint"),
    [
        (LIMIT_FIGURE, None),
        (figure("exit.cpuid", "bochs-vmx", 1, "instructions", [111]), "111 instructions, at most 110"),
        (figure("exit.cpuid", "bochs-vmx", 1, "instructions", [0]), "does not exit"),
        (figure("exit.cpuid", "bochs-vmx", 1, "ticks", [1]), "measured in ticks"),
        (figure("exit.cpuid", "bochs-vmx", 2, "instructions", [1]), "was not measured"),
    ],
)
def test_over_budget(measured: Figure, complaint: str | None) -> None:
    found = over_budget([measured], [LIMIT])
    assert (found == []) if complaint is None else (len(found) == 1 and complaint in found[0])


def test_the_budgets_are_of_platforms_that_exist() -> None:
    found = read_budgets()
    assert {each.platform for each in found} <= {*PLATFORMS, HOST} and len(found) > 10


def test_the_image_is_within_its_budget(tmp_path: Path) -> None:
    with ui.step("size") as step:
        measured = plan.IMAGE.measure([], tmp_path, step)
    rows = budgets.of_platforms([])
    assert [row.name for row in rows] == ["image.bytes"]
    assert over_budget(measured, rows) == []


def test_check_compares_the_size_of_the_image_on_any_platform(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = plan.Part("size", lambda platforms, folder, step: [figure("image.bytes", HOST, 0, "bytes", [900000])])
    monkeypatch.setattr(plan, "CHECKED", (image,))
    assert cli.run(["bench", "--check", "--on", "qemu-svm", "--keep", str(tmp_path)]) == 1
    assert "over budget: image.bytes on host: 900000 bytes, at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (("seconds", '"a" = 1'), "no budgets in seconds"),
        (
            ("bytes", '"a" = 1 }\n[[budget]]\nplatform = "p"\ncpus = 1\nunit = "bytes"\nlimits = { "a" = 2'),
            "two budgets",
        ),
    ],
)
def test_a_bad_table_of_budgets_is_refused(tmp_path: Path, rows: tuple[str, str], complaint: str) -> None:
    path = tmp_path / "budgets.toml"
    path.write_text(f'[[budget]]\nplatform = "p"\ncpus = 1\nunit = "{rows[0]}"\nlimits = {{ {rows[1]} }}\n')
    with pytest.raises(HvError, match=complaint):
        budgets.read_budgets(path)


@pytest.mark.parametrize(("options", "measured"), [(["--check"], "CHECKED"), (["--check", "--quick"], "QUICK")])
def test_check_measures_all_that_has_a_budget_and_quick_what_takes_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], measured: str
) -> None:
    wanted = budgets.of_platforms(list(PLATFORMS), slow=measured == "CHECKED")
    assert (measured == "CHECKED") == any(each.slow for each in wanted)
    reached = [figure(each.name, each.platform, each.cpus, each.unit, [each.limit]) for each in wanted]
    monkeypatch.setattr(plan, measured, (plan.Part("all", lambda platforms, folder, step: reached),))
    assert cli.run(["bench", *options, "--keep", str(tmp_path)]) == 0
    reached.pop()
    assert cli.run(["bench", *options, "--keep", str(tmp_path)]) == 1


def test_a_change_is_shown() -> None:
    old = report_of([figure("exit.cpuid", "bochs-vmx", 1, "instructions", [200])])
    new = report_of([figure("exit.cpuid", "bochs-vmx", 1, "instructions", [100])])
    cells = [str(cell) for column in show.table(new, old).columns for cell in column.cells]
    assert "100 was 200 (-50.0%)" in cells


def test_no_figure_is_cut_off_where_the_screen_is_narrow() -> None:
    names = ("qemu-svm", "bochs-vmx", "bochs-svm", "kvm")
    report = report_of([figure("memory.reserved", name, 64, "bytes", [1234567890123]) for name in names])
    console = Console(file=io.StringIO(), width=40)
    show.print_whole(console, show.table(report))
    assert isinstance(console.file, io.StringIO) and console.file.getvalue().count("1,234,567,890,123") == 4


SCRIPT_OUTPUT = """\
hvbench: mark=idle uptime=10.00
hvcheck: cpu when=now id=0 apic=0 signature=HvPkgHvPkgHv interface=1 features=0x3 backend=svm index=0 svm=0 vmx=0
hvcheck: exits when=now cpu=0 cpuid=100 apic-write=10 total=110
hvcheck: exits when=now cpu=1 cpuid=50 total=50
hvbench: mark=load uptime=10.50
hvcheck: exits when=now cpu=0 cpuid=120 apic-write=25 total=145
hvcheck: exits when=now cpu=1 cpuid=60 wrmsr=1 total=61
"""


def test_cpuid_from_user_space_is_without_the_loop() -> None:
    said = "hvbench: when=linux name=nop loops=9 min=15 sum=900\n"
    said += "hvbench: when=linux name=exit.cpuid loops=9 min=99 sum=990\n"
    assert linux.user_space_cpuid(said) == 84
    with pytest.raises(HvError, match="did not measure"):
        linux.user_space_cpuid(said.replace("exit.cpuid", "other"))


def test_a_program_of_the_root_guest_can_be_executed() -> None:
    assert os.access(program("hvbench"), os.X_OK)


def test_exits_between_marks_are_those_of_all_processors() -> None:
    seconds, kinds = linux._between(linux._marks(SCRIPT_OUTPUT), "idle", "load")
    assert seconds == 0.5 and kinds == {"cpuid": 30, "apic-write": 15, "wrmsr": 1}
    with pytest.raises(HvError, match="did not come to its mark 'end'"):
        linux._between(linux._marks(SCRIPT_OUTPUT), "load", "end")


def test_nested_tables_are_as_large_as_arithmetic_says() -> None:
    missed: list[str] = []
    found = {each.name: each.value for each in nested.measure(32 << 20, missed.append)}
    # 1 GiB: the leaves' tables and those above; 4 TiB in 1 GiB leaves: 8 tables of 512, and the top.
    assert found["nested.1g.1g.bytes"] == 2 * 4096 and found["nested.2m.1g.bytes"] == 3 * 4096
    assert found["nested.4k.1g.bytes"] == (512 + 3) * 4096
    assert [each.split()[0] for each in missed] == [
        f"nested.4k.{size}" for size in ("16g", "32g", "64g", "128g", "256g", "512g", "1t", "2t", "4t")
    ]
    assert missed[0] == "nested.4k.16g is left out: its tables of 32.1 MiB do not fit"
    assert found["nested.1g.4t.bytes"] == 9 * 4096 and found["nested.2m.4t.bytes"] == (4096 + 9) * 4096
    assert all(found[name.replace(".bytes", ".build")] > 0 for name in found if name.endswith(".bytes"))


def test_plots_are_made_of_what_there_is(tmp_path: Path) -> None:
    made = plot.write(
        report_of(
            [
                figure("exit.cpuid", "bochs-vmx", 1, "instructions", [80]),
                figure("launch.ticks", "qemu-svm", 1, "TSC", [80]),
                figure("launch.ticks", "qemu-svm", 2, "TSC", [160]),
                figure("nested.2m.4t.bytes", HOST, 0, "bytes", [4096]),
            ]
        ),
        tmp_path / "plots",
    )
    assert {path.name for path in made} == {"exits.png", "launch.png", "nested-bytes.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
