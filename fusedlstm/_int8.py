"""int8 weights: how they are rounded, and the names, shapes and layout in which `<cell>_layer_quantized` takes them.

A weight of G gates, [G * units, K], is an int8 tensor [ceil(units / 16), G, ceil(K / 4), 16, 4]: its element
[b, g, k, u, j] is that of row g * units + 16 b + u and column 4 k + j, zero beyond them. It is the same on every
processor. A row stands for its integers times its scale, float32 [G * units]; a product with integers that do not begin
at zero has to be corrected by their sum: [G * units + 1], the last element of which is the largest of all integers,
without its sign, since kernels multiply small ones with fewer instructions. Of K up to 258 these fit in int16, whatever
the row, and are int16; else int32.

Biases, float32, are in one tensor [(G + apart) * units]: G of the input's part, which of joined gates are the sum of
both biases, then those that h's part of the gates apart (n of the GRU) has for itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fusedlstm._sizes import Sizes
from fusedlstm.cells import CELLS, Cell

_UNITS, _DEPTH = 16, 4
MOST_COLUMNS = 1 << 16  # which the operators take
_FULL, _REDUCED = 127, 64  # symmetric: -128 is not used; see `quantized`


def tensors_of(sizes: Sizes, suffixes=None) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Name, shape and dtype of every tensor of a stack of layers, in the order of the operator: by layer, by direction.

    Args:
        suffixes: of the names, for each layer and direction; by default as of torch.nn's layers.
    """
    _, I, H, P, L, D, bias = sizes
    cell, R, found = CELLS[sizes.cell], P or H, []
    suffixes = suffixes or [f"_l{layer}{reverse}" for layer in range(L) for reverse in ("", "_reverse")[:D]]
    for place, suffix in enumerate(suffixes):
        pairs = zip(_parts("ih", H, I if place < D else D * R, cell.gates), _parts("hh", H, R, cell.gates))
        own = [part for pair in pairs for part in pair]
        if bias:
            own.append(("bias_gates", (cell.sums * H,), torch.float32))
        if P:
            own += _parts("hr", P, H, 1)
        found += [(name + suffix, shape, dtype) for name, shape, dtype in own]
    return found


def _parts(kind, units, columns, gates):
    return [
        (f"weight_{kind}", packed_shape(units, columns, gates), torch.int8),
        (f"scale_{kind}", (gates * units,), torch.float32),
        (f"sum_{kind}", (gates * units + 1,), _dtype_of_sums(columns)),
    ]


def _dtype_of_sums(columns) -> torch.dtype:
    return torch.int16 if _FULL * columns <= torch.iinfo(torch.int16).max else torch.int32


def fit(weights, sizes: Sizes) -> bool:
    """Whether these are as many tensors as there should be, and the first of the size that tells that of the others."""
    _, _, H, P, L, D, bias = sizes
    each = 6 + (1 if bias else 0) + (3 if P else 0)
    gates = CELLS[sizes.cell].gates
    return (
        len(weights) == L * D * each
        and weights[0].is_cpu
        and weights[2].shape == (gates * H,)
        and weights[1].shape == packed_shape(H, P or H, gates)
    )


def sizes_of_layer(weights, cell: Cell) -> tuple[int, int, int]:
    """D, H and P that one layer's tensors tell; P is 0 without a projection."""
    D = 1 if len(weights) < 12 else 2  # of 6 to 10
    has_projection = len(weights) // D > 7
    return D, len(weights[2]) // cell.gates, len(weights[-2]) if has_projection else 0


def packed_shape(units, columns, gates) -> tuple[int, ...]:
    return -(-units // _UNITS), gates, -(-columns // _DEPTH), _UNITS, _DEPTH


def quantized(weight: Tensor, units: int, reduce_range: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [G * units, K], of any floating-point dtype, packed; the scales of its rows; their sums.

    One scale a row, max |row| / 127 in float32, or / 64 where the range is reduced: integers are the nearest, halves to
    even. Of a row of zeros, 0.
    """
    limit = _REDUCED if reduce_range else _FULL
    weight = weight.to(torch.float32)
    scale = weight.abs().amax(1) / limit
    is_zero = scale == 0
    rows = weight / scale.masked_fill(is_zero, 1)[:, None]
    # One ulp beyond the limit, where the scale was rounded down; far beyond it, where that was a subnormal.
    rows = rows.round().clamp(-limit, limit).masked_fill(is_zero[:, None], 0).to(torch.int8)
    dtype = _dtype_of_sums(rows.size(1))
    largest = rows.abs().amax().to(dtype)
    return _packed(rows, units), scale, torch.cat((rows.sum(1, dtype=dtype), largest[None]))


def dequantized(packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    """What `quantized` was given, rounded, in float32."""
    blocks, gates, depth, _, _ = packed.shape
    rows = packed.permute(1, 0, 3, 2, 4).reshape(gates, blocks * _UNITS, depth * _DEPTH)
    return rows[:, : len(scale) // gates, :columns].flatten(0, 1) * scale[:, None]


def joined(bias_ih: Tensor, bias_hh: Tensor, cell: Cell) -> Tensor:
    """Biases [G * units] of any floating-point dtype as one tensor."""
    bias_ih, bias_hh = bias_ih.to(torch.float32), bias_hh.to(torch.float32)
    first = _joined_gates(cell) * (len(bias_ih) // cell.gates)
    return torch.cat((bias_ih[:first] + bias_hh[:first], bias_ih[first:], bias_hh[first:]))


def parted(bias: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
    """Biases [G * units] that do what those that `joined` was given do: of joined gates the second is zero."""
    units = len(bias) // cell.sums
    bias_ih, of_apart = bias.split((cell.gates * units, cell.is_apart * units))
    return bias_ih, torch.cat((bias.new_zeros(_joined_gates(cell) * units), of_apart))


def _joined_gates(cell: Cell) -> int:
    return cell.gates - cell.is_apart


def _packed(rows: Tensor, units: int) -> Tensor:
    columns, gates = rows.size(1), rows.size(0) // units
    blocks, _, depth, *_ = packed_shape(units, columns, gates)
    whole = pad(rows.unflatten(0, (gates, units)), (0, depth * _DEPTH - columns, 0, blocks * _UNITS - units))
    return whole.view(gates, blocks, _UNITS, depth, _DEPTH).permute(1, 0, 3, 2, 4).contiguous()
