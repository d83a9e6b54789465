"""What the package needs of each private name of PyTorch; and that fusedlstm/_private_torch.py has them all."""

import re
from pathlib import Path

import pytest
import torch
from forked_python import run_python
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from fusedlstm import _private_torch
from fusedlstm.ops import OPERATORS

PACKAGE = Path(_private_torch.__file__).parent
PRIVATE = re.compile(
    r"torch\._(?!_version__)"  # torch._C, from torch._ops import
    r"|from torch(\.\w+)* import .*\b_[a-z_A-Z]"
    r"|\b_C\b|functorch\._|forward_ad\._|_pytree|\._schema\b|\._dynamo"
    r"|super\(torch\.autograd\.Function"
)


def private_names(source):
    """The lines that use one."""
    return [line for line in source.splitlines() if PRIVATE.search(line)]


def test_other_files_use_no_private_name():
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if file.name != "_private_torch.py"]
    assert len(files) > 20
    assert {str(file): names for file in files if (names := private_names(file.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "if torch._C._get_tracing_state() is not None:",
        "from torch._ops import OpOverload",
        "import torch._dynamo",
        "from torch import _VF, nn",
        "from torch.utils import _pytree",
        "from torch.nn.modules.rnn import apply_permutation, _apply",
        "level = forward_ad._current_level",
        "function._dynamo_marked_constant = True",
        "super(torch.autograd.Function, function).apply",
    ],
)
def test_private_names_are_found(line):
    assert private_names(line) == [line]


@pytest.mark.parametrize("line", ["torch.__version__ < OLDEST", "from torch import nn", "x._flat_weights"])
def test_others_are_not_taken_for_private(line):
    assert private_names(line) == []


def test_what_every_call_asks_is_of_c():
    """And no function of Python around it."""
    functions = "are_transforms_active", "is_any_autocast_enabled", "count_of_dispatch_modes", "is_tracing"
    for function in (getattr(_private_torch, name) for name in functions):
        assert type(function) is type(len), f"expected a function of C, got {function}"


def test_are_transforms_active():
    seen = []
    assert _private_torch.are_transforms_active() is False
    torch.func.vmap(lambda x: seen.append(_private_torch.are_transforms_active()) or x)(torch.zeros(2))
    assert seen == [True], "expected are_transforms_active() to be true inside vmap"


def test_is_intercepted():
    class Module(torch.nn.Module):
        def forward(self, x):
            return x + 1 if _private_torch.is_intercepted() else x

    module, x = Module(), torch.zeros(2)
    calls = [module, torch.compile(module, backend="eager", fullgraph=True)]
    calls += [torch.export.export(module, (x,), strict=strict).module() for strict in (True, False)]
    calls += [torch.jit.trace(module, x), torch.func.vmap(module)]
    calls += [lambda x: torch.func.vjp(module, x)[0], lambda x: torch.func.jvp(module, (x,), (x,))[0]]
    assert [int(call(x)[0]) for call in calls] == [0, *[1] * 7]
    with forward_ad.dual_level():
        assert int(module(x)[0]) == 1


def test_is_any_autocast_enabled():
    assert _private_torch.is_any_autocast_enabled() is False
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float16)):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        with torch.autocast(device, dtype):
            assert _private_torch.is_any_autocast_enabled() is True, f"expected true under autocast for {device}"


def test_is_tracing():
    seen = [_private_torch.is_tracing()]
    torch.jit.trace(lambda x: seen.append(_private_torch.is_tracing()) or x + 1, torch.zeros(2), check_trace=False)
    assert seen == [False, True]


def test_count_of_dispatch_modes():
    counts = [_private_torch.count_of_dispatch_modes()]
    for mode in (_private_torch.FakeTensorMode(), FlopCounterMode(display=False)):
        with mode:
            counts.append(_private_torch.count_of_dispatch_modes())
    with torch.profiler.profile():
        counts.append(_private_torch.count_of_dispatch_modes())
    assert counts == [0, 1, 1, 0]


def test_below_autograd():
    x = torch.zeros(2, requires_grad=True)
    with _private_torch.below_autograd():
        assert not (2 * x).requires_grad, "expected no derivative below autograd"
    assert (2 * x).requires_grad


def test_function_of():
    run = _private_torch.function_of(torch.ops.aten.neg.default)
    with torch.profiler.profile() as profile, FlopCounterMode(display=False):
        assert torch.equal(run(torch.ones(2)), -torch.ones(2))
    assert "aten::neg" in {event.name for event in profile.events()}, "expected a call by the dispatcher"
    assert type(run.func) is type(len), f"expected a function of C, got {run.func}"


def test_is_forward_mode_active():
    assert not _private_torch.is_forward_mode_active()
    with forward_ad.dual_level():
        assert _private_torch.is_forward_mode_active()
    seen = []

    def function(x):
        seen.append(_private_torch.is_forward_mode_active())
        return x

    torch.func.jvp(function, (torch.zeros(2),), (torch.ones(2),))
    assert seen == [True], "expected is_forward_mode_active() to be true inside jvp"


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor=2):
        return factor * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient, None


def test_plain_apply():
    apply = _private_torch.plain_apply(_Doubled)
    x = torch.ones(3, requires_grad=True)
    apply(x, 2).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]
    assert type(apply) is type(len), f"expected a function of C, got {apply}"


def test_number_of_pass():
    """One for all nodes of a pass, another for the next, none outside."""
    found, number = [], _private_torch.number_of_pass
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    z = y * 2
    for tensor in (y, z):
        tensor.register_hook(lambda _: found.append(number()))
    for _ in range(2):
        torch.autograd.grad(z.sum(), x, retain_graph=True)
    assert found[0] == found[1] != found[2] == found[3] and -1 not in found and number() == -1


@pytest.mark.slow
@pytest.mark.parametrize("is_leaf", [True, False])
def test_will_run(is_leaf):
    """Of several arguments, leaves or not, those whose gradient a pass asks for."""
    found = []

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            return sum(tensors)

        @staticmethod
        def backward(ctx, d):
            assert all(ctx.needs_input_grad[:2])  # which says nothing of the pass
            nodes = [node for node, _ in ctx.next_functions if node is not None]
            found.append(list(map(_private_torch.will_run, nodes)))
            return d, d, None

    a, b, c = (torch.ones(2, requires_grad=asks) for asks in (True, True, False))
    given = [a, b] if is_leaf else [a * 2, b * 2]
    total = Sum.apply(*given, c).sum()
    torch.autograd.grad(total, given[0], retain_graph=True)
    torch.autograd.grad(total, given, retain_graph=True)
    torch.autograd.grad(total, [b], retain_graph=True)
    total.backward(inputs=[a], retain_graph=True)
    total.backward()
    returned = None if is_leaf else True
    asked = [[returned, False], [returned, returned], [False, returned], [True, False], [True, True]]
    assert found == asked


def test_constant_for_dynamo():
    """In a process of its own: what it must spare is the import of Dynamo."""
    program = """if True:
    import sys
    import torch
    from fusedlstm._private_torch import constant_for_dynamo

    calls = []

    @constant_for_dynamo
    def number():
        calls.append(1)
        return len(calls)

    assert number() == 1
    assert "torch._dynamo" not in sys.modules, "expected no import of Dynamo"
    compiled = torch.compile(lambda x: x + number(), backend="eager", fullgraph=True)
    assert [int(compiled(torch.tensor(0))) for _ in range(3)] == [2, 2, 2], calls
    """
    done = run_python(program, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "transform, kind",
    [(torch.func.vmap, "Vmap"), (torch.func.grad, "Grad"), (torch.func.jacfwd, "Jvp")],
    ids=["vmap", "grad", "jacfwd"],
)
def test_active_transforms(transform, kind):
    seen = []

    def function(x):
        seen.append(_private_torch.active_transforms())
        return (x * x).sum()

    transform(function)(torch.ones(2))
    assert getattr(_private_torch.Transform, kind) in seen[0], f"expected {kind} inside {transform.__name__}"
    assert _private_torch.active_transforms() == set()


def test_members_of_vmap():
    """To all members of a vmap, and back."""
    shared = torch.arange(3.0)

    def function(row):
        vmap = _private_torch.innermost_transform()
        level = vmap.level()
        assert vmap.batch_size() == 2
        assert _private_torch.without_members(shared, level)[1] is None, "expected no members of what is shared"
        rows, dim = _private_torch.without_members(row, level)
        assert (tuple(rows.shape), dim) == ((3, 2), 1)
        with _private_torch.below_vmap():
            doubled = 2 * rows
            assert doubled.shape == (3, 2) and not torch._C._functorch.is_batchedtensor(doubled)
        return _private_torch.with_members(doubled, 1, level)

    rows = torch.randn(3, 2)
    torch.testing.assert_close(torch.func.vmap(function, in_dims=1, out_dims=1)(rows), 2 * rows)


class _Seen(torch.autograd.Function):
    """x * x, whose backward tells the test's function of its gradient."""

    @staticmethod
    def forward(ctx, x, on_backward):
        ctx.save_for_backward(x)
        ctx.on_backward = on_backward
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return ctx.on_backward(gradient, *ctx.saved_tensors), None


def _batched_gradients(on_backward):
    """The gradients of x * x for both of its elements by the older vmap; on_backward makes each."""
    x = torch.tensor([3.0, 5.0], requires_grad=True)
    return torch.autograd.grad(_Seen.apply(x, on_backward), x, torch.eye(2), is_grads_batched=True)[0]


def test_members_of_the_older_vmap():
    def on_backward(gradient, x):
        assert _private_torch.is_of_older_vmap(gradient) and not _private_torch.is_of_older_vmap(x)
        rows = _private_torch.without_older_members(gradient, 1, 2, 0)
        assert rows.tolist() == torch.eye(2).tolist()
        assert _private_torch.is_of_older_vmap(_private_torch.without_older_members(gradient, 2, 2, 0))
        return _private_torch.with_older_members(2 * rows, 0, 1) * x

    assert _batched_gradients(on_backward).tolist() == [[6, 0], [0, 10]]


def test_with_autograd():
    """Where operators have been called below their derivatives."""
    x = torch.ones(2, requires_grad=True)
    with torch.no_grad(), _private_torch.below_autograd(), _private_torch.with_autograd(), torch.enable_grad():
        assert (2 * x).requires_grad, "expected a derivative inside with_autograd()"


def test_argument_names():
    names = _private_torch.argument_names(torch.ops.aten.addmm.default)
    assert names == ("self", "mat1", "mat2", "beta", "alpha")


def test_cudnn_operators():
    """Their arguments, in the order in which fusedlstm/_cudnn.py passes them."""
    call = "input weight weight_stride0 weight_buf hx cx".split()
    options = "mode hidden_size proj_size num_layers batch_first dropout train bidirectional batch_sizes dropout_state"
    forward, backward = map(
        _private_torch.argument_names, (_private_torch.cudnn_rnn, _private_torch.cudnn_rnn_backward)
    )
    assert forward == (*call, *options.split())
    given = "output grad_output grad_hy grad_cy".split()
    assert backward == (*call, *given, *options.split(), "reserve", "output_mask")


def test_operators_are_of_the_type():
    assert all(isinstance(operator, _private_torch.OpOverload) for operator in OPERATORS["lstm"])


def test_modes_take_rules():
    """A rule for a mode is what runs an operator under it."""
    library = torch.library.Library("fusedlstm_tests", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    torch.library.register_fake("fusedlstm_tests::twice", lambda x: torch.empty_like(x), lib=library)
    seen = []
    modes = _private_torch.FakeTensorMode, _private_torch.FunctionalTensorMode
    for mode in modes:

        def rule(mode, operator, types, arguments, options):
            seen.append(type(mode))
            return mode.__torch_dispatch__(operator, types, arguments, options)

        torch.library.register_torch_dispatch("fusedlstm_tests::twice", mode, rule, lib=library)
    torch.export.export(_Twice(), (torch.ones(2),), strict=False).run_decompositions({})
    assert set(seen) == set(modes)


class _Twice(torch.nn.Module):
    def forward(self, x):
        return torch.ops.fusedlstm_tests.twice(x)


@pytest.mark.parametrize("has_real_tensors", [False, True])
def test_run_with_real_tensors(has_real_tensors):
    mode = _private_torch.FakeTensorMode()
    assert mode.propagate_real_tensors is False
    x = torch.tensor([1.0, 2.0])
    with mode:
        fake = mode.from_tensor(x)
        fake.real_tensor = x
        mode.propagate_real_tensors = has_real_tensors
    operator = torch.ops.aten.mul.Tensor
    result = _private_torch.run_with_real_tensors(mode, operator, (type(fake),), (fake, fake), {})
    assert type(result) is type(fake) and result.shape == (2,)
    assert mode.propagate_real_tensors is has_real_tensors
    if has_real_tensors:
        assert result.real_tensor.tolist() == [1, 4]
    else:
        assert getattr(result, "real_tensor", None) is None
