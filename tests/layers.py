"""One layer of any cell, or an ensemble of such layers, drawn once: as what operators take, and as a module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fusedlstm
from benchmarks.cases import Case
from fusedlstm import reference
from fusedlstm._arguments import Incoming, LayerArguments
from fusedlstm.cells import LSTM, Cell

RESET = 0.4  # of the steps


@dataclass(frozen=True)
class Layer:
    """Everything that goes into a call. Values are rounded to their dtype; incoming.carried has the accumulating one.

    layer: the arguments of `<cell>_layer`.
    incoming: gradients of its results, which `<cell>_layer_backward` takes first.
    """

    cell: Cell
    case: Case
    layer: LayerArguments
    incoming: Incoming

    def member(self, m: int) -> Layer:
        """Member `m` of an ensemble."""
        incoming = Incoming(*reference.of_member(self.incoming, m))
        return Layer(self.cell, self.case, reference.member(self.layer, m), incoming)

    def module(self, make=None) -> nn.Module:
        """A module of the cell, fusedlstm's unless `make` is another, with this layer's weights; not of an ensemble."""
        make = make or getattr(fusedlstm, f"Fused{self.cell.layer.__name__}")
        x = self.layer.input
        module = make(**self.case.module_kwargs(self.cell), device=x.device, dtype=x.dtype)
        own = dict(module.named_parameters())
        weights = {
            f"{kind}_l0{suffix}": weight
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            for suffix, weight in zip(("", "_reverse"), getattr(self.layer, kind))
        }
        assert own.keys() == weights.keys(), f"expected parameters {list(weights)}, got {list(own)}"
        module.load_state_dict(weights)
        return module


def draw(
    case: Case,
    cell: Cell = LSTM,
    *,
    members: int | None = None,
    lengths=None,
    reset_state: bool = False,
    batch_first: bool = False,
    dtype: torch.dtype = torch.float64,
    device="cpu",
    generator: torch.Generator | None = None,
) -> Layer:
    """A layer of random values: weights over the root of what they are summed over, h halved, the others as they come.

    Args:
        case: sizes and options, with one layer. `variable` makes a packed batch or lengths, `resets` a mask in which
            the first step of the first row and the last of the last are reset.
        members: of an ensemble; then all but batch_sizes has them in front.
        lengths: of the sequences, [B], or [members, B] if not packed; for a packed batch from the longest to the
            shortest. By default lengths are random; those of a packed batch fall by one from T to one.
        reset_state: whether a reset goes to a state of its own; else to zeros.
        batch_first: whether input and d_output lie in memory by rows and not by steps.
    """
    assert case.num_layers == 1, f"expected one layer, got {case.num_layers}"
    assert case.variable or lengths is None, "expected no lengths, since all sequences have T steps"
    front = () if members is None else (members,)
    T, B, I, H, D, P, R = (
        case.T, case.B, case.input_size, case.hidden_size, case.directions, case.proj_size, case.output_size
    )  # fmt: skip

    def values(*shape, scale=1.0):
        drawn = scale * torch.randn(*front, *shape, dtype=torch.float64, generator=generator)
        return drawn.to(device, dtype)

    def of_steps(*shape):
        drawn = values(*shape)
        return drawn.transpose(-3, -2).contiguous().transpose(-3, -2) if batch_first else drawn

    def states():
        return [values(D, B, R, scale=0.5), *[values(D, B, H) for _ in cell.states[1:]]]

    def weights(*shape, is_there=True):
        scale = shape[1] ** -0.5 if len(shape) == 2 else 1.0
        return [values(*shape, scale=scale) for _ in range(D)] if is_there else []

    rows = (T, B)
    batch_sizes = reset = None
    if case.variable == "packed":
        lengths = torch.tensor([max(T - b, 1) for b in range(B)] if lengths is None else lengths)
        batch_sizes = (torch.arange(T)[:, None] < lengths).sum(1)
        rows, lengths = (int(lengths.sum()),), None
    elif case.variable == "lengths":
        drawn = torch.randint(T + 1, (*front, B), generator=generator) if lengths is None else torch.tensor(lengths)
        lengths = drawn.to(device)
    if case.resets:
        reset = torch.rand(*front, T, B, generator=generator) < RESET
        reset[..., :1, :1] = reset[..., -1:, -1:] = True
        reset = reset.to(device)
    G = cell.gates
    layer = LayerArguments(
        of_steps(*rows, I),
        states(),
        weights(G * H, I),
        weights(G * H, R),
        weights(G * H, is_there=case.bias),
        weights(G * H, is_there=case.bias),
        weights(P, H, is_there=P > 0),
        batch_sizes,
        lengths,
        reset,
        states() if reset_state else [],
    )
    N = rows[0] if case.variable == "packed" else T * B
    d_carried = values(D, N, cell.carried * H).to(torch.promote_types(dtype, torch.float32)) if cell.carried else None
    return Layer(cell, case, layer, Incoming(of_steps(*rows, D * R), states(), d_carried))


def mapped(convert, given):
    """Arguments of an operator, or gradients of its results, with convert(tensor) for all tensors but batch_sizes."""

    def of_one(argument):
        if isinstance(argument, list):
            return list(map(of_one, argument))
        return convert(argument) if isinstance(argument, Tensor) else argument

    converted = type(given)(*map(of_one, given))
    return converted._replace(batch_sizes=given.batch_sizes) if isinstance(given, LayerArguments) else converted


def differentiable(given, dtype: torch.dtype | None = None):
    """The same with leaves that require gradients, in `dtype`, for all tensors that can have any."""
    return mapped(lambda t: t.detach().to(dtype or t.dtype).requires_grad_() if t.is_floating_point() else t, given)


def flat(results) -> list[Tensor]:
    """All tensors of an operator's results, arguments, or gradients, in a row."""
    return [tensor for result in results for tensor in reference.listed(result) if isinstance(tensor, Tensor)]


def leaves(given) -> list[Tensor]:
    """Of these the ones that require gradients."""
    return [tensor for tensor in flat(given) if tensor.requires_grad]
