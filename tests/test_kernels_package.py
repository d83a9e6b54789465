"""The package for Hugging Face's `kernels`, by the real one: what it loads, and what it runs torch.nn's layers with."""

import ast
import json
import platform
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from family import EVERY, LSTM, every, tensors_of
from forked_python import run_python
from pairwise import pairwise
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fusedlstm

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools/make_kernels_package.py"
if not TOOL.is_file():
    pytest.skip("tests the tools of the source tree", allow_module_level=True)
kernels = pytest.importorskip("kernels", reason="Hugging Face's `kernels` is not installed")
pytest.importorskip("auditwheel", reason="the tool reads versions of symbols by it")
sys.path.append(str(ROOT / "tools"))
import make_kernels_package as tool  # noqa: E402

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The folder with a variant for CPU builds of torch. With a CUDA build the variant itself: in a folder `kernels`
    would look for one for that. Only what has the namespace in it is compiled and linked."""
    folder = tmp_path_factory.mktemp("kernels") / "package"
    subprocess.run([sys.executable, TOOL, "--cpu-only", "--folder", folder], check=True)
    return folder if torch.version.cuda is None else variant_of(folder)


def variant_of(package: Path) -> Path:
    if (package / "metadata.json").exists():
        return package
    (variant,) = (package / "build").iterdir()
    return variant


@contextmanager
def kernelized(package: Path, *modules: nn.Module, mode=kernels.Mode.TRAINING):
    """What `kernelize` does to the modules; the classes of torch.nn are as before afterwards."""
    classes = {name: getattr(nn, name) for name in NAMES}
    layers = {name: {"cpu": kernels.LocalLayerRepository(package, layer_name=name)} for name in NAMES}
    for name, plain in classes.items():
        kernels.replace_kernel_forward_from_hub(plain, name)
    try:
        with kernels.use_kernel_mapping(layers, inherit_mapping=False):
            kernels.kernelize(nn.ModuleList(modules), mode=mode, device="cpu", use_fallback=False)
        yield
    finally:
        for plain in classes.values():
            del plain.kernel_layer_name, plain.kernel_condition


def results_and_gradients(module, x, hx):
    """All tensors of a call in training mode, then the gradients of x, the states and the parameters."""
    torch.manual_seed(5)  # of dropout
    is_packed = isinstance(x, PackedSequence)
    data = (x.data if is_packed else x).clone().requires_grad_()
    states = [state.clone().requires_grad_() for state in hx]
    given = PackedSequence(data, *x[1:]) if is_packed else data
    result = module(given, states[0] if len(states) == 1 else tuple(states))
    results = tensors_of((result[0].data, result[1]) if is_packed else result)
    generator = torch.Generator().manual_seed(1)
    incoming = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, [data, *states, *module.parameters()], incoming)]


def assert_as_fused_and_near_torch(package, plain, fused, call, dtype):
    """`call` of the kernelized module gives fusedlstm's bits, and torch.nn's values within a few roundings."""
    theirs, ours = call(plain), call(fused)
    with kernelized(package, plain):
        found = call(plain)
    assert len(found) == len(ours) == len(theirs)
    allowed = 20 * torch.finfo(dtype).eps * getattr(plain, "num_layers", 1)
    for actual, same, near in zip(found, ours, theirs):
        assert torch.equal(actual, same)
        size = max(1.0, near.abs().max().item())
        torch.testing.assert_close(actual / size, near / size, rtol=0, atol=allowed)


# The layers, in training.

OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "two-layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "dropout": {"num_layers": 3, "dropout": 0.5},
    "everything": {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
}


@pairwise(
    member=[(member, 0) for member in EVERY] + [(LSTM, 4)],
    name=OPTIONS,
    dtype=[torch.float32, torch.float64],
    kind=["padded", "packed", "one sequence"],
)
def test_layer(package, member, name, dtype, kind):
    (member, proj_size), options = member, OPTIONS[name]
    fused, plain = member.pair(6, 10, **options, **({"proj_size": proj_size} if proj_size else {}), dtype=dtype)
    rows = plain.num_layers * (1 + plain.bidirectional)
    widths = (plain.proj_size or 10, 10) if member is LSTM else (10,)
    if kind == "packed":
        x = pack_sequence([torch.randn(n, 6, dtype=dtype) for n in (2, 5, 4)], enforce_sorted=False)
    else:
        x = torch.randn(*(5, 3, 6) if kind == "padded" else (5, 6), dtype=dtype)
    batch = {"padded": (5,) if plain.batch_first else (3,), "packed": (3,), "one sequence": ()}[kind]
    hx = [torch.randn(rows, *batch, width, dtype=dtype) for width in widths]
    assert_as_fused_and_near_torch(package, plain, fused, lambda m: results_and_gradients(m, x, hx), dtype)


@every
def test_cell(package, member):
    fused, plain = member.pair_of_cells(6, 10)
    x, hx = torch.randn(3, 6), [torch.randn(3, 10) for _ in range(2 if member is LSTM else 1)]
    assert_as_fused_and_near_torch(package, plain, fused, lambda m: results_and_gradients(m, x, hx), torch.float32)


@every
def test_nothing_is_kept_on_the_module(package, member):
    """What `kernelize` sets is all: parameters are read at each call, in whatever mode the module is then."""
    fused, plain = member.pair(6, 10, num_layers=2, dropout=0.5)
    before, x = set(vars(plain)), torch.randn(5, 3, 6)
    with kernelized(package, plain, mode=kernels.Mode.INFERENCE):
        plain(x)
    assert set(vars(plain)) - before == {"forward"}
    for module in (plain, fused):
        module.eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.5)
    assert all(map(torch.equal, tensors_of(plain(x)), tensors_of(fused(x))))


@every
def test_compiles_in_a_full_graph(package, member):
    torch._dynamo.reset()
    mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
    (fused, layer), (fused_cell, cell) = member.pair(6, 10), member.pair_of_cells(6, 10)
    x = torch.randn(5, 3, 6)
    with kernelized(package, layer, cell, mode=mode), torch._dynamo.config.patch(allow_rnn=True):
        for plain, ours, given in ((layer, fused, x), (cell, fused_cell, x[0])):
            compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
            with torch.no_grad():  # an RNN with gradients runs PyTorch's own step
                assert all(map(torch.equal, tensors_of(compiled(given)), tensors_of(ours(given))))
            compiled(given)


# The package.


def run_alone(code: str, tmp_path: Path, **variables) -> subprocess.CompletedProcess:
    """Runs a program that finds no fusedlstm and no pybind11, and may not connect to anything."""
    alone = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('expected no network, got a connection')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "sys.modules['fusedlstm'] = sys.modules['pybind11'] = None\n"
    )
    return run_python(alone + code, cwd=tmp_path, HF_HUB_OFFLINE=1, HF_HOME=tmp_path, **variables)


def test_the_manuals_example(package, tmp_path):
    """By LOCAL_KERNELS, without a network."""
    (example,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs/install.md").read_text(), re.DOTALL)
    code = f"{example}\nprint(model[0].forward.__func__.__module__, type(output.grad_fn).__name__)"
    result = run_alone(code, tmp_path, LOCAL_KERNELS=f"fusedlstm/fusedlstm={package}")
    assert result.returncode == 0, result.stderr
    module, gradient = result.stdout.split()
    assert re.fullmatch(r"fusedlstm_cpu_[0-9a-f]{10}\.layers", module) and gradient == "_StackBackward"


def test_is_beside_fusedlstm(package):
    """Each has operators of its own, and its own library."""
    loaded = kernels.get_local_kernel(package)
    assert kernels.get_local_kernel(package) is loaded
    namespace = loaded.__name__
    assert namespace != "fusedlstm" and loaded.FusedLSTM is not fusedlstm.FusedLSTM
    assert sum(variant_of(package).name in path for path in torch.ops.loaded_libraries) == 1
    theirs, ours = loaded.FusedLSTM(6, 10), fusedlstm.FusedLSTM(6, 10)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 3, 6)
    for module, name in ((theirs, namespace), (ours, "fusedlstm"), (theirs, namespace)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            output = module(x)[0]
            output.sum().backward()
        called = {event.key.split("::")[0] for event in profile.key_averages() if "lstm_stack" in event.key}
        assert called == {name}
        assert torch.equal(output, ours(x)[0])


def test_fusedlstm_can_come_second(package, tmp_path):
    code = (
        "import kernels, pathlib, torch\n"
        f"loaded = kernels.get_local_kernel(pathlib.Path({str(package)!r}))\n"
        f"del sys.modules['fusedlstm']; sys.path.insert(0, {str(Path(fusedlstm.__file__).parent.parent)!r})\n"
        "import fusedlstm\n"
        "one, two, x = fusedlstm.FusedGRU(6, 10), loaded.FusedGRU(6, 10), torch.randn(5, 3, 6)\n"
        "two.load_state_dict(one.state_dict())\n"
        "print(torch.equal(one(x)[0], two(x)[0]))"
    )
    result = run_alone(code, tmp_path)
    assert (result.stdout, result.returncode) == ("True\n", 0), result.stderr


def test_without_its_library_says_what_is_missing(package, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(package, broken, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = f"import kernels, pathlib\nkernels.get_local_kernel(pathlib.Path({str(broken)!r}))"
    result = run_alone(code, tmp_path)
    name = variant_of(broken) / "lib/libfusedlstm_cpu_[0-9a-f]{10}_cpu.so"
    assert re.search(rf"ImportError: fusedlstm expected its compiled library {name}, found none: ", result.stderr)


def test_names_neither_fusedlstms_module_nor_its_operators(package):
    """Imports inside of functions too."""
    for file in variant_of(package).rglob("*.py"):
        text = file.read_text()
        assert "torch.ops.fusedlstm" not in re.sub(r'""".*?"""', "", text, flags=re.DOTALL), file
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert not any(name.split(".")[0] == "fusedlstm" for name in names), (file, node.lineno)


def test_imports_become_relative():
    source = '"""\nfrom fusedlstm import a\n"""\nfrom fusedlstm import (\n    a,\n)\n'
    source += "if a:\n    from fusedlstm.cells import b\n"
    expected = source.replace("\nfrom fusedlstm import (", "\nfrom . import (").replace("fusedlstm.cells", ".cells")
    assert tool.with_relative_imports(source, "ops.py") == expected
    assert (
        tool.with_relative_imports("from fusedlstm.cells.cell import a\n", "cells/x.py")
        == "from ..cells.cell import a\n"
    )
    assert tool.with_relative_imports("from fusedlstm import a\n", "cells/x.py") == "from .. import a\n"
    assert tool.with_relative_imports("from fusedlstm_other import a\n", "x.py") == "from fusedlstm_other import a\n"
    with pytest.raises(ValueError, match=r"x\.py:2: expected `from fusedlstm import .*got 'import fusedlstm\.ops'"):
        tool.with_relative_imports("\nimport fusedlstm.ops\n", "x.py")


def test_every_build_has_its_own_namespace():
    facts, sources = {"compiler": "g++ 12"}, {"ops.py": "1"}
    names = {
        tool.digest(facts, sources),
        tool.digest({"compiler": "g++ 13"}, sources),
        tool.digest(facts, {"ops.py": "2"}),
    }
    assert len(names) == 3 and tool.digest(facts, sources) in names
    assert tool.in_namespace('"""x"""\nNAMESPACE = "fusedlstm"\n', "mine") == '"""x"""\nNAMESPACE = "mine"\n'
    with pytest.raises(ValueError, match="expected one line 'NAMESPACE = \"fusedlstm\"', got 0"):
        tool.in_namespace("", "mine")


@pytest.mark.parametrize("cuda, taken", [(None, "cpu"), ("12.6", "cu126"), ("12.9", "cu126"), ("13.2", "cu130")])
def test_every_build_of_torch_takes_a_variant(cuda, taken, monkeypatch):
    from kernels.variants import parse_variant, resolve_variant

    backends = [backend for kind in tool.BACKENDS.values() for backend in kind]
    names = [tool.variant_name(backend, machine) for machine in tool.native_build.ISA_FLAGS for backend in backends]
    variants = [parse_variant(name) for name in names]
    assert [variant.variant_str for variant in variants] == names
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found, _ = resolve_variant(variants)
    assert found.variant_str == tool.variant_name(taken, platform.machine())


def test_the_metadata_is_such_as_kernels_reads():
    facts = {"cuda_toolkit": "12.9", "cuda_archs": ["8.0", "9.0a", "12.0+PTX"]}
    about = kernels.Metadata.from_bytes(json.dumps(tool.metadata("fusedlstm_cuda_0", facts)).encode())
    assert about.id == "fusedlstm_cuda_0" and about.backend.archs == facts["cuda_archs"]
