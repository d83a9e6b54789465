"""The products of the CUDA library, as its binding asks cuBLAS for them, beside a stand-in for cuBLAS on the CPU."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from planted_faults import Fault, copy_of_sources, plant

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"

FLAGS = ["-std=c++20", "-O1", "-fPIC", "-DUSE_CUDA", "-Wl,-rpath,$ORIGIN"]
WRONG = "wrong: "
FAULTS = [
    Fault("mode of torch not restored", "products.cpp",
          "(void)cublas().set_math_mode(handle_, previous_mode_);", "", WRONG),
    Fault("sums in 16 bits allowed", "products.cpp", "Cublas::kMathMode", "0", WRONG),
    Fault("nothing added", "products.cpp", "adds ? 1 : 0", "0", WRONG),
    Fault("factor in another type", "products.cpp",
          "compute == GemmCompute::kFloat64", "compute != GemmCompute::kFloat64", WRONG),
    Fault("rows for columns", "gemm.cpp", "narrow(columns)", "narrow(rows)", WRONG),
    Fault("result of the type of operands", "gemm.cpp", "type_of(out.dtype)", "type_of(a.dtype)", WRONG),
    Fault("TF32 of every dtype", "gemm.cpp", "dtype == Dtype::kFloat32 && allow_tf32", "allow_tf32",
          "cuBLAS failed with status 15"),
]  # fmt: skip
MULTIPLIES = ("binding/products.cpp", "host/gemm.cpp")  # of csrc/cuda


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("products")
    compile(folder / "libtorch_cuda.so", HERE / "stub_cublas.cpp", "-shared", "-Wl,-soname,libtorch_cuda.so")
    return folder


def compile(target, *arguments):
    command = [os.environ.get("CXX", "g++"), *FLAGS, *map(str, arguments), "-o", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compiled(target, source, sources=CSRC, *flags):
    """The object of one source."""
    torch_include = Path(torch.__file__).parent / "include"
    compile(target, f"-I{sources}", "-isystem", torch_include, *flags, "-c", source)
    return target


@pytest.fixture(scope="module")
def main(folder):
    return compiled(folder / "program.o", HERE / "products_program.cpp")


def linked(folder, main, name, sources=CSRC, *flags):
    """The program, with what multiplies from a copy of csrc."""
    objects = [
        compiled(folder / f"{name}_{Path(file).stem}.o", sources / "cuda" / file, sources, *flags)
        for file in MULTIPLIES
    ]
    compile(folder / name, main, *objects, f"-L{folder}", "-ltorch_cuda", "-ldl")
    return folder / name


def products(program, fault=0):
    """What the program says."""
    done = subprocess.run([program], env=os.environ | {"FAULT": str(fault)}, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()


def test_every_dtype_and_layout(folder, main):
    """Sums in float32 or better whatever torch allows its own products, and torch's handle as it was."""
    assert products(linked(folder, main, "program")) == "384 products"


@pytest.fixture(scope="module")
def faulty(folder, main):
    """The program with all faults, asleep."""
    sources = copy_of_sources(folder)
    plant(sources, FAULTS)
    program = linked(folder, main, "faulty", sources, "-include", HERE / "planted_in_program.h")
    assert products(program) == "384 products"
    return program


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_noticed(faulty, fault):
    assert fault.reported in products(faulty, FAULTS.index(fault) + 1)
