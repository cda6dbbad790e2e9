"""Run a policy through tasks, many episodes at once, and record what happened.

Legend: N tasks, B episodes at once, T steps, C H W image, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text
from torch import Tensor

from lightning_jepa.evaluation.results import Figure, Rows, mean, proportion
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.types import Tasks


class Policy(Protocol):
    """Whatever chooses actions. `evaluations` counts world-model steps for each episode since the reset."""

    evaluations: int

    def reset(self, world: ExamWorld, tasks: Tasks) -> None:
        """Begin B tasks. May reset the world: it is set to the starts afterwards."""
        ...

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """What is seen, uint8 [B, C, H, W], and felt, [B, P] -> actions [B, A]."""
        ...


class Acting(Protocol):
    """The agent as this room sees it (`lightning_jepa.agent.Agent`)."""

    evaluations: int

    def reset(self, goal_observations: Tensor) -> None:
        """uint8 [B, C, H, W]."""
        ...

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """What is seen, uint8 [B, C, H, W], and felt, [B, P] -> actions [B, A]."""
        ...


class AgentPolicy:
    """An agent that sees its goal as a picture; `prepare` lets costs that know the truth look at the tasks first."""

    def __init__(self, agent: Acting, prepare: Callable[[ExamWorld, Tasks], None] | None = None) -> None:
        self.agent, self.prepare = agent, prepare
        self.evaluations = 0

    def reset(self, world: ExamWorld, tasks: Tasks) -> None:
        """Show the agent its goals."""
        if self.prepare is not None:
            self.prepare(world, tasks)
        self.agent.reset(world.reset(tasks.layouts, tasks.goals))
        self._before = self.agent.evaluations

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """See `Policy`."""
        actions = self.agent.act(observations, body)
        self.evaluations = self.agent.evaluations - self._before
        return actions


@dataclass(frozen=True)
class Episodes:
    """What happened in N episodes of T steps.

    Attributes:
        tasks: the N tasks.
        positions: [N, T + 1, 2], pixels.
        distance: to the goal, [N, T + 1], pixels.
        final: success at the last step, bool [N].
        ever: success at some step, bool [N].
        seconds_per_decision: wall time of a whole batch's decision, divided by its episodes.
        evaluations_per_decision: world-model steps for each episode and decision.
    """

    tasks: Tasks
    positions: Tensor
    distance: Tensor
    final: Tensor
    ever: Tensor
    seconds_per_decision: float
    evaluations_per_decision: float

    def first(self, count: int) -> Episodes:
        """Those of the first tasks; times are those of all."""
        parts = (self.positions[:count], self.distance[:count], self.final[:count], self.ever[:count])
        return Episodes(
            first_tasks(self.tasks, count), *parts, self.seconds_per_decision, self.evaluations_per_decision
        )

    def rows(self) -> Rows:
        """Success at the last and at any step, world-model steps and milliseconds for each decision."""
        return {
            "success": share(self.final),
            "success_ever": share(self.ever),
            "evaluations": mean([self.evaluations_per_decision]),
            "ms_per_decision": mean([1000 * self.seconds_per_decision]),
        }


def share(hits: Tensor) -> Figure:
    """The share of true entries in a bool tensor."""
    return proportion(int(hits.sum()), hits.numel())


def first_tasks(tasks: Tasks, count: int) -> Tasks:
    """The first `count` tasks: what a row with fewer episodes is measured on.

    Raises:
        ValueError: if there are fewer.
    """
    if not 1 <= count <= len(tasks.layouts):
        raise ValueError(f"{count} episodes wanted, the task file has {len(tasks.layouts)}: choose 1 to that many")
    return Tasks(*(field[:count] for field in tasks))


@torch.no_grad()
def run_episodes(
    world: ExamWorld,
    tasks: Tasks,
    policy: Policy,
    *,
    radius: float = 4.5,
    batch: int = 50,
    progress: Progress | None = None,
    label: str = "episodes",
) -> Episodes:
    """Run every task for `world.episode_steps` steps, `batch` episodes at a time.

    Args:
        world: where it happens; its observations are all that the policy gets at each step.
        tasks: starts and goals.
        policy: chooses the actions.
        radius: success is being this near to the goal, pixels.
        batch: episodes at once; times are for this many.
        progress: a running progress bar to add a line to.
        label: what that line says.
    """
    positions, steps, count = [], world.episode_steps, len(tasks.layouts)
    seconds, spent, done, begun = 0.0, 0, 0, 0
    line = None if progress is None else progress.add_task(label, total=count * steps, success="")
    for part in zip(*(field.split(batch) for field in tasks), strict=True):
        now = Tasks(*part)
        policy.reset(world, now)
        observations = world.reset(now.layouts, now.starts)
        path = [world.state.clone()]
        for _ in range(steps):
            began = perf_counter()
            actions = policy.act(observations, world.body())
            if actions.is_cuda:
                torch.cuda.synchronize(actions.device)
            seconds += perf_counter() - began
            observations = world.step(actions)
            path.append(world.state.clone())
            at_goal = (world.state - now.goals.to(world.state)).norm(dim=-1) < radius
            if progress is not None and line is not None:
                said = f"at the goal: {(done + int(at_goal.sum())) / (begun + len(at_goal)):.0%}"
                progress.update(line, advance=len(at_goal), success=said)
        done, begun = done + int(at_goal.sum()), begun + len(at_goal)
        if progress is not None and progress.disable:  # in a log file, a line for each batch
            print(f"{label}: {begun} of {count} episodes, at the goal: {done / begun:.0%}", flush=True)
        spent += policy.evaluations * len(now.layouts)
        positions.append(torch.stack(path, 1).cpu())
    walked = torch.cat(positions)
    distance = (walked - tasks.goals.cpu()[:, None]).norm(dim=-1)
    near = distance < radius
    return Episodes(
        tasks=tasks,
        positions=walked,
        distance=distance,
        final=near[:, -1],
        ever=near.any(1),
        seconds_per_decision=seconds / (count * steps),
        evaluations_per_decision=spent / (count * steps),
    )


def progress_bar() -> Progress:
    """What is being run, how far it is, the time left and the share of episodes now at the goal.

    Disabled where there is no terminal and no notebook to draw it.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(Column(no_wrap=True)),
        TimeRemainingColumn(),
        TextColumn("{task.fields[success]}"),
    )
    bar.disable = not (bar.console.is_terminal or bar.console.is_jupyter)
    return bar


class RateColumn(ProgressColumn):
    """Episode steps a second."""

    def render(self, task: Task) -> Text:
        """The rate, once it is known."""
        return Text("" if task.speed is None else f"{task.speed:.0f} steps/s")
