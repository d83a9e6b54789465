"""What tools/compile_times makes of a build: tiny ones here, with a compiler that only writes down what it was told."""

import re

import pytest
import scripts

compile_times = scripts.load("compile_times")
import ninja_file  # noqa: E402  (the script knows where it is)

COMPILER = """#!/bin/sh
# Writes as many bytes as the source names, or fails as it says; and that it ran without a cache.
while [ "$1" != -c ]; do shift; done
source=$2 object=$4
grep -q fault "$source" && { echo "$source: a fault" >&2; exit 1; }
head -c "$(cat "$source")" /dev/zero > "$object"
[ "$CCACHE_DISABLE" = 1 ] || echo "a cache" >> "$object"
"""
SIZES = {"csrc/library.cpp": 1024, "csrc/cpu/team.cpp": 4096, "csrc/cpu/instances/a_avx2.cpp": 10240}
OTHERS = {"csrc/cuda/host/plan.cpp": 2048}


@pytest.fixture
def build_dir(tmp_path, monkeypatch):
    """A folder with the build.ninja of a few one-line sources, under a path with a space."""
    root = tmp_path / "a checkout"
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setattr(ninja_file, "ROOT", root)
    monkeypatch.setattr(compile_times, "ROOT", root)
    ninja = ninja_file.NinjaFile(cxx=str(compiler), nvcc="nvcc", exports="none")
    objects = []
    for name, size in (SIZES | OTHERS).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(size))
        objects.append(ninja.object(root / name, ["-O3"]))
    ninja.library("lib/all.so", objects, [])
    folder = root / "build/native"
    folder.mkdir(parents=True)
    (folder / "build.ninja").write_text(ninja.text())
    return folder


def rows(text):
    """{file: bytes of its object} as the table says."""
    found = re.findall(r"^(\S+) +\d+\.\d +\d+ +(\d+)$", text, re.MULTILINE)
    return {file: int(kib) * 1024 for file, kib in found}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_every_file_of_the_cpu_library_and_their_sum(build_dir, capsys, jobs):
    assert compile_times.main(["--jobs", jobs], build_dir) == 0
    printed = capsys.readouterr()
    assert rows(printed.out) == SIZES | {"all": sum(SIZES.values())}
    assert printed.out.splitlines()[-1].startswith("all ")
    assert re.findall(r"^\[(\d)/3\]", printed.err, re.MULTILINE) == ["1", "2", "3"]


def test_the_others_are_asked_for(build_dir, capsys):
    assert compile_times.main(["--all"], build_dir) == 0
    assert rows(capsys.readouterr().out).keys() == {*SIZES, *OTHERS, "all"}


@pytest.mark.parametrize(
    ("pattern", "file"), [("team", "csrc/cpu/team.cpp"), ("inst*avx2", "csrc/cpu/instances/a_avx2.cpp")]
)
def test_some_files_only(build_dir, capsys, pattern, file):
    assert compile_times.main(["--only", pattern], build_dir) == 0
    assert rows(capsys.readouterr().out) == {file: SIZES[file], "all": SIZES[file]}


def test_the_build_is_left_as_it_is(build_dir):
    before = sorted(build_dir.rglob("*"))
    assert compile_times.main([], build_dir) == 0
    assert sorted(build_dir.rglob("*")) == before


def test_seconds_are_of_the_compiler_and_files_in_their_order():
    costs = [compile_times.Cost(name, seconds, 2**20, 2**10) for name, seconds in (("a", 1.5), ("b", 20.25))]
    lines = [line.split() for line in compile_times.table(costs).splitlines()[1:]]
    assert lines == [["b", "20.2", "1", "1"], ["a", "1.5", "1", "1"], ["all", "21.8", "1", "2"]]


def test_a_file_that_does_not_compile_is_named_with_the_compilers_words(build_dir, capsys):
    (build_dir.parent.parent / "csrc/cpu/team.cpp").write_text("fault")
    assert compile_times.main([], build_dir) == 1
    assert re.search(r"csrc/cpu/team\.cpp does not compile:\n.*a fault", capsys.readouterr().err)


def test_a_pattern_without_a_file_says_what_there_is(build_dir, capsys):
    assert compile_times.main(["--only", "nothing"], build_dir) == 1
    error = capsys.readouterr().err
    assert "expected a file that fits --only nothing, got none of" in error and "csrc/cpu/team.cpp" in error


def test_no_build_is_named(tmp_path, capsys):
    assert compile_times.main([], tmp_path) == 1
    assert f"expected {tmp_path}/build.ninja, found none (python3 dev.py build writes it)" in capsys.readouterr().err


def test_no_compilers_are_refused(build_dir, capsys):
    with pytest.raises(SystemExit):
        compile_times.main(["--jobs", "0"], build_dir)
    assert "expected a number of compilers in --jobs, got 0" in capsys.readouterr().err
