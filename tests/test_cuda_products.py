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


def products(folder, sources=CSRC):
    """What the program says that multiplies by these sources."""
    torch_include = Path(torch.__file__).parent / "include"
    compile(
        folder / "program", f"-I{sources}", "-isystem", torch_include,
        HERE / "products_program.cpp", sources / "cuda/binding/products.cpp", sources / "cuda/host/gemm.cpp",
        f"-L{folder}", "-ltorch_cuda", "-ldl",
    )  # fmt: skip
    done = subprocess.run([folder / "program"], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()


def test_every_dtype_and_layout(folder):
    """Sums in float32 or better whatever torch allows its own products, and torch's handle as it was."""
    assert products(folder) == "384 products"


@pytest.mark.parametrize(("file", "old", "new"), FAULTS)
def test_fault_is_noticed(folder, tmp_path, file, old, new):
    sources = copy_of_sources(tmp_path)
    change(sources, file, old, new)
    assert products(folder, sources) != "384 products"
