"""Episodic memory: what was perceived or imagined, when, and what it cost.

Legend: B rows (episodes that go on side by side), N slots of each, T steps written at once, D state, K intrinsic terms,
A action, Q queries, M numbers of a space, n pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn


class Entries(NamedTuple):
    """What the memory holds of some moments; leading axes are those of the slots asked for."""

    time: Tensor  # int64 [...]: steps since the episode began
    state: Tensor  # [..., D]
    energies: Tensor  # [..., K]: IC_k of the state
    critic: Tensor  # [...]: TC of the state, as it was judged then
    action: Tensor  # [..., A]: the action taken in the state
    imagined: Tensor  # bool [...]


class EpisodicMemory(nn.Module):
    """Rings of (time, s, IC, TC, a, imagined), one for each of B episodes that go on side by side.

    The paper's critic retrieves the state of one time with the intrinsic energy of a later one (section 3.3, Fig. 7):
    `pairs` finds those. Contents are buffers: they are saved and restored with whoever holds the memory, and nothing
    is learned in them.

    Args:
        episodes: B.
        capacity: N, moments kept of each row; older ones are overwritten.
        state_size: D.
        action_size: A.
        energies: K.

    Raises:
        ValueError: if a size is below one (actions and energies: below zero).
    """

    # Registered below; named here for the type checker.
    episode: Tensor
    time: Tensor
    state: Tensor
    energies: Tensor
    critic: Tensor
    action: Tensor
    imagined: Tensor
    written: Tensor
    current: Tensor
    clock: Tensor

    def __init__(self, episodes: int, capacity: int, state_size: int, action_size: int, energies: int) -> None:
        super().__init__()
        if min(episodes, capacity, state_size) < 1 or min(action_size, energies) < 0:
            raise ValueError(
                f"episodes={episodes}, capacity={capacity}, state_size={state_size}, action_size={action_size}, "
                f"energies={energies}: give at least 1 of the first three and no negative number"
            )
        slots = (episodes, capacity)
        self.register_buffer("episode", torch.full(slots, -1))  # number of the episode; -1: nothing is there
        self.register_buffer("time", torch.zeros(slots, dtype=torch.long))
        self.register_buffer("state", torch.zeros(*slots, state_size))
        self.register_buffer("energies", torch.zeros(*slots, energies))
        self.register_buffer("critic", torch.zeros(slots))
        self.register_buffer("action", torch.zeros(*slots, action_size))
        self.register_buffer("imagined", torch.zeros(slots, dtype=torch.bool))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))  # moments of each row since the beginning
        self.register_buffer("current", torch.zeros((), dtype=torch.long))  # number of the episode that goes on
        self.register_buffer("clock", torch.zeros((), dtype=torch.long))  # its next time

    def __len__(self) -> int:
        """Moments held of each row."""
        return min(int(self.written), self.capacity)

    @property
    def capacity(self) -> int:
        """N."""
        return self.time.shape[1]

    def begin(self) -> None:
        """What is written from now on is another episode in every row; what is there stays."""
        self.current += 1
        self.clock.zero_()

    @torch.no_grad()
    def write(
        self, state: Tensor, energies: Tensor, critic: Tensor, action: Tensor, imagined: bool | Tensor = False
    ) -> None:
        """Append T successive moments to every row; only the last N are kept.

        Args:
            state: [B, T, D].
            energies: [B, T, K].
            critic: [B, T].
            action: [B, T, A].
            imagined: one for all, or bool [B, T].

        Raises:
            ValueError: if shapes don't fit.
        """
        steps = state.shape[1] if state.dim() == 3 else 0
        given = {"state": state, "energies": energies, "critic": critic, "action": action}
        for name, values in given.items():
            held = getattr(self, name)
            if values.shape != (len(held), steps, *held.shape[2:]):
                raise ValueError(
                    f"{name} {tuple(values.shape)}: this memory takes {[len(held), 'T', *held.shape[2:]]}; begin a "
                    "memory of as many rows as there are episodes, with the sizes of this world model and cost"
                )
        kept = min(steps, self.capacity)
        skipped = steps - kept
        slots = (int(self.written) + skipped + torch.arange(kept, device=state.device)) % self.capacity
        for name, values in given.items():
            getattr(self, name)[:, slots] = values[:, skipped:].to(getattr(self, name))
        flags = torch.as_tensor(imagined, device=state.device).expand(len(state), steps)
        self.imagined[:, slots] = flags[:, skipped:]
        self.episode[:, slots] = self.current
        self.time[:, slots] = self.clock + skipped + torch.arange(kept, device=state.device)
        self.written += steps
        self.clock += steps

    def ends(self) -> tuple[Tensor, Tensor]:
        """The first and the last state of the present episode that are remembered, [B, D] each.

        Raises:
            ValueError: if nothing was written.
        """
        if len(self) == 0 or int(self.clock) == 0:
            raise ValueError("nothing is remembered of this episode yet: write first")
        last = int(self.written) - 1
        held = min(int(self.clock), self.capacity)
        return self.state[:, (last - held + 1) % self.capacity], self.state[:, last % self.capacity]

    def at(self, rows: Tensor, slots: Tensor) -> Entries:
        """The entries in rows [...] and slots [...]."""
        return Entries(*(getattr(self, name)[rows, slots] for name in Entries._fields))

    def pairs(self, delta: int) -> tuple[Tensor, Tensor, Tensor]:
        """All moments tau whose tau + delta is remembered too (paper, Fig. 7).

        Returns:
            rows [n], slots of tau [n], slots of tau + delta [n].

        Raises:
            ValueError: if the memory can't hold two moments so far apart.
        """
        if not 1 <= delta < self.capacity:
            raise ValueError(
                f"delta={delta}: this memory keeps {self.capacity} moments of an episode, so it knows pairs that are "
                f"1 to {self.capacity - 1} steps apart; give a smaller delta or a larger memory.capacity"
            )
        later = (torch.arange(self.capacity, device=self.time.device) + delta) % self.capacity
        same = (self.episode >= 0) & (self.episode == self.episode[:, later])
        rows, slots = torch.nonzero(same & (self.time[:, later] == self.time + delta), as_tuple=True)
        return rows, slots, later[slots]

    def sample(self, count: int, delta: int, generator: Generator | None = None) -> tuple[Entries, Entries]:
        """`count` pairs of entries delta steps apart, drawn with replacement.

        Raises:
            ValueError: if there is none, or as `pairs`.
        """
        rows, early, late = self.pairs(delta)
        if len(rows) == 0:
            raise ValueError(f"no two moments {delta} steps apart are remembered yet: write longer episodes first")
        chosen = torch.randint(len(rows), (count,), generator=generator).to(rows.device)
        rows = rows[chosen]
        return self.at(rows, early[chosen]), self.at(rows, late[chosen])

    def kernel(self, queries: Tensor, embed: Callable[[Tensor], Tensor], bandwidth: float) -> Tensor:
        """How much each moment resembles each query: exp(-d^2 / 2 bandwidth^2), 0 for slots that hold nothing.

        Args:
            queries: states of each row, [B, Q, D].
            embed: from states [..., D] to the space [..., M] in which d is measured.
            bandwidth: in that space.

        Returns:
            [B, Q, N].
        """
        distance = torch.cdist(embed(queries), embed(self.state))
        return torch.exp(-distance.square() / (2 * bandwidth**2)) * (self.episode >= 0)[:, None]

    def nearest(self, queries: Tensor, embed: Callable[[Tensor], Tensor], count: int) -> tuple[Tensor, Tensor]:
        """The remembered moments closest to each query [B, Q, D]: distances and slots, [B, Q, count].

        Raises:
            ValueError: if fewer are remembered.
        """
        if count > len(self):
            raise ValueError(f"{count} neighbours wanted, {len(self)} moments are remembered: ask for fewer, or wait")
        distance = torch.cdist(embed(queries), embed(self.state))
        found = distance.masked_fill((self.episode < 0)[:, None], torch.inf).topk(count, -1, largest=False)
        return found.values, found.indices
