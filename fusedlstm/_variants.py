"""Variants of a recurrence: dropout and zoneout of its states, layer norm inside of it, peepholes.

What they are called, which cell has which, and the parameters that they add; docs/regularised.md has the formulas.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fusedlstm._checks import checked_number, checked_probability
from fusedlstm._sizes import Sizes
from fusedlstm.cells import CELLS


class Variants(NamedTuple):
    """Options of a module and of `functional`, by their names there."""

    recurrent_dropout: float = 0.0
    recurrent_dropout_per_step: bool = False
    zoneout: float | tuple[float, ...] = 0.0
    layer_norm: bool = False
    layer_norm_eps: float = 1e-5
    peephole: bool = False

    @classmethod
    def of(cls, owner) -> Variants:
        """Those of a module. By their names: to make these takes longer than all else in here."""
        return cls(
            owner._fused_recurrent_dropout, owner._fused_recurrent_dropout_per_step, owner._fused_zoneout,
            owner._fused_layer_norm, owner._fused_layer_norm_eps, owner._fused_peephole,
        )  # fmt: skip

    def set_in(self, owner) -> None:
        """Makes them those of a module. An instance has attributes for those alone that are not its class's."""
        for name, value in self._asdict().items():
            if value != getattr(owner, _OWN + name):
                setattr(owner, _OWN + name, value)

    def in_use(self) -> list[str]:
        """The names of those that change what a layer computes, in training at least."""
        names = "recurrent_dropout", "zoneout", "layer_norm", "peephole"
        return [name for name in names if _is_on(getattr(self, name))]

    def serve(self, training: bool) -> bool:
        """Whether a call is any other than a plain layer's: in evaluation nothing is dropped."""
        is_dropping = training and self.recurrent_dropout > 0
        return is_dropping or self.layer_norm or self.peephole or _is_on(self.zoneout)

    def zoneouts(self, states: int) -> tuple[float, ...]:
        """The probability of each state."""
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * states


_OWN = "_fused_"


class Option:
    """An option as an attribute of a module.

    Its value is under a name that is no subclass's own: a subclass, say one that `convert` made, may have anything by
    the option's name, as in self.layer_norm = nn.LayerNorm(...), and that is then no option.
    """

    def __set_name__(self, owner, name: str) -> None:
        self.name = name

    def __get__(self, module, owner=None):
        if module is None:
            return self
        for own in (vars(module), module._parameters, module._buffers, module._modules):
            if self.name in own:
                return own[self.name]
        return getattr(module, _OWN + self.name)

    def __set__(self, module, value) -> None:
        if self.name in vars(module):
            vars(module)[self.name] = value
        else:
            setattr(module, _OWN + self.name, value)


def _is_on(value) -> bool:
    return any(value) if isinstance(value, tuple) else bool(value)


def check_variants(variants: Variants, cell_name: str, proj_size: int) -> Variants:
    """The variants, if they can be those of a layer of this cell.

    Raises:
        TypeError, ValueError: a value that is none of its option; an option that the cell has not, or that excludes
            another one.
    """
    dropout, per_step, zoneout, layer_norm, eps, peephole = variants
    if isinstance(zoneout, (tuple, list)):
        states = CELLS[cell_name].states
        if len(zoneout) != len(states):
            raise ValueError(
                f"zoneout: Expected a probability, or one for each of the states {', '.join(states)}, "
                f"got {len(zoneout)}"
            )
        zoneout = tuple([checked_probability("zoneout", one) for one in zoneout])
    else:
        zoneout = checked_probability("zoneout", zoneout)
    dropout, eps = checked_probability("recurrent_dropout", dropout), checked_number("layer_norm_eps", eps)
    for name, value in (("recurrent_dropout_per_step", per_step), ("layer_norm", layer_norm), ("peephole", peephole)):
        if not isinstance(value, bool):
            raise TypeError(f"{name}: Expected a bool, got {type(value).__name__}")
    if not 0 < eps < math.inf:
        raise ValueError(f"layer_norm_eps: Expected a finite number above 0, got {eps}")
    if per_step and not dropout:
        raise ValueError("recurrent_dropout_per_step: Expected recurrent_dropout with it, got recurrent_dropout=0")
    if peephole and cell_name != "lstm":
        raise ValueError(f"peephole: Expected an LSTM, whose gates can see its cell, got {cell_name}")
    if layer_norm and cell_name not in ("lstm", "gru"):
        raise ValueError(f"layer_norm: Expected an LSTM or a GRU, got {cell_name}")
    variants = Variants(dropout, per_step, zoneout, layer_norm, eps, peephole)
    if proj_size and variants.in_use():
        raise ValueError(f"{variants.in_use()[0]}: Expected no projection with it, got proj_size={proj_size}")
    return variants


def parameters_of(variants: Variants, sizes: Sizes) -> dict[str, int]:
    """What a direction of a layer has beside a plain one's weights: the kind of each parameter, and its length."""
    if not (variants.layer_norm or variants.peephole):
        return {}
    H, rows = sizes.hidden_size, CELLS[sizes.cell].gates * sizes.hidden_size
    found = {"weight_ch": 3 * H} if variants.peephole else {}
    if variants.layer_norm and sizes.cell == "lstm":
        found |= {"gain_ih": rows, "gain_hh": rows, "gain_c": H}
        found |= {"bias_c": H} if sizes.bias else {}
    elif variants.layer_norm:
        found |= {"gain": rows}
    return found


class Varied(NamedTuple):
    """The variants of a call.

    Attributes:
        kinds: `parameters_of` them.
        parameters: of all layers and directions in a row.
        training: whether masks are drawn.
    """

    variants: Variants
    kinds: dict[str, int]
    parameters: list[Tensor]
    training: bool

    def check(self, sizes: Sizes, device: torch.device) -> None:
        """Checks the parameters. They may have another floating dtype than the weights: all compute in float32."""
        count = sizes.num_layers * sizes.directions * len(self.kinds)
        if len(self.parameters) != count:
            raise RuntimeError(
                f"{sizes.name}: Expected {count} parameters of {', '.join(self.variants.in_use())}, "
                f"got {len(self.parameters)}"
            )
        for place, tensor in enumerate(self.parameters):
            kind, length = list(self.kinds.items())[place % len(self.kinds)]
            layer, direction = divmod(place // len(self.kinds), sizes.directions)
            name = f"{kind}_l{layer}{'_reverse' if direction else ''}"
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{sizes.name}: Expected {name} to be a Tensor, got {type(tensor).__name__}")
            if tensor.shape != (length,) or not tensor.is_floating_point() or tensor.device != device:
                raise RuntimeError(
                    f"{sizes.name}: Expected {name} of shape [{length}], of a floating dtype, on {device}, "
                    f"got {list(tensor.shape)}, {tensor.dtype}, on {tensor.device}"
                )

    def of_directions(self, sizes: Sizes) -> list[dict[str, Tensor]]:
        """Of each direction of all layers its parameters by kind."""
        own = iter(self.parameters)
        return [{kind: next(own) for kind in self.kinds} for _ in range(sizes.num_layers * sizes.directions)]


def masks_of(variants: Variants, states: int, T: int, B: int, H: int, training: bool, like: Tensor):
    """Of one direction: what h is multiplied by where it enters the product with weight_hh, [1 or T, B, H] or None; and
    of each state the part of the old value that a step keeps, bool [T, B, H] in training, else [1, 1, H], or nothing at
    all. Masks and parts in the dtype of `like`.

    Drawn from PyTorch's generator.
    """
    mask, p = None, variants.recurrent_dropout
    if p and training:
        mask = torch.dropout(like.new_ones(T if variants.recurrent_dropout_per_step else 1, B, H), p, True)
    if not _is_on(variants.zoneout):
        return mask, []
    probabilities = variants.zoneouts(states)
    if not training:
        parts = {p: like.new_full((1, 1, H), p) for p in probabilities}
        return mask, [parts[p] for p in probabilities]
    return mask, [
        bits <= _most_chosen(p) if p else torch.zeros_like(bits, dtype=torch.bool)
        for p, bits in zip(probabilities, _random_bits((states, T, B, H), like.device).unbind())
    ]


def _random_bits(sizes, device) -> Tensor:
    """int16, of all values equally often.

    A quarter of a number each: a number for each unit and step took a tenth of a small layer's time.
    """
    count = math.prod(sizes)
    numbers = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),), dtype=torch.int64, device=device)
    return numbers.view(torch.int16)[:count].view(sizes)


def _most_chosen(p) -> int:
    """The largest of the bits that are chosen with this probability, or the nearest multiple of 2**-16 but 0 and 1."""
    return min(max(round(p * 2**16), 1), 2**16 - 1) - 2**15 - 1
