# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The build: runs when something changed, only then, and tells what the compiler said."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hvtools import build, cache, edk2, toolchain
from hvtools.edk2 import Edk2
from hvtools.errors import HvError, NoSpaceError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one source and one header, and an EDK2 that is there."""
    (tmp_path / "HvPkg" / "Include").mkdir(parents=True)
    (tmp_path / "HvPkg" / "Docs").mkdir()
    (tmp_path / "HvPkg" / "a.c").write_text("int a;\n")
    (tmp_path / "HvPkg" / "Include" / "a.h").write_text("#define A 1\n")
    (tmp_path / "HvPkg" / "Docs" / "a.md").write_text("text\n")
    (tmp_path / build.HVPKG.settings).write_text("# a setting\n")
    monkeypatch.setattr(toolchain, "require", lambda verb: [])
    monkeypatch.setattr(edk2, "ready", lambda workspace: Edk2(tmp_path / "nowhere", "a test", "identity 1"))
    return tmp_path


@pytest.fixture
def runs(clone: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets that were built, by a stuart that only makes the folder."""
    built: list[str] = []

    def stuart(target: str, workspace: Path, product: build.Product) -> None:
        build.image_dir(target, workspace).mkdir(parents=True, exist_ok=True)
        built.append(target)

    monkeypatch.setattr(build, "_stuart", stuart)
    return built


def test_nothing_changed_builds_nothing(clone: Path, runs: list[str]) -> None:
    assert build.ensure_built("DEBUG", clone).rebuilt
    assert not build.ensure_built("DEBUG", clone).rebuilt
    assert build.ensure_built("RELEASE", clone).rebuilt
    assert not build.ensure_built("DEBUG", clone).rebuilt
    assert build.ensure_built("DEBUG", clone, force=True).rebuilt
    assert runs == ["DEBUG", "RELEASE", "DEBUG"]


def test_what_is_built_waits_for_nobody(clone: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    build.ensure_built("DEBUG", clone)
    monkeypatch.setattr(build, "lock", lambda workspace: pytest.fail("another product may be built for minutes"))
    assert not build.ensure_built("DEBUG", clone).rebuilt


@pytest.mark.parametrize("name", ["HvPkg/a.c", "HvPkg/Include/a.h", build.HVPKG.settings])
def test_a_changed_file_builds(clone: Path, runs: list[str], name: str) -> None:
    build.ensure_built("DEBUG", clone)
    path = clone / name
    before = path.stat()
    path.write_text(path.read_text().replace("a", "b").replace("1", "2"))
    # Neither size nor time give it away.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert build.ensure_built("DEBUG", clone).rebuilt


@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_file_that_comes_or_goes_builds(clone: Path, runs: list[str], change: str) -> None:
    build.ensure_built("DEBUG", clone)
    if change == "add":
        (clone / "HvPkg" / "new.inf").write_text("")
    else:
        (clone / "HvPkg" / "Include" / "a.h").unlink()
    assert build.ensure_built("DEBUG", clone).rebuilt


def test_a_document_builds_nothing(clone: Path, runs: list[str]) -> None:
    build.ensure_built("DEBUG", clone)
    (clone / "HvPkg" / "Docs" / "a.md").write_text("another text\n")
    assert not build.ensure_built("DEBUG", clone).rebuilt


def test_what_make_cannot_see_is_built_from_scratch(
    clone: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build.ensure_built("DEBUG", clone)
    kept = build.image_dir("DEBUG", clone) / "kept"
    kept.touch()
    newer = clone / "HvPkg" / "a.c"
    newer.write_text("int c;\n")
    state = build.image_dir("DEBUG", clone) / build._STATE
    os.utime(newer, ns=(0, state.stat().st_mtime_ns + 1))
    build.ensure_built("DEBUG", clone)
    assert kept.exists(), "a newer source is make's affair"
    newer.write_text("int d;\n")
    os.utime(newer, ns=(0, 0))
    build.ensure_built("DEBUG", clone)
    assert not kept.exists(), "an older source is not seen by make"
    kept.touch()
    monkeypatch.setattr(edk2, "ready", lambda workspace: Edk2(clone / "nowhere", "a test", "identity 2"))
    build.ensure_built("DEBUG", clone)
    assert not kept.exists(), "nor is another EDK2"


def test_a_failed_build_is_tried_again(clone: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    build.ensure_built("DEBUG", clone)
    (clone / "HvPkg" / "a.c").write_text("int\n")

    def fails(target: str, workspace: Path, product: build.Product) -> None:
        raise HvError("it does not build")

    with monkeypatch.context() as patch:
        patch.setattr(build, "_stuart", fails)
        for _ in range(2):
            with pytest.raises(HvError, match="does not build"):
                build.ensure_built("DEBUG", clone)
    assert build.ensure_built("DEBUG", clone).rebuilt


def test_each_product_has_its_own_folder_and_state(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def stuart(target: str, workspace: Path, product: build.Product) -> None:
        (product.folder(target, workspace) / product.part).mkdir(parents=True, exist_ok=True)
        built.append(product.name)

    monkeypatch.setattr(build, "_stuart", stuart)
    products = [build.HVPKG, build.ovmf(2), build.ovmf(4), build.ovmf(4, secure_boot=True)]
    for _ in range(2):
        for product in products:
            build.ensure_built("RELEASE", clone, product=product)
    assert built == ["HvPkg", "HvOvmf2M", "HvOvmf4M", "HvOvmf4MSecure"]


def test_an_edit_during_the_build_builds_again(clone: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def edited(target: str, workspace: Path, product: build.Product) -> None:
        build.image_dir(target, workspace).mkdir(parents=True, exist_ok=True)
        (clone / "HvPkg" / "a.c").write_text("int edited;\n")

    with monkeypatch.context() as patch:
        patch.setattr(build, "_stuart", edited)
        build.ensure_built("DEBUG", clone)
    assert build.ensure_built("DEBUG", clone).rebuilt


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_note_builds(clone: Path, runs: list[str], text: str) -> None:
    build.ensure_built("DEBUG", clone)
    (build.image_dir("DEBUG", clone) / build._STATE).write_text(text)
    assert build.ensure_built("DEBUG", clone).rebuilt


def log(clone: Path, text: str) -> None:
    path = build.log_path(clone)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_compilers_messages_are_shown_once(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"{clone}/HvPkg/a.c:1:15: error: 'foo' undeclared (first use in this function)"
    log(
        clone,
        "INFO - error: no such command: `make`\nSECTION - Kicking off build\n"
        f"INFO - {message}\nINFO - make: *** [GNUmakefile:360: a.obj] Error 1\nINFO - {message}\nINFO - error 7000\n",
    )
    said = ["ERROR - Compiler #undeclared from x", "ERROR - Error"]
    error = build._build_error("stuart_build", "DEBUG", said, clone, build.HVPKG)
    assert error.exit_code == 1
    assert "stuart_build failed for DEBUG" in error.line
    assert str(build.log_path(clone)) in error.line
    assert capsys.readouterr().err.split("\n") == [
        "    HvPkg/a.c:1:15: error: 'foo' undeclared (first use in this function)",
        "",
    ]


def test_a_message_of_edk2s_own_is_shown(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log(
        clone,
        "SECTION - Kicking off build\nINFO - build.py...\n"
        f"INFO - {clone}/HvPkg/HvPkg.dsc(48): error 000E: File/directory not found in workspace\n",
    )
    build._build_error("stuart_build", "DEBUG", [], clone, build.HVPKG)
    told = capsys.readouterr().err
    assert told == "    HvPkg/HvPkg.dsc(48): error 000E: File/directory not found in workspace\n"


def test_a_full_disk_is_told(clone: Path) -> None:
    log(clone, "SECTION - Kicking off build\nINFO - a.c:9: fatal error: closing: No space left on device\n")
    error = build._build_error("stuart_build", "DEBUG", [], clone, build.HVPKG)
    assert isinstance(error, NoSpaceError)


def test_nobody_elses_edk2_shines_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKSPACE", "/somewhere/else")
    monkeypatch.setenv("EDK_TOOLS_PATH", "/somewhere/else")
    environment = build._environment()
    assert "WORKSPACE" not in environment
    assert "EDK_TOOLS_PATH" not in environment
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


WAITER = """
import os, sys
from pathlib import Path
from hvtools.follow import follow
# A compiler of its own below the build, as make has them.
script = "import subprocess, sys; subprocess.run(['sh', '-c', 'echo $$; exec sleep 600'])"
try:
    follow([sys.executable, "-c", script], Path("."), os.environ, lambda line: print(line, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_ends_the_compilers_too() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            below = int(process.stdout.readline())
            # The file ends when the process does, whoever its parent is then.
            watched = os.pidfd_open(below)
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
        finally:
            process.kill()
    import select

    ready, _, _ = select.select([watched], [], [], 30)
    os.close(watched)
    assert process.returncode == 130
    assert ready, "the process below the build lives on"


def edk2_tree(path: Path, text: str = "") -> Path:
    """An EDK2 tree of the shape that matters for links."""
    for name in ("MdePkg/Library/A", "BaseTools/Plugin/One", "BaseTools/Plugin/Two", "BaseTools/Source/C/bin", ".git"):
        (path / name).mkdir(parents=True)
    (path / "MdePkg" / "MdePkg.dec").write_text(text)
    (path / "BaseTools" / "Plugin" / "One" / "One_plug_in.yaml").write_text("{}")
    (path / "BaseTools" / "Plugin" / "One" / "One.py").write_text("")
    (path / "BaseTools" / "base_path_env.yaml").write_text("{}")
    return path


def test_edk2_is_linked_but_real_where_stuart_searches(tmp_path: Path) -> None:
    tree, clone = edk2_tree(tmp_path / "tree"), tmp_path / "clone"
    clone.mkdir()
    place = edk2.link(tree, clone)
    assert place == clone / "edk2"

    # stuart's own search does not follow links: it must find the same files as in the tree.
    def found(top: Path) -> set[str]:
        return {
            os.path.relpath(os.path.join(root, name), top)
            for root, _, names in os.walk(top)
            for name in names
            if name.endswith((".yaml", ".json"))
        }

    assert found(place) == found(tree) == {"BaseTools/base_path_env.yaml", "BaseTools/Plugin/One/One_plug_in.yaml"}
    assert (place / "MdePkg").is_symlink()
    assert (place / "MdePkg" / "MdePkg.dec").is_file()
    assert (place / "BaseTools" / "Plugin" / "Two").is_symlink()
    assert not (place / ".git").exists()


def test_links_follow_another_tree_and_stay_otherwise(tmp_path: Path) -> None:
    one, two, clone = edk2_tree(tmp_path / "one", "one"), edk2_tree(tmp_path / "two", "two"), tmp_path / "clone"
    clone.mkdir()
    place = edk2.link(one, clone)
    inode = place.stat().st_ino
    assert edk2.link(one, clone).stat().st_ino == inode
    assert (edk2.link(two, clone) / "MdePkg" / "MdePkg.dec").read_text() == "two"
    assert [entry.name for entry in (clone / ".hv").iterdir()] == ["edk2.lock"]
    edk2.unlink(clone)
    assert not place.exists()
    assert (two / "MdePkg" / "MdePkg.dec").read_text() == "two"


def test_somebodys_own_checkout_in_the_clone_is_left_alone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    own = edk2_tree(clone / "edk2", "own")
    assert edk2.link(edk2_tree(tmp_path / "tree"), clone) == own
    assert (own / "MdePkg" / "MdePkg.dec").read_text() == "own"
    edk2.unlink(clone)
    assert own.is_dir()


def test_own_edk2_must_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HV_EDK2_DIR", str(tmp_path))
    with pytest.raises(HvError, match="is not an EDK2 tree") as raised:
        edk2.provide()
    assert raised.value.exit_code == 2


def test_any_edit_of_ones_own_edk2_makes_it_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = edk2_tree(tmp_path / "tree")
    made = tree / "BaseTools" / "Source" / "C" / "bin"
    for tool in ("GenFw", "GenFv", "GenFfs", "GenSec"):
        (made / tool).touch()
    monkeypatch.setenv("HV_EDK2_DIR", str(tree))
    monkeypatch.setattr(cache, "default", lambda: cache.Cache(tmp_path / "cache"))
    seen = {edk2.provide().identity}
    (made / "GenFw").write_text("built again")
    (tree / "Build" / "Ovmf").mkdir(parents=True)
    (tree / "Build" / "Ovmf" / "OVMF.fd").touch()
    (tree / "BaseTools" / "__pycache__").mkdir()
    (tree / "BaseTools" / "__pycache__" / "x.pyc").touch()
    assert edk2.provide().identity in seen, "what builds leave there is no edit"
    source = tree / "BaseTools" / "Plugin" / "One" / "One.py"
    for edit in (lambda: source.write_text("edited"), lambda: os.utime(source, ns=(0, 0)), source.unlink):
        edit()
        assert edk2.provide().identity not in seen
        seen.add(edk2.provide().identity)


@pytest.mark.slow
def test_stuart_builds_what_changed(tmp_path: Path) -> None:
    """The real thing: a package of one program, whose header changes."""
    clone = tmp_path / "clone"
    package = clone / "HvPkg"
    (package / "Include").mkdir(parents=True)
    shutil.copy(ROOT / build.HVPKG.settings, clone)
    # stuart_setup takes the tools from the clone.
    (clone / "tools").symlink_to(ROOT / "tools")
    subprocess.run(["git", "init", "-q", str(clone)], check=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", str(clone), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    (package / "HvPkg.dec").write_text(
        textwrap.dedent("""\
            [Defines]
              DEC_SPECIFICATION = 0x00010005
              PACKAGE_NAME = HvPkg
              PACKAGE_GUID = 2f5c6b0e-2a55-4f0e-9f0c-3f0f1b1c6a01
              PACKAGE_VERSION = 0.1
            [Includes]
              Include
            """)
    )
    (package / "HvPkg.dsc").write_text(
        textwrap.dedent("""\
            [Defines]
              PLATFORM_NAME = HvPkg
              PLATFORM_GUID = 2f5c6b0e-2a55-4f0e-9f0c-3f0f1b1c6a02
              PLATFORM_VERSION = 0.1
              DSC_SPECIFICATION = 0x0001001C
              OUTPUT_DIRECTORY = Build/HvPkg
              SUPPORTED_ARCHITECTURES = X64
              BUILD_TARGETS = DEBUG|RELEASE
              SKUID_IDENTIFIER = DEFAULT
            !include MdePkg/MdeLibs.dsc.inc
            [LibraryClasses]
              BaseLib|MdePkg/Library/BaseLib/BaseLib.inf
              BaseMemoryLib|MdePkg/Library/BaseMemoryLib/BaseMemoryLib.inf
              DebugLib|MdePkg/Library/BaseDebugLibNull/BaseDebugLibNull.inf
              PcdLib|MdePkg/Library/BasePcdLibNull/BasePcdLibNull.inf
            [Components]
              HvPkg/Trial.inf
            """)
    )
    (package / "Trial.inf").write_text(
        textwrap.dedent("""\
            [Defines]
              INF_VERSION = 0x00010005
              BASE_NAME = Trial
              FILE_GUID = 2f5c6b0e-2a55-4f0e-9f0c-3f0f1b1c6a03
              MODULE_TYPE = UEFI_APPLICATION
              ENTRY_POINT = TrialMain
            [Sources]
              Trial.c
            [Packages]
              MdePkg/MdePkg.dec
              HvPkg/HvPkg.dec
            [LibraryClasses]
              BaseLib
            """)
    )
    source = package / "Trial.c"
    source.write_text(
        "#include <Uefi.h>\n#include <Trial.h>\nCONST CHAR8 *volatile  gTrial = TRIAL;\n"
        "EFI_STATUS EFIAPI _ModuleEntryPoint (EFI_HANDLE I, EFI_SYSTEM_TABLE *S) { return (UINTN)gTrial[0]; }\n"
    )
    header = package / "Include" / "Trial.h"

    def image() -> bytes:
        return (build.image_dir("DEBUG", clone) / "Trial.efi").read_bytes()

    header.write_text('#define TRIAL  "the first text"\n')
    assert build.ensure_built("DEBUG", clone).rebuilt
    assert b"the first text" in image()
    assert not build.ensure_built("DEBUG", clone).rebuilt

    header.write_text('#define TRIAL  "the second text"\n')
    assert build.ensure_built("DEBUG", clone).rebuilt
    assert b"the second text" in image()

    header.write_text('#define TRIAL  "the third text"\n')
    os.utime(header, (0, 0))
    assert build.ensure_built("DEBUG", clone).rebuilt
    assert b"the third text" in image()

    header.write_text("#define TRIAL  undeclared\n")
    with pytest.raises(HvError, match="stuart_build failed for DEBUG"):
        build.ensure_built("DEBUG", clone)
    header.write_text('#define TRIAL  "the fourth text"\n')
    assert build.ensure_built("DEBUG", clone).rebuilt
    assert b"the fourth text" in image()
