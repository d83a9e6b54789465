"""Which of PyTorch's transforms (torch.func, forward mode) are active, and so which operators can serve."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def need_reference(is_compiling: bool = False) -> bool:
    """Whether there is a transform that the operators have no rule for: they have those of vmap and of gradients.

    Dynamo cannot trace autograd functions under gradients of torch.func: there, vmap only.
    """
    if forward_ad._current_level >= 0:
        return True
    covered = {_TYPES.Vmap} if is_compiling else {_TYPES.Vmap, _TYPES.Grad}
    return not _active() <= covered


def is_differentiating() -> bool:
    """Whether torch.func.grad, vjp or what is made of them is active."""
    return _TYPES.Grad in _active()


def are_active() -> bool:
    """Whether any is, the older vmap of is_grads_batched=True and jacobian(vectorize=True) included."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or older_vmap_level() > 0


def older_vmap_level() -> int:
    """How many of the older vmaps are active, one inside the other."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def is_batched(tensor) -> bool:
    """Whether the older vmap made the tensor: it can also be met afterwards, in a graph."""
    return tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor)


def _active() -> set:
    if not torch._C._are_functorch_transforms_active():
        return set()
    return {transform.key() for transform in torch._C._functorch.get_interpreter_stack()}


_TYPES = torch._C._functorch.TransformType

# What torch.compiler.assume_constant_result does; calling it would import all of Dynamo, which takes seconds. Dynamo
# runs transforms while it traces them.
need_reference._dynamo_marked_constant = True
is_differentiating._dynamo_marked_constant = True
