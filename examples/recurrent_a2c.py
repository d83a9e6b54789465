"""An actor-critic agent that has to remember: training on rollouts with episode ends inside them.

The game: a cue is shown at the first step of an episode; after a random number of blank steps a
signal asks for it, and naming the cue is rewarded. Eight games run side by side, so episodes end at
different steps of a rollout and the agent's memory must be cleared exactly there.

nn.LSTM cannot be told to: a program loops over the rollout, one step a call, the state multiplied
by a mask in between. FusedLSTM takes the whole rollout and `reset`, in one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from examples.side_by_side import LSTMS, Training, options, plot_losses, report, run_each

_CUES = 4
_GAMES = 8
_STEPS = 64
_DISCOUNT = 0.9


class MemoryGames:
    """Games side by side; observations [B, cues + 1]: the cue or zeros, and the question signal."""

    def __init__(self, games: int, device: str):
        self._device = device
        self._cue = torch.zeros(games, dtype=torch.long)
        self._left = torch.zeros(games, dtype=torch.long)

    def begin(self, started: Tensor) -> Tensor:
        """New episodes where started [B]; returns the observation of each game."""
        cue = torch.randint(_CUES, self._cue.shape)
        length = torch.randint(2, 7, self._left.shape)
        self._cue = torch.where(started, cue, self._cue)
        self._left = torch.where(started, length, self._left - 1)
        observation = torch.zeros(len(started), _CUES + 1)
        observation[started, self._cue[started]] = 1
        observation[:, -1] = self._left == 0
        return observation.to(self._device)

    def answer(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards [B], and which episodes are over [B]."""
        over = self._left == 0
        return (over & (action.cpu() == self._cue)).float(), over


class Agent(nn.Module):
    """Observations [T, B, F] to action logits [T, B, A] and values [T, B]."""

    def __init__(self, lstm_class: type[nn.Module], hidden_size: int = 64):
        super().__init__()
        self.lstm = lstm_class(_CUES + 1, hidden_size)
        self.policy = nn.Linear(hidden_size, _CUES)
        self.value = nn.Linear(hidden_size, 1)

    def forward(self, observations: Tensor, reset: Tensor, state: tuple[Tensor, Tensor]):
        """reset [T, B]: the state is zero before these steps."""
        if isinstance(self.lstm, nn.LSTM):
            outputs, keep = [], (~reset)[..., None].to(observations.dtype)
            for step, kept in zip(observations.split(1), keep, strict=True):
                output, state = self.lstm(step, (state[0] * kept, state[1] * kept))
                outputs.append(output)
            memory = torch.cat(outputs)
        else:
            memory, state = self.lstm(observations, state, reset=reset)
        return self.policy(memory), self.value(memory).squeeze(-1), state

    def zero_state(self, games: int, device: str) -> tuple[Tensor, Tensor]:
        shape = (1, games, self.lstm.hidden_size)
        return torch.zeros(shape, device=device), torch.zeros(shape, device=device)


@dataclass
class Rollout:
    """observations [T, B, F]; reset, actions, rewards, over [T, B]; the state before step 0."""

    observations: Tensor
    reset: Tensor
    actions: Tensor
    rewards: Tensor
    over: Tensor
    state: tuple[Tensor, Tensor]


def play(agent: Agent, games: MemoryGames, started: Tensor, state, steps: int, device: str):
    """A rollout, which games begin anew after it, and the state there."""
    first_state, columns = state, []
    with torch.no_grad():
        for _ in range(steps):
            observation = games.begin(started)
            reset = started.to(device)
            logits, _, state = agent(observation[None], reset[None], state)
            action = Categorical(logits=logits[0]).sample()
            reward, over = games.answer(action)
            columns.append((observation, reset, action, reward.to(device), over.to(device)))
            started = over
    return Rollout(*map(torch.stack, zip(*columns, strict=True)), first_state), started, state


def discounted_returns(rollout: Rollout) -> Tensor:
    """[T, B]; the last step's own reward stands for what comes after the rollout."""
    returns, later = [], torch.zeros_like(rollout.rewards[0])
    for reward, over in zip(rollout.rewards.flip(0), rollout.over.flip(0), strict=True):
        later = reward + _DISCOUNT * later * ~over
        returns.append(later)
    return torch.stack(returns[::-1])


def train(lstm_class: type[nn.Module], updates: int = 200, device: str = "cpu") -> Training:
    """One update a rollout; the score is the share of right answers in the last tenth of them."""
    agent = Agent(lstm_class).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    games = MemoryGames(_GAMES, device)
    started, state = torch.ones(_GAMES, dtype=torch.bool), agent.zero_state(_GAMES, device)
    result, right, asked = Training(), [], []
    for _ in range(updates):
        rollout, started, state = play(agent, games, started, state, _STEPS, device)
        logits, values, _ = agent(rollout.observations, rollout.reset, rollout.state)
        policy = Categorical(logits=logits)
        advantage = discounted_returns(rollout) - values
        gain = policy.log_prob(rollout.actions) * advantage.detach() + 0.01 * policy.entropy()
        loss = 0.5 * advantage.square().mean() - gain.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
        result.losses.append(loss.item())
        right.append(rollout.rewards.sum().item())
        asked.append(rollout.over.sum().item())
    last = max(1, updates // 10)
    result.score = sum(right[-last:]) / sum(asked[-last:])
    return result


def main(argv: list[str] | None = None) -> dict[str, Training]:
    arguments = options(__doc__, argv)
    updates = 3 if arguments.quick else 200
    results = run_each(LSTMS, lambda lstm: train(lstm, updates, arguments.device))
    report(results, "right answers")
    if arguments.plot:
        plot_losses(results, arguments.plot, "Actor-critic with memory", "update")
    return results


if __name__ == "__main__":
    main()
