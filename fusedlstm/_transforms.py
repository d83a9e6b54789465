"""Which of PyTorch's transforms (torch.func, forward mode) are active, and so which operators can serve."""

from __future__ import annotations

from fusedlstm._private_torch import (
    Transform,
    active_transforms,
    are_transforms_active,
    constant_for_dynamo,
    is_dynamo_compiling,
    is_forward_mode_active,
    is_of_older_vmap,
)


@constant_for_dynamo  # which runs transforms while it traces them
def need_reference(is_compiling: bool = False) -> bool:
    """Whether there is a transform that the operators have no rule for: they have those of vmap and of gradients.

    Dynamo cannot trace autograd functions under gradients of torch.func: there, vmap only.
    """
    if is_forward_mode_active():
        return True
    covered = {Transform.Vmap} if is_compiling else {Transform.Vmap, Transform.Grad}
    return not active_transforms() <= covered


@constant_for_dynamo
def is_differentiating() -> bool:
    """Whether torch.func.grad, vjp or what is made of them is active."""
    return Transform.Grad in active_transforms()


def are_active(gradients=()) -> bool:
    """Whether any is, or one of these gradients, None among them, is of the older vmap: that of is_grads_batched=True
    and jacobian(vectorize=True). Compiled autograd, whose Dynamo traces a backward pass, counts as one."""
    if is_dynamo_compiling():  # which cannot look into the rest
        return True
    return are_transforms_active() or is_forward_mode_active() or any(map(is_batched, gradients))


def is_batched(tensor) -> bool:
    """Whether the older vmap made the tensor, or None: it can also be met afterwards, in a graph."""
    return tensor is not None and is_of_older_vmap(tensor)
