"""What will a visitor of a shop look at next? A recommender for sessions, after GRU4Rec.

The sessions are generated: a visitor goes back and forth between two shelves, and on each one mostly to the next items
of it. Where the other shelf was left, only the session's past tells: the last item alone is not enough.

nn.GRU reads a PackedSequence, and its output is padded again for the loss. FusedGRU takes the padded batch and
`lengths`, as they are; the results are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from examples.side_by_side import GRUS, MakeLayer, Training, options, plot_losses, report, run_each

_SHELVES, _ITEMS_OF_SHELF = 10, 12
_ITEMS = _SHELVES * _ITEMS_OF_SHELF
_LONGEST = 20
_SUGGESTIONS = 5
_PAST_THE_END = -1


def sessions(count: int) -> tuple[Tensor, Tensor]:
    """Items [count, _LONGEST], `_PAST_THE_END` after the last of a session, and lengths [count], 4 at least."""
    rows = torch.arange(count)
    shelves = torch.rand(count, _SHELVES).argsort(1)[:, :2]
    places = torch.randint(_ITEMS_OF_SHELF, (count, 2))
    current = torch.zeros(count, dtype=torch.int64)
    items = []
    for _ in range(_LONGEST):
        ahead = torch.tensor([0.7, 0.2, 0.1]).multinomial(count, replacement=True) + 1
        places[rows, current] = (places[rows, current] + ahead) % _ITEMS_OF_SHELF
        items.append(shelves[rows, current] * _ITEMS_OF_SHELF + places[rows, current])
        current = torch.where(torch.rand(count) < 0.3, 1 - current, current)
    lengths = torch.randint(4, _LONGEST + 1, (count,))
    items = torch.stack(items, 1)
    return items.masked_fill(torch.arange(_LONGEST) >= lengths[:, None], _PAST_THE_END), lengths


class Recommender(nn.Module):
    """Items [B, T] and lengths [B] to a score for every item to come next [B, T, items]."""

    def __init__(self, make_layer: MakeLayer, hidden_size: int = 64):
        super().__init__()
        self.embedding = nn.Embedding(_ITEMS, 32)
        self.session = make_layer(32, hidden_size, batch_first=True)
        self.scores = nn.Linear(hidden_size, _ITEMS)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        vectors = self.embedding(items.clamp_min(0))
        if isinstance(self.session, nn.GRU):
            packed = pack_padded_sequence(vectors, lengths.cpu(), batch_first=True, enforce_sorted=False)
            output, _ = self.session(packed)
            output, _ = pad_packed_sequence(output, batch_first=True, total_length=items.shape[1])
        else:
            output, _ = self.session(vectors, lengths=lengths)
        return self.scores(output)


def hit_rate(model: nn.Module, items: Tensor, lengths: Tensor) -> float:
    """How often the next item is among the `_SUGGESTIONS` with the highest scores."""
    with torch.no_grad():
        suggested = model(items[:, :-1], lengths - 1).topk(_SUGGESTIONS).indices
    following = items[:, 1:]
    hits = (suggested == following[..., None]).any(-1)
    return hits[following != _PAST_THE_END].float().mean().item()


def train(make_layer: MakeLayer, updates: int = 500, device: str = "cpu") -> Training:
    """Adam on batches of 64 new sessions; the score is the hit rate in other ones."""
    model = Recommender(make_layer).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    result = Training()
    for _ in range(updates):
        items, lengths = (data.to(device) for data in sessions(64))
        scores = model(items[:, :-1], lengths - 1)
        loss = cross_entropy(scores.flatten(0, 1), items[:, 1:].flatten(), ignore_index=_PAST_THE_END)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result.losses.append(loss.item())
    result.score = hit_rate(model, *(data.to(device) for data in sessions(1000)))
    return result


def main(argv: list[str] | None = None) -> dict[str, Training]:
    arguments = options(__doc__, argv)
    updates = 5 if arguments.quick else 500
    results = run_each(GRUS, lambda gru: train(gru, updates, arguments.device))
    report(results, f"hit rate@{_SUGGESTIONS}")
    print(f"hit rate of {_SUGGESTIONS} items by chance: {_SUGGESTIONS / _ITEMS:.4f}")
    if arguments.plot:
        plot_losses(results, arguments.plot, "Next item of a session", "update")
    return results


if __name__ == "__main__":
    main()
