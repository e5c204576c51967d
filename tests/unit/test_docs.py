# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The manual: its links lead somewhere, its commands exist, and `hv docs` makes it."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import CompletionItem

from hvtools import cli, completion
from hvtools.generated.log_events import EVENTS
from hvtools.generated.options import OPTIONS
from hvtools.machines.registry import LAB, PLATFORM_NAMES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "HvPkg" / "Docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
HAND = [page for page in PAGES if "Reference" not in page.parts]

_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"^(?:    |\$ )(?:\./)?hv (.+?)(?:  +\S.*| +#.*)?$")
_INLINE = re.compile(r"`(?:\./)?hv ([^`]+)`")
_PIPE = re.compile(r"[|>&].*$")


def anchors(page: Path) -> set[str]:
    """What a link to a part of a page can name, as GitHub and MkDocs make it of a title."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_check_of_links_finds_links() -> None:
    assert sum(len(_LINK.findall(page.read_text())) for page in HAND) > 30
    assert "what-emulators-cannot-show" in anchors(DOCS / "Design.md")


def test_troubleshooting_names_events_that_exist() -> None:
    rows = re.findall(r"^\| `([a-z][a-z-]+)", (DOCS / "Troubleshooting.md").read_text(), re.MULTILINE)
    names = [name for name in rows if name != "name"]
    assert len(names) >= 8
    assert set(names) <= EVENTS.keys()


def commands_of(text: str) -> list[str]:
    """The command lines of hv in a text, without the word hv."""
    found = [match[1] for line in text.splitlines() if (match := _COMMAND.match(line))]
    return [_PIPE.sub("", command).strip() for command in found + _INLINE.findall(text)]


def found(name: str) -> click.Command:
    """The command of a verb, or of a verb and what is below it: `flash read`."""
    command: click.Command = cli.cli
    for word in name.split():
        assert isinstance(command, click.Group)
        below = command.get_command(click.Context(command), word)
        assert below is not None, name
        command = below
    return command


def helped(verb: str) -> str:
    return found(verb).get_help(click.Context(found(verb), info_name=f"hv {verb}"))


VERBS = cli.cli.list_commands(click.Context(cli.cli))
GROUPS = {verb: group for verb in VERBS if isinstance(group := found(verb), click.Group)}
BELOW = [f"{verb} {word}" for verb, group in GROUPS.items() for word in group.list_commands(click.Context(group))]


def examples(verb: str) -> list[str]:
    """The examples in the help of a verb."""
    text = helped(verb).partition("Examples:\n")[2]
    found = [re.match(r"^\s+(?:\S+ )?\"?\$?\(?hv (.+?)(?:\)\"?)?(?:  +.*)?$", line) for line in text.splitlines()]
    return [_PIPE.sub("", match[1]).strip() for match in found if match]


EVERY = sorted(
    {(page.name, command) for page in HAND for command in commands_of(page.read_text())}
    | {(f"hv {verb} --help", command) for verb in [*VERBS, *BELOW] for command in examples(verb)}
)


def test_commands_are_found() -> None:
    """Not a check of nothing."""
    assert len(EVERY) > 60
    assert {source for source, _ in EVERY} >= {"README.md", "FirstBoot.md", "Tools.md", "CONTRIBUTING.md"}


def parsed(command: str) -> None:
    """Let click read a command line; files need not be there.

    Raises:
        click.UsageError: a verb, option or value does not exist.
    """
    arguments = shlex.split(command)
    asked: click.Command = cli.cli
    while isinstance(asked, click.Group) and arguments and not arguments[0].startswith("-"):
        below = asked.get_command(click.Context(asked), arguments[0])
        if below is None:
            raise click.UsageError(f"no verb {arguments[0]}")
        asked, arguments = below, arguments[1:]
    context = click.Context(asked, **asked.context_settings)
    values, _, _ = asked.make_parser(context).parse_args([*arguments])  # it empties the list
    for parameter in asked.params:
        value = values.get(parameter.name or "")
        if isinstance(parameter.type, click.Choice) and isinstance(value, str):
            parameter.type.convert(value, parameter, context)
    for option, value in itertools.pairwise(arguments):
        name = value.partition("=")[0]
        named = value in PLATFORM_NAMES or value.startswith(LAB)
        if option == "--on" and value.islower() and not named:
            raise click.UsageError(f"no platform {value}")
        if option == "--set" and name.islower() and name not in OPTIONS:
            raise click.UsageError(f"no option {name}")


@pytest.mark.parametrize(("source", "command"), EVERY)
def test_commands_of_the_manual_can_be_read(source: str, command: str) -> None:
    if command in VERBS or command.split()[0] in ("VERB", "-h", "--help"):
        return
    parsed(command)


@pytest.mark.parametrize(
    "wrong",
    [
        *("nosuchverb", "boot --nosuchoption", "boot --on vax", "boot --set nosuch=1", "build --target FAST"),
        *("flash erase", "flash read -x"),
    ],
)
def test_the_check_of_commands_knows_wrong_ones(wrong: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(wrong)


@pytest.mark.parametrize("verb", [*VERBS, *(name for name in BELOW if name.startswith("flash ") or examples(name))])
def test_every_help_has_examples_of_its_verb(verb: str) -> None:
    assert any(f"{command} ".startswith(f"{verb} ") for command in examples(verb)), helped(verb)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hvtools", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("command", ["doctor", "gen --check", "log --help", "completion bash"])
def test_commands_that_take_no_boot_are_run(command: str) -> None:
    result = run(*command.split())
    assert result.returncode == 0, result.stderr


SLOW = sorted(
    {
        command
        for _, command in EVERY
        if command.split()[0] in ("boot", "trace")
        and not re.search(
            r"\b[A-Z]{2,}\b|--(script|add|symbols|run|keep|picture|json|timeout|disk|firmware)\b|--on kvm|\bPLATFORM\b",
            command,
        )
        and " " in command
        and "qemu64,-svm" not in command  # it says that it fails
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_commands_that_boot_are_run(command: str, tmp_path: Path) -> None:
    result = run(*shlex.split(command), "--keep", str(tmp_path / "logs"))
    assert result.returncode == 0, result.stderr


def test_the_manual_is_made_with_the_reference(tmp_path: Path) -> None:
    out = tmp_path / "site"
    result = run("docs", "--out", str(out))
    assert result.returncode == 0, result.stderr
    for page in [page for page in PAGES if DOCS in page.parents]:
        html = (out / page.relative_to(DOCS).with_suffix(".html")).read_text()
        title = re.search(r"^# (.+)$", page.read_text(), re.MULTILINE)
        assert title is not None and title[1].split()[0] in html
    assert "CPUID" in (out / "Reference" / "SvmExits.html").read_text()
    assert "http" not in "".join(
        re.findall(r'<(?:script|link)[^>]*(?:src|href)="([^"]+)"', (out / "index.html").read_text())
    )


def test_a_folder_that_is_no_manual_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MkDocs would empty it."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.txt").write_text("years")
    assert cli.run(["docs", "--out", str(work)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in work.iterdir()] == ["thesis.txt"]


def test_every_page_is_in_the_manuals_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in [page for page in PAGES if DOCS in page.parents]:
        assert f": {page.relative_to(DOCS)}\n" in contents, page.name


def test_a_link_that_leads_nowhere_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hvtools.verbs import docs

    pages = tmp_path / "HvPkg" / "Docs"
    shutil.copytree(DOCS, pages)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    monkeypatch.setattr(docs, "_CONFIGURATION", tmp_path / "mkdocs.yml")
    assert cli.run(["docs", "--out", str(tmp_path / "site")]) == 0
    left = tmp_path / "site" / "Left.html"
    left.touch()
    assert cli.run(["docs", "--out", str(tmp_path / "site")]) == 0
    assert not left.exists(), "of a page that is gone"
    with (pages / "index.md").open("a") as page:
        page.write("\n[nowhere](Nowhere.md)\n")
    assert cli.run(["docs", "--out", str(tmp_path / "site")]) == 1
    assert "Nowhere.md" in capsys.readouterr().err


def completed(*words: str) -> list[str]:
    """What a shell would offer behind these words."""
    result = run(_HV_COMPLETE="bash_complete", COMP_WORDS=" ".join(["hv", *words]), COMP_CWORD=str(len(words)))
    assert result.returncode == 0, result.stderr
    return [line.partition(",")[2] for line in result.stdout.splitlines()]


def test_a_shell_completes_verbs_options_and_values() -> None:
    assert completed("bo") == ["boot"]
    assert "--memory" in completed("boot", "--mem")
    assert completed("boot", "--on", "bochs") == ["bochs-vmx", "bochs-svm"]
    assert "nested_page=" in completed("debug", "--set", "nested")


def values(items: list[CompletionItem]) -> list[str]:
    return [item.value for item in items]


def test_settings_are_completed_with_their_values() -> None:
    context, parameter = click.Context(cli.cli), click.Option(["--set"])
    assert values(completion.settings(context, parameter, "log=d")) == ["log=debug"]
    assert values(completion.settings(context, parameter, "nosuch=")) == []
    assert len(completion.settings(context, parameter, "")) == len(OPTIONS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_one(shell: str) -> None:
    result = run("completion", shell)
    assert result.returncode == 0 and "_HV_COMPLETE" in result.stdout
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=result.stdout, text=True).returncode == 0
