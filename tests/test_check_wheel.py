"""What `dev.py check-wheel` refuses without installing anything: packages whose parts do not fit each other."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "tools/check_wheel.py").is_file():
    pytest.skip("tests the tools of the source tree", allow_module_level=True)
pytest.importorskip("auditwheel", reason="the tools read versions of symbols by it")
sys.path += [str(ROOT / "tools"), str(ROOT / "_build_backend")]
from packaging.tags import Tag  # noqa: E402

import check_libraries  # noqa: E402
import check_wheel  # noqa: E402
import native_build  # noqa: E402

HERE = native_build.machine_of(native_build.compiler())
OTHER = next(machine for machine in native_build.ISA_FLAGS if machine != HERE)
CPU_ONLY = {"processor": HERE, "cuda_toolkit": None}


def package(folder, facts, *libraries) -> Path:
    """What is in a wheel of a build with these facts; its libraries are empty files."""
    (folder / "lib").mkdir()
    (folder / "lib/build.json").write_text(json.dumps(facts))
    for name in libraries:
        (folder / "lib" / name).touch()
    return folder


@pytest.mark.parametrize(
    "facts, libraries, has_cuda, sentence",
    [
        ({}, ["libx_cpu.so"], False, None),
        ({"cuda_toolkit": "12.9"}, ["libx_cpu.so", "libx_cuda.so"], True, None),
        ({"processor": OTHER}, ["libx_cpu.so"], False, f"expected build.json to say {HERE}, got {OTHER}"),
        ({}, [], False, r"expected 1 library lib/\*_cpu.so, got \[\]"),
        ({}, ["libx_cpu.so"], True, r"expected 1 library lib/\*_cuda.so, got \[\]"),
        ({"cuda_toolkit": "12.9"}, ["libx_cpu.so", "libx_cuda.so"], False, "expected 0 library .*libx_cuda.so"),
        ({}, ["libx_cpu.so", "libx_cuda.so"], True, "expected build.json to be of a build with CUDA"),
    ],
)
def test_libraries_are_those_that_the_build_says(tmp_path, facts, libraries, has_cuda, sentence):
    folder = package(tmp_path, CPU_ONLY | facts, *libraries)
    if sentence is None:
        check_libraries.check_facts(folder, f"manylinux_2_28_{HERE}", has_cuda)
        return
    with pytest.raises(SystemExit, match=sentence):
        check_libraries.check_facts(folder, f"manylinux_2_28_{HERE}", has_cuda)


@pytest.mark.parametrize(
    "interpreter, name, is_right",
    [
        ("py3", None, True),
        ("py3", f"_core.cpython-311-{HERE}-linux-gnu.so", False),
        ("cp311", f"_core.cpython-311-{HERE}-linux-gnu.so", True),
        ("cp311", f"_core.cpython-312-{HERE}-linux-gnu.so", False),
        ("cp311", f"_core.cpython-311-{OTHER}-linux-gnu.so", False),
        ("cp311", None, False),
    ],
)
def test_the_planner_is_in_the_wheel_whose_python_finds_it(tmp_path, interpreter, name, is_right):
    tag = Tag(interpreter, "none" if interpreter == "py3" else interpreter, f"manylinux_2_28_{HERE}")
    if name:
        (tmp_path / name).touch()
    if is_right:
        check_wheel.check_core(tmp_path, tag)
        return
    with pytest.raises(SystemExit, match=r"expected \[.*\] in a wheel (py3|cp311)-.*, got \["):
        check_wheel.check_core(tmp_path, tag)


def test_wheels_and_the_package_for_kernels_are_looked_at_alike(tmp_path, monkeypatch):
    tag, looked_at = f"manylinux_2_28_{HERE}", []
    monkeypatch.setattr(check_wheel, "CONTENTS", ())
    monkeypatch.setattr(check_wheel, "check_with_auditwheel", lambda wheel, tag: None)
    monkeypatch.setattr(check_libraries, "check_symbols", lambda folder, tag: looked_at.append(tag))
    variant, wheel = (
        tmp_path / f"torch-stable-abi210-cpu-{HERE}-linux",
        tmp_path / f"fusedlstm-0.1.0-py3-none-{tag}.whl",
    )
    variant.mkdir()
    package(variant, CPU_ONLY, "libx_cpu.so")
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("lib/libx_cpu.so", "lib/build.json"):
            archive.write(variant / name, f"fusedlstm/{name}")

    check_wheel.check_file(wheel, has_cuda=False)
    check_wheel.check_variant(variant)
    assert looked_at == [tag, tag]
    with pytest.raises(SystemExit, match=r"expected 1 library lib/\*_cuda.so, got \[\]"):
        check_wheel.check_file(wheel, has_cuda=True)
    (variant / "lib/libx_cpu.so").write_text(str(ROOT))
    with pytest.raises(SystemExit, match=f"expected no path of this machine in libx_cpu.so, got {ROOT}"):
        check_wheel.check_variant(variant)
    monkeypatch.setattr(check_wheel, "MAX_MEGABYTES", 0)
    with pytest.raises(SystemExit, match="expected less than 0 MB, got"):
        check_wheel.check_file(wheel, has_cuda=False)
