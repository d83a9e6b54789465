"""Int8 of others as contenders: dynamic quantization by torch.ao.quantization and by ONNX Runtime.

Both quantize the weights once and the activations in each call, as fusedlstm.quantize does.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from fusedlstm.cells import GRU, LSTM

from . import machine, onnx_runtime
from .workload import INT8, Model, Workload, hx_of

# The node that a quantized LSTM is. Others of a model would run in float32, and be no int8 peer.
_NODE = "DynamicQuantizeLSTM"


def why_no_int8(workload: Workload) -> str | None:
    """As Contender's, of all that compute in int8."""
    if workload.precision != INT8:
        return "int8 only"
    if workload.training:
        return "inference only"
    return None if workload.device.type == "cpu" else "int8 on a CPU only"


def torch_int8(module: nn.Module) -> nn.Module:
    """torch.nn's layer or cell by PyTorch's dynamic quantization: activations of 7 bits, one scale for a matrix."""
    with _quiet():
        holder = torch.ao.quantization.quantize_dynamic(nn.Sequential(module), {type(module)}, dtype=torch.qint8)
    if type(holder[0]) is type(module):  # what it does not know it leaves as it is
        raise RuntimeError(f"expected a quantized {type(module).__name__}, got the float32 one")
    return holder[0]


def why_no_torch_int8(workload: Workload) -> str | None:
    """As Contender's."""
    if reason := why_no_int8(workload):
        return reason
    if workload.cell not in (LSTM, GRU) and not workload.case.by_step:
        return "not available: torch.ao.quantization has no nn.RNN"
    return "torch.ao.quantization has no projections" if workload.case.proj_size else None


def build_onnxruntime_int8(workload: Workload) -> Model:
    """The LSTM nodes of nn.LSTM's ONNX model quantized by onnxruntime.quantization, one scale for a row of weights; its
    inputs and outputs are bound as those of the float32 model."""
    return onnx_runtime.run(workload, quantized_onnx_model(workload))


def why_no_onnxruntime_int8(workload: Workload) -> str | None:
    """As Contender's."""
    if reason := why_no_int8(workload):
        return reason
    if workload.cell is not LSTM:
        return f"not available: LSTM only ({_NODE})"
    case = workload.case
    if case.by_step or case.proj_size or case.resets or case.variable:
        return "no cells, projections, resets or lengths"
    missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed" if missing else None


def quantized_onnx_model(workload: Workload) -> bytes:
    """Raises RuntimeError where a layer was left in float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    batch = workload.batches[0]
    arguments = (batch.input[: len(batch.input) // workload.calls], hx_of(batch.states))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        exported, quantized = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        # The newer exporter has other nodes between the weights and the LSTM, which the quantizer then leaves alone.
        torch.onnx.export(workload.layer(workload.cell.layer), arguments, exported, dynamo=False)
        quantize_dynamic(
            exported, quantized, per_channel=True, reduce_range=reduces_range(), weight_type=QuantType.QInt8
        )
        model = quantized.read_bytes()
    kinds = [node.op_type for node in onnx.load_from_string(model).graph.node]
    layers = workload.case.num_layers
    if kinds.count(_NODE) != layers:
        raise RuntimeError(f"expected {layers} nodes {_NODE}, got {', '.join(sorted(set(kinds)))}")
    return model


def reduces_range() -> bool:
    """Whether ONNX Runtime's weights get 7 bits, as its documentation asks for on x86-64 without VNNI: sums of 8 by 8
    bits saturate there, and the error passes 10 %."""
    return platform.machine() == "x86_64" and not machine.has_vnni()


def setting() -> str:
    """How ONNX Runtime's weights were quantized here, for the report."""
    if not reduces_range():
        return "per_channel=True, weights of 8 bits"
    return "per_channel=True, reduce_range=True: weights of 7 bits, since 8 bits saturate without VNNI"


@contextmanager
def _quiet() -> Iterator[None]:
    """Both quantizers and the exporter say at each call that there are newer or other ways."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
