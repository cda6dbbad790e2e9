"""Episodic memory: s at tau is found with IC at tau + delta, and only within an episode."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_jepa.cost.kernel_critic import KernelCritic
from lightning_jepa.memory.episodic import EpisodicMemory
from lightning_jepa.types import Modulation

ROWS = 2


def memory(capacity: int) -> EpisodicMemory:
    return EpisodicMemory(ROWS, capacity, state_size=3, action_size=2, energies=1)


def moments(episode: int, first: int, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States (row, episode, time), energies the time, critic the episode, actions (time, row)."""
    time = torch.arange(first, first + steps).float().expand(ROWS, steps)
    row = torch.arange(ROWS).float()[:, None].expand(ROWS, steps)
    number = torch.full_like(time, episode)
    return torch.stack([row, number, time], -1), time[..., None], number, torch.stack([time, row], -1)


@given(
    capacity=st.integers(2, 12),
    episodes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=4),
    delta=st.integers(1, 6),
)
def test_pairs_are_all_moments_of_an_episode_so_far_apart(capacity: int, episodes: list[list[int]], delta: int) -> None:
    held, written = memory(capacity), list[tuple[int, int]]()
    for number, parts in enumerate(episodes):
        held.begin()
        first = 0
        for steps in parts:
            held.write(*moments(number, first, steps))
            written += [(number, first + i) for i in range(steps)]
            first += steps
    kept = set(written[-capacity:])
    assert len(held) == len(kept)
    if delta >= capacity:
        with pytest.raises(ValueError, match=f"delta={delta}: this memory keeps {capacity} moments"):
            held.pairs(delta)
        return
    rows, early, late = held.pairs(delta)
    before, after = held.at(rows, early), held.at(rows, late)
    assert torch.equal(before.state[:, :2], after.state[:, :2])
    assert torch.equal(after.energies[:, 0], before.state[:, 2] + delta)
    expected = {(e, t) for e, t in kept if (e, t + delta) in kept}
    for row in range(ROWS):
        found = before.state[rows == row]
        assert {(int(e), int(t)) for _, e, t in found.tolist()} == expected


def test_what_is_sampled_belongs_together() -> None:
    held = memory(8)
    held.begin()
    held.write(*moments(0, 0, 8), imagined=True)
    before, after = held.sample(50, 3, torch.Generator().manual_seed(0))
    assert torch.equal(after.time, before.time + 3)
    assert torch.equal(before.action[:, 0], before.time.float())
    assert before.imagined.all()
    first, last = held.ends()
    assert first[:, 2].tolist() == [0, 0]
    assert last[:, 2].tolist() == [7, 7]


def test_it_is_saved_and_restored() -> None:
    held, restored = memory(5), memory(5)
    held.begin()
    held.write(*moments(0, 0, 7))
    restored.load_state_dict(held.state_dict())
    for one in (held, restored):
        one.write(*moments(0, 7, 1))
    assert all(
        torch.equal(a, b) for a, b in zip(held.state_dict().values(), restored.state_dict().values(), strict=True)
    )


def test_the_nearest_are_found() -> None:
    held = memory(6)
    held.begin()
    held.write(*moments(0, 0, 4))
    distance, slots = held.nearest(torch.tensor([[[0.0, 0, 2.2]], [[1.0, 0, 0.4]]]), lambda s: s, 2)
    assert slots[:, 0].tolist() == [[2, 3], [0, 1]]
    torch.testing.assert_close(distance[:, 0], torch.tensor([[0.2, 0.8], [0.4, 0.6]]))
    with pytest.raises(ValueError, match="5 neighbours wanted, 4 moments"):
        held.nearest(torch.zeros(2, 1, 3), lambda s: s, 5)


def test_what_does_not_fit_is_refused() -> None:
    held = memory(4)
    with pytest.raises(ValueError, match="give at least 1"):
        EpisodicMemory(0, 4, 3, 2, 1)
    with pytest.raises(ValueError, match=r"state \(3, 2, 3\): this memory takes \[2, 'T', 3\]"):
        held.write(torch.zeros(3, 2, 3), torch.zeros(3, 2, 1), torch.zeros(3, 2), torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="nothing is remembered"):
        held.ends()
    with pytest.raises(ValueError, match="no two moments"):
        held.sample(1, 1)


def test_one_event_changes_the_kernel_critic_there_and_nowhere_else() -> None:
    """TC(s) = sum_i k(s, s_i) u . IC[i + delta] / (prior + sum_i k(s, s_i))."""
    held = memory(10)
    held.begin()
    states = torch.tensor([[[0.0, 0, 0], [5, 0, 0], [9, 0, 0]]]).expand(ROWS, -1, -1)
    energies = torch.tensor([[[0.0], [0.0], [1.0]]]).expand(ROWS, -1, -1)  # it hurt after (5, 0, 0)
    held.write(states, energies, torch.zeros(ROWS, 3), torch.zeros(ROWS, 3, 2))
    critic = KernelCritic(held, lambda s: s, delta=1, bandwidth=0.5, prior=0.1)
    found = critic(states, Modulation(torch.zeros(ROWS, 3), u=torch.full((ROWS, 1), 2.0)))
    torch.testing.assert_close(found[0], torch.tensor([0.0, 2 / 1.1, 0.0]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="above 0"):
        KernelCritic(held, lambda s: s, bandwidth=0)
