"""A build where there is no ninja: the same commands, those that link after all others, none after a failure."""

import io
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "_build_backend").is_dir():
    pytest.skip("tests the build of the source tree", allow_module_level=True)
sys.path.append(str(ROOT / "_build_backend"))
import native_build  # noqa: E402
import ninja_file  # noqa: E402
import without_ninja  # noqa: E402
from without_ninja import Command  # noqa: E402

CXX = native_build.compiler()


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A source tree with two sources, in a folder with a space; the second has a function that the first asks for."""
    root = tmp_path / "a checkout"
    (root / "csrc").mkdir(parents=True)
    (root / "csrc/asks.cpp").write_text('int answer(); extern "C" int ask() { return answer() + NUMBER; }\n')
    (root / "csrc/answers.cpp").write_text("int answer() { return 40; }\n")
    (root / "csrc/exports.map").write_text("{ global: ask; local: *; };\n")
    monkeypatch.setattr(ninja_file, "ROOT", root)
    return root


def build_of(root: Path) -> ninja_file.NinjaFile:
    ninja = ninja_file.NinjaFile(cxx=CXX, nvcc="nvcc", exports="../csrc/exports.map")
    flags = ["-fPIC", "-DNUMBER=2", "-DUNUSED=$HOME 'b' c:d"]
    objects = [ninja.object(root / f"csrc/{name}.cpp", flags) for name in ("asks", "answers")]
    stand_in = ninja.library("stand_in/none.so", [], ["-x", "c++", "/dev/null", "-Wl,-soname,libm.so.6"])
    ninja.library("lib/all.so", [*objects, stand_in], [])
    return ninja


def test_the_commands_are_those_of_ninja(checkout):
    ninja, folder = build_of(checkout), checkout / "build"
    folder.mkdir()
    (folder / "build.ninja").write_text(ninja.text())
    if (program := native_build.ninja_program()) is None:
        pytest.skip("needs ninja")
    said = subprocess.run([program, "-C", folder, "-t", "commands"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in said.splitlines() if not line.startswith("ninja: ")]
    assert sorted(map(shlex.split, lines)) == sorted(shlex.split(command.line) for command in ninja.commands())


def test_they_build_a_library(checkout, capfd):
    folder = checkout / "build"
    folder.mkdir()
    assert without_ninja.run(build_of(checkout).commands(), folder, jobs=2)
    ask = f"import ctypes; print(ctypes.CDLL({str(folder / 'lib/all.so')!r}).ask())"
    assert subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout == "42\n"
    said = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert [line.split()[1] for line in said[2:]] == ["stand_in/none.so", "lib/all.so"]


def test_lines_of_several_jobs_do_not_mix(tmp_path, monkeypatch):
    class Slow(io.StringIO):
        def write(self, text):  # as a terminal may be: print() writes a line and its end by themselves
            time.sleep(1e-3)
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", said := Slow())
    assert without_ninja.run([Command("a.o", "true", links=False)] * 20, tmp_path, jobs=4)
    assert said.getvalue().splitlines() == [f"[{n}/20] a.o" for n in range(1, 21)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_nothing_is_linked_after_a_failure(tmp_path, jobs):
    compiling = [Command("a.o", "touch a.o", links=False), Command("b.o", "touch b.o; false", links=False)]
    linking = [Command("all.so", "touch all.so", links=True)]
    assert not without_ninja.run([*compiling, *linking], tmp_path, jobs)
    assert not (tmp_path / "all.so").exists() and (tmp_path / "b.o").exists()


def test_nothing_more_is_started_after_a_failure(tmp_path):
    commands = [Command(f"{n}.o", f"touch {n}.o", links=False) for n in range(50)]
    assert not without_ninja.run([Command("first.o", "false", links=False), *commands], tmp_path, jobs=1)
    assert len(list(tmp_path.iterdir())) < 50
