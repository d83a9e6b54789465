"""The tools that make and check a release; `dev.py check-wheel` itself needs wheels and minutes."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "tools/check_wheel.py").is_file():
    pytest.skip("tests the tools of the source tree", allow_module_level=True)
sys.path.append(str(ROOT / "tools"))
import check_wheel  # noqa: E402
import dev  # noqa: E402


def test_promised_architectures_are_those_of_the_compiler_flags():
    assert check_wheel.promised_archs("7.5;9.0a;12.0+PTX") == {"sm_75", "sm_90a", "sm_120", "compute_120"}


def test_architectures_are_read_from_cuobjdumps_lists(monkeypatch):
    lists = {
        "--list-elf": "ELF file    1: libx.1.sm_75.cubin\nELF file    2: libx.2.sm_90a.cubin\n",
        "--list-ptx": "PTX file    1: libx.1.sm_120.ptx\n",
    }
    monkeypatch.setattr(check_wheel, "find_cuobjdump", lambda: "cuobjdump")
    monkeypatch.setattr(check_wheel, "output_of", lambda program, option, library: lists[option])
    assert check_wheel.archs_in(Path("libx.so")) == {"sm_75", "sm_90a", "compute_120"}


def test_requirements_of_an_extra_include_those_of_its_own_extras():
    found = {dev.name_of(requirement) for requirement in dev.requirements("test")}
    assert {"pytest", "rich", "matplotlib", "onnx"} <= found
    assert "fusedlstm" not in found


def test_a_missing_requirement_is_noticed():
    assert dev.is_installed("torch>=2.10")
    assert not dev.is_installed("no-such-package-of-ours")


def test_a_command_that_lacks_its_requirements_offline_says_which(monkeypatch, capsys):
    monkeypatch.setattr(dev, "is_installed", lambda requirement: dev.name_of(requirement) != "pytest")
    monkeypatch.setattr(dev, "install", lambda packages: False)
    with pytest.raises(SystemExit, match="`test` needs pytest: install into"):
        dev.install_missing("test")
    dev.install_missing("build")  # does not need it
    assert "could not install pytest" in capsys.readouterr().out


def test_a_peer_that_cannot_be_installed_leaves_the_benchmark(monkeypatch, capsys):
    """What it needs is asked for without it, and the run goes on."""
    asked = []

    def install(packages):
        asked.append({dev.name_of(package) for package in packages})
        return "openvino" not in asked[-1]

    monkeypatch.setattr(dev, "is_installed", lambda requirement: False)
    monkeypatch.setattr(dev, "install", install)
    dev.install_missing("bench")
    assert all("openvino" not in names for names in asked if names & dev.NEEDED["bench"])
    assert {"onnxruntime", "openvino", "onnx", "onnxscript"} in asked
    said = capsys.readouterr().out
    assert "could not install onnxruntime openvino" in said and "rich" not in said


def test_the_manual_names_every_variable_of_the_build():
    sources = [ROOT / "dev.py", *(ROOT / "_build_backend").glob("*.py")]
    names = {n for f in sources for n in re.findall(r'(?:environ\.get\(|environ\[|is_set\()"(\w+)"', f.read_text())}
    manual = (ROOT / "docs/install.md").read_text()
    assert {name for name in names if f"`{name}`" not in manual} == set()
