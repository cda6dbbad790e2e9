"""What planners by sampling share: how candidates are drawn, judged by imagination, and the best one kept.

Legend: B episodes, S candidates, H horizon, A action, D state.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan

_BYTES = 4  # of one float32 entry of a state


class Search:
    """One Mode-2 search: the energy F(a) = sum_t C(s[t]) of candidates, and the least found (paper section 3.1.2).

    Args:
        s: where the B episodes stand, [B, D].
        world_model: imagines what follows.
        cost: C, summed over the horizon.
        modulation: the goal and weights of the moment.
        memory_mb: imagined states are held in pieces of at most this size, in megabytes (one candidate at least).

    Attributes:
        evaluations: world-model steps made so far for each episode.
    """

    def __init__(
        self, s: Tensor, world_model: WorldModel, cost: Cost, modulation: Modulation, memory_mb: float
    ) -> None:
        if s.dim() != 2:
            raise ValueError(f"the state to plan from has shape {tuple(s.shape)}, expected [B, D]: encode one frame")
        self.s, self.world_model, self.cost, self.modulation = s, world_model, cost, modulation
        self.memory_mb = memory_mb
        self.evaluations = 0
        self._best: tuple[Tensor, Tensor, Tensor] | None = None

    def evaluate(self, candidates: Tensor) -> Tensor:
        """F of candidates [B, S, H, A] -> [B, S], without gradients.

        Raises:
            ValueError: if an energy is not finite.
        """
        totals = []
        for piece in self._pieces(candidates):
            with torch.inference_mode():
                states, total = self._imagine(self.s, piece, self.modulation)
            self._keep_best(piece, states, total)
            totals.append(total)
        return torch.cat(totals, 1)

    def gradient(self, candidates: Tensor) -> Tensor:
        """dF/da of candidates [B, S, H, A]; the world model's and the cost's parameters receive none.

        Raises:
            ValueError: if an energy or a gradient is not finite.
        """
        gradients = []
        # Tensors made under inference mode, by whoever calls, can't take part in a graph, but their copies can.
        with torch.inference_mode(False), torch.enable_grad():
            s = self.s.detach().clone()
            modulation = self.modulation._replace(goal=self.modulation.goal.detach().clone())
            for piece in self._pieces(candidates):
                actions = piece.detach().clone().requires_grad_()
                states, total = self._imagine(s, actions, modulation)
                (gradient,) = torch.autograd.grad(total.sum(), actions)
                if not torch.isfinite(gradient).all():
                    raise ValueError(
                        "the gradient of the planning cost is not finite, though the cost is: world model or cost has "
                        "no derivative there (a square root at 0, a division); plan with a sampling planner instead"
                    )
                gradients.append(gradient)
                self._keep_best(piece, states.detach(), total.detach())
        return torch.cat(gradients, 1)

    def plan(self) -> Plan:
        """The best sequence evaluated so far in each episode."""
        assert self._best is not None, "nothing was evaluated"
        cost, actions, states = self._best
        return Plan(actions, states, cost, self.evaluations)

    def _pieces(self, candidates: Tensor) -> tuple[Tensor, ...]:
        one = self.s.numel() * candidates.shape[2] * _BYTES
        return candidates.split(max(1, int(self.memory_mb * 2**20 // one)), dim=1)

    def _imagine(self, s: Tensor, actions: Tensor, modulation: Modulation) -> tuple[Tensor, Tensor]:
        self.evaluations += actions.shape[1] * actions.shape[2]
        states = self.world_model.rollout(s, actions)
        total = self.cost(states, actions, modulation).sum(-1)
        if not torch.isfinite(total).all():
            raise ValueError(
                "the planning cost is not finite: predicted states or the cost overflow or hold NaN; check that the "
                "checkpoint was trained (its loss is finite) and shorten the planner's horizon if rollouts diverge"
            )
        return states, total

    def _keep_best(self, actions: Tensor, states: Tensor, total: Tensor) -> None:
        with torch.no_grad():
            least, index = total.min(1)
            found = (least.clone(), pick(actions, index[:, None])[:, 0], pick(states, index[:, None])[:, 0])
            if self._best is not None:
                better = found[0] < self._best[0]
                found = (
                    torch.where(better, found[0], self._best[0]),
                    torch.where(better[:, None, None], found[1], self._best[1]),
                    torch.where(better[:, None, None], found[2], self._best[2]),
                )
            self._best = found


class Shooting:
    """What planners that draw whole action sequences have in common.

    Args:
        horizon: actions in a candidate.
        action_size: numbers in an action.
        action_bound: largest norm of an action.
        spread: standard deviation of what is drawn, in units of `action_bound`.
        colour: temporal correlation of the noise, see `coloured_noise`.
        memory_mb: bound on the imagined states held at once.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self, horizon: int, action_size: int, action_bound: float, spread: float, colour: float, memory_mb: float
    ) -> None:
        check_counts(horizon=horizon, action_size=action_size)
        check_positive(action_bound=action_bound, spread=spread, memory_mb=memory_mb)
        check_colour(colour)
        self.horizon, self.action_size, self.action_bound = horizon, action_size, action_bound
        self.spread, self.colour, self.memory_mb = spread, colour, memory_mb

    def noise(self, count: int, generator: Generator | None, like: Tensor) -> Tensor:
        """Unit noise [S, H, A] for `count` candidates; none for the first, so that the mean itself competes."""
        noise = coloured_noise(count, self.horizon, self.action_size, self.colour, generator, like)
        noise[0] = 0
        return noise

    def around(self, mean: Tensor, std: Tensor | float, noise: Tensor) -> Tensor:
        """Candidates [B, S, H, A] that the world allows: mean [B, H, A], plus noise [S, H, A] times std [B, H, A]."""
        std = std[:, None] if isinstance(std, Tensor) else std
        return project(mean[:, None] + std * noise, self.action_bound)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Entries [B, E, ...] of values [B, S, ...] at index [B, E]."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def project(actions: Tensor, bound: float) -> Tensor:
    """Actions [..., A] shortened to the ball of radius `bound`."""
    return actions * (bound / actions.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1)


def coloured_noise(
    samples: int, horizon: int, action_size: int, colour: float, generator: Generator | None, like: Tensor
) -> Tensor:
    """Noise [S, H, A] of unit variance whose power falls with frequency f as f ** -colour (0 white, 2 a random walk).

    Every episode of a batch gets the same noise, so that what is planned in one does not depend on its neighbours.
    It is drawn on the generator's device: the same seed gives the same plan on every accelerator.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    # Twice the horizon is drawn and half of it used, because such noise is periodic: its end would return to its start.
    white = torch.randn(samples, action_size, 2 * horizon, generator=generator, device=device)
    frequency = torch.fft.rfftfreq(2 * horizon, device=device)
    frequency[0] = frequency[1]
    amplitude = frequency ** (-colour / 2)
    std = torch.fft.irfft(amplitude**2, n=2 * horizon)[0].sqrt()
    noise = torch.fft.irfft(torch.fft.rfft(white) * amplitude, n=2 * horizon)[..., :horizon] / std
    return noise.transpose(1, 2).to(like)


def warm_start(start: Tensor | None, s: Tensor, horizon: int, action_size: int) -> Tensor:
    """The sequence [B, H, A] to start from: `start` [B, h, A], cut or filled up with zeros; only zeros without one.

    Filled up with its last action instead, it would lead an agent that has arrived away from its goal again.

    Raises:
        ValueError: if the shape of `start` does not fit the episodes or the action size.
    """
    first = s.new_zeros(len(s), horizon, action_size)
    if start is None:
        return first
    if start.dim() != 3 or len(start) != len(s) or start.shape[1] < 1 or start.shape[2] != action_size:
        raise ValueError(
            f"the warm start has shape {tuple(start.shape)}, expected [{len(s)}, 1 or more, {action_size}]: "
            "set the planner's action_size to the world's, and start one sequence for each episode"
        )
    first[:, : start.shape[1]] = start[:, :horizon]
    return first


def check_counts(**counts: int) -> None:
    """ValueError for whichever named count is not an integer of at least one."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"planner.{name}={value!r}: expected an integer of 1 or more")


def check_positive(**numbers: float) -> None:
    """ValueError for whichever named number is not above zero and finite."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"planner.{name}={value!r}: expected a finite number above 0")


def check_colour(colour: float) -> None:
    """ValueError unless the correlation of noise lies where it is numerically sound."""
    if not 0 <= colour <= 8:
        raise ValueError(f"planner.colour={colour!r}: expected 0 (white noise) to 8 (all but a constant); 2 is usual")
