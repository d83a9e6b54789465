"""Small shapes, and options, that the tests run layers with.

* `TILES`: sizes below, on and above the borders of the kernels' tiles.
* `OPTIONS`: every option of a layer.
"""

from dataclasses import replace

from benchmarks.cases import Case

# Below, on and above the tiles: 8 and 16 vector lanes, 16 matrix rows, blocks of 32 units. Every
# value of one axis meets small values of the others; the full product would be 100 shapes.
TILES = [
    Case(f"t{T}-b{B}-h{H}", T, B, I, H)
    for T, B, I, H in [
        (1, 1, 1, 1),
        (1, 1, 32, 32),
        (1, 33, 5, 7),
        (2, 2, 3, 7),
        (2, 16, 16, 32),
        (5, 3, 7, 33),
        (5, 16, 33, 32),
        (5, 33, 8, 100),
        (40, 1, 1, 33),
        (40, 2, 5, 100),
        (40, 3, 9, 1),
        (40, 33, 4, 7),
    ]
]

_SMALL = Case("small", 5, 3, 6, 10)

# Every option, alone and with others, at one small shape.
OPTIONS = [
    _SMALL,
    replace(_SMALL, name="no-bias", bias=False),
    replace(_SMALL, name="two-layers", num_layers=2),
    replace(_SMALL, name="bidirectional", bidirectional=True),
    replace(_SMALL, name="projection", proj_size=4),
    replace(_SMALL, name="projection-no-bias", proj_size=4, bias=False),
    replace(_SMALL, name="three-layers-bidirectional", num_layers=3, bidirectional=True),
    replace(
        _SMALL,
        name="everything",
        num_layers=2,
        bidirectional=True,
        proj_size=7,
    ),
]
