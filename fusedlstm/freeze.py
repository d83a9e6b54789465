"""Prepare layers for inference once, in place of in every call; and back."""

from __future__ import annotations

from torch import nn

from fusedlstm._module import FusedCell, FusedLayer, freeze_one
from fusedlstm._variants import Variants
from fusedlstm.quantized import Quantized


def freeze(model: nn.Module) -> nn.Module:
    """Make every fused layer and cell inside `model` one for inference, with weights prepared, in place. Quantized ones
    are that already.

    On the CPU each keeps a second copy of its weights, in the order in which the kernels read them, and calls no longer
    bring them there: the shorter a call, the more it gains. Results are those of the layer before, but for the last bit
    where few rows were read from the weights as they are. Elsewhere, in compiled and exported graphs, under autocast
    and in transforms of torch.func, the weights are used as before.

    A frozen module refuses, with a RuntimeError that says what to do: arguments that require gradients while gradients
    are enabled; training mode; load_state_dict; calls after a weight was written to or replaced, as far as PyTorch
    counts writes (docs/inference.md). Weights give no gradients. Parametrizations are computed once. It can be moved
    and cast, copied and pickled: the copy is frozen too. Graphs made before are not touched.

    Args:
        model: a module in evaluation mode with at least one fused layer or cell in it, or such a layer itself.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a module.
        ValueError: there is no fused layer or cell in it; see `fusedlstm.convert`. One has zoneout, layer norm or
            peepholes.
        RuntimeError: one of them is in training mode.

    Equivalent to:
        with torch.inference_mode():
            model(input)
    """
    modules = _fused_modules(model)
    if not modules and not any(isinstance(module, Quantized) for module in model.modules()):
        raise ValueError(
            f"Expected a model with fused layers to freeze, got {type(model).__name__} without any; "
            "fusedlstm.convert(model) makes them of PyTorch's"
        )
    for module in modules:
        if module.training:
            raise RuntimeError(
                f"Expected a model in evaluation mode to freeze, got {type(module).__name__} in training mode; call "
                "model.eval() first"
            )
        if Variants.of(module).serve(training=False):
            raise ValueError(
                f"Expected layers with the plain recurrence to freeze, got {type(module).__name__} with "
                f"{Variants.of(module).in_use()[-1]}"
            )
    for module in modules:
        if module._fused_frozen is None:
            freeze_one(module)
    return model


def unfreeze(model: nn.Module) -> nn.Module:
    """Undo `freeze`: every layer and cell in `model` runs with its parameters as they are in each call."""
    for module in _fused_modules(model):
        module._fused_frozen = None
    return model


def _fused_modules(model) -> list[FusedLayer | FusedCell]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected model to be an nn.Module, got {type(model).__name__}")
    return [module for module in model.modules() if isinstance(module, (FusedLayer, FusedCell))]
