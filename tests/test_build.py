"""The build tools, and what the libraries must and must not contain."""

import itertools
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import fusedlstm
from fusedlstm import _library
from fusedlstm.cells import CELLS

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build/native/objects"
LIBRARIES = [path for path in (_library.CPU_LIBRARY, _library.CUDA_LIBRARY) if path.is_file()]
KINDS = [f"{of}{kind}" for of in ("layer", "stack", "cell") for kind in ("", "_inference", "_backward")]
VARIED = "recurrence", "recurrence_backward"
OPERATORS = [f"{cell}_{kind}" for cell in CELLS for kind in (*KINDS, "steps_second_order", *VARIED)]
PREPARED = [f"{of}_{kind}" for of in ("layer", "stack", "cell") for kind in ("frozen", "quantized")]
SECOND_ORDER = "cell_second_order", "cell_sums_backward"
CPU_ONLY = [f"{cell}_{kind}" for cell in CELLS for kind in ("freeze", *PREPARED, *SECOND_ORDER)]

if (ROOT / "_build_backend").is_dir():
    sys.path.append(str(ROOT / "_build_backend"))
    import cuda_toolkit
    import find_torch
    import native_build
    from ninja_file import NinjaFile

in_source_tree = pytest.mark.skipif(
    not OBJECTS.is_dir() or _library.CPU_LIBRARY.parent.parent.parent != ROOT,
    reason="looks at object files, which only a build in the source tree leaves behind",
)
library = pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.stem)


def output_of(*command) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


# What is registered. PyTorch ignores a misspelt schema or kernel name silently, so every one is asked for.


@pytest.mark.parametrize("operator", OPERATORS + CPU_ONLY)
def test_every_operator_has_its_cpu_kernel(operator):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fusedlstm::{operator}", "CPU")


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_its_cuda_kernel_where_the_cuda_library_is_in_use(operator):
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"fusedlstm::{operator}", "CUDA")
    assert registered == (_library.cuda_inactive_reason() is None)


def test_no_operator_is_registered_by_mistake():
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fusedlstm::")}
    cuda = (
        ()
        if _library.cuda_inactive_reason()
        else ("_cuda_obstacle", "_cuda_contenders", "_cuda_prefer", "_cuda_last_plan")
    )
    queries = "_cpu_info", "_cpu_force", "_cpu_plan"
    assert names == {f"fusedlstm::{name}" for name in (*OPERATORS, *CPU_ONLY, *queries, *cuda)}


# What the binaries contain.


@library
def test_library_needs_only_torch_and_the_system(library):
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", output_of("readelf", "-d", library)))
    ours = {name for name in needed if name.startswith(("libtorch", "libc10", "libcu", "libpython"))}
    assert ours == {"libtorch_cpu.so"} | ({"libtorch_cuda.so"} if "cuda" in library.name else set())
    rest = {name.split(".so")[0] for name in needed - ours}
    assert rest <= {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl", "librt"} | {
        name for name in rest if name.startswith("ld-linux")
    }


@library
def test_library_takes_only_stable_c_functions_from_torch(library):
    symbols = output_of("nm", "-D", "--undefined-only", library)
    mangled = [line.split()[-1] for line in symbols.splitlines() if re.search(r" _Z\w*(2at|3c10|5torch)", line)]
    assert mangled == []


@library
def test_library_exports_nothing(library):
    assert output_of("nm", "-D", "--defined-only", "--extern-only", library) == ""


@library
def test_library_keeps_no_path_of_the_build_machine(library):
    # Both the source tree and the headers' folder; a package's own folder may be named in none of its files.
    content = library.read_bytes()
    for path in (ROOT, Path(torch.__file__).parent, Path.home()):
        assert str(path).encode() not in content, path


@in_source_tree
def test_wide_instructions_stay_in_the_files_marked_for_them():
    for obj in objects("csrc"):
        if instruction_set(obj) in (None, "baseline") and "cuda" not in obj.parts:
            wide = re.search(r"%[yz]mm\d+", output_of("objdump", "-d", "--no-show-raw-insn", obj))
            assert wide is None, f"{obj.name} uses {wide[0]}: it would stop an older processor"


@in_source_tree
def test_files_for_wide_instructions_share_no_inline_function_with_others():
    # The linker keeps one copy of an inline function, which may be the one that older processors cannot run.
    functions = {}
    for obj in [*objects("csrc/cpu"), OBJECTS / "csrc/library.cpp.o"]:
        own = instruction_set(obj) if instruction_set(obj) != "baseline" else None
        functions.setdefault(own, set()).update(re.findall(r" W (\w+)", output_of("nm", obj)))
    for one, other in itertools.combinations(functions, 2):
        assert functions[one] & functions[other] == set(), (one, other)


def objects(folder):
    """Those of sources that are still there."""
    return [obj for obj in sorted(OBJECTS.glob(f"{folder}/**/*.o")) if source_of(obj).is_file()]


def source_of(obj):
    return ROOT / obj.relative_to(OBJECTS).with_suffix("")


def instruction_set(obj):
    """What csrc/cpu/instances/<dtype>_<isa>.cpp is compiled for; None: any processor, as baseline."""
    found = re.fullmatch(r"[a-z]+\d*_(\w+)\.cpp\.o", obj.name)
    return found[1] if found and obj.parent.name == "instances" else None


@in_source_tree
def test_every_dtype_and_instruction_set_is_a_file_of_its_own():
    """Cores share the work of a build by files."""
    files = {file.stem for file in (ROOT / "csrc/cpu/instances").glob("*.cpp")}
    sets = ("baseline", "avx2", "avx512", "neon")
    dtypes = ("float32", "float64", "bfloat16", "float16")
    both = {f"{name}_{isa}" for name in ("products", "varied32", "varied64", *dtypes) for isa in sets}
    bfloat16 = {f"{name}_{isa}" for name in ("products", "bfloat16") for isa in ("avx512_bf16", "avx512_amx")}
    int8 = {f"quantized_{isa}" for isa in ("baseline", "avx2", "avx_vnni", "avx512_vnni", "avx512_amx")}
    assert files == both | bfloat16 | int8


# The build tools.


@in_source_tree
class TestProcessors:
    @pytest.fixture
    def compiler_for(self, tmp_path):
        def make(target):
            """A compiler that says what it makes code for, and takes every flag."""
            program = tmp_path / f"{target}-g++"
            program.write_text(f"#!/bin/sh\necho {target}\n")
            program.chmod(0o755)
            return str(program)

        return make

    @pytest.mark.parametrize("machine, target", [("x86_64", "x86_64-linux-gnu"), ("aarch64", "aarch64-none-linux-gnu")])
    def test_the_compiler_says_which_files_are_compiled(self, machine, target, compiler_for):
        cxx = compiler_for(target)
        assert native_build.machine_of(cxx) == machine
        files = {source.name for source, _ in native_build.cpu_sources(native_build._isa_flags_of(cxx))}
        assert {"isa.cpp", "float32_baseline.cpp", "quantized_baseline.cpp"} <= files
        assert ("float32_neon.cpp" in files) == (machine == "aarch64")
        assert ("float32_avx2.cpp" in files) == ("bfloat16_avx512_amx.cpp" in files) == (machine == "x86_64")

    def test_a_compiler_without_one_of_the_instruction_sets_gets_none_of_them(self, compiler_for):
        cxx = compiler_for("x86_64-linux-gnu")
        Path(cxx).write_text('#!/bin/sh\ncase "$*" in *amx*) exit 1;; esac\necho x86_64-linux-gnu\n')
        assert native_build._isa_flags_of(cxx) == {}

    def test_another_processor_has_the_portable_files_alone(self, compiler_for, monkeypatch):
        monkeypatch.setattr(native_build.platform, "machine", lambda: "riscv64")
        cxx = compiler_for("riscv64-linux-gnu")
        assert native_build.machine_of(cxx) == "riscv64"
        names = {source.stem for source, _ in native_build.cpu_sources(native_build._isa_flags_of(cxx))}
        assert {name for name in names if name.startswith("float32_")} == {"float32_baseline"}

    def test_objects_for_another_processor_lie_apart(self):
        other = next(machine for machine in native_build.ISA_FLAGS if machine != platform.machine())
        assert native_build.build_dir_of(platform.machine()) == native_build.BUILD_DIR
        assert native_build.build_dir_of(other).name == f"native-{other}"

    def test_the_python_module_is_named_for_its_processor(self):
        here = sysconfig.get_config_var("EXT_SUFFIX")
        assert native_build.extension_suffix(platform.machine()) == here
        other = next(machine for machine in native_build.ISA_FLAGS if machine != platform.machine())
        assert native_build.extension_suffix(other) == here.replace(platform.machine(), other) != here


@in_source_tree
class TestArchitectures:
    def test_pytorchs_notation_is_understood(self):
        assert cuda_toolkit.parse_archs("7.5, 8.0;9.0a 12.0+PTX") == ["7.5", "8.0", "9.0a", "12.0+PTX"]

    @pytest.mark.parametrize("text", ["Hopper", "9", "90", "9.0b", "8.0+ptx", ""])
    def test_anything_else_is_refused_with_what_was_given(self, text):
        with pytest.raises(SystemExit, match=f"TORCH_CUDA_ARCH_LIST: expected .* got '{re.escape(text)}'"):
            cuda_toolkit.parse_archs(text)

    def test_flags(self):
        assert cuda_toolkit.gencode_flags(["9.0a", "12.0+PTX"]) == [
            "-gencode=arch=compute_90a,code=sm_90a",
            "-gencode=arch=compute_120,code=[sm_120,compute_120]",
        ]

    def test_the_variable_comes_first(self, monkeypatch):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
        assert cuda_toolkit.wanted_archs() == ["8.6"]

    def test_what_is_too_old_for_the_kernels_is_left_out_and_named(self, monkeypatch, capsys):
        """Such as by a V100, alone in its machine or beside others; and lists that are for PyTorch too."""
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0;8.6;6.0+PTX")
        assert cuda_toolkit.wanted_archs() == ["8.6"]
        assert "need compute capability 7.5 or newer, so they are not built for 7.0 6.0+PTX" in capsys.readouterr().out
        monkeypatch.setattr(native_build, "_toolkit_to_use", lambda torch_cuda: "a toolkit")
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0")
        assert native_build.Tools.find()[2:] == (None, [])

    def test_a_release_and_the_messages_begin_where_the_kernels_do(self):
        oldest, *_ = cuda_toolkit.parse_archs(cuda_toolkit.RELEASE_ARCHS)
        assert float(oldest) == cuda_toolkit.OLDEST_ARCH
        assert tuple(map(int, oldest.split("."))) == _library.OLDEST_CAPABILITY


@in_source_tree
class TestFindingTorch:
    def test_finds_the_torch_in_use_and_reads_its_version(self):
        folder = find_torch.find_torch()
        assert folder == Path(torch.__file__).parent
        assert find_torch.torch_version(folder) == {"version": str(torch.__version__), "cuda": torch.version.cuda}

    def test_a_chosen_torch_is_not_replaced_by_another(self, monkeypatch, tmp_path):
        monkeypatch.setenv("FUSEDLSTM_TORCH_DIR", str(tmp_path))
        assert find_torch.find_torch() is None

    def test_a_torch_that_is_too_old_is_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv("FUSEDLSTM_TORCH_DIR", str(tmp_path))
        with pytest.raises(SystemExit, match=r"expected torch >= 2\.10 to build for, found none \("):
            native_build.Tools.find()
        (tmp_path / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
        with pytest.raises(SystemExit, match=rf"found 2\.9\.1\+cpu in {tmp_path} \(pip install --upgrade torch"):
            native_build.Tools.find()

    def test_backend_asks_for_torch_only_where_there_is_none(self, monkeypatch, tmp_path):
        import backend

        assert backend._torch_if_absent() == []
        monkeypatch.setenv("FUSEDLSTM_TORCH_DIR", str(tmp_path))
        assert backend._torch_if_absent() == ["torch>=2.10"]


@in_source_tree
def test_a_chosen_toolkit_that_is_incomplete_is_not_replaced_by_another(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_toolkit.find_toolkit() is None
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="FORCE_CUDA=1 needs a CUDA toolkit, found none"):
        native_build._toolkit_to_use(torch_cuda=None)


@in_source_tree
def test_a_cpu_build_of_torch_is_named_as_the_reason_to_leave_cuda_out(monkeypatch, capsys):
    for name in ("FORCE_CUDA", "FUSEDLSTM_SKIP_CUDA_BUILD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(native_build, "find_toolkit", lambda: "a toolkit")
    assert native_build._toolkit_to_use(torch_cuda=None) is None
    assert "this torch is a CPU build" in capsys.readouterr().out
    assert native_build._toolkit_to_use(torch_cuda="13.0") == "a toolkit"


@in_source_tree
@pytest.mark.parametrize(
    "variable, value, read, sentence",
    [
        ("MAX_JOBS", "abc", "jobs", "expected a number of compilers in MAX_JOBS, got 'abc'"),
        ("MAX_JOBS", "-1", "jobs", "got '-1'"),
        ("CXX", "g++ '", "compiler", "expected words in CXX"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(monkeypatch, variable, value, read, sentence):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=sentence):
        getattr(native_build, read)()


@in_source_tree
def test_chosen_options_of_the_linker_come_before_the_libraries(monkeypatch):
    monkeypatch.setenv("LDFLAGS", "-L'a folder' -lfirst")
    ninja = NinjaFile()
    ninja.library("lib.so", ["object.o"], ["-lsecond"])
    assert "\n  flags = '-La folder' -lfirst -lsecond\n" in ninja.text()


@in_source_tree
def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    monkeypatch.setenv("CXX", "")
    assert native_build.compiler() == "g++"


@in_source_tree
def test_the_linker_script_is_named_without_the_checkouts_path():
    """A checkout may lie in a folder with spaces or quotes."""
    text = (ROOT / "build/native/build.ninja").read_text()
    exports = re.search(r"^exports = (.+)$", text, re.MULTILINE)[1]
    assert exports == "../../csrc/exports.map"


@in_source_tree
def test_the_python_module_takes_no_stable_interface_of_torch():
    """The headers of pybind11 in torch 2.11 refuse it, which the libraries are compiled for."""
    text = (ROOT / "build/native/build.ninja").read_text()
    flags = dict(re.findall(r"^build (\S+): cxx .+\n  flags = (.+)$", text, re.MULTILINE))
    assert {"core_module.cpp.o", "library.cpp.o"} <= {output.rpartition("/")[2] for output in flags}
    for output, own in flags.items():
        assert ("TORCH_TARGET_VERSION" in own) is not output.startswith("objects.cpython"), output


@in_source_tree
def test_ctrl_c_waits_for_what_dev_py_runs(tmp_path):
    """A benchmark writes what it has measured before it ends."""
    program = "import time\ntry:\n    print('on', flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n"
    program += f"    time.sleep(1); open({str(tmp_path / 'kept')!r}, 'w').close(); raise SystemExit(7)\n"
    runner = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job may ignore it
    runner += f"sys.path.insert(0, {str(ROOT)!r}); import dev; sys.exit(dev.run('-c', {program!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", runner], stdout=subprocess.PIPE, start_new_session=True, cwd=tmp_path
    )
    assert process.stdout.readline() == b"on\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 7 and (tmp_path / "kept").exists()


@in_source_tree
def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match=r"expected a C\+\+20 compiler, found no 'no-such-compiler'"):
        native_build.compiler()


@in_source_tree
@pytest.mark.parametrize(
    "macros, is_refused",
    [({"__GNUC__": 10}, True), ({"__GNUC__": 11}, False), ({"__GNUC__": 4, "__clang__": 1}, False)],
)
def test_a_compiler_that_is_too_old_is_named(tmp_path, macros, is_refused):
    """Such as g++ 10 of Debian 11; clang says that it is some g++ too."""
    cxx = tmp_path / "g++"
    cxx.write_text("#!/bin/sh\n" + "".join(f"echo '#define {name} {value}'\n" for name, value in macros.items()))
    cxx.chmod(0o755)
    if not is_refused:
        native_build._demand_new_compiler(str(cxx))
        return
    with pytest.raises(SystemExit, match=r"expected g\+\+ >= 11 for C\+\+20, got '.*' of version 10 \("):
        native_build._demand_new_compiler(str(cxx))


# The version is in one place, and the changelog keeps up with it.


def test_libraries_were_built_for_this_version():
    facts = _library.build_facts()
    assert facts["version"] == fusedlstm.__version__
    if _library.core() is not None:
        assert _library.core().version == fusedlstm.__version__


@in_source_tree
def test_changelog_has_a_heading_for_this_version():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].split()[0] == fusedlstm.__version__
