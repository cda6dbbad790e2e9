"""The pictures of E1, drawn from a trained agent: rollouts, plans, energy landscapes, films of episodes.

Legend: N panels, T steps, S candidates, H horizon, D state.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor

from lightning_jepa.evaluation.animation import Film, save_gif
from lightning_jepa.evaluation.cost_rank import MakeCost, planning_cost
from lightning_jepa.evaluation.diagnosis import MakeAgent
from lightning_jepa.evaluation.episodes import first_tasks
from lightning_jepa.evaluation.fields import energy_field, way_field
from lightning_jepa.evaluation.figures import landscape_figure, plan_figure, rollout_figure
from lightning_jepa.evaluation.rollouts import Decode, imagine
from lightning_jepa.evaluation.states import encode_at
from lightning_jepa.evaluation.walks import Walks
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Modulation, Plan, Tasks


class Overheard:
    """A world model that keeps the first few candidates it was last asked to imagine (protocol `WorldModel`)."""

    def __init__(self, world_model: WorldModel, keep: int) -> None:
        self.world_model, self.keep = world_model, keep
        self.candidates: Tensor | None = None

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        """As the model under it."""
        return self.world_model.encode(observations, body)

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        """As the model under it."""
        states = self.world_model.rollout(s, actions)
        if self.candidates is None and states.shape[1] > 1:
            self.candidates = states[:, : self.keep].detach()
        return states


class Overseen:
    """A planner whose last plan can be looked at (protocol `Planner`)."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.last: Plan | None = None

    @property
    def horizon(self) -> int:
        """As the planner under it."""
        return self.planner.horizon

    @property
    def action_bound(self) -> float:
        """As the planner under it."""
        return self.planner.action_bound

    def plan(
        self,
        s: Tensor,
        world_model: WorldModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """As the planner under it."""
        self.last = self.planner.plan(s, world_model, cost, modulation, start, generator)
        return self.last


def draw_rollouts(path: Path, world: ExamWorld, jepa: WorldModel, decode: Decode, walks: Walks, count: int = 4) -> None:
    """Imagined against true paths of the first walks that touch a wall, where a model shows what it knows."""
    step = (walks.positions[:, 1:] - walks.positions[:, :-1]).norm(dim=-1)
    lost = (walks.actions.norm(dim=-1) - step).sum(1)
    chosen = lost.argsort(descending=True, stable=True)[: len(lost) // 2][:: max(1, len(lost) // 2 // count)][:count]
    some = Walks(*(part[chosen.to(part.device)] for part in walks))
    imagined = imagine(jepa, some, decode)
    world.reset(some.layouts, some.positions[:, 0])
    rollout_figure(path, world.walls.cpu(), some.positions, imagined)


def draw_plans(
    path: Path,
    world: ExamWorld,
    jepa: WorldModel,
    cost: Cost,
    planner: Planner,
    decode: Decode,
    tasks: Tasks,
    seed: int,
) -> None:
    """The first plan of each task as the model imagines it, over some of the candidates first tried."""
    goals = encode_at(world, jepa, tasks.layouts, tasks.goals)
    s = encode_at(world, jepa, tasks.layouts, tasks.starts)
    model = Overheard(jepa, keep=24)
    generator = Generator().manual_seed(seed)
    plan = planner.plan(s, model, cost, Modulation(goal=goals), None, generator)
    with torch.no_grad():
        states = torch.cat([s[:, None], plan.states], 1)
        candidates = None if model.candidates is None else decode(model.candidates)
        world.reset(tasks.layouts, tasks.starts)
        plan_figure(path, world.walls.cpu(), tasks.starts, tasks.goals, decode(states), candidates)


def draw_landscape(path: Path, world: ExamWorld, jepa: WorldModel, make_cost: MakeCost, tasks: Tasks) -> None:
    """The cost of every place, above the true way's length."""
    s, goals = (encode_at(world, jepa, tasks.layouts, where) for where in (tasks.starts, tasks.goals))
    energy = energy_field(world, jepa, make_cost(s, goals), tasks.layouts, tasks.goals)
    way = way_field(world, tasks.layouts, tasks.goals)
    world.reset(tasks.layouts, tasks.goals)
    landscape_figure(
        path,
        world.walls.cpu(),
        tasks.goals,
        energy.values[:, 0],
        way.values[:, 0],
        energy.free,
        energy.low.cpu(),
        energy.pitch,
    )


@torch.no_grad()
def film(
    path: Path,
    world: ExamWorld,
    jepa: WorldModel,
    cost: Cost,
    planner: Planner,
    decode: Decode,
    make_agent: MakeAgent,
    tasks: Tasks,
    radius: float = 4.5,
) -> None:
    """A GIF of some episodes with the agent's present plan, as it imagines it."""
    watched = Overseen(planner)
    agent = make_agent(jepa, cost, watched)
    agent.reset(world.reset(tasks.layouts, tasks.goals))
    frames, positions, plans = [world.reset(tasks.layouts, tasks.starts)], [world.state.clone()], []
    for _ in range(world.episode_steps):
        actions = agent.act(frames[-1], world.body())
        if watched.last is not None:
            plans.append(decode(watched.last.states))
        frames.append(world.step(actions))
        positions.append(world.state.clone())
    plans.append(plans[-1])
    parts = (torch.stack(frames, 1), torch.stack(positions, 1), tasks.goals, torch.stack(plans, 1))
    save_gif(path, Film(*(part.cpu() for part in parts)), radius=radius)


def draw_all(
    folder: Path,
    world: ExamWorld,
    jepa: WorldModel,
    goal_energy: Cost,
    cost: Cost,
    planner: Planner,
    decode: Decode,
    walks: Walks,
    make_agent: MakeAgent,
    tasks: Tasks,
    seed: int,
    radius: float = 4.5,
) -> None:
    """Every picture but the success table, on the first tasks of the list (not chosen for how they look)."""
    count = min(4, len(tasks.layouts))
    some, few = first_tasks(tasks, count), first_tasks(tasks, min(3, count))
    draw_rollouts(folder / "rollouts.png", world, jepa, decode, walks)
    draw_plans(folder / "plans.png", world, jepa, cost, planner, decode, some, seed)
    draw_landscape(folder / "landscape_goal_energy.png", world, jepa, lambda s, goal: goal_energy, few)
    draw_landscape(folder / "landscape.png", world, jepa, planning_cost(planner, cost, jepa, seed), few)
    film(folder / "episodes.gif", world, jepa, cost, planner, decode, make_agent, some, radius)
