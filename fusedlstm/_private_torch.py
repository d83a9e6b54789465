"""Every private name of PyTorch that the package uses: what for, why the public way does not do, and which that is.

The other files import from here, and use none. A release of PyTorch may take any of these away, or change it:
tests/test_private_torch.py asks for each what the package needs of it.

Not counted as private are the members of nn.Module and nn.RNNBase that modules.py overrides.
"""

from __future__ import annotations

import functools

import torch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._subclasses import FakeTensor, functional_tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.utils import _pytree

# What every call asks. These are the functions of C themselves, since a function of Python around each would take as
# long as it. Dynamo knows them by what they are, and by any name.

# () -> bool, whether a transform of torch.func is active. Nothing public tells.
are_transforms_active = torch._C._are_functorch_transforms_active

# () -> bool, whether autocast is on for any device. Public: torch.is_autocast_enabled(device_type), which has to be
# asked with the name of each device, and takes five times as long.
is_any_autocast_enabled = torch._C._is_any_autocast_enabled

# () -> bool, whether torch.jit.trace is under way. Public: torch.jit.is_tracing, three functions of Python.
is_tracing = torch._C._is_tracing

# () -> int, how many of torch's dispatch modes are on: what watches, records or replaces operators, fake tensors among
# them. Nothing public tells.
count_of_dispatch_modes = torch._C._len_torch_dispatch_stack

# Context manager: operators are called below their derivatives. Public: torch.no_grad, under which the dispatcher still
# goes by the Autograd keys, converting all arguments and results there and back.
below_autograd = torch._C._AutoDispatchBelowAutograd


def is_intercepted() -> bool:
    """Whether a compiler, an exporter, a trace, a transform of torch.func or forward mode looks at the call.

    One function of Python, and none around its parts: each takes as long as one of these questions. Public, of
    compilers and exporters: torch.compiler.is_compiling, which asks for TorchScript first, by two more such functions.
    """
    return (
        is_dynamo_compiling()
        or torch.compiler._is_compiling_flag
        or are_transforms_active()
        or forward_ad._current_level >= 0
        or is_tracing()
    )


def is_forward_mode_active() -> bool:
    """Whether inside forward_ad.dual_level(), and so of jvp or jacfwd. Nothing public tells."""
    return forward_ad._current_level >= 0


def plain_apply(function: type[torch.autograd.Function]):
    """`function.apply` of plain tensors, outside of transforms of torch.func.

    Public: function.apply, which before PyTorch 2.14 is a function of Python around this one: in every call it asks for
    transforms, and looks through all arguments for what those that ended have left.
    """
    return super(torch.autograd.Function, function).apply


def will_run(node) -> bool | None:
    """Whether the backward pass that is under way comes to this node of the graph: inside of a backward only. None of
    leaves whose gradient torch.autograd.grad returns, of which PyTorch says so by an exception: it takes as long as a
    small layer.

    Nothing public tells: needs_input_grad of autograd functions says what the forward pass was given, also where
    torch.autograd.grad or backward(inputs=...) asks for less.
    """
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        return None


# () -> int, a number of the backward pass that is under way in this thread, -1 for none. Nothing public tells.
number_of_pass = torch._C._current_graph_task_id


def constant_for_dynamo(function):
    """Decorator: Dynamo calls the function as it traces, and keeps the result as a constant of the graph.

    Public: torch.compiler.assume_constant_result, which does this too, but imports all of Dynamo, for seconds.
    """
    function._dynamo_marked_constant = True
    return function


# Transforms of torch.func. Public: torch.library.register_vmap, whose general tree walks take longer than a small
# ensemble. What else is public, torch.func, starts transforms, but does not tell of those that are active.

Transform = torch._C._functorch.TransformType  # .Vmap, .Grad, .Jvp, ...


def active_transforms() -> set[Transform]:
    """The kinds of those that are active."""
    if not are_transforms_active():
        return set()
    return {transform.key() for transform in torch._C._functorch.get_interpreter_stack()}


# () -> the innermost transform, which has level(); of a vmap also batch_size(). Only while one is active.
innermost_transform = retrieve_current_functorch_interpreter

# (tensor, level) -> (tensor of all members, their dimension; the tensor itself and None where it has none of this vmap)
without_members = torch._C._functorch._unwrap_batched

# (tensor, dimension, level) -> the tensor as a member of this vmap sees it
with_members = torch._C._functorch._add_batch_dim

# () -> context manager: operators are called as outside of every vmap
below_vmap = functools.partial(
    torch._C._ExcludeDispatchKeyGuard, torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)
)


# The older vmap, of torch.autograd.grad(is_grads_batched=True) and jacobian(vectorize=True). Nothing is public. Only
# its tensors tell of it: a thread knows how many are active, one inside the other, but a backward pass on a GPU runs in
# another thread than what asked for it.

# (tensor) -> bool, whether an older vmap made it
is_of_older_vmap = torch._C._functorch.is_legacy_batchedtensor

# (tensor, level, members, dimension) -> tensor of all members of the vmap of this level, the outermost being 1, with
# them in this dimension; the tensor repeated where that did not make it
without_older_members = torch._remove_batch_dim

# (tensor, dimension, level) -> the tensor as a member of this older vmap sees it
with_older_members = torch._add_batch_dim

# () -> context manager: operators called in a rule of the older vmap have derivatives, which it leaves out
with_autograd = functools.partial(
    torch._C._SetExcludeDispatchKeyGuard, torch._C.DispatchKey.AutogradFunctionality, False
)


# Operators.

# Their type, for annotations. Nothing public names it.
OpOverload = torch._ops.OpOverload

# The modes that torch.library.register_torch_dispatch has to be told a rule is for. Neither has a public name.
FakeTensorMode = torch._subclasses.FakeTensorMode
FunctionalTensorMode = functional_tensor.FunctionalTensorMode


# cuDNN's layers below autograd, and their gradients. Public: torch.lstm and its kin, which cannot be differentiated
# twice on a GPU, and warn at every call with weights that do not lie in one buffer.
cudnn_rnn = torch.ops.aten._cudnn_rnn.default
cudnn_rnn_backward = torch.ops.aten._cudnn_rnn_backward.default


def function_of(operator: OpOverload):
    """The shortest call of an operator, with positional arguments: by the dispatcher, as ever, but nobody asks tensors
    for `__torch_function__`. To be asked before, by torch.overrides.has_torch_function.

    Public: the operator, a function of Python around one of C that asks, and that looks for a schema first: of a short
    call a tenth of all instructions beside the kernel's.
    """
    return functools.partial(torch._C._dispatch_call_boxed, operator._handle)


def argument_names(operator: OpOverload) -> tuple[str, ...]:
    """The names that its schema gives them. Nothing public has the schema."""
    return tuple(argument.name for argument in operator._schema.arguments)


def run_with_real_tensors(mode: FakeTensorMode, operator, types, arguments, options):
    """An operator under fake tensors; and on the real tensors behind them, which torch.export.draft_export has.

    Nothing public reaches these. PyTorch's own rule for them takes a None in place of a tensor for one that the
    operator wrote to.
    """
    fakes = [tensor for tensor in _pytree.tree_leaves(arguments) if isinstance(tensor, FakeTensor)]
    if not mode.propagate_real_tensors or any(fake.real_tensor is None for fake in fakes):
        return mode.__torch_dispatch__(operator, types, arguments, options)
    mode.propagate_real_tensors = False
    try:
        results = mode.__torch_dispatch__(operator, types, arguments, options)
    finally:
        mode.propagate_real_tensors = True
    reals = operator(*_pytree.tree_map_only(FakeTensor, lambda fake: fake.real_tensor, arguments))
    for fake, real in zip(*map(_pytree.tree_leaves, (results, reals))):
        fake.real_tensor = real
    return results
