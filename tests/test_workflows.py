"""The workflows and the pages of the manual: the commands that they name are ones that dev.py has, options included.

A workflow runs where no test of this project does; what can be said of it here is that it runs what was run here.
"""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / ".github/workflows"
if not WORKFLOWS.is_dir():
    pytest.skip("tests files of the source tree", allow_module_level=True)
yaml = pytest.importorskip("yaml", reason="reads the workflows")
pytest.importorskip("auditwheel", reason="the tools read versions of symbols by it")
sys.path += [str(ROOT / "tools"), str(ROOT / "_build_backend")]
import make_gpu_kit  # noqa: E402

import check_wheel  # noqa: E402
import dev  # noqa: E402
import make_kernels_package  # noqa: E402
import make_wheel  # noqa: E402
from benchmarks import options as benchmark_options  # noqa: E402

# Of the commands whose options are not another program's (setup.py's and pytest's).
PARSERS = {
    "bench": lambda: benchmark_options.parser(""),
    "wheel": make_wheel.parser,
    "check-wheel": check_wheel.parser,
    "gpu-kit": make_gpu_kit.parser,
    "kernels-package": make_kernels_package.parser,
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def jobs(name: str) -> dict:
    return yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text())["jobs"]


def runs(job: dict) -> list[str]:
    """The texts of a job that a shell runs."""
    return [step["run"] for step in job["steps"] if "run" in step]


def commands_in(text: str) -> list[str]:
    """["wheel --platform aarch64", ...]: what follows `python3 dev.py`, without comments."""
    found = re.findall(r"python3 dev\.py ([^`\n]+)", text)
    return [shlex.join(shlex.split(command, comments=True)) for command in found]


def check_command(words: str) -> None:
    command, *options = shlex.split(words)
    assert command in dev.NEEDED
    if command in PARSERS:
        PARSERS[command]().parse_args(options)


EVERY_JOB = {
    f"{file.stem}-{name}": job for file in sorted(WORKFLOWS.glob("*.yml")) for name, job in jobs(file.stem).items()
}


@pytest.mark.parametrize("job", EVERY_JOB.values(), ids=EVERY_JOB)
def test_a_job_runs_commands_that_there_are(job):
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step), step
    for text in runs(job):
        for command in commands_in(text):
            check_command(command)
        if text.startswith(".ci/"):
            assert os.access(ROOT / text.split()[0], os.X_OK)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_commands_that_there_are(page):
    for command in commands_in(page.read_text()):
        check_command(command)


@pytest.mark.parametrize(
    "words", ["wheels", "wheel --platform sparc", "check-wheel --cpus", "kernels-package --arch 9.0a x"]
)
def test_a_command_that_there_is_not_is_found(words, capsys):
    with pytest.raises((AssertionError, SystemExit)):
        check_command(words)


def test_a_release_is_made_by_the_commands_of_the_manual():
    """All that a release consists of, and the check of all of it at the end."""
    manual = (ROOT / "docs/install.md").read_text().partition("\n## Making a release\n")[2]
    made = [command for text in runs(jobs("release")["wheels"]) for command in commands_in(text)]
    assert made == commands_in(manual.partition("\n## ")[0])
    assert {"wheel", "kernels-package"} == {command.split()[0] for command in made[:-1]}
    assert made[-1] == "check-wheel"


def test_a_release_is_compiled_as_the_tests_are():
    """By one CUDA toolkit, all of whose parts the build finds."""
    installed = [
        sorted(re.findall(r"\bnvidia-[\w-]+==[\d.]+", text))
        for job in (jobs("release")["wheels"], jobs("test")["test"])
        for text in runs(job)
        if "nvidia-" in text
    ]
    assert len(installed) == 2 and installed[0] == installed[1]
    manual = (ROOT / "docs/install.md").read_text()
    assert all(f"`{package.partition('==')[0]}`" in manual for package in installed[0])


def test_every_version_of_python_has_a_wheel_of_its_own():
    """From the oldest that the package takes on, without a gap."""
    pythons = jobs("release")["wheels"]["strategy"]["matrix"]["python"]
    oldest = re.search(r'requires-python = ">=(\d+\.\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    minors = [int(python.partition(".")[2]) for python in pythons]
    assert pythons[0] == oldest and minors == list(range(minors[0], minors[0] + len(minors)))
