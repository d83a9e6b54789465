"""Writes a folder that Hugging Face's `kernels` loads, from the local disk or the hub, into build/kernels-package.

    python3 dev.py kernels-package [--cpu-only] [--platform aarch64] [--folder FOLDER]

It has a variant for CPU builds of torch and, without --cpu-only, those for CUDA builds, which need nvcc
(TORCH_CUDA_ARCH_LIST names other architectures than those of a release), no GPU. Each serves every torch from 2.10 on,
and the systems and drivers that the wheels do (see portable_build.py). --platform names another processor than this
machine's, as of wheels; variants for other processors stay in the folder:

    build/torch-stable-abi210-cpu-x86_64-linux/
        metadata.json             what `kernels` asks for
        __init__.py, ...          the package; its imports are relative, since `kernels` gives it a name of its own
        layers.py                 tools/kernels_layers.py
        lib/lib<namespace>_cpu.so

A variant's namespace of operators, which is the name of its module too, holds a digest of all that it is made of.
"""

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import runpy
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_build_backend"))
import native_build  # noqa: E402
import portable_build  # noqa: E402

PACKAGE = ROOT / "fusedlstm"
# Programs of their own, which import the package by its name.
LEFT_OUT = ("__main__.py", "_tune.py", "verify.py")
# `kernels` takes a variant for torch builds of its major version of CUDA, from its minor version on. The library has a
# CUDA runtime of its own and is the same in all; 12.6 is the oldest that PyTorch 2.10 was built for.
BACKENDS = {"cpu": ["cpu"], "cuda": ["cu126", "cu130"]}
# Of the layers' interface: what users of the hub ask for by `version=`.
KERNEL_VERSION = 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "dev.py kernels-package", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--cpu-only", action="store_true", help="leave the variants for CUDA out")
    made.add_argument(
        "--platform", choices=sorted(native_build.ISA_FLAGS), default=platform.machine(), help="processor to build for"
    )
    made.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build/kernels-package",
        help="its variants for the processor are replaced",
    )
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    os.environ |= {**portable_build.settings(options.platform, options.cpu_only), "FUSEDLSTM_NO_PYBIND": "1"}
    for old in (options.folder / "build").glob(f"torch-stable-abi*-{options.platform}-linux"):
        shutil.rmtree(old)
    for kind in ("cpu",) if options.cpu_only else BACKENDS:
        os.environ["FUSEDLSTM_SKIP_CUDA_BUILD"] = "1" if kind == "cpu" else "0"
        for variant in write_variants(options.folder, kind):
            size = sum(file.stat().st_size for file in variant.rglob("*") if file.is_file())
            print(f"{variant}: {size / 1e6:.1f} MB")


def write_variants(folder: Path, kind: str) -> list[Path]:
    """The package for torch builds of this kind, "cpu" or "cuda", on CXX's processor; returns its folders."""
    version = runpy.run_path(str(PACKAGE / "_version.py"))["__version__"]
    facts, sources = native_build.Tools.find().facts(version), python_sources()
    namespace = f"{native_build.NAMESPACE}_{kind}_{digest(facts, sources)}"
    built = native_build.build(version, namespace, f"kernels_{kind}/")
    sources["_namespace.py"] = in_namespace(sources["_namespace.py"], namespace)
    variants = [folder / "build" / variant_name(backend, facts["processor"]) for backend in BACKENDS[kind]]
    for variant in variants:
        for name, source in sources.items():
            write(variant / name, with_relative_imports(source, name))
        write(variant / "metadata.json", json.dumps(metadata(namespace, facts), indent=2) + "\n")
        for name, file in built.items():
            target = variant / name.replace(f"lib{native_build.NAMESPACE}", f"lib{namespace}")
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(file, target)
        shutil.copy2(ROOT / "LICENSE", variant)
    return variants


def python_sources() -> dict[str, str]:
    """The package as it is in the source tree, with the layers, by the files' places."""
    files = {file.relative_to(PACKAGE).as_posix(): file for file in sorted(PACKAGE.rglob("*.py"))}
    sources = {name: file.read_text() for name, file in files.items() if name not in LEFT_OUT}
    sources["layers.py"] = (ROOT / "tools/kernels_layers.py").read_text()
    sources["__init__.py"] += "\nfrom fusedlstm import layers as layers\n"
    return sources


def digest(facts: dict, sources: dict[str, str]) -> str:
    """Of all that a variant is made of: 10 hexadecimal digits."""
    folders = (ROOT / "_build_backend", ROOT / "tools")
    others = [*(ROOT / "csrc").rglob("*.*"), *(file for folder in folders for file in folder.glob("*.py"))]
    texts = {file.relative_to(ROOT).as_posix(): file.read_text() for file in sorted(others)}
    made_of = [facts, sources, texts, os.environ.get("CXXFLAGS")]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:10]


def with_relative_imports(source: str, name: str) -> str:
    """A source file of the package, `name` in its folder, that imports the package whatever this is called.

    Raises:
        ValueError: it has `import fusedlstm`, which has no relative form.
    """
    lines = source.splitlines(keepends=True)
    dots = "." * (1 + name.count("/"))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(re.match(r"fusedlstm\b", alias.name) for alias in node.names):
            raise ValueError(f"{name}:{node.lineno}: expected `from fusedlstm import ...`, got {ast.unparse(node)!r}")
        if isinstance(node, ast.ImportFrom) and node.level == 0 and re.match(r"fusedlstm\b", node.module):
            line = lines[node.lineno - 1]
            own = re.sub(r"from fusedlstm\b\.?", f"from {dots}", line[node.col_offset :], count=1)
            lines[node.lineno - 1] = line[: node.col_offset] + own
    return "".join(lines)


def in_namespace(source: str, namespace: str) -> str:
    """_namespace.py with another namespace."""
    line = f'\nNAMESPACE = "{native_build.NAMESPACE}"\n'
    if source.count(line) != 1:
        raise ValueError(f"_namespace.py: expected one line {line.strip()!r}, got {source.count(line)}")
    return source.replace(line, f'\nNAMESPACE = "{namespace}"\n')


def variant_name(backend: str, machine: str) -> str:
    """The name by which `kernels` knows which machines and torch builds a variant is for."""
    torch = "torch-stable-abi{}{}".format(*native_build.OLDEST_TORCH)
    return f"{torch}-{backend}-{machine}-linux"


def metadata(namespace: str, facts: dict) -> dict:
    """What metadata.json holds. `kernels` imports the module under the name `id`."""
    return {
        "id": namespace,
        "name": "fusedlstm",
        "version": KERNEL_VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cuda", "archs": facts["cuda_archs"]} if facts["cuda_toolkit"] else {"type": "cpu"},
    }


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
