"""The world model's own rows of E1: probes, rollouts, contact and the planning cost's order, with their controls.

Legend: N samples, D state, F factors (agent_x, agent_y, wall_x, door_y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, nn

from lightning_jepa.evaluation import contact
from lightning_jepa.evaluation.cost_rank import MakeCost, cost_rank_correlation
from lightning_jepa.evaluation.episodes import share
from lightning_jepa.evaluation.floors import PixelDistance, TrueDynamics
from lightning_jepa.evaluation.probes import LinearProbe, fit_probe, r2_figures, randomised, score
from lightning_jepa.evaluation.results import Figure, Rows, mean
from lightning_jepa.evaluation.rollouts import rollout_errors
from lightning_jepa.evaluation.states import encode_frames
from lightning_jepa.evaluation.walks import Walks, random_walks
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.protocols import Cost, WorldModel

HORIZONS = (1, 8, 16)
EVERY = 4  # frames of one walk are alike: every fourth is probed


@dataclass(frozen=True)
class WorldModelRows:
    """Metrics and controls, the walks they were measured on, and the probe that reads positions off states."""

    metrics: Rows
    controls: dict[str, Rows]
    walks: Walks
    probe: LinearProbe


class WorldModelExam:
    """Measures a frozen world model on held-out layouts.

    Args:
        world: where walks are made; models are on its device.
        probe_walks: walks of 16 steps in training layouts that probes are fitted on.
        test_walks: walks of 16 steps in held-out layouts for probes and rollouts.
        pushes: pushes at the wall, and as many through the door.
        rank_layouts: layouts in which the cost's order is compared with the true way's.
    """

    def __init__(self, world: ExamWorld, probe_walks: int, test_walks: int, pushes: int, rank_layouts: int) -> None:
        self.world, self.probe_walks, self.test_walks = world, probe_walks, test_walks
        self.pushes, self.rank_layouts = pushes, rank_layouts

    def run(self, jepa: WorldModel, cost: Cost, planning_cost: MakeCost, seed: int) -> WorldModelRows:
        """Measure a JEPA, the energy of goals, and the cost that planning descends, which may be another.

        The JEPA has to be an `nn.Module` for the random-encoder control.
        """
        generator = Generator().manual_seed(seed)
        fit = random_walks(self.world, "train", self.probe_walks, HORIZONS[-1], generator)
        test = random_walks(self.world, "held_out", self.test_walks, HORIZONS[-1], generator)
        metrics, probe = probe_rows(self.world.truth_names, jepa, fit, test)
        if not isinstance(jepa, nn.Module):
            raise ValueError(f"{type(jepa).__name__} has no weights to randomise for the control; give an nn.Module")
        control, _ = probe_rows(self.world.truth_names, randomised(jepa, seed), fit, test)
        controls = {key: {"random_encoder": control[key]} for key in metrics}
        positions = probe.first(2)
        for rows in (
            self._rollouts(jepa, positions, test),
            self._contact(jepa, positions, seed),
            self._rank(jepa, cost, planning_cost, seed),
        ):
            metrics.update(rows[0])
            controls.update(rows[1])
        return WorldModelRows(metrics, controls, test, positions)

    def _rollouts(self, jepa: WorldModel, probe: LinearProbe, test: Walks) -> tuple[Rows, dict[str, Rows]]:
        errors = rollout_errors(jepa, test, probe, HORIZONS)
        rows, controls = {}, {}
        for column, horizon in enumerate(HORIZONS):
            key = f"rollout_error_px_{horizon}"
            rows[key] = mean(errors.model[:, column].tolist())
            controls[key] = {
                "copy_last": mean(errors.copy_last[:, column].tolist()),
                "shuffled_actions": mean(errors.shuffled_actions[:, column].tolist()),
            }
        touched = errors.model[errors.touched[:, -1], -1].tolist()
        if touched:
            rows[f"rollout_error_px_{HORIZONS[-1]}_contact"] = mean(touched)
        return rows, controls

    def _contact(self, jepa: WorldModel, probe: LinearProbe, seed: int) -> tuple[Rows, dict[str, Rows]]:
        rows, controls, truth = {}, {}, TrueDynamics(self.world)
        for key, test in (("wall_leak_rate", contact.leaks), ("door_pass_rate", contact.passes)):
            rows[key] = share(test(self.world, jepa, probe, self.pushes, Generator().manual_seed(seed)))
            true = test(self.world, truth, lambda s: s, self.pushes, Generator().manual_seed(seed))
            controls[key] = {"true_dynamics": share(true)}
        return rows, controls

    def _rank(self, jepa: WorldModel, cost: Cost, planning_cost: MakeCost, seed: int) -> tuple[Rows, dict[str, Rows]]:
        def correlation(world_model: WorldModel, make_cost: MakeCost) -> Figure:
            generator = Generator().manual_seed(seed)
            found = cost_rank_correlation(self.world, world_model, make_cost, generator, layouts=self.rank_layouts)
            return mean(found.tolist())

        key, raw = "cost_rank_correlation", PixelDistance()
        floors = {
            "goal_energy": correlation(jepa, lambda s, goal: cost),
            "pixel_distance": correlation(TrueDynamics(self.world), lambda s, goal: raw),
        }
        return {key: correlation(jepa, planning_cost)}, {key: floors}


def probe_rows(names: Sequence[str], jepa: WorldModel, fit: Walks, test: Walks) -> tuple[Rows, LinearProbe]:
    """R2 and error of the factors that `names` tells, read from states by a probe, which comes with them."""
    (x, y, layouts), (u, v, held_out) = (_frames(jepa, walks) for walks in (fit, test))
    probe = fit_probe(x, y, layouts)
    r2 = dict(zip(names, r2_figures(probe, u, v, held_out), strict=True))
    rmse = dict(zip(names, score(probe, u, v).rmse.tolist(), strict=True))
    worse = min(r2["agent_x"], r2["agent_y"], key=lambda figure: figure.value)
    rows: Rows = {"probe_agent_r2": worse, "probe_wall_r2": r2["wall_x"], "probe_door_r2": r2["door_y"]}
    rows |= {f"probe_{name}_rmse_px": Figure(error, error, error, worse.n) for name, error in rmse.items()}
    return rows, probe


def _frames(jepa: WorldModel, walks: Walks) -> tuple:
    """States [N, D], factors [N, F] and layouts [N] of every fourth frame."""
    frames, truth = walks.observations[:, ::EVERY], walks.truth[:, ::EVERY]
    layouts = walks.layouts.repeat_interleave(frames.shape[1])
    return encode_frames(jepa, frames.flatten(0, 1)), truth.flatten(0, 1), layouts
