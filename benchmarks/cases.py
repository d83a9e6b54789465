"""What people run: the shapes that the benchmark times.

A `Case` is a layer stack and one call of it, nothing more: no dtype, device or mode (the reader of the list chooses
those). Letters as in the kernels: `T` steps, `B` batch.

* `ACCEPTANCE`: the cases of the speed goal on the CPU (every one of them is always reported).
* `USERS`: shapes taken from published programs, by field.
* `BY_STEP`: loops over a cell, as reinforcement learning, decoders and meta-learning write them.
* `GRID`: hidden size x batch, from decoding one token to filling a large GPU.
* `BENCHMARK` = all of these.
* `INT8_GRID`, `INT8_USERS`: what int8 inference is timed on; a call takes milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from torch import nn

from fusedlstm.cells import LSTM, Cell


@dataclass(frozen=True)
class Case:
    """One stack of layers and one call of it, of whatever cell; the names are those of `nn.LSTM`.

    `variable` says how sequences of different lengths reach the layer: "" (all have T steps),
    "packed" (a PackedSequence) or "lengths" (the `lengths` argument). `resets`: a boolean [T, B]
    tensor, true with probability 1/32, is passed. `by_step`: a Python loop of T steps over `nn.LSTMCell`
    takes the place of the layer (one layer in one direction, nothing variable).
    """

    name: str
    T: int
    B: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    bias: bool = True
    dropout: float = 0.0
    variable: str = ""
    resets: bool = False
    by_step: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of h: the projection's size, or the hidden size."""
        return self.proj_size or self.hidden_size

    def module_kwargs(self, cell: Cell = LSTM) -> dict:
        """Constructor arguments, for the layer of torch.nn and the fused one alike."""
        kwargs = {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bias": self.bias,
            "dropout": self.dropout,
            "bidirectional": self.bidirectional,
        }
        if cell.has_projection:
            kwargs["proj_size"] = self.proj_size
        if cell.layer is nn.RNN:
            kwargs["nonlinearity"] = cell.name.removeprefix("rnn_")
        return kwargs

    def multiply_adds(self, cell: Cell) -> int:
        """Multiply-adds of the matrix products of one forward call (all sequences full)."""
        total, input_size = 0, self.input_size
        for _ in range(self.num_layers):
            per_row = cell.gates * self.hidden_size * (input_size + self.output_size)
            per_row += self.proj_size * self.hidden_size
            total += self.directions * self.T * self.B * per_row
            input_size = self.directions * self.output_size
        return total


ACCEPTANCE = [
    Case("decode-32", 1, 1, 32, 32),
    Case("scalar-series", 40, 1, 1, 50),
    Case("digit-rows", 28, 32, 28, 100),
    Case("stream-128", 100, 1, 128, 128),
    Case("batch-16", 100, 16, 128, 128),
    Case("batch-64", 100, 64, 256, 256),
    Case("medium-512", 100, 64, 512, 512),
    Case("large-1024", 50, 128, 1024, 1024),
    Case("text-bidirectional", 20, 64, 256, 128, num_layers=2, bidirectional=True),
    Case("speech-1000", 1000, 1, 40, 512),
    Case("short-wide-batch", 10, 256, 64, 64),
    Case("hydrology-20", 365, 256, 5, 20),
    Case("rollout-128", 128, 8, 64, 128),
]

USERS = [
    # Reinforcement learning: short rollouts, few environments, episode ends inside them.
    Case("rl-b8-h128-resets", 128, 8, 64, 128, resets=True),
    Case("rl-b2-h128", 128, 2, 64, 128),
    Case("rl-b2-h256", 128, 2, 128, 256),
    Case("rl-b8-h256", 128, 8, 128, 256),
    Case("rl-b8-h512", 128, 8, 256, 512),
    Case("rl-act-h256", 1, 16, 128, 256),
    # Rainfall-runoff models: a year of days, few inputs, many catchments.
    Case("hydrology-64", 365, 256, 32, 64),
    Case("hydrology-128", 365, 256, 32, 128),
    Case("hydrology-256", 365, 256, 32, 256),
    # Servers: several Python threads call one module.
    Case("server-128", 50, 1, 128, 128),
    Case("server-256", 30, 32, 256, 256),
    # Long streams on machines that others use too.
    Case("stream-500", 500, 1, 128, 128),
    # Forecasting.
    Case("forecast-2x40", 168, 64, 12, 40, num_layers=2, dropout=0.1),
    Case("forecast-128", 96, 32, 7, 128),
    Case("forecast-2x128", 96, 32, 7, 128, num_layers=2),
    # Streaming speech recognition: the predictor of an RNN transducer, one token at a time.
    Case("rnnt-predict-b1", 1, 1, 640, 640, num_layers=2),
    Case("rnnt-predict-b16", 1, 16, 640, 640, num_layers=2),
    Case("rnnt-train", 64, 16, 640, 640, num_layers=2),
    # Audio effects: very long, very small.
    Case("audio-100000", 100_000, 1, 1, 24, num_layers=3),
    Case("audio-44100", 44_100, 1, 1, 16),
    # Speech.
    Case("speech-5x512-bidirectional", 400, 32, 80, 512, num_layers=5, bidirectional=True),
    Case("speech-packed", 400, 32, 80, 256, bidirectional=True, variable="packed"),
    Case("speech-lengths", 400, 32, 80, 256, bidirectional=True, variable="lengths"),
    Case("tacotron-encoder", 150, 32, 512, 256, bidirectional=True),
    # Suites of others.
    Case("kernelbench-6x256", 512, 10, 128, 256, num_layers=6),
    Case("kernelbench-6x256-bidirectional", 512, 10, 128, 256, num_layers=6, bidirectional=True),
    Case("flashrnn-768", 1024, 16, 768, 768),
    # Language models.
    Case("lm-3x1024", 70, 64, 1024, 1024, num_layers=3),
    Case("lm-3x1150", 70, 64, 1150, 1150, num_layers=3),
    Case("lm-decode-1024", 1, 1, 1024, 1024, num_layers=2),
    # Text of different lengths.
    Case("text-packed", 120, 64, 128, 128, num_layers=2, bidirectional=True, variable="packed"),
    Case("text-lengths", 120, 64, 128, 128, num_layers=2, bidirectional=True, variable="lengths"),
    Case("crf-tagger-packed", 40, 32, 100, 100, bidirectional=True, variable="packed"),
    # Speech synthesis (Kokoro's prosody and text encoders), one sentence of as many phonemes or frames.
    *[Case(f"kokoro-{T}-packed", T, 1, 640, 256, bidirectional=True, variable="packed") for T in (50, 200, 510)],
    # Who speaks when (pyannote), 5 and 10 seconds; one stream and a batch of windows.
    *[
        Case(f"pyannote-{T}-b{B}", T, B, 60, 128, num_layers=4, bidirectional=True)
        for T, B in product((293, 589), (1, 32))
    ],
    # Other sound: a codec, separation of instruments, a speaker's voice, voice activity one frame at a time.
    Case("encodec-75", 75, 1, 512, 512, num_layers=2),
    Case("encodec-750", 750, 1, 512, 512, num_layers=2),
    Case("open-unmix", 255, 16, 512, 256, num_layers=3, bidirectional=True),
    Case("voice-encoder", 160, 32, 40, 256, num_layers=3),
    Case("silero", 1, 1, 128, 128),
    # Text in images: one line and a batch of them (EasyOCR's recognizer), and docTR.
    *[Case(f"easyocr-b{B}", 80, B, 512, 256, bidirectional=True) for B in (1, 8)],
    Case("doctr", 32, 64, 512, 128, num_layers=2, bidirectional=True),
    # Nanopore sequencing. Bonito's and Dorado's layers alternate in direction: of the same cost as five in one.
    Case("basecall-hac", 1666, 512, 384, 384, num_layers=5),
    Case("basecall-sup", 1666, 96, 1024, 1024, num_layers=5),
    Case("clair3-128", 33, 1000, 18, 128, bidirectional=True),
    Case("clair3-160", 33, 1000, 256, 160, bidirectional=True),
    Case("medaka-128", 1000, 100, 10, 128, num_layers=2, bidirectional=True),
    Case("medaka-256", 1000, 100, 10, 256, num_layers=2, bidirectional=True),
    # Stock returns (qlib), molecules token by token (REINVENT), node embeddings over the layers of a graph network.
    Case("qlib", 20, 800, 20, 64, num_layers=2),
    Case("reinvent", 1, 128, 256, 512, num_layers=3),
    Case("pyg-jk", 5, 100_000, 128, 96, bidirectional=True),
    # Robots in simulation (Isaac Lab): thousands of environments.
    Case("isaac-1024", 24, 1024, 64, 256, resets=True),
    Case("isaac-4096", 24, 4096, 64, 256, resets=True),
    # Projections (LSTMP).
    Case("projection-512-256", 100, 64, 256, 512, proj_size=256),
    Case("projection-2048-512", 50, 64, 512, 2048, proj_size=512),
    Case("projection-128-32", 100, 16, 64, 128, proj_size=32),
]

GRID = [
    Case(f"grid-h{hidden}-b{batch}", 64, batch, hidden, hidden)
    for hidden, batch in product((64, 256, 512, 1024, 2048), (1, 16, 64, 256))
]

BY_STEP = [
    Case(f"cell-h{hidden}-b{batch}", 5, batch, hidden, hidden, by_step=True)
    for hidden, batch in product((32, 128, 512, 1024), (1, 4, 16, 64))
]

BENCHMARK = ACCEPTANCE + USERS + GRID + BY_STEP

INT8_GRID = [
    Case(f"int8-h{H}-b{B}", T, B, H, H)
    for H, B, T in [
        (64, 1, 500),
        (64, 8, 200),
        (128, 1, 200),
        (128, 4, 100),
        (128, 32, 50),
        (256, 1, 100),
        (256, 8, 50),
        (256, 32, 20),
        (512, 1, 50),
        (512, 4, 30),
        (512, 32, 8),
        (1024, 1, 10),
        (1024, 8, 5),
    ]
]

# Streams of sound, speech and its synthesis, text in images, and a decoder.
INT8_USERS = [
    *[case for case in USERS if case.name in ("rnnt-predict-b1", "encodec-75", "silero", "easyocr-b1", "easyocr-b8")],
    Case("kokoro-200", 200, 1, 640, 256, bidirectional=True),
]
