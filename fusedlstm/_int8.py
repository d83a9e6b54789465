"""int8 weights: how they are rounded, and the names, shapes and layout in which `<cell>_layer_quantized` takes them.

A weight of G gates, [G * units, K], is an int8 tensor [ceil(units / 16), G, ceil(K / 4), 16, 4]: its element
[b, g, k, u, j] is that of row g * units + 16 b + u and column 4 k + j, zero beyond them. It is the same on every
processor. A row stands for its integers times its scale, float32 [G * units]; a product with integers that do not begin
at zero has to be corrected by their sum: int32 [G * units + 1], the last element of which is the largest of all
integers, without its sign, since kernels multiply small ones with fewer instructions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fusedlstm._sizes import Sizes
from fusedlstm.cells import CELLS

_UNITS, _DEPTH = 16, 4
MOST_COLUMNS = 1 << 16  # which the operators take
_FULL, _REDUCED = 127, 64  # symmetric: -128 is not used; see `quantized`


def tensors_of(sizes: Sizes, suffixes=None) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Name, shape and dtype of every tensor of a stack of layers, in the order of the operator: by layer, by direction.

    Args:
        suffixes: of the names, for each layer and direction; by default as of torch.nn's layers.
    """
    _, I, H, P, L, D, bias = sizes
    R, gates, found = P or H, CELLS[sizes.cell].gates, []
    suffixes = suffixes or [f"_l{layer}{reverse}" for layer in range(L) for reverse in ("", "_reverse")[:D]]
    for place, suffix in enumerate(suffixes):
        pairs = zip(_parts("ih", H, I if place < D else D * R, gates), _parts("hh", H, R, gates))
        own = [part for pair in pairs for part in pair]
        if bias:
            own += [(name, (gates * H,), torch.float32) for name in ("bias_ih", "bias_hh")]
        if P:
            own += _parts("hr", P, H, 1)
        found += [(name + suffix, shape, dtype) for name, shape, dtype in own]
    return found


def _parts(kind, units, columns, gates):
    return [
        (f"weight_{kind}", packed_shape(units, columns, gates), torch.int8),
        (f"scale_{kind}", (gates * units,), torch.float32),
        (f"sum_{kind}", (gates * units + 1,), torch.int32),
    ]


def fit(weights, sizes: Sizes) -> bool:
    """Whether these are as many tensors as there should be, and the first of the size that tells that of the others."""
    _, _, H, P, L, D, bias = sizes
    each = 6 + (2 if bias else 0) + (3 if P else 0)
    gates = CELLS[sizes.cell].gates
    return (
        len(weights) == L * D * each
        and weights[0].is_cpu
        and weights[2].shape == (gates * H,)
        and weights[1].shape == packed_shape(H, P or H, gates)
    )


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
    largest = rows.abs().amax().to(torch.int32)
    return _packed(rows, units), scale, torch.cat((rows.sum(1, dtype=torch.int32), largest[None]))


def dequantized(packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    """What `quantized` was given, rounded, in float32."""
    blocks, gates, depth, _, _ = packed.shape
    rows = packed.permute(1, 0, 3, 2, 4).reshape(gates, blocks * _UNITS, depth * _DEPTH)
    return rows[:, : len(scale) // gates, :columns].flatten(0, 1) * scale[:, None]


def _packed(rows: Tensor, units: int) -> Tensor:
    columns, gates = rows.size(1), rows.size(0) // units
    blocks, _, depth, *_ = packed_shape(units, columns, gates)
    whole = pad(rows.unflatten(0, (gates, units)), (0, depth * _DEPTH - columns, 0, blocks * _UNITS - units))
    return whole.view(gates, blocks, _UNITS, depth, _DEPTH).permute(1, 0, 3, 2, 4).contiguous()
