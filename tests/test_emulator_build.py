"""The cache of the emulator's build, as parallel test processes use it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from emulator import build

HERE = Path(__file__).resolve().parent

# A "compiler" that says that it has begun, and ends when all of the given number have.
COMPILER = """import sys, time
from pathlib import Path
begun, count, target = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[-1]
(begun / Path(target).name).touch()
deadline = time.monotonic() + 20
while len(list(begun.iterdir())) < count:
    if time.monotonic() > deadline: sys.exit("alone")
    time.sleep(0.01)
with open(target, "a") as file: file.write("made")
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    build.CACHE.mkdir()
    return build.CACHE


def start(targets, folder, count):
    """Processes that make one target each."""
    folder.mkdir()
    command = [sys.executable, "-ISc", COMPILER, str(folder), str(count)]
    program = (
        f"from pathlib import Path; from emulator import build; import sys; build.made(Path(sys.argv[1]), {command})"
    )
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    return [subprocess.Popen([sys.executable, "-c", program, str(target)], env=environment) for target in targets]


def test_processes_make_different_files_at_the_same_time(cache, tmp_path):
    processes = start([cache / "a.o", cache / "b.o"], tmp_path / "begun", 2)
    assert [process.wait() for process in processes] == [0, 0]


def test_processes_make_a_file_once(cache, tmp_path):
    begun = tmp_path / "begun"
    processes = start([cache / "a.o"] * 2, begun, 1)
    assert [process.wait() for process in processes] == [0, 0]
    assert (cache / "a.o").read_text() == "made"
    assert [file.name for file in begun.iterdir()] == ["a.tmp"]


def test_what_nobody_used_is_removed_unless_another_process_builds(cache):
    old = time.time() - build.KEPT_SECONDS - 60
    (cache / "folder").mkdir()
    for name in ("kept.o", "old.o", "folder/library.so"):
        (cache / name).touch()
    for name in ("old.o", "folder"):
        os.utime(cache / name, (old, old))
    with build.locked(cache / "lock", build.fcntl.LOCK_SH):
        build.forget_unused()
    assert (cache / "old.o").exists()
    build.forget_unused()
    assert sorted(file.name for file in cache.iterdir()) == ["kept.o", "lock"]


def test_beside_an_installed_package_what_asks_for_the_emulator_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CSRC", tmp_path / "csrc")
    with pytest.raises(pytest.skip.Exception, match="in the source tree only"):
        build.build()
