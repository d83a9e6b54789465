"""Bad input gets an exception of nn.LSTM's type (or a better one) that says expected and got."""

import pytest
import torch
from family import every
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fusedlstm import FusedLSTM, convert, functional

CONSTRUCTORS = [
    ((), {}, TypeError, "missing 2 required positional"),
    ((3, 4), {"unknown": 1}, TypeError, "unexpected keyword argument 'unknown'"),
    ((3, 4), {"dropout": None}, TypeError, "float"),
    ((3, 4), {"dropout": "abc"}, ValueError, "could not convert"),
    ((3, 4, 2), {"dropout": True}, ValueError, "number in range"),
    ((3, 4, 2), {"dropout": -0.1}, ValueError, "number in range"),
    ((3, 4, 2), {"dropout": 1.1}, ValueError, "number in range"),
    ((3, 4, 2), {"dropout": float("nan")}, ValueError, "number in range"),
    ((3, 4, 1, 2), {}, TypeError, "bias should be of type bool, got: int"),
    ((3, 4), {"batch_first": 1}, TypeError, "batch_first should be of type bool, got: int"),
    ((3.0, 4), {}, TypeError, "input_size should be of type int, got: float"),
    ((0, 4), {}, ValueError, "input_size must be greater than zero"),
    ((-1, 4), {}, ValueError, "input_size must be greater than zero"),
    ((3, 4.0), {}, TypeError, "hidden_size should be of type int, got: float"),
    ((3, 0), {}, ValueError, "hidden_size must be greater than zero"),
    ((3, -4), {}, ValueError, "hidden_size must be greater than zero"),
    ((3, 4, 0), {}, ValueError, "num_layers must be greater than zero"),
    ((3, 4, 1.5), {}, TypeError, "integer"),
    ((3, 4), {"proj_size": -1}, ValueError, "positive integer or zero"),
    ((3, 4), {"proj_size": 4}, ValueError, "proj_size has to be smaller than hidden_size"),
    ((3, 4), {"proj_size": 5}, ValueError, "proj_size has to be smaller than hidden_size"),
    ((3, 4), {"dtype": torch.int32}, RuntimeError, "floating point"),
]


@pytest.mark.parametrize("args, kwargs, error, text", CONSTRUCTORS)
@pytest.mark.filterwarnings("ignore:dropout option")
def test_constructor(args, kwargs, error, text):
    with pytest.raises(error, match=text):
        FusedLSTM(*args, **kwargs)
    with pytest.raises(error):
        nn.LSTM(*args, **kwargs)


X = torch.ones(5, 2, 3)
H = torch.zeros(2, 2, 4)

# Of FusedLSTM(3, 4, 2).
CALLS = {
    "None": ((None,), TypeError, "to be a Tensor or PackedSequence, got NoneType"),
    "list": (([1.0],), TypeError, "got list"),
    "numpy": ((X.numpy(),), TypeError, "got ndarray"),
    "1-D": ((X[0, 0],), ValueError, "2D or 3D, got 1D"),
    "4-D": ((X[None],), ValueError, "2D or 3D, got 4D"),
    "features": ((torch.ones(5, 2, 4),), RuntimeError, "Expected 3, got 4"),
    "float64": ((X.double(),), ValueError, r"float64.*does not match weight dtype.*float32"),
    "int64": ((X.long(),), ValueError, r"int64.*does not match weight dtype.*float32"),
    "bool": ((X.bool(),), ValueError, r"bool.*does not match weight dtype.*float32"),
    "complex64": ((X.to(torch.complex64),), ValueError, r"complex64.*does not match weight dtype.*float32"),
    "sparse": ((X.to_sparse(),), RuntimeError, "strided.*got torch.sparse_coo"),
    "meta": ((X.to("meta"),), RuntimeError, "found input tensor at meta and parameter tensor at"),
    "hx tensor": ((X, torch.stack([H, H])), TypeError, "tuple.*got Tensor"),
    "hx dict": ((X, {"h": H, "c": H}), TypeError, "got dict"),
    "hx string": ((X, "ab"), TypeError, "got str"),
    "hx of none": ((X, ()), RuntimeError, "expects two hidden states, got 0"),
    "hx of one": ((X, (H,)), RuntimeError, "expects two hidden states, got 1"),
    "hx of three": ((X, (H, H, H)), RuntimeError, "expects two hidden states, got 3"),
    "hx None inside": ((X, (H, None)), TypeError, r"hx\[1\] to be a Tensor, got NoneType"),
    "hx 2-D": ((X, (H[0], H[0])), RuntimeError, r"batched 3-D input.*\(2-D, 2-D\)"),
    "hx 3-D for one sequence": ((X[:, 0], (H, H)), RuntimeError, r"unbatched 2-D.*\(3-D, 3-D\)"),
    "hx batch": ((X, (H[:, :1], H)), RuntimeError, r"hidden\[0\] size \(2, 2, 4\), got \[2, 1, 4\]"),
    "hx layers": ((X, (H, H[:1])), RuntimeError, r"hidden\[1\] size \(2, 2, 4\), got \[1, 2, 4\]"),
    "hx features": ((X, (H[..., :3], H)), RuntimeError, r"got \[2, 2, 3\]"),
    "hx float64": ((X, (H.double(), H.double())), RuntimeError, "expected torch.float32, got torch.float64"),
    "hx float16": ((X, (H, H.half())), RuntimeError, r"got torch.float16 for hidden\[1\]"),
    "hx int64": ((X, (H.long(), H.long())), RuntimeError, "got torch.int64"),
    "hx meta": ((X, (H, H.to("meta"))), RuntimeError, "hidden tensor at meta"),
    "hx sparse": ((X, (H, H.to_sparse())), RuntimeError, r"strided\) hidden\[1\], got torch.sparse_coo"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_call(name):
    args, error, text = CALLS[name]
    with pytest.raises(error, match=text):
        FusedLSTM(3, 4, 2)(*args)


OPTIONS = {
    "lengths list": ({"lengths": [5, 5]}, TypeError, "got list"),
    "lengths float": ({"lengths": torch.ones(2)}, TypeError, "integer dtype, got torch.float32"),
    "lengths bool": ({"lengths": torch.ones(2).bool()}, TypeError, "got torch.bool"),
    "lengths shape": ({"lengths": torch.ones(3).long()}, RuntimeError, r"shape \[2\], got \[3\]"),
    "lengths 2-D": ({"lengths": torch.ones(2, 1).long()}, RuntimeError, r"got \[2, 1\]"),
    "lengths high": ({"lengths": torch.tensor([6, 1])}, ValueError, "from 0 to 5, got 1 to 6"),
    "lengths low": ({"lengths": torch.tensor([-1, 1])}, ValueError, "got -1 to 1"),
    "reset list": ({"reset": [True]}, TypeError, "got list"),
    "reset dtype": ({"reset": torch.ones(5, 2)}, TypeError, "torch.bool, got torch.float32"),
    "reset shape": ({"reset": torch.ones(2, 5).bool()}, RuntimeError, r"\[5, 2\], got \[2, 5\]"),
    "reset device": ({"reset": torch.ones(5, 2, device="meta").bool()}, RuntimeError, "on meta"),
    "state alone": ({"reset_state": (H, H)}, ValueError, "reset_state alone"),
    "state shape": (
        {"reset": torch.ones(5, 2).bool(), "reset_state": (H, H[:, :1])},
        RuntimeError,
        r"reset_state\[1\] size \(2, 2, 4\), got \[2, 1, 4\]",
    ),
    "both": (
        {"reset": torch.ones(5, 2).bool(), "lengths": torch.ones(2).long()},
        ValueError,
        "one of reset and lengths",
    ),
    "positional": ({"unknown": 1}, TypeError, "unexpected keyword"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option(name):
    options, error, text = OPTIONS[name]
    with pytest.raises(error, match=text):
        FusedLSTM(3, 4, 2)(X, **options)


def test_reset_of_two_directions():
    with pytest.raises(ValueError, match="no meaning with bidirectional=True"):
        FusedLSTM(3, 4, bidirectional=True)(X, reset=torch.zeros(5, 2, dtype=torch.bool))


def _break(module, name):
    if name == "wrong shape":
        module.weight_hh_l0 = nn.Parameter(torch.randn(3, 3))
    elif name == "wrong input":
        module.weight_ih_l0 = nn.Parameter(torch.randn(16, 2))
    elif name == "one bias":
        module.bias_hh_l0 = nn.Parameter(torch.randn(1))
    elif name == "float64":
        module.weight_hh_l1 = nn.Parameter(torch.randn(16, 4).double())
    elif name == "meta":
        module.bias_ih_l1 = nn.Parameter(torch.randn(16, device="meta"))
    elif name == "None":
        module.weight_hh_l0 = None
    else:
        setattr(module, name, {"hidden_size": 100, "num_layers": 5, "bidirectional": True}[name])


@pytest.mark.parametrize(
    "name, error, text",
    [
        ("wrong shape", RuntimeError, r"weight_hh_l0 of shape \[16, 4\].*got \[3, 3\]"),
        ("wrong input", RuntimeError, r"weight_ih_l0 of shape \[16, 3\].*got \[16, 2\]"),
        ("one bias", RuntimeError, r"bias_hh_l0 of shape \[16\].*got \[1\]"),
        ("float64", RuntimeError, "weight_hh_l1.*torch.float32.*got.*torch.float64"),
        ("meta", RuntimeError, "bias_ih_l1.*on cpu, got.*on meta"),
        ("None", TypeError, "weight_hh_l0 to be a Tensor, got NoneType"),
        ("hidden_size", RuntimeError, r"weight_ih_l0 of shape \[400, 3\].*got \[16, 3\]"),
        ("num_layers", RuntimeError, "4 weights for each of 5 layers x 1 directions, got 8"),
        ("bidirectional", RuntimeError, "2 layers x 2 directions, got 8"),
    ],
)
def test_changed_module(name, error, text):
    """Where nn.LSTM reads out of bounds, broadcasts, or fails by accident."""
    module = FusedLSTM(3, 4, 2)
    _break(module, name)
    with pytest.raises(error, match=text):
        module(X)


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("hidden_size", 5, r"ih_l0 of shape \[20, 3\].*\[16, 3\]"),
        ("proj_size", 3, r"hh_l0 of shape \[16, 3\].*\[16, 2\]"),
    ],
)
def test_changed_module_with_a_state(name, value, text):
    """The state fits the weights, but not what the module says of them."""
    module = FusedLSTM(3, 4, 2, proj_size=2)
    setattr(module, name, value)
    with pytest.raises(RuntimeError, match=text):
        module(X, (H[..., :2], H))


@pytest.mark.parametrize("layers", range(6))
def test_states_of_other_numbers_of_layers(layers):
    module, state = FusedLSTM(3, 4, 2, bidirectional=True), torch.zeros(layers, 2, 4)
    if layers == 4:
        module(X, (state, state))
        return
    with pytest.raises(RuntimeError, match=rf"hidden\[0\] size \(4, 2, 4\), got \[{layers}, 2, 4\]"):
        module(X, (state, state))


@pytest.mark.parametrize("grad", [True, False])
def test_no_trace_of_the_kernels_own_exception(grad):
    """The kernels refuse first; what users see is nn.LSTM's exception alone."""
    with pytest.raises(RuntimeError, match="Expected 3, got 4") as caught, torch.set_grad_enabled(grad):
        FusedLSTM(3, 4)(torch.ones(5, 2, 4))
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize("is_fake", [True, False])
def test_fake_tensors(is_fake):
    """Which no kernel sees."""
    module, x = FusedLSTM(3, 4), torch.ones(5, 2, 4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(RuntimeError, match="Expected 3, got 4"):
        module(mode.from_tensor(x) if is_fake else x)


def _packed(data=None, batch_sizes=(2, 2, 1), dtype=torch.int64):
    data = torch.ones(5, 3) if data is None else data
    return PackedSequence(data, torch.tensor(batch_sizes, dtype=dtype))


@pytest.mark.parametrize(
    "packed, hx, error, text",
    [
        (_packed(torch.ones(5, 4)), None, RuntimeError, "Expected 3, got 4"),
        (_packed(torch.ones(5, 3).double()), None, RuntimeError, "does not match weight dtype"),
        (_packed(torch.ones(6, 3)), None, RuntimeError, "Expected 5 rows.*got 6"),
        (_packed(torch.ones(4, 3)), None, RuntimeError, "Expected 5 rows.*got 4"),
        (_packed(torch.ones(5, 3, 1)), None, RuntimeError, "2 dimensions, got 3"),
        (_packed(torch.ones(5, 3).to_sparse()), None, RuntimeError, r"strided\) PackedSequence, got torch.sparse_coo"),
        (_packed(batch_sizes=(2, 1, 2)), None, RuntimeError, r"non-increasing, got \[2, 1, 2\]"),
        (_packed(batch_sizes=(3, 2, 0)), None, RuntimeError, "positive"),
        (_packed(dtype=torch.int32), None, RuntimeError, "int64.*got.*torch.int32"),
        (_packed(batch_sizes=((2, 3),)), None, RuntimeError, r"1-D int64.*got \[1, 2\]"),
        (_packed(batch_sizes=()), None, RuntimeError, "non-empty"),
        (_packed(), (H[:, :1], H[:, :1]), RuntimeError, r"\(2, 2, 4\), got \[2, 1, 4\]"),
        (_packed(), (H[0], H[0]), RuntimeError, r"3-D but got \(2-D, 2-D\)"),
    ],
)
def test_packed(packed, hx, error, text):
    with pytest.raises(error, match=text):
        FusedLSTM(3, 4, 2)(packed, hx)


@pytest.mark.parametrize("batch", [1, 3])
def test_packed_unsorted_state_of_another_batch(batch):
    """nn.LSTM takes the rows that it needs from too large a state."""
    packed = pack_sequence([torch.ones(1, 3), torch.ones(2, 3)], enforce_sorted=False)
    hx = (torch.zeros(2, batch, 4),) * 2
    with pytest.raises(RuntimeError, match=r"\(2, 2, 4\), got"):
        FusedLSTM(3, 4, 2)(packed, hx)


@pytest.mark.parametrize("option", ["lengths", "reset"])
def test_packed_with_other_row_states(option):
    value = {"lengths": torch.ones(2).long(), "reset": torch.ones(3, 2).bool()}[option]
    with pytest.raises(ValueError, match=f"no {option} with a PackedSequence"):
        FusedLSTM(3, 4, 2)(_packed(), **{option: value})


@pytest.mark.parametrize(
    "weights, bidirectional, error, text",
    [
        ([], False, ValueError, "got 0"),
        ([[torch.ones(16, 3), torch.ones(16, 4)]], True, ValueError, "2 directions, got 1"),
        ([[torch.ones(16, 3)]], False, ValueError, "2 to 5 tensors.*got 1"),
        ([[1, 2]], False, TypeError, "Expected tensors"),
        ([[torch.ones(16), torch.ones(16, 4)]], False, RuntimeError, "4 .* hidden_size"),
        ([[torch.ones(15, 3), torch.ones(15, 4)]], False, RuntimeError, r"\[12, 3\].*\[15, 3\]"),
        (
            [[torch.ones(16, 3), torch.ones(16, 4)], [torch.ones(16, 4)]],
            False,
            RuntimeError,
            r"2 tensors in weights\[1\], got 1",
        ),
    ],
)
def test_functional_weights(weights, bidirectional, error, text):
    with pytest.raises(error, match=text):
        functional.lstm(X, None, weights, bidirectional=bidirectional)


def test_convert_wants_a_module():
    with pytest.raises(TypeError, match="Module, got int"):
        convert(3)


def test_dropout_set_out_of_range():
    module = FusedLSTM(3, 4, 2, dropout=0.5)
    module.dropout = 2.0
    with pytest.raises(RuntimeError, match="dropout probability"):
        module(X)


def test_complex_module():
    with pytest.raises(RuntimeError, match=r"float32, float64, bfloat16 or float16, got torch\.complex64"):
        FusedLSTM(3, 4, dtype=torch.complex64)(X.to(torch.complex64))


def _call_with_tensors():
    module = FusedLSTM(3, 4)
    state = {"h_0": torch.ones(1, 2, 4), "c_0": torch.ones(1, 2, 4)}
    others = {"input": torch.randn(5, 2, 3), "reset": torch.ones(5, 2, dtype=torch.bool)}
    tensors = {**dict(module.named_parameters()), **state, **others}
    return tensors, lambda: module(others["input"], tuple(state.values()), reset=others["reset"])[0]


@pytest.mark.parametrize("name", _call_with_tensors()[0])
def test_freed_storage(name):
    tensors, call = _call_with_tensors()
    tensors[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="with memory, got one whose storage was freed"):
        call()


@pytest.mark.parametrize("name", _call_with_tensors()[0])
def test_storage_freed_before_backward(name):
    tensors, call = _call_with_tensors()
    output = call()
    tensors[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="with memory, got one whose storage was freed"):
        output.sum().backward()


@every
@pytest.mark.parametrize("written", ["output", "bias_hh_l0"])
def test_writes_before_backward_are_refused(member, written):
    module = member.layer(3, 4)
    output = module(torch.randn(5, 2, 3))[0]
    with torch.no_grad():
        (output if written == "output" else getattr(module, written)).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@every
def test_casts_before_backward_are_refused(member):
    """In words alone, without the place in the sources that found it."""
    module = member.layer(3, 4)
    output = module(torch.randn(5, 2, 3))[0]
    module.half()
    with pytest.raises(
        RuntimeError, match=r"^fusedlstm: expected weight_ih of the input's dtype, float32, got float16$"
    ):
        output.sum().backward()
