"""Derivatives: every subset of arguments, second order, and PyTorch's tools around backward."""

from itertools import combinations
from threading import Thread

import pytest
import torch
from cases import OPTIONS
from family import every, tensors_of
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from benchmarks.cases import Case
from fusedlstm import FusedLSTM, functional
from fusedlstm.cells import CELLS

SMALLEST = [
    Case("plain", 3, 2, 2, 3),
    Case("no-bias", 3, 2, 2, 3, bias=False),
    Case("everything", 2, 2, 2, 3, num_layers=2, bidirectional=True, proj_size=2),
]


def _call_and_inputs(case, device):
    """A function of all that can have a gradient, and those tensors, in float64."""
    module = FusedLSTM(**case.module_kwargs(), device=device, dtype=torch.float64)
    rows = case.num_layers * case.directions
    shapes = (case.T, case.B, case.input_size), (rows, case.B, case.output_size)
    shapes += ((rows, case.B, case.hidden_size),)
    inputs = [torch.randn(s, dtype=torch.float64, device=device) for s in shapes]
    inputs = [t.requires_grad_() for t in inputs] + list(module.parameters())
    names = module._all_weights

    def call(x, h, c, *parameters):
        flat = iter(parameters)
        weights = [[next(flat) for _ in layer] for layer in names]
        output, state = functional.lstm(x, (h, c), weights, bidirectional=case.bidirectional)
        return (output, *state)

    return call, inputs


@pytest.mark.parametrize("case", SMALLEST, ids=lambda case: case.name)
def test_first_and_second_order(case, device):
    call, inputs = _call_and_inputs(case, device)
    fast = case.name != "plain"  # a product with the Jacobian, all of which takes minutes where there is everything
    assert torch.autograd.gradcheck(call, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=fast)


def test_third_order(device):
    call, (x, *rest) = _call_and_inputs(SMALLEST[0], device)

    def gradient(x):
        return torch.autograd.grad(call(x, *rest)[0].sin().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(gradient, (x,), fast_mode=True)


@pytest.mark.parametrize("results", [[0], [1], [2], [0, 1], [0, 1, 2]], ids=str)
def test_each_result_alone(results, device):
    """The gradient from output, h_n or c_n only is that of nn.LSTM."""
    case = OPTIONS[-2]
    plain = nn.LSTM(**case.module_kwargs(), dtype=torch.float64, device=device)
    fused = FusedLSTM(**case.module_kwargs(), dtype=torch.float64, device=device)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(5, 3, 6, dtype=torch.float64, device=device, requires_grad=True)
    found = []
    for module in (plain, fused):
        output, state = module(x)
        loss = sum((output, *state)[k].sin().sum() for k in results)
        found.append(torch.autograd.grad(loss, [x, *module.parameters()], materialize_grads=True))
    for expected, actual in zip(*found):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_every_subset_of_arguments(device):
    """Frozen arguments get None, the others the same gradient as when all are asked for."""
    call, inputs = _call_and_inputs(SMALLEST[0], device)
    everything = torch.autograd.grad(sum(r.sum() for r in call(*inputs)), inputs)
    for size in range(1, len(inputs)):
        for chosen in combinations(range(len(inputs)), size):
            some = [t.detach().requires_grad_(k in chosen) for k, t in enumerate(inputs)]
            sum(r.sum() for r in call(*some)).backward()
            for k, tensor in enumerate(some):
                assert (tensor.grad is not None) == (k in chosen)
                if k in chosen:
                    torch.testing.assert_close(tensor.grad, everything[k], rtol=0, atol=1e-13)


@every
def test_nothing_asked_no_graph(member, device):
    module = member.layer(3, 4, device=device).requires_grad_(False)
    assert not module(torch.randn(5, 2, 3, device=device))[0].requires_grad


@every
def test_inference_mode_records_nothing_in_grad_mode_either(member, device):
    module, x = member.layer(3, 4, num_layers=2, device=device), torch.randn(5, 2, 3, device=device)
    with torch.inference_mode(), torch.enable_grad():
        output, _ = module(x)
    assert output.is_inference() and not output.requires_grad


@every
def test_eval_mode(member, device):
    module = member.layer(3, 4, device=device).eval()
    x = torch.randn(5, 2, 3, device=device, requires_grad=True)
    module(x)[0].sum().backward()
    assert x.grad is not None


@every
def test_retained_and_interleaved_graphs(member, device):
    module = member.layer(3, 4, device=device, dtype=torch.float64)
    a, b = (torch.randn(5, 2, 3, device=device, dtype=torch.float64) for _ in "ab")
    first, second = module(a)[0].sum(), module(b)[0].sum()
    first.backward(retain_graph=True)
    once = module.weight_ih_l0.grad.clone()
    second.backward()
    both = module.weight_ih_l0.grad.clone()
    first.backward()
    torch.testing.assert_close(module.weight_ih_l0.grad, both + once)
    with pytest.raises(RuntimeError, match="second time"):
        first.backward()


@pytest.mark.parametrize("changed", ["weight", "input", "output"])
@every
def test_changes_in_place_are_noticed(member, changed, device):
    module = member.layer(3, 4, device=device)
    x = torch.randn(5, 2, 3, device=device)
    output = module(x)[0]
    tensors = {"weight": module.weight_hh_l0, "input": x, "output": output}
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@every
def test_final_states_may_be_changed(member, device):
    module = member.layer(3, 4, device=device)
    output, *states = tensors_of(module(torch.randn(1, 2, 3, device=device)))
    expected = torch.autograd.grad(output.sum(), module.weight_ih_l0, retain_graph=True)
    with torch.no_grad():
        for state in states:
            state.zero_()
    assert torch.equal(torch.autograd.grad(output.sum(), module.weight_ih_l0)[0], expected[0])


@every
def test_saved_tensors_are_seen_by_hooks(member, device):
    """All that is kept for backward passes through the hooks, so that it can be moved or counted."""
    module, cell = member.layer(32, 32, device=device), CELLS[member.cell]
    x, packed = torch.randn(20, 8, 32, device=device), []

    def pack(tensor):
        packed.append(tensor)
        return len(packed) - 1

    with saved_tensors_hooks(pack, packed.__getitem__):
        output = module(x)[0]
    expected = torch.autograd.grad(module(x)[0].sum(), module.weight_hh_l0)[0]
    assert torch.equal(torch.autograd.grad(output.sum(), module.weight_hh_l0)[0], expected)
    activations = sum(t.nbytes for t in packed if t.dim() and t.numel() >= x.numel())
    assert activations <= (3 + cell.saved + cell.carried) * output.nbytes  # x, output, gates (4) and cell states
    with save_on_cpu():
        module(x)[0].sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
@every
def test_checkpoint_with_dropout(member, use_reentrant, device):
    module = member.layer(3, 4, num_layers=2, dropout=0.5, device=device)
    x = torch.randn(5, 2, 3, device=device, requires_grad=True)
    found = []
    for wrapped in (module, lambda x: checkpoint(module, x, use_reentrant=use_reentrant)):
        torch.manual_seed(2)
        output = wrapped(x)[0]
        found.append([output, *torch.autograd.grad(output.sum(), [x, *module.parameters()])]
                     if wrapped is module or not use_reentrant else [output])  # fmt: skip
        if len(found[-1]) == 1:
            module.zero_grad(), output.sum().backward()
            found[-1] += [x.grad, *(p.grad for p in module.parameters())]
    for expected, actual in zip(*found):
        assert torch.equal(actual, expected)


def test_gradient_penalty_is_not_silently_wrong(device):
    """A penalty on the input's gradient, as for a Wasserstein critic, against float64 nn.LSTM on the CPU.

    cuDNN has no second derivative.
    """
    plain, fused = nn.LSTM(3, 8, 2).double(), FusedLSTM(3, 8, 2, device=device).double()
    fused.load_state_dict(plain.state_dict())
    inputs, found = torch.randn(6, 4, 3, dtype=torch.float64), []
    for module in (plain, fused):
        x = inputs.to(module.weight_ih_l0.device).requires_grad_()
        (gradient,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        found.append([penalty, *torch.autograd.grad(penalty, list(module.parameters()))])
    for expected, actual in zip(*found):
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-10, atol=1e-12)


def _by_is_grads_batched(results, inputs, batch):
    return torch.autograd.grad(results, inputs, batch, retain_graph=True, is_grads_batched=True)


def _by_vmap(results, inputs, batch):
    return torch.func.vmap(lambda d: torch.autograd.grad(results, inputs, d, retain_graph=True))(batch)


@pytest.mark.parametrize("batched", [_by_is_grads_batched, _by_vmap])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}], ids=str)
def test_batches_of_gradients(batched, options, device):
    """Several gradients for one result at a time, of first and second order, are those found one by one."""
    module = FusedLSTM(3, 4, **options, device=device, dtype=torch.float64)
    x = torch.randn(5, 2, 3, device=device, dtype=torch.float64, requires_grad=True)
    inputs = [x, *module.parameters()]
    output = module(x)[0]
    (gradient,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
    for results in (output, gradient):
        batch = torch.randn(3, *results.shape, device=device, dtype=torch.float64)
        one_by_one = zip(*(torch.autograd.grad(results, inputs, d, retain_graph=True) for d in batch))
        for actual, expected in zip(batched(results, inputs, batch), one_by_one):
            torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=1e-12)


def test_vectorized_jacobian_and_hessian(device):
    """Against nn.LSTM on the CPU: cuDNN has no second derivative."""
    plain, fused = nn.LSTM(2, 3, dtype=torch.float64), FusedLSTM(2, 3, device=device, dtype=torch.float64)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    for of, result in ((jacobian, lambda output: output), (hessian, lambda output: output.sin().sum())):
        expected = of(lambda x, r=result: r(plain(x)[0]), x)
        actual = of(lambda x, r=result: r(fused(x)[0]), x.to(device), vectorize=True)
        torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-12)


@every
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_and_hooks(member, device):
    module, seen = member.layer(3, 4, device=device), []
    module.register_full_backward_hook(lambda *_: seen.append("module"))
    module.weight_ih_l0.register_hook(lambda g: seen.append("parameter"))
    with torch.autograd.detect_anomaly(check_nan=True):
        output = module(torch.randn(5, 2, 3, device=device, requires_grad=True))[0]
        output.retain_grad()
        output.sum().backward()
    assert output.grad is not None and set(seen) == {"module", "parameter"}


@every
def test_threads_share_a_module(member, device):
    """Calls and backward passes from several threads at once: every result is right."""
    module, x = member.layer(3, 8, num_layers=2, device=device), torch.randn(50, 4, 3, device=device)
    expected, wrong = module(x)[0].detach(), []

    def work():
        for _ in range(10):
            output = module(x)[0]
            output.sum().backward()
            if not torch.equal(output, expected):
                wrong.append(output)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
