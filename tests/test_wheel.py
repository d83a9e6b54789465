"""The tools that make and check a release; `dev.py check-wheel` itself needs wheels and minutes."""

import ctypes
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "tools/check_wheel.py").is_file():
    pytest.skip("tests the tools of the source tree", allow_module_level=True)
elfutils = pytest.importorskip("auditwheel.elfutils", reason="the tools read versions of symbols by it")
sys.path += [str(ROOT / "tools"), str(ROOT / "_build_backend")]
import check_libraries  # noqa: E402
import check_wheel  # noqa: E402
import code_objects  # noqa: E402
import cuda12_toolkit  # noqa: E402
import cuda_toolkit  # noqa: E402
import dev  # noqa: E402
import foreign_libraries  # noqa: E402
import native_build  # noqa: E402
import old_libraries  # noqa: E402
import portable_build  # noqa: E402
import symbol_versions  # noqa: E402
from symbol_versions import Symbol  # noqa: E402

COMPILER = shlex.split(native_build.compiler())
TAG = portable_build.tag_of(platform.machine())


def test_promised_architectures_are_those_of_the_compiler_flags():
    assert check_libraries.promised_archs("7.5;9.0a;12.0+PTX") == {"sm_75", "sm_90a", "sm_120", "compute_120"}


def test_architectures_are_read_from_cuobjdumps_lists(monkeypatch):
    lists = {
        "--list-elf": "ELF file    1: libx.1.sm_75.cubin\nELF file    2: libx.2.sm_90a.cubin\n",
        "--list-ptx": "PTX file    1: libx.1.sm_120.ptx\n",
    }
    monkeypatch.setattr(check_libraries, "find_cuobjdump", lambda: "cuobjdump")
    monkeypatch.setattr(check_libraries, "output_of", lambda program, option, library: lists[option])
    assert check_libraries.archs_in(Path("libx.so")) == {"sm_75", "sm_90a", "compute_120"}


def code_object(kind, arch, version, flags, content):
    header = struct.pack("<HHIQQHHIQQ16x", kind, 0x101, 64, len(content), 0, *reversed(version), arch, 0, flags)
    return header + content


def test_code_for_drivers_of_cuda_12_is_told_from_newer_code(tmp_path):
    objects = [
        code_object(2, 90, (1, 7), 0x2011, b"LZ4"), code_object(2, 120, (1, 8), 0x2011, b"Blackwell"),
        code_object(1, 100, (8, 8), 0x2041, b"PTX"),
        code_object(2, 80, (1, 8), 0x2011, b"of CUDA 13"), code_object(2, 80, (1, 7), 0x8011, b"zstd"),
    ]  # fmt: skip
    containers = [
        code_objects.START + struct.pack("<Q", len(content)) + content
        for content in (b"".join(objects[:4]), objects[4])
    ]
    library = tmp_path / "library"
    library.write_bytes(b"\x7fELF" + b"\0\0\0\0".join(containers))
    found = code_objects.in_library(library)
    assert [(code.is_ptx, code.arch, code.size) for code in found] == [
        (False, 90, 3), (False, 120, 9), (True, 100, 3), (False, 80, 10), (False, 80, 4),
    ]  # fmt: skip
    assert [code.is_for_cuda12 for code in found] == [True, True, True, False, False]
    with pytest.raises(SystemExit, match=r"expected GPU code that drivers of CUDA 12 load, got .*is_zstd=True"):
        check_libraries.check_code_objects(library)


def toolkit_in(folder, runtime_version):
    """What looks like a toolkit; its cicc is a script that writes PTX of CUDA 13."""
    files = {
        "bin/nvcc": "",
        "bin/fatbinary": "#!/bin/sh\necho $@",
        "nvvm/bin/cicc": '#!/bin/sh\nprintf "//\\n.version 9.1\\n.target sm_80\\n" >"$2"',
        "include/crt/host_config.h": "",
        "include/fatbinary_section.h": "",
        "include/cuda_runtime.h": "",
        "include/cuda_runtime_api.h": f"#define CUDART_VERSION  {runtime_version}\n",
        "lib/libcudart_static.a": "",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    return folder


def found_in(folder, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(folder))
    return cuda_toolkit.find_toolkit()


def test_a_toolkit_of_cuda_12_is_used_as_it_is(monkeypatch, tmp_path):
    found = found_in(toolkit_in(tmp_path / "installed", 12040), monkeypatch)
    assert found.version == "12.4"
    assert cuda12_toolkit.make(tmp_path / "made", found) == tmp_path / "installed"


def test_a_toolkit_of_cuda_13_gets_assembler_and_runtime_of_cuda_12(monkeypatch, tmp_path):
    found = found_in(toolkit_in(tmp_path / "installed", 13000), monkeypatch)
    packages = toolkit_in(tmp_path / "nvidia/cuda_runtime", 12090).parent
    for name in ("cuda_nvcc/bin/ptxas", "cuda_cccl/include/nv/target"):
        (packages / name).parent.mkdir(parents=True)
        (packages / name).write_text("")
    for name in ("crt/host_config.h", "crt", "fatbinary_section.h"):  # of the compiler, and so not in that package
        path = packages / "cuda_runtime/include" / name
        path.rmdir() if path.is_dir() else path.unlink()
    monkeypatch.setattr(cuda12_toolkit, "_folder_of", lambda package: packages / package)

    made = cuda12_toolkit.make(tmp_path / "made", found)
    assert found_in(made, monkeypatch).version == "12.9"
    subprocess.run([made / "nvvm/bin/cicc", "-o", tmp_path / "x.ptx"], check=True)
    assert (tmp_path / "x.ptx").read_text() == "//\n.version 8.8\n.target sm_80\n"
    said = subprocess.run([made / "bin/fatbinary", "-64"], capture_output=True, text=True, check=True)
    assert said.stdout == "--compress-mode=speed -64\n"


def test_what_lacks_for_drivers_of_cuda_12_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda12_toolkit.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(cuda12_toolkit.site, "getsitepackages", list)
    found = found_in(toolkit_in(tmp_path / "installed", 13000), monkeypatch)
    with pytest.raises(SystemExit, match=r"expected nvidia-cuda-nvcc-cu12 beside .*, found none"):
        cuda12_toolkit.make(tmp_path / "made", found)


def linked(library, source, *options, compiler=COMPILER):
    """A shared library of C++ source text."""
    text = library.with_suffix(".cpp")
    text.write_text(source)
    subprocess.run([*compiler, "-std=c++20", "-O2", "-shared", "-fPIC", text, *options, "-o", library], check=True)
    return library


def asks_for(name, version, folder):
    """A library that asks for a function of another, libc.so.6 by name, which has it under this version."""
    folder.mkdir()
    other = old_libraries.stand_in(folder / "libc.so.6", [Symbol(name, version)], COMPILER)
    return linked(folder / "libplanted.so", f'extern "C" void {name}(); void use() {{ {name}(); }}', "-nostdlib", other)


def test_a_library_that_asks_for_a_newer_symbol_than_the_tag_is_refused_with_its_name(tmp_path, capsys):
    asks_for("planted", "GLIBC_2.34", tmp_path / "lib")
    with pytest.raises(
        SystemExit, match=r"manylinux_2_28_\w+ allows, got .*lib/libplanted.so asks for planted@GLIBC_2.34"
    ):
        check_libraries.check_symbols(tmp_path, TAG)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[2:] == ["GLIBC", "GLIBCXX", "CXXABI", "GCC"]
    assert table[1].split() == [TAG, "allows", "2.28", "3.4.24", "1.3.11", table[1].split()[-1]]
    assert table[2].split() == ["lib/libplanted.so", "2.34", "-", "-", "-"]


def test_a_function_without_a_version_may_come_from_torch_and_python_only(tmp_path):
    """What a library lacks when it is linked, such as a function that older systems do not have, has no version."""
    source = 'extern "C" void {0}(); void use() {{ {0}(); }}'
    linked(tmp_path / "libknown.so", source.format("torch_call_dispatcher"), "-nostdlib")
    check_libraries.check_symbols(tmp_path, TAG)
    linked(tmp_path / "libforgotten.so", source.format("arc4random"), "-nostdlib")
    with pytest.raises(SystemExit, match=r"got others: libforgotten.so asks for arc4random$"):
        check_libraries.check_symbols(tmp_path, TAG)


# What newer systems have otherwise: functions under a newer version (dlsym, exp, threads), templates and functions of
# the C++ library (a stream's constructor, a bad length, exception_ptr), what headers ask for themselves (a count of
# references, numbers read from text). And a variable of each thread.
NEWER_SYMBOLS = """
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>
thread_local int here = 1;
extern "C" int sum(int size, const char* text) {
    std::vector<int> many(size, 1);
    std::exception_ptr thrown;
    try {
        if (dlsym(nullptr, "no such function") == nullptr) throw std::make_shared<int>(std::strtol(text, nullptr, 10));
    } catch (const std::shared_ptr<int>&) {
        thrown = std::current_exception();
    }
    int read = 0;
    std::sscanf(text, "%d", &read);
    std::thread([&] { here += 1; read += here; }).join();
    std::ostringstream stream;
    stream << std::exp(read - 12.0) << many.at(size - 1);
    try {
        std::rethrow_exception(thrown);
    } catch (const std::shared_ptr<int>& kept) {
        return *kept + std::stoi(stream.str());
    }
}
"""


def test_what_is_linked_with_the_old_libraries_asks_for_what_the_tag_allows(tmp_path):
    options = old_libraries.make(tmp_path / "a folder", TAG, COMPILER)
    ends = ["-Wl,--no-as-needed", "-ldl", "-lpthread", "-lrt", "-Wl,-z,defs", "-Wl,--exclude-libs,ALL"]
    (tmp_path / "lib").mkdir()
    library = linked(tmp_path / "lib/libold.so", NEWER_SYMBOLS, *options, *ends)
    check_libraries.check_symbols(library.parent, TAG)
    assert {"libdl.so.2", "libpthread.so.0", "librt.so.1"} <= set(elfutils.elf_read_dt_needed(library))
    assert ctypes.CDLL(str(library), os.RTLD_NOW).sum(3, b"10") == 10 + 11  # and does what it did


def test_a_function_that_an_older_system_lacks_does_not_link(tmp_path, capfd):
    symbols = [Symbol("planted", "GLIBC_2.34"), Symbol("known", "GLIBC_2.17")]
    newer = old_libraries.stand_in(tmp_path / "libnewer.so", symbols, COMPILER)
    kept = old_libraries.without_newer(tmp_path / "libold.so", newer, symbol_versions.allowed_by(TAG), COMPILER)
    assert [str(symbol) for symbol in symbol_versions.offered_by(kept)] == ["known@GLIBC_2.17"]
    with pytest.raises(subprocess.CalledProcessError):
        linked(tmp_path / "libx.so", 'extern "C" void planted(); void use() { planted(); }', kept, "-Wl,-z,defs")
    assert "undefined reference to `planted'" in capfd.readouterr().err


# Wheels for another processor than this machine's.

OTHER = next(machine for machine in native_build.ISA_FLAGS if machine != platform.machine())
CROSS_COMPILER = f"{OTHER}-linux-gnu-g++"


def test_a_tag_allows_the_versions_that_its_processor_has():
    assert {"GLIBC_2.2.5", "GLIBC_2.28"} <= symbol_versions.allowed_by("manylinux_2_28_x86_64")
    of_aarch64 = symbol_versions.allowed_by("manylinux_2_28_aarch64")
    assert {"GLIBC_2.17", "GLIBC_2.28"} <= of_aarch64 and not {"GLIBC_2.2.5", "GLIBC_2.29"} & of_aarch64
    with pytest.raises(ValueError, match=r"expected a tag such as .*, got 'linux_aarch64'"):
        symbol_versions.allowed_by("linux_aarch64")


def test_a_library_for_another_processor_than_the_tags_is_refused(tmp_path):
    linked(tmp_path / "libplanted.so", "", "-nostdlib")
    tag = portable_build.tag_of(OTHER)
    with pytest.raises(
        SystemExit, match=rf"libplanted.so for {OTHER}, as {tag} says, got one for {platform.machine()}"
    ):
        check_libraries.check_symbols(tmp_path, tag)


def test_a_wheel_is_installed_where_its_processor_is(monkeypatch):
    monkeypatch.setattr(check_wheel, "output_of", lambda *command: "cp311 aarch64\n")
    names = ("cp311-cp311-{}_aarch64", "py3-none-{}_aarch64", "cp312-cp312-{}_aarch64", "py3-none-{}_x86_64")
    wheels = [Path(f"fusedlstm-0.1.0-{name.format('manylinux_2_28')}.whl") for name in names]
    assert [check_wheel.fits(wheel, Path("python")) for wheel in wheels] == [True, True, False, False]


def test_leaves_out_tests_that_change_the_sources():
    """Beside an installed wheel there are none."""
    plants = re.compile(r"^(import|from) planted_faults\b", re.MULTILINE)
    tests = [test for test in (ROOT / "tests").glob("test_*.py") if plants.search(test.read_text())]
    names = [test.name for test in tests if not any(map(test.match, check_wheel.SOURCE_TESTS))]
    assert tests and not names


def test_a_compiler_for_another_processor_than_the_wheels_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", shlex.join(COMPILER))
    with pytest.raises(SystemExit, match=f"expected a compiler for {OTHER} in CXX, got .* for {platform.machine()}"):
        portable_build.compiler_for(OTHER)


def test_the_stand_in_of_torch_has_its_stable_functions_alone(tmp_path):
    functions = "void torch_call() {} void aoti_torch_new() {} void inner() {}"
    (tmp_path / "torch/lib").mkdir(parents=True)
    linked(tmp_path / "torch/lib/libtorch_cpu.so", f'extern "C" {{ {functions} }}')
    stand_in = foreign_libraries.add_torch(tmp_path, tmp_path / "torch", COMPILER)
    assert {str(symbol) for symbol in symbol_versions.offered_by(stand_in)} == {"aoti_torch_new", "torch_call"}
    use = 'extern "C" void torch_call(); void use() { torch_call(); }'
    library = linked(tmp_path / "libuse.so", use, "-nostdlib", "-Wl,-z,defs", stand_in)
    assert elfutils.elf_read_dt_needed(library) == ["libtorch_cpu.so"]


@pytest.mark.skipif(shutil.which(CROSS_COMPILER) is None, reason=f"needs {CROSS_COMPILER}")
def test_a_cross_compiler_links_with_old_libraries_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", CROSS_COMPILER)
    tag, compiler = portable_build.tag_of(OTHER), shlex.split(portable_build.compiler_for(OTHER))
    options = [*old_libraries.make(tmp_path / "old", tag, compiler), "-Wl,-z,defs", "-Wl,--exclude-libs,ALL"]
    (tmp_path / "lib").mkdir()
    library = linked(tmp_path / "lib/libold.so", NEWER_SYMBOLS, *options, "-ldl", "-lpthread", compiler=compiler)
    check_libraries.check_symbols(library.parent, tag)


def test_the_newest_version_is_found_by_number():
    versions = {"GLIBC_2.9", "GLIBC_2.14", "GLIBC_PRIVATE", "CXXABI_FLOAT128", "CXXABI_1.3", "GLIBCXX_3.4"}
    assert symbol_versions.newest(versions) == {"GLIBC": "2.14", "GLIBCXX": "3.4", "CXXABI": "1.3", "GCC": "-"}


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


def test_a_command_ends_with_the_seconds_of_its_parts(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(dev, "SECONDS", {})
    monkeypatch.setattr(dev, "install_missing", lambda command: None)
    monkeypatch.setattr(dev, "run", lambda *program: 0 if program[0] == "setup.py" else 7)
    monkeypatch.setenv("FUSEDLSTM_STARTED", str(time.time() - 41))  # by the Python that made the environment
    assert dev.main(["bench", "--quick"]) == 7
    said = capsys.readouterr().out.splitlines()
    assert said == ["dev.py: build", "dev.py: benchmark", "dev.py: environment 41 s, build 0 s, benchmark 0 s"]


@pytest.mark.slow
def test_an_environment_whose_making_was_interrupted_is_completed(monkeypatch, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    monkeypatch.setenv("FUSEDLSTM_VENV", str(tmp_path))
    started = []
    monkeypatch.setattr(os, "execve", lambda *program: started.append(program))
    dev.continue_in_venv(["build"], 0.0)
    assert (tmp_path / "bin/pip").exists()
    python, arguments, environment = started[0]
    assert (python, arguments[1:]) == (tmp_path / "bin/python", [str(ROOT / "dev.py"), "build"])
    assert environment["FUSEDLSTM_STARTED"] == "0.0"


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
