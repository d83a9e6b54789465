"""Bad input of FusedGRU, FusedRNN and their cells: the calls of the LSTM's tables, torch.nn's types of exceptions."""

import pytest
import torch
from family import GRU, family
from test_errors import CALLS, CONSTRUCTORS, OPTIONS, H, X
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fusedlstm
from fusedlstm import functional

CLASSES = pytest.mark.parametrize(
    "fused, plain", [(fusedlstm.FusedGRU, nn.GRU), (fusedlstm.FusedRNN, nn.RNN)], ids=["gru", "rnn"]
)


def refusal(function, *args, **kwargs):
    """The exception."""
    with pytest.raises(Exception) as caught:
        function(*args, **kwargs)
    return caught.value


@CLASSES
@pytest.mark.parametrize("args, kwargs", [(args, kwargs) for args, kwargs, *_ in CONSTRUCTORS])
@pytest.mark.filterwarnings("ignore:dropout option")
def test_constructor(fused, plain, args, kwargs):
    ours, theirs = refusal(fused, *args, **kwargs), refusal(plain, *args, **kwargs)
    assert type(ours) is type(theirs) and str(ours) == str(theirs)


@CLASSES
@pytest.mark.parametrize("proj_size", [0, 2])
def test_projections_are_the_lstm_s(fused, plain, proj_size):
    ours, theirs = (refusal(made, 3, 4, proj_size=proj_size) for made in (fused, plain))
    assert type(ours) is type(theirs) is ValueError and str(ours) == str(theirs)
    assert "only supported for LSTM" in str(ours)


@pytest.mark.parametrize("nonlinearity", ["sin", "", None, 2])
def test_nonlinearity_rnn(nonlinearity):
    """Named or as the fourth argument; the cell refuses it when it is called, as nn.RNNCell does."""
    ours, theirs = (refusal(made, 3, 4, nonlinearity=nonlinearity) for made in (fusedlstm.FusedRNN, nn.RNN))
    assert type(ours) is type(theirs) is ValueError and str(ours) == str(theirs)
    assert str(refusal(fusedlstm.FusedRNN, 3, 4, 1, nonlinearity)) == str(theirs)
    assert fusedlstm.FusedRNN(3, 4, 1, "relu", False).nonlinearity == "relu"
    ours, theirs = (
        refusal(made(3, 4, nonlinearity=nonlinearity), X[0]) for made in (fusedlstm.FusedRNNCell, nn.RNNCell)
    )
    assert type(ours) is type(theirs) is RuntimeError and str(ours) == str(theirs)
    with pytest.raises(ValueError, match=f"Unknown nonlinearity '{nonlinearity}'"):
        functional.rnn(X, None, nn.RNN(3, 4).all_weights, nonlinearity=nonlinearity)


# Of a layer (3, 4, 2 layers).
CALLS_OF_INPUT = {name: call for name, call in CALLS.items() if len(call[0]) == 1}
CALLS_OF_STATE = {
    "hx tuple": ((X, (H, H)), TypeError, "to be a Tensor, got tuple"),
    "hx tuple of one": ((X, (H,)), TypeError, "to be a Tensor, got tuple"),
    "hx list": ((X, [H]), TypeError, "to be a Tensor, got list"),
    "hx dict": ((X, {"h": H}), TypeError, "got dict"),
    "hx string": ((X, "ab"), TypeError, "got str"),
    "hx 2-D": ((X, H[0]), RuntimeError, "batched 3-D input, hx should also be 3-D but got 2-D tensor"),
    "hx 3-D for one sequence": ((X[:, 0], H), RuntimeError, "unbatched 2-D input, hx should also be 2-D but got 3-D"),
    "hx batch": ((X, H[:, :1]), RuntimeError, r"hidden size \(2, 2, 4\), got \[2, 1, 4\]"),
    "hx layers": ((X, H[:1]), RuntimeError, r"hidden size \(2, 2, 4\), got \[1, 2, 4\]"),
    "hx features": ((X, H[..., :3]), RuntimeError, r"got \[2, 2, 3\]"),
    "hx float64": ((X, H.double()), RuntimeError, "expected torch.float32, got torch.float64 for hidden"),
    "hx float16": ((X, H.half()), RuntimeError, "got torch.float16 for hidden"),
    "hx int64": ((X, H.long()), RuntimeError, "got torch.int64"),
    "hx meta": ((X, H.to("meta")), RuntimeError, "hidden tensor at meta"),
    "hx sparse": ((X, H.to_sparse()), RuntimeError, r"strided\) hidden, got torch.sparse_coo"),
}  # fmt: skip
ALL_CALLS = CALLS_OF_INPUT | CALLS_OF_STATE


# Where torch.nn fails in a product, and not in a check; for a cell and one row of state, by its features.
UNCHECKED = {"sparse", "hx float64", "hx float16", "hx int64", "hx sparse", "hx 1-D", "input float64"}


def check_refusal(fused, plain, name, args, error, text):
    """Of torch's type and text, or a TypeError where that looks for an attribute of what is no tensor."""
    with pytest.raises(error, match=text) as ours:
        fused(*args)
    theirs = refusal(plain, *args)
    if error is TypeError and isinstance(theirs, AttributeError):
        return
    assert type(theirs) is error
    if name not in UNCHECKED:
        assert str(ours.value) == str(theirs).replace("D tensor instead", "D instead")  # nn.RNN alone says "tensor"


@pytest.mark.parametrize("name", ALL_CALLS)
@family
def test_call(member, name):
    fused, plain = member.pair(3, 4, num_layers=2)
    if name == "hx sparse" and member is not GRU:
        plain = fused  # nn.RNN adds it up
    check_refusal(fused, plain, name, *ALL_CALLS[name])


OWN = {
    "state alone": ({"reset_state": H}, ValueError, "reset_state alone"),
    "state shape": (
        {"reset": torch.ones(5, 2).bool(), "reset_state": H[:, :1]},
        RuntimeError,
        r"reset_state size \(2, 2, 4\), got \[2, 1, 4\]",
    ),
    "state tuple": (
        {"reset": torch.ones(5, 2).bool(), "reset_state": (H, H)},
        TypeError,
        "reset_state to be a Tensor, got tuple",
    ),
    "cell states": ({"return_cell_states": True}, TypeError, "unexpected keyword"),
}


@pytest.mark.parametrize("name", OPTIONS | OWN)
@family
def test_option(member, name):
    options, error, text = (OPTIONS | OWN)[name]
    with pytest.raises(error, match=text):
        member.layer(3, 4, num_layers=2)(X, **options)


@family
def test_reset_of_two_directions(member):
    with pytest.raises(ValueError, match="no meaning with bidirectional=True"):
        member.layer(3, 4, bidirectional=True)(X, reset=torch.zeros(5, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    "name, value, error, text",
    [
        ("weight_hh_l0", torch.randn(3, 3), RuntimeError, r"weight_hh_l0 of shape \[{rows}, 4\].*got \[3, 3\]"),
        ("weight_ih_l0", torch.randn(4, 2), RuntimeError, r"weight_ih_l0 of shape \[{rows}, 3\].*got \[4, 2\]"),
        ("bias_hh_l0", torch.randn(1), RuntimeError, r"bias_hh_l0 of shape \[{rows}\].*got \[1\]"),
        ("bias_ih_l1", torch.randn(1, device="meta"), RuntimeError, "bias_ih_l1.*on cpu, got.*on meta"),
        ("weight_hh_l0", None, TypeError, "weight_hh_l0 to be a Tensor, got NoneType"),
        ("hidden_size", 100, RuntimeError, r"weight_ih_l0 of shape \[{many}, 3\].*got \[{rows}, 3\]"),
        ("num_layers", 5, RuntimeError, "4 weights for each of 5 layers x 1 directions, got 8"),
        ("bidirectional", True, RuntimeError, "2 layers x 2 directions, got 8"),
    ],
)
@family
def test_changed_module(member, name, value, error, text):
    """Where torch.nn reads out of bounds, broadcasts, or fails by accident."""
    module = member.layer(3, 4, num_layers=2)
    rows = len(module.weight_ih_l0)
    setattr(module, name, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)
    with pytest.raises(error, match=text.replace("{rows}", str(rows)).replace("{many}", str(25 * rows))):
        module(X)


@pytest.mark.parametrize(
    "data, batch_sizes, error, text",
    [
        (torch.ones(5, 4), (2, 2, 1), RuntimeError, "Expected 3, got 4"),
        (torch.ones(6, 3), (2, 2, 1), RuntimeError, "Expected 5 rows.*got 6"),
        (torch.ones(5, 3, 1), (2, 2, 1), RuntimeError, "2 dimensions, got 3"),
        (torch.ones(5, 3), (2, 1, 2), RuntimeError, r"non-increasing, got \[2, 1, 2\]"),
        (torch.ones(5, 3), (3, 2, 0), RuntimeError, "positive"),
        (torch.ones(5, 3), (), RuntimeError, "non-empty"),
    ],
)
@family
def test_packed(member, data, batch_sizes, error, text):
    with pytest.raises(error, match=text):
        member.layer(3, 4, num_layers=2)(PackedSequence(data, torch.tensor(batch_sizes, dtype=torch.int64)))


@family
def test_packed_of_another_dtype(member):
    """Which nn.LSTM alone leaves to its products to refuse."""
    packed = pack_sequence([torch.ones(2, 3).double(), torch.ones(1, 3).double()])
    check_refusal(*member.pair(3, 4), "packed float64", (packed,), ValueError, "does not match weight dtype")


@family
def test_states_of_packed_input(member):
    module = member.layer(3, 4, num_layers=2)
    packed = pack_sequence([torch.ones(1, 3), torch.ones(2, 3)], enforce_sorted=False)
    for batch in (1, 3):
        with pytest.raises(RuntimeError, match=rf"\(2, 2, 4\), got \[2, {batch}, 4\]"):
            module(packed, torch.zeros(2, batch, 4))
    with pytest.raises(RuntimeError, match="3-D but got 2-D"):
        module(packed, H[0])
    for options in ({"lengths": torch.ones(2).long()}, {"reset": torch.ones(2, 2).bool()}):
        with pytest.raises(ValueError, match="with a PackedSequence"):
            module(packed, **options)


def call_with_tensors(member):
    """The tensors of a call by name, and the call."""
    module = member.layer(3, 4)
    others = {"input": torch.randn(5, 2, 3), "h_0": torch.ones(1, 2, 4), "reset": torch.ones(5, 2, dtype=torch.bool)}
    call = lambda: module(others["input"], others["h_0"], reset=others["reset"])[0]  # noqa: E731
    return {**dict(module.named_parameters()), **others}, call


@pytest.mark.parametrize("name", call_with_tensors(GRU)[0])
@pytest.mark.parametrize("is_before_backward", [False, True])
@family
def test_freed_storage(member, name, is_before_backward):
    tensors, call = call_with_tensors(member)
    output = call() if is_before_backward else None
    tensors[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="with memory, got one whose storage was freed"):
        output.sum().backward() if is_before_backward else call()


@family
def test_complex_module(member):
    with pytest.raises(RuntimeError, match=r"float32, float64, bfloat16 or float16, got torch\.complex64"):
        member.layer(3, 4, dtype=torch.complex64)(X.to(torch.complex64))


@family
def test_dropout_set_out_of_range(member):
    module = member.layer(3, 4, num_layers=2, dropout=0.5)
    module.dropout = 2.0
    with pytest.raises(RuntimeError, match="dropout probability"):
        module(X)


X0, H0 = X[0], H[0]
CALLS_OF_CELLS = {
    "None": ((None,), TypeError, "to be a Tensor, got NoneType"),
    "3-D": ((X,), ValueError, "1D or 2D, got 3D"),
    "features": ((torch.ones(2, 5),), RuntimeError, "inconsistent input_size: got 5 expected 3"),
    "input float64": ((X0.double(),), RuntimeError, "does not match weight dtype"),
    "hx tuple": ((X0, (H0, H0)), TypeError, "Expected hx to be a Tensor, got tuple"),
    "hx 3-D": ((X0, H), ValueError, "1D or 2D, got 3D"),
    "hx 1-D": ((X0, H0[0]), RuntimeError, "2-D input, hx should also be 2-D but got 1-D tensor"),
    "hx features": ((X0, torch.zeros(2, 5)), RuntimeError, "hidden0 has inconsistent hidden_size: got 5, expected 4"),
    "hx batch": ((X0, torch.zeros(3, 4)), RuntimeError, "3"),
    "hx float64": ((X0, H0.double()), RuntimeError, "got torch.float64"),
}


@pytest.mark.parametrize("name", CALLS_OF_CELLS)
@family
def test_call_of_a_cell(member, name):
    check_refusal(*member.pair_of_cells(3, 4), name, *CALLS_OF_CELLS[name])


def test_functional_weights_gru():
    with pytest.raises(ValueError, match=r"GRU: Expected 2 or 4 tensors in weights\[0\], got 5"):
        functional.gru(X, None, [[*nn.GRU(3, 4).all_weights[0], X]])


@pytest.mark.parametrize("function", [functional.gru, functional.rnn], ids=["gru", "rnn"])
@pytest.mark.parametrize(
    "weights, error, text",
    [
        ([], ValueError, "got 0"),
        ([[torch.ones(12, 3)]], ValueError, "2 or 4 tensors.*got 1"),
        ([[1, 2]], TypeError, "Expected tensors"),
        ([[torch.ones(12), torch.ones(12, 4)]], RuntimeError, "hidden_size"),
    ],
)
def test_functional_weights(function, weights, error, text):
    with pytest.raises(error, match=text):
        function(X, None, weights)
