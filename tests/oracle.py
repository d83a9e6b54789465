"""One call, run in several ways: outputs and every gradient, to be compared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from tolerance import assert_near, tolerance
from torch import Tensor, nn

import fusedlstm
from benchmarks.cases import Case
from fusedlstm import _run, reference
from fusedlstm.cells import LSTM


@dataclass
class Inputs:
    """Everything that goes into a call, in float64, already rounded to the dtype under test."""

    x: Tensor
    hx: tuple[Tensor, Tensor]
    state_dict: dict[str, Tensor]
    cotangents: list[Tensor]  # of output, h_n, c_n: what the loss multiplies them with

    def to(self, device, dtype) -> Inputs:
        def moved(tensors):
            return [t.to(device, dtype) for t in tensors]

        state_dict = {k: v.to(device, dtype) for k, v in self.state_dict.items()}
        x, *rest = moved([self.x, *self.hx, *self.cotangents])
        return Inputs(x, (rest[0], rest[1]), state_dict, rest[2:])


def make_inputs(case: Case, dtype: torch.dtype, batch_first: bool = False) -> Inputs:
    """Random inputs of the size that layers see; the weights as nn.LSTM draws them."""

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(dtype).double()

    rows, R = case.num_layers * case.directions, case.output_size
    outer = (case.B, case.T) if batch_first else (case.T, case.B)
    hx = draw(rows, case.B, R) / 2, draw(rows, case.B, case.hidden_size) / 2
    cotangents = [draw(*outer, case.directions * R), *(draw(*s.shape) for s in hx)]
    module = nn.LSTM(**case.module_kwargs(), dtype=torch.float64)
    state_dict = {k: v.to(dtype).double() for k, v in module.state_dict().items()}
    return Inputs(draw(*outer, case.input_size), hx, state_dict, cotangents)


def run(make_module, case: Case, inputs: Inputs, **options) -> dict[str, Tensor]:
    """output, h_n, c_n and the gradients of x, h_0, c_0 and every parameter, by name.

    `make_module`: nn.LSTM, fusedlstm.FusedLSTM, or another with the same arguments. `options` go
    to its forward.
    """
    x = inputs.x.clone().requires_grad_()
    hx = tuple(s.clone().requires_grad_() for s in inputs.hx)
    module = make_module(**case.module_kwargs(), device=x.device, dtype=x.dtype)
    module.load_state_dict(inputs.state_dict)
    output, (h_n, c_n) = module(x, hx, **options)
    results = (output, h_n, c_n)
    torch.autograd.backward(results, inputs.cotangents)
    named = dict(zip(("output", "h_n", "c_n"), results))
    named |= {"d_x": x.grad, "d_h_0": hx[0].grad, "d_c_0": hx[1].grad}
    return named | {f"d_{name}": p.grad for name, p in module.named_parameters()}


class ReferenceLSTM(fusedlstm.FusedLSTM):
    """FusedLSTM whose layers run `layer`, the reference or a variant of it."""

    layer = staticmethod(partial(reference.layer, LSTM))

    def forward(self, *args, **kwargs):
        with mock.patch.multiple(_run, choose=lambda *_: self.layer, is_plain=lambda *_: False):
            return super().forward(*args, **kwargs)


def check(actual, expected, case: Case, dtype) -> dict[str, float]:
    """Compare two results of `run`; returns the used part of each tolerance."""
    terms = case.input_size + case.output_size
    weight_terms = terms + case.T * case.B
    used = {}
    for name, value in expected.items():
        n = weight_terms if "weight" in name or "bias" in name else terms
        allowed = tolerance(dtype, n, case.T, case.num_layers, actual[name].device.type)
        used[name] = assert_near(actual[name], value, allowed, f"{case.name} {dtype} {name}")
    return used
