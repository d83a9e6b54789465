"""Other programs, recognized by the attribute that they set on a layer: those that would fail late or in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable


class Recognized:
    """An attribute of a class that instances have once it is set on them; setting it calls `on_set(module)` first."""

    def __init__(self, on_set: Callable) -> None:
        self.on_set = on_set

    def __set_name__(self, owner, name: str) -> None:
        self.name = name

    def __set__(self, module, value) -> None:
        self.on_set(module)
        vars(module)[self.name] = value

    def __get__(self, module, owner=None):
        if module is None:
            return self
        try:
            return vars(module)[self.name]
        except KeyError:
            raise AttributeError(f"{type(module).__name__} has no attribute {self.name}") from None

    def __delete__(self, module) -> None:
        del vars(module)[self.name]


def warn_of_quantization(module) -> None:
    """torch.ao.quantization sets `qconfig` on all modules, and then replaces those whose exact type it knows."""
    name = type(module).__name__
    warnings.warn(
        f"torch.ao.quantization leaves {name} in its dtype, since it knows PyTorch's own layers only: "
        "fusedlstm.quantize(model) gives these int8 weights; or give it fusedlstm.revert(model)",
        stacklevel=4,
    )


def refuse_gradients_by_hooks(module) -> None:
    """Opacus sets `ft_compute_sample_grad` on layers for which it has no rule, and fails in their backward."""
    name = type(module).__name__
    raise NotImplementedError(
        f"Opacus has no per-sample gradients by hooks for {name}: expected a layer that it knows. Give its "
        "ModuleValidator.fix fusedlstm.revert(model); or take torch.func.vmap(torch.func.grad(loss)), which works with "
        "this layer as it is"
    )
