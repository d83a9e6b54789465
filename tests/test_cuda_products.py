"""The products of the CUDA library, as its binding asks cuBLAS for them, beside a stand-in for cuBLAS on the CPU."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from planted_faults import change, copy_of_sources

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"

FLAGS = ["-std=c++20", "-O1", "-fPIC", "-DUSE_CUDA", "-Wl,-rpath,$ORIGIN"]
FAULTS = [
    (
        "products.cpp",
        "~CublasHandle() { (void)cublas().set_math_mode(handle_, previous_mode_); }",
        "~CublasHandle() {}",
    ),
    ("products.cpp", "kMathMode = 16;", "kMathMode = 0;"),
    ("products.cpp", "beta(adds ? 1 : 0);", "beta(0);"),
    ("products.cpp", "compute == GemmCompute::kFloat64 ?", "compute != GemmCompute::kFloat64 ?"),
    ("gemm.cpp", ".m = narrow(columns),", ".m = narrow(rows),"),
    ("gemm.cpp", ".result = type_of(out.dtype),", ".result = type_of(a.dtype),"),
    ("gemm.cpp", "dtype == Dtype::kFloat32 && allow_tf32", "allow_tf32"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("products")
    compile(folder / "libtorch_cuda.so", HERE / "stub_cublas.cpp", "-shared", "-Wl,-soname,libtorch_cuda.so")
    return folder


def compile(target, *arguments):
    command = [os.environ.get("CXX", "g++"), *FLAGS, *map(str, arguments), "-o", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compiled(folder, source, sources=CSRC):
    """The object of one source."""
    torch_include = Path(torch.__file__).parent / "include"
    compile(folder / f"{source.stem}.o", f"-I{sources}", "-isystem", torch_include, "-c", source)
    return folder / f"{source.stem}.o"


@pytest.fixture(scope="module")
def objects(folder):
    """By source: what the program is linked of that multiplies."""
    sources = (
        HERE / "products_program.cpp",
        *(CSRC / "cuda" / file for file in ("binding/products.cpp", "host/gemm.cpp")),
    )
    return {source.name: compiled(folder, source) for source in sources}


def products(folder, objects):
    """What the program says."""
    compile(folder / "program", *objects.values(), f"-L{folder}", "-ltorch_cuda", "-ldl")
    done = subprocess.run([folder / "program"], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()


def test_every_dtype_and_layout(folder, objects):
    """Sums in float32 or better whatever torch allows its own products, and torch's handle as it was."""
    assert products(folder, objects) == "384 products"


@pytest.mark.parametrize(("file", "old", "new"), FAULTS)
def test_fault_is_noticed(folder, objects, tmp_path, file, old, new):
    sources = copy_of_sources(tmp_path)
    change(sources, file, old, new)
    (source,) = sources.rglob(file)
    assert products(folder, objects | {file: compiled(tmp_path, source, sources)}) != "384 products"
