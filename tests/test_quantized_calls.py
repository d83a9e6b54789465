"""Calls of modules with int8 weights that they refuse, with the errors of the layers that they replace."""

import copy

import pytest
import torch
from family import GRU, LSTM, every
from quantized_layers import quantized_of
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fusedlstm import FusedLSTM, FusedLSTMCell, quantize, quantized
from fusedlstm.ops import OPERATORS

X = torch.randn(3, 2, 5)
STATE = torch.zeros(1, 2, 7)
# As tests/test_errors.py; the layer is a FusedLSTM(5, 7).
CALLS = {
    "None": (None,),
    "list": ([1.0],),
    "numpy": (X.numpy(),),
    "1-D": (X[0, 0],),
    "4-D": (X[None],),
    "features": (torch.ones(3, 2, 6),),
    "fewer features": (torch.ones(3, 2, 4),),
    "features of one sequence": (torch.ones(3, 8),),
    "sparse": (X.to_sparse(),),
    "meta": (X.to("meta"),),
    "hx tensor": (X, torch.stack([STATE, STATE])),
    "hx dict": (X, {"h": STATE, "c": STATE}),
    "hx of one": (X, (STATE,)),
    "hx None inside": (X, (STATE, None)),
    "hx 2-D": (X, (STATE[0], STATE[0])),
    "hx 3-D for one sequence": (X[:, 0], (STATE, STATE)),
    "hx batch": (X, (STATE[:, :1], STATE)),
    "hx features": (X, (STATE, STATE[..., :3])),
    "hx float64": (X, (STATE.double(), STATE.double())),
    "hx float16": (X, (STATE, STATE.half())),
    "hx meta": (X, (STATE, STATE.to("meta"))),
    "hx sparse": (X, (STATE, STATE.to_sparse())),
    "packed features": (pack_sequence([torch.ones(3, 6)]),),
    "packed sizes": (PackedSequence(torch.ones(4, 5), torch.tensor([2, 3])),),
    "packed hx": (pack_sequence([X[:, 0]]), (STATE, STATE)),
    "lengths list": (X, None, [3, 3]),
    "lengths high": (X, None, torch.tensor([4, 1])),
    "lengths shape": (X, None, torch.ones(3).long()),
    "reset dtype": (X, None, None, torch.ones(3, 2)),
    "reset shape": (X, None, None, torch.ones(2, 3).bool()),
    "reset state alone": (X, None, None, None, (STATE, STATE)),
    "reset state shape": (X, None, None, torch.ones(3, 2).bool(), (STATE, STATE[:, :1])),
    "reset and lengths": (X, None, torch.tensor([3, 1]), torch.ones(3, 2).bool()),
    "packed with lengths": (pack_sequence([X[:, 0]]), None, torch.tensor([3])),
}
CELL_CALLS = {
    "None": (None,),
    "3-D": (X,),
    "features": (torch.ones(2, 6),),
    "fewer features": (torch.ones(2, 4),),
    "hx tensor": (X[0], STATE[0]),
    "hx of one": (X[0], (STATE[0],)),
    "hx 3-D": (X[0], (STATE, STATE)),
    "hx 1-D": (X[0], (STATE[0, 0], STATE[0, 0])),
    "hx batch": (X[0], (STATE[0, :1], STATE[0, :1])),
    "hx features": (X[0], (STATE[0], STATE[0, :, :3])),
    "hx dtype": (X[0], (STATE[0].double(), STATE[0].double())),
    "hx meta": (X[0], (STATE[0].to("meta"), STATE[0].to("meta"))),
    "meta": (X[0].to("meta"),),
}


class TestCalls:
    """Malformed ones are refused as by the layer that was quantized."""

    def check(self, layer, call):
        texts = []
        for module in (layer, quantize(copy.deepcopy(layer))):
            with pytest.raises(Exception) as caught:
                module(*call)
            texts.append((type(caught.value), str(caught.value)))
            assert caught.value.__cause__ is None
        assert texts[0] == texts[1]

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_malformed(self, call):
        self.check(FusedLSTM(5, 7).eval(), call)

    @pytest.mark.parametrize("call", CELL_CALLS.values(), ids=CELL_CALLS)
    def test_malformed_of_a_cell(self, call):
        self.check(FusedLSTMCell(5, 7).eval(), call)

    @every
    def test_malformed_of_every_cell(self, member):
        calls = [(torch.ones(3, 2, 6),), (X, [STATE] * 3), (X, STATE[0]), (X, torch.zeros(1, 2, 6)), (X[None],)]
        for call in calls:
            self.check(member.layer(5, 7).eval(), call)
        self.check(member.one_step(5, 7).eval(), (X[0], torch.zeros(2, 6)))

    def test_reset_of_two_directions(self):
        self.check(FusedLSTM(5, 7, bidirectional=True).eval(), (X, None, None, torch.ones(3, 2).bool()))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.complex64])
    def test_input_of_another_dtype(self, dtype):
        """With the type of the layer's exception; its text speaks of weights."""
        text = (
            rf"RNN input dtype \({dtype}\) does not match the dtype in which quantized layers compute \(torch.float32\)"
        )
        x, cell = X.to(dtype), quantize(FusedLSTMCell(5, 7).eval())
        for kind, call in ((ValueError, x), (ValueError, x[:, 0]), (RuntimeError, pack_sequence([x[:, 0]]))):
            for module in (FusedLSTM(5, 7).eval(), quantize(FusedLSTM(5, 7).eval())):
                with pytest.raises(kind, match=text if isinstance(module, quantized.Quantized) else "does not match"):
                    module(call)
        with pytest.raises(RuntimeError, match=text):
            cell(x[0])

    @pytest.mark.parametrize("place", ["input", "packed input", "state", "listed state", "reset state", "one sequence"])
    @pytest.mark.parametrize("layers", [1, 2])
    def test_gradients(self, place, layers):
        _, module = quantized_of(LSTM, 5, 7, num_layers=layers)
        x, state = X.clone(), torch.zeros(layers, 2, 7)
        (state if place.endswith("state") else x).requires_grad_()
        input = {"packed input": lambda: pack_sequence([x[:, 0], x[:, 1]]), "one sequence": lambda: x[:, 0]}
        hx = (list if place == "listed state" else tuple)((torch.zeros(layers, 2, 7), state))
        call = (input.get(place, lambda: x)(), None if "sequence" in place else hx)
        if place == "reset state":
            call = (x, None, None, torch.ones(3, 2).bool(), (state, state))
        with pytest.raises(RuntimeError, match="for inference: expected arguments without gradients, got one that"):
            module(*call)
        with torch.no_grad():
            module(*call)
        with torch.inference_mode():
            module(*call)
        assert not module(X)[0].requires_grad

    @every
    def test_gradients_and_training_mode_of_a_cell(self, member):
        cell = quantize(member.one_step(5, 7).eval())
        with pytest.raises(RuntimeError, match="expected arguments without gradients"):
            cell(X[0].clone().requires_grad_())
        with pytest.raises(RuntimeError, match=rf"{type(cell).__name__} is for inference: expected evaluation mode"):
            cell.train()(X[0])

    @every
    def test_training_mode(self, member):
        _, module = quantized_of(member, 5, 7)
        with pytest.raises(RuntimeError, match=r"expected evaluation mode, got training mode; call model\.eval\(\)"):
            module.train()(X)

    def test_what_is_kept_of_all_steps(self):
        module, gru = quantize(FusedLSTM(5, 7).eval()), quantize(GRU.layer(5, 7).eval())
        for layer, argument in ((module, "return_cell_states"), (module, "return_gates"), (gru, "return_gates")):
            layer(X, **{argument: False})
            with pytest.raises(NotImplementedError, match=f"expected no {argument}, got {argument}=True"):
                layer(X, **{argument: True})

    def test_on_another_device(self):
        """Also where all of it is there."""
        for layer in (LSTM.layer(5, 7), LSTM.layer(5, 7, num_layers=2)):
            module = quantize(layer.eval()).to("meta")
            with pytest.raises(
                RuntimeError, match=r"on the CPU, where alone they run, got them on meta; call model\.cpu"
            ):
                module(X.to("meta"))
            with pytest.raises(RuntimeError, match="not at the same device"):
                module(X)
        cell = quantize(FusedLSTMCell(5, 7).eval()).to("meta")
        with pytest.raises(RuntimeError, match="on the CPU, where alone they run"):
            cell(X[0].to("meta"))

    @pytest.mark.parametrize(
        "name, value, error, text",
        [
            ("weight_hh_l0", torch.zeros(1, 4, 1, 16, 4, dtype=torch.int8), RuntimeError, r"\[1, 4, 2, 16, 4\]"),
            ("weight_ih_l0", torch.zeros(28, 5), RuntimeError, r"weight_ih_l0 of shape \[1, 4, 2, 16, 4\], torch.int8"),
            ("scale_hh_l0", torch.zeros(28).double(), RuntimeError, "scale_hh_l0.*float32.*got.*float64"),
            ("sum_ih_l0", torch.zeros(28, dtype=torch.int32, device="meta"), RuntimeError, "sum_ih_l0.*got.*on meta"),
            (
                "sum_hh_l0",
                torch.zeros(29, dtype=torch.int32),
                RuntimeError,
                r"sum_hh_l0 of shape \[29\], torch.int16, on cpu, got \[29\], torch.int32, on cpu",
            ),
            ("bias_gates_l0", torch.zeros(56), RuntimeError, r"bias_gates_l0 of shape \[28\].*, got \[56\]"),
            ("bias_gates_l0", None, TypeError, "bias_gates_l0 to be a Tensor, got NoneType"),
            ("hidden_size", 8, RuntimeError, r"scale_ih_l0 of shape \[32\], torch.float32, on cpu, got \[28\]"),
            ("num_layers", 2, RuntimeError, "Expected 14 tensors of quantized weights, got 7"),
            ("input_size", 6, RuntimeError, "Expected 6, got 5"),
        ],
    )
    def test_changed_modules(self, name, value, error, text):
        _, module = quantized_of(LSTM, 5, 7)
        setattr(module, name, value)
        with pytest.raises(error, match=text):
            module(X)

    def test_freed_memory(self):
        _, module = quantized_of(LSTM, 5, 7)
        module.weight_hh_l0.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="with memory, got one whose storage was freed"):
            module(X)

    @pytest.mark.parametrize("layers", [1, 2])
    def test_calls_own_the_weights_no_longer_than_they_last(self, layers):
        _, module = quantized_of(LSTM, 5, 7, num_layers=layers)
        weights = module._weights()
        owners = [weight._use_count() for weight in weights]
        module(X)
        with pytest.raises(RuntimeError, match="expected weight_hh of size"):
            OPERATORS["lstm"].stack_quantized(X, None, None, [*weights[1:], weights[0]], layers)
        with pytest.raises(RuntimeError, match="expected weights for 3 layers"):
            OPERATORS["lstm"].stack_quantized(X, None, None, weights, 3)
        assert [weight._use_count() for weight in weights] == owners

    def test_weights_that_override_operators_are_asked(self):
        asked = []

        class Watched(torch.Tensor):
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                asked.append(function)
                return super().__torch_function__(function, types, args, kwargs or {})

        _, module = quantized_of(LSTM, 5, 7)
        expected = module(X)[0]
        module.scale_hh_l0 = module.scale_hh_l0.as_subclass(Watched)
        asked.clear()
        assert torch.equal(module(X)[0].as_subclass(torch.Tensor), expected)
        assert OPERATORS["lstm"].quantized in asked
