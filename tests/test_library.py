"""Loading: what is loaded, what is refused, and whether the sentences about it say what to do."""

import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import forked_python
import pytest
import torch

from fusedlstm import FusedLSTM, __main__, _library

PACKAGE = _library.CPU_LIBRARY.parent.parent


def run_python(code: str, *arguments) -> subprocess.CompletedProcess:
    """Runs `code` in a new process that imports the same copy of the package."""
    return forked_python.run_python(f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n{code}", *arguments)


@pytest.fixture
def second_copy(tmp_path) -> Path:
    """A folder with another copy of the package."""
    shutil.copytree(PACKAGE, tmp_path / "fusedlstm", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def uncached():
    """The cached questions are asked afresh in the test, and again after it."""
    functions = (_library.build_facts, _library.cuda_inactive_reason, _library.why_no_kernels)
    for function in functions:
        function.cache_clear()
    yield
    for function in functions:
        function.cache_clear()


def test_a_second_copy_is_refused_with_both_paths(second_copy):
    result = run_python(
        "import fusedlstm\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'fusedlstm']: del sys.modules[name]\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "try: import fusedlstm\n"
        "except ImportError as error: print(error)",
        second_copy,
    )
    assert result.returncode == 0, result.stderr
    assert "expected to be the only copy in this process, got a second one" in result.stdout
    assert str(PACKAGE) in result.stdout and str(second_copy) in result.stdout


@pytest.mark.parametrize("way", ["extern", "intern"])
def test_in_a_torch_package(way, tmp_path):
    """Python sources can be packed, the native library cannot."""
    module, x, file = FusedLSTM(3, 4), torch.randn(5, 2, 3), tmp_path / "model.pt"
    with torch.package.PackageExporter(file) as exporter:
        getattr(exporter, way)("fusedlstm.**")
        exporter.save_pickle("model", "model.pkl", module)
    importer = torch.package.PackageImporter(file)
    if way == "extern":
        torch.testing.assert_close(importer.load_pickle("model", "model.pkl")(x), module(x))
        return
    with pytest.raises(ImportError, match=re.escape('in torch.package: extern("fusedlstm.**")')):
        importer.load_pickle("model", "model.pkl")


def test_a_second_copy_loaded_past_the_guard_does_not_end_the_process(second_copy):
    result = run_python(
        "import fusedlstm, torch\ntorch.ops.load_library(sys.argv[1])\nprint(torch.ops.fusedlstm._cpu_info())",
        second_copy / "fusedlstm/lib/libfusedlstm_cpu.so",
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)


def test_importing_again_loads_nothing_twice():
    result = run_python(
        "import fusedlstm, torch\n"
        "before = len(torch.ops.loaded_libraries)\n"
        "from fusedlstm import _library\n"
        "_library.load()\n"
        "print(len(torch.ops.loaded_libraries) - before)"
    )
    assert result.stdout == "0\n", result.stderr


def test_a_package_that_was_not_built_says_how_to_build_it(second_copy):
    (second_copy / "fusedlstm/lib/libfusedlstm_cpu.so").unlink()
    code = "sys.path.insert(0, sys.argv[1])\ntry: import fusedlstm\nexcept ImportError as error: print(error)"
    assert "python3 dev.py build" in run_python(code, second_copy).stdout


class TestCudaReasons:
    """The sentences for machines that are not at hand."""

    @pytest.fixture(autouse=True)
    def cuda_machine(self, uncached, monkeypatch, tmp_path):
        library = tmp_path / "libfusedlstm_cuda.so"
        library.touch()
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(_library, "CUDA_LIBRARY", library)
        facts = {"cuda_toolkit": "13.0", "cuda_archs": ["8.0", "9.0a", "12.0+PTX"]}
        monkeypatch.setattr(_library, "build_facts", lambda: facts)
        monkeypatch.setattr(_library, "driver_version", lambda: (13, 1))
        monkeypatch.setattr(_library, "_cuda_obstacle", lambda device: "")
        monkeypatch.setattr(_library, "_failure_to_load", lambda library: None)

    def test_all_is_well(self):
        assert _library.cuda_inactive_reason() is None

    @pytest.mark.parametrize("driver, advice", [(None, ""), ((13, 0), "; install one for this machine's GPUs")])
    def test_torch_without_cuda_is_no_fault(self, monkeypatch, driver, advice):
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(_library, "driver_version", lambda: driver)
        reason = _library.cuda_inactive_reason()
        assert reason == f"this PyTorch ({torch.__version__}) is not a CUDA build{advice}" and not reason.is_a_fault

    def test_torch_for_rocm_calls_its_gpus_cuda_too(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(torch.version, "hip", "7.1")
        reason = _library.why_no_kernels(torch.device("cuda", 0))
        assert f"for CPUs and NVIDIA GPUs, and this PyTorch ({torch.__version__}) is for ROCm" in reason

    def test_too_old_a_driver(self, monkeypatch):
        monkeypatch.setattr(_library, "driver_version", lambda: (12, 8))
        reason = _library.cuda_inactive_reason()
        assert "expected a driver for CUDA 13 or newer, got one for CUDA 12.8; update the NVIDIA driver" in reason
        assert reason.is_a_fault

    @pytest.mark.parametrize("driver", [(11, 4), (11, 8)])  # 470, 520
    def test_a_driver_before_cuda_12_can_only_be_updated(self, monkeypatch, driver):
        monkeypatch.setitem(_library.build_facts(), "cuda_toolkit", "12.9")
        monkeypatch.setattr(_library, "driver_version", lambda: driver)
        reason = _library.cuda_inactive_reason()
        found = f"got one for CUDA {driver[0]}.{driver[1]}"
        assert reason == f"expected a driver for CUDA 12 or newer, {found}; update the NVIDIA driver"

    @pytest.mark.parametrize("driver", [(12, 0), (12, 2), (12, 8), (13, 0), (14, 1)])
    def test_a_library_of_cuda_12_is_served_by_every_driver_since(self, monkeypatch, driver):
        monkeypatch.setitem(_library.build_facts(), "cuda_toolkit", "12.9")
        monkeypatch.setattr(_library, "driver_version", lambda: driver)
        assert _library.cuda_inactive_reason() is None

    def test_no_driver_is_no_obstacle(self, monkeypatch):
        monkeypatch.setattr(_library, "driver_version", lambda: None)
        assert _library.cuda_inactive_reason() is None

    @pytest.mark.parametrize("driver, is_a_fault", [((13, 0), True), (None, False)])
    def test_built_without_cuda_matters_only_where_there_is_a_driver(self, monkeypatch, driver, is_a_fault):
        _library.CUDA_LIBRARY.unlink()
        monkeypatch.setattr(_library, "driver_version", lambda: driver)
        reason = _library.cuda_inactive_reason()
        assert "built without CUDA kernels" in reason and reason.is_a_fault is is_a_fault

    @pytest.mark.parametrize(
        "capability, found", [((8, 6), True), ((9, 0), True), ((10, 0), False), ((12, 1), True), ((13, 0), True)]
    )
    def test_a_missing_architecture(self, monkeypatch, capability, found):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        reason = _library.why_no_kernels(torch.device("cuda", 0))
        if found:
            assert reason is None
        else:
            assert reason == (
                "expected kernels for compute capability 10.0, got only 8.0 9.0a 12.0+PTX; "
                "rebuild with TORCH_CUDA_ARCH_LIST=10.0"
            )

    def test_a_gpu_that_nothing_can_be_compiled_for(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        reason = _library.why_no_kernels(torch.device("cuda", 0))
        assert reason == "expected a GPU of compute capability 7.5 or newer, got 7.0; use a newer GPU"

    def test_what_the_driver_says_against_it(self, monkeypatch):
        refused = "device 0: no kernel image is available (no kernels for this device)"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(_library, "_cuda_obstacle", lambda device: refused)
        reason = _library.why_no_kernels(torch.device("cuda", 0))
        assert reason == refused and reason.is_a_fault

    def test_other_devices_have_no_kernels(self):
        assert "not for meta" in _library.why_no_kernels(torch.device("meta"))
        assert _library.why_no_kernels(torch.device("cpu")) is None


@pytest.mark.parametrize(
    "arch, runs_on, not_on",
    [
        ("8.0", [(8, 0), (8, 9)], [(7, 5), (9, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0)]),
        ("9.0a", [(9, 0)], [(9, 1), (10, 0)]),
        ("10.0+PTX", [(10, 0), (10, 3), (11, 0), (12, 0)], [(9, 0)]),
    ],
)
def test_where_an_architecture_runs(arch, runs_on, not_on):
    assert all(_library._runs_on(arch, capability) for capability in runs_on)
    assert not any(_library._runs_on(arch, capability) for capability in not_on)


def test_one_warning_names_the_fault(monkeypatch, uncached):
    monkeypatch.setattr(_library, "_operators_are_registered", lambda: False)
    monkeypatch.setattr(_library, "_failure_to_load", lambda library: None)
    monkeypatch.setattr(_library, "cuda_inactive_reason", lambda: _library.Reason("the cause", is_a_fault=True))
    with pytest.warns(RuntimeWarning, match="PyTorch's own layers on GPUs: the cause") as caught:
        _library.load()
    assert len(caught) == 1
    monkeypatch.setattr(_library, "cuda_inactive_reason", lambda: _library.Reason("no CUDA here"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _library.load()


def test_report_names_versions_and_what_is_in_use(capsys):
    assert __main__.main([]) == 0
    printed = capsys.readouterr().out
    facts = _library.build_facts()
    for expected in (str(torch.__version__), facts["compiler"], facts["torch_headers"], str(PACKAGE)):
        assert expected in printed
    assert json.loads(torch.ops.fusedlstm._cpu_info())["isa"] in printed
    reason = _library.cuda_inactive_reason()
    assert (f"not in use: {reason}" if reason else " ".join(facts["cuda_archs"])) in printed


@pytest.mark.parametrize("cuda, has_advice", [("13.0", True), (None, False)])
def test_the_report_says_how_a_container_gets_a_driver(monkeypatch, cuda, has_advice):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(_library, "driver_version", lambda: None)
    said = __main__.report()["NVIDIA driver"]
    assert said.startswith("none found") and ("--gpus all" in said) == has_advice


@pytest.mark.skipif(_library.core() is None, reason="the planner is not in a build with FUSEDLSTM_NO_PYBIND=1")
class TestPlanCommand:
    def test_prints_a_plan_of_each_pass(self, capsys):
        assert __main__.main(["plan", "100", "16", "256", "--dtype", "bfloat16", "--device", "h100"]) == 0
        title, *lines = capsys.readouterr().out.splitlines()
        assert "H100" in title and "lstm T=100 B=16 H=256 bfloat16" in title
        assert [line.split()[:2] for line in lines if line[0] != " "] == [["forward", "lstm"], ["backward", "lstm"]]

    @pytest.mark.parametrize(("cell", "kind"), [("gru", "gru"), ("rnn_relu", "rnn")])
    def test_plans_for_any_cell(self, capsys, cell, kind):
        assert __main__.main(["plan", "100", "16", "256", "--dtype", "bfloat16", "--cell", cell]) == 0
        title, *lines = capsys.readouterr().out.splitlines()
        assert f": {cell} T=100" in title
        assert all(line.split()[1:3] == [kind, "cluster"] for line in lines if line[0] != " ")

    def test_shows_how_a_stack_runs(self, capsys):
        arguments = ["plan", "512", "16", "256", "--dtype", "bfloat16", "--layers", "4"]
        assert __main__.main(arguments) == 0
        output = capsys.readouterr().out
        assert re.search(r"4 layers: lstm cluster .*, 4 layers abreast in \d+ parts, estimated \d+ us", output)
        assert re.search(r"us one after another: 0\.4\d", output)
        assert __main__.main([*arguments, "--force", "cluster/1x1"]) == 0
        assert "one after another: 1.00" in capsys.readouterr().out

    def test_a_forced_plan_is_kept(self, capsys):
        assert __main__.main(["plan", "100", "16", "256", "--force", "stream"]) == 0
        assert all(line.split()[2] == "stream" for line in capsys.readouterr().out.splitlines()[1:] if line[0] != " ")

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["1", "1", "1", "--device", "abacus"], "--device: expected one of .* got 'abacus'"),
            (["0", "1", "1"], "argument T: expected an integer from 1 to 2147483647, got '0'"),
            (["1", "few", "1"], "argument B: expected an integer from 1 to 2147483647, got 'few'"),
            (["1", "1", "1", "--layers", "0"], "--layers: expected an integer from 1 "),
            (["1", "1", "1", "--layers", "4294967296"], "--layers: expected an integer from 1 "),
            (["1", "1", "1", "--input-size", "-5"], "--input-size: expected an integer from 0 "),
            (["1", "1", "1", "--proj-size", "-1"], "--proj-size: expected an integer from 0 "),
            (["10", "16", "100000", "--force", "local"], "local"),
            (
                ["10", "16", "128", "--force", "everywhere"],
                "--force: expected stream, local, cluster, grid, mesh or bulk",
            ),
            (["10", "16", "128", "--proj-size", "128"], "less than the hidden size 128, got 128"),
            (["10", "16", "128", "--cell", "gru", "--proj-size", "3"], "--proj-size: expected none for gru, got 3"),
            (["10", "16", "128", "--cell", "elman"], "--cell: invalid choice: 'elman'"),
            (["1" + 20 * "0", "1", "1"], "argument T: expected an integer from 1 to 2147483647, got '1000"),
        ],
    )
    def test_what_cannot_be_planned_is_refused_with_the_reason(self, capsys, arguments, message):
        with pytest.raises(SystemExit, match="2"):
            __main__.main(["plan", *arguments])
        assert re.search(message, capsys.readouterr().err)


def test_importing_brings_in_no_compiler_and_starts_no_cuda():
    # They take seconds, and a process that has started CUDA cannot fork.
    result = run_python(
        "import torch, fusedlstm\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy', 'onnx') if name in sys.modules])\n"
        "print(torch.cuda.is_initialized())"
    )
    assert result.stdout == "[]\nFalse\n", result.stderr


def test_the_report_names_a_wrong_instruction_set():
    result = run_python(
        "import os; os.environ['FUSEDLSTM_CPU_ISA'] = 'foo'\nfrom fusedlstm.__main__ import main; sys.exit(main([]))"
    )
    assert result.returncode == 0, result.stderr
    assert re.search("CPU kernels +none: .*expected a CPU instruction set.*got 'foo'", result.stdout)
