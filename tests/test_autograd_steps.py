"""Derivatives of single steps (fusedlstm/_autograd_steps.py), of every cell and of several orders."""

import pytest
import torch
from family import GRU, LSTM, every, tensors_of

from fusedlstm import _autograd, _autograd_steps
from fusedlstm.cells import CELLS


@pytest.mark.parametrize("wanted", ["all", "weights", "input", "initial"])
@pytest.mark.parametrize("is_linear", [True, False])
@pytest.mark.parametrize("orders", [2, 3])
@every
def test_a_chain_of_steps(member, orders, is_linear, wanted):
    """Gradients arrive at a step's sums from its results and from its gradients; of a linear loss from the latter. The
    last order goes without a graph, by operators; those before it by the reference."""
    fused, plain = member.pair_of_cells(2, 3, dtype=torch.float64)
    torch.manual_seed(1)
    x, u = torch.randn(3, 4, 2).double(), torch.randn(3, 4, 3).double()
    states = [torch.randn(4, 3).double() for _ in CELLS[member.cell].states]

    def derivatives(module):
        given = {"input": [x.clone().requires_grad_()], "initial": [s.clone().requires_grad_() for s in states]}
        given["weights"] = list(module.parameters())
        leaves = [leaf for kind, of_kind in given.items() if wanted in ("all", kind) for leaf in of_kind]
        hx = tuple(given["initial"]) if len(states) > 1 else given["initial"][0]
        outputs = []
        for t in range(3):
            hx = module(given["input"][0][t], hx)
            outputs.append(hx[0] if len(states) > 1 else hx)
        output = torch.stack(outputs)
        loss = (output * u).sum() + (0 if is_linear else (output**3).sum())
        found, results = torch.autograd.grad(loss, leaves, create_graph=True), []
        for order in range(2, orders + 1):
            loss = sum((one**2).sum() for one in found)
            found = torch.autograd.grad(loss, leaves, create_graph=order < orders)
            results += found
        return results

    for actual, expected in zip(derivatives(fused), derivatives(plain), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@every
def test_what_arrives_at_the_sums_is_multiplied_once(member, monkeypatch):
    """Not by the operator too: of a cell whose `saved` can stand for its sums."""
    fused, _ = member.pair_of_cells(2, 3, dtype=torch.float64)
    calls = []
    for name in ("gradients_of_sums", "_cell_gradients"):
        run = getattr(_autograd_steps, name)
        monkeypatch.setattr(_autograd_steps, name, lambda *a, n=name, run=run: calls.append(n) or run(*a))
    output = fused(torch.randn(4, 2, dtype=torch.float64))
    output = output[0] if isinstance(output, tuple) else output
    found = torch.autograd.grad((output**2).sum(), list(fused.parameters()), create_graph=True)
    sum((one**2).sum() for one in found).backward()
    by_torch = CELLS[member.cell].run_step is not None
    assert calls == ([] if by_torch else ["_cell_gradients", "gradients_of_sums"])


# What is asked for: of the first gradients and of the second; how often PyTorch tells of a leaf by an exception in the
# second pass; and what that computes, of the sums, the states' gradients, the input, the states and the weights.
PASSES = {
    "input, weights": ("x", "weights", 0, (True, False, False, False, True)),
    "weights, weights": ("weights", "weights", 0, (True, False, False, False, True)),
    "input, input": ("x", "x", 1, (True, False, True, False, False)),
    "input, all": ("x", "all", 3, (True, False, True, False, True)),
    "input, incoming": ("x", "incoming", 0, (False, True, False, False, False)),
}


@pytest.mark.parametrize("first, second, exceptions, expected", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("member", [LSTM, GRU], ids=str)
def test_what_a_pass_of_second_order_asks_for(member, first, second, exceptions, expected, monkeypatch):
    """That it comes for parameters is told without an exception, where it can only come for these."""
    fused, plain = member.pair_of_cells(2, 3, dtype=torch.float64)
    told, computed = [], []
    will_run, run = _autograd.will_run, _autograd_steps.second_order_of_cell
    monkeypatch.setattr(_autograd, "will_run", lambda node: told.append(will_run(node)) or told[-1])
    monkeypatch.setattr(_autograd_steps, "second_order_of_cell", lambda *a: computed.append([a[-1], *a[5]]) or run(*a))
    x, u = torch.randn(4, 2).double().requires_grad_(), torch.randn(4, 3).double()
    u.requires_grad_(second == "incoming")
    found = []
    for module in (fused, plain):
        leaves = {"x": [x], "incoming": [u], "weights": [*module.parameters()], "all": [x, *module.parameters()]}
        h = tensors_of(module(x))[0]
        given = torch.autograd.grad((h * u).sum(), leaves[first], create_graph=True)
        told.clear()
        found.append(torch.autograd.grad(sum((one**2).sum() for one in given), leaves[second]))
        if module is fused:
            assert told.count(None) == exceptions
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    sums, incoming, of_input, of_states, of_weights = expected
    states = len(CELLS[member.cell].states)
    others = [False] * (states - 1)  # gradients of c, which none arrive at
    weights = [of_weights] * 4
    assert computed == [[sums, incoming, *others, of_input, *[of_states] * states, *weights]]
