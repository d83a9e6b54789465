"""FLOPs as PyTorch's counter gives them: those of torch.nn's layer, which in float64 is counted product by product."""

from dataclasses import replace

import pytest
import torch
from cases import OPTIONS
from family import LSTM as LSTM_MEMBER
from family import every, tensors_of
from forked_python import run_python
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

import fusedlstm
from fusedlstm import FusedGRU, FusedLSTM, FusedRNN, _library
from fusedlstm.cells import GRU, LSTM, RNN_TANH

# With projections PyTorch says that it takes the products one by one, which is what these tests need.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")

CASES = [case for case in OPTIONS if case.name in ("small", "no-bias", "bidirectional", "everything")]
OF_CELLS = [(LSTM, case) for case in CASES] + [(cell, replace(CASES[-1], proj_size=0)) for cell in (GRU, RNN_TANH)]
BATCH_SIZES = [4, 3, 3, 1, 1]


def count(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def make_input(case, arrangement, device):
    """[T, B, I] or [rows, I], and what the module is called with: the same, or a PackedSequence of it."""
    shape = (sum(BATCH_SIZES),) if arrangement == "packed" else (case.T, case.B)
    x = torch.randn(*shape, case.input_size, dtype=torch.float64, device=device)
    return x, PackedSequence(x, torch.tensor(BATCH_SIZES)) if arrangement == "packed" else x


def loss(result) -> torch.Tensor:
    output, state = result
    output = output.data if isinstance(output, PackedSequence) else output
    return sum(tensor.sum() for tensor in tensors_of([output, state]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [FusedLSTM, FusedGRU, FusedRNN])
def test_variants_count_as_the_plain_layer(kind, training):
    """What they add is no matrix product. All gradients are asked for: that of the initial state comes of itself."""
    x = torch.randn(5, 3, 4, requires_grad=True)
    counts = []
    for zoneout in (0.0, 0.1):
        module = kind(4, 6, 2, bidirectional=True, zoneout=zoneout)
        h = torch.zeros(4, 3, 6, requires_grad=True)
        hx = (h, h) if kind is FusedLSTM else h
        counts.append(count(lambda: loss(module(x, hx)).backward() if training else module(x, hx)))  # noqa: B023
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("arrangement", ["padded", "packed"])
@pytest.mark.parametrize("cell, case", OF_CELLS, ids=lambda value: value.name)
class TestAsTorchs:
    def calls(self, cell, case, arrangement, prepare=lambda module, x, states: None, device="cpu"):
        """For torch.nn's layer and the fused one, a call of the module; prepare(module, x, states) comes before."""
        for kind in (cell.layer, getattr(fusedlstm, f"Fused{cell.layer.__name__}")):
            module = kind(**case.module_kwargs(cell), dtype=torch.float64, device=device)
            x, input = make_input(case, arrangement, device)
            rows, B = case.num_layers * case.directions, BATCH_SIZES[0] if arrangement == "packed" else case.B
            sizes = (case.output_size, case.hidden_size)[: len(cell.states)]
            states = tuple(torch.randn(rows, B, size, dtype=torch.float64, device=device) for size in sizes)
            prepare(module, x, states)
            hx = states if len(states) > 1 else states[0]
            yield lambda module=module, input=input, hx=hx: module(input, hx)

    def test_in_inference(self, cell, case, arrangement):
        with torch.no_grad():
            expected, actual = map(count, self.calls(cell, case, arrangement))
        assert actual == expected > 0

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_in_training(self, cell, case, arrangement, device):
        calls = self.calls(cell, case, arrangement, device=device)
        expected, actual = (count(lambda call=call: loss(call()).backward()) for call in calls)
        assert actual == expected > 0

    @pytest.mark.parametrize("wanted", ["input", "state", "weight_ih", "weight_hh", "bias"])
    def test_where_one_gradient_is_asked_for(self, cell, case, arrangement, wanted):
        def prepare(module, x, states):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name.startswith(wanted))
            x.requires_grad_(wanted == "input")
            for state in states:
                state.requires_grad_(wanted == "state")

        if wanted == "bias" and not case.bias:
            return
        calls = self.calls(cell, case, arrangement, prepare)
        expected, actual = (count(lambda call=call: loss(call()).backward()) for call in calls)
        assert actual == expected > 0


@every
def test_of_a_cell(member):
    x = torch.randn(2, 3)
    fused, plain = member.pair_of_cells(3, 4)
    expected, actual = (count(lambda cell=cell: cell(x)[0].sum().backward()) for cell in (plain, fused))
    assert actual == expected > 0


@pytest.mark.parametrize("wanted", ["input", "weight_hh"])
@every
def test_of_the_gradients_that_a_pass_asks_for(member, wanted):
    """Although parameters require gradients: a penalty on the input's gradient does not pay for the weights'."""
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    for pair, suffix, data in ((member.pair, "_l0", x), (member.pair_of_cells, "", x[0])):
        counts = []
        for module in pair(3, 4, dtype=torch.float64):
            given = x if wanted == "input" else getattr(module, wanted + suffix)
            result = sum(tensor.sum() for tensor in tensors_of(module(data)))
            counts.append(count(lambda result=result, given=given: torch.autograd.grad(result, given)))
        assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("is_trained", [False, True])
def test_of_an_ensemble_are_those_of_its_members(is_trained):
    models = [FusedLSTM(3, 4, bidirectional=True, proj_size=2) for _ in range(3)]
    x = torch.randn(5, 2, 3)
    stacked, _ = stack_module_state(models)

    def run(function):
        result = loss(function())
        if is_trained:
            result.backward()

    with torch.set_grad_enabled(is_trained):
        one = count(lambda: run(lambda: models[0](x)))
        all_three = count(lambda: run(lambda: vmap(lambda p: functional_call(models[0], p, (x,)))(stacked)))
    assert all_three == 3 * one > 0


@every
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 2}], ids=str)
def test_of_frozen_layers_and_cells_are_those_of_others(member, options):
    x = torch.randn(5, 2, 3)
    given = [(member.one_step(3, 4), x[0])]
    if member is LSTM_MEMBER or "proj_size" not in options:
        given.append((member.layer(3, 4, **options), x))
    for module, data in given:
        with torch.no_grad():
            expected = count(lambda module=module, data=data: module(data))
            fusedlstm.freeze(module.eval())
            assert count(lambda module=module, data=data: module(data)) == expected > 0


def test_by_module():
    model = nn.Sequential(nn.Linear(3, 3), FusedLSTM(3, 4))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(5, 2, 3))[0].sum().backward()
    of_layer = counter.get_flop_counts()["Sequential.1"]
    assert {str(operator) for operator in of_layer} == {"fusedlstm.lstm_layer", "fusedlstm.lstm_layer_backward"}


@pytest.mark.parametrize("first", ["import fusedlstm", "import torch.utils.flop_counter"])
def test_are_there_whatever_is_imported_first(first):
    code = f"""
import sys
sys.path.insert(0, {str(_library.CPU_LIBRARY.parent.parent.parent)!r})
{first}
print("torch.utils.flop_counter" in sys.modules)
import fusedlstm, torch
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    fusedlstm.FusedLSTM(3, 4)(torch.randn(5, 2, 3))
print(counter.get_total_flops())
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str("flop_counter" in first), str(2 * 5 * 2 * 16 * (3 + 4))]
