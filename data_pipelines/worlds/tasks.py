"""The committed lists of start and goal pairs on which control is measured.

Legend: N tasks.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from data_pipelines.worlds.geometry import travel
from data_pipelines.worlds.hazards import HazardRooms, HazardTwoRooms
from data_pipelines.worlds.mazes import MazeLayouts
from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from lightning_jepa.types import Tasks

FOLDER = Path(__file__).parent / "tasks"
MAZE_WAYS = {"maze_5_7": range(5, 8), "maze_8_12": range(8, 13)}  # passages between start and goal


def room_tasks(world: RoomsWorld, count: int = 300, seed: int = 0) -> Tasks:
    """Draw tasks in held-out layouts of a world of two rooms, start and goal uniform in opposite rooms.

    Where there are hazards, none begins or ends in one. Positions are rounded to a thousandth of a pixel, so that the
    list survives being written as text.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = world.layouts.ids("held_out")
    chosen = ids[torch.randint(len(ids), (4 * count if world.body_names else count,), generator=generator)]
    rooms = torch.randint(2, (len(chosen),), generator=generator)
    starts = world.sample_states(chosen, rooms, generator).round(decimals=3)
    goals = world.sample_states(chosen, 1 - rooms, generator).round(decimals=3)
    safe = torch.ones(len(chosen), dtype=torch.bool)
    if "pain" in world.body_names:
        for place in (starts, goals):
            world.reset(chosen, place)
            safe &= world.body()[:, world.body_names.index("pain")] == 0
    return Tasks(*(part[safe][:count] for part in (chosen, starts, goals)))


def maze_tasks(world: RoomsWorld, passages: range, count: int = 300, seed: int = 0, reach: float = 4.5) -> Tasks:
    """Draw tasks in held-out mazes that lead through so many passages, with no goal in greedy reach.

    Args:
        world: of `MazeLayouts`.
        passages: how many lie between start and goal.
        count: N.
        seed: of the draw.
        reach: pixels; straight at the goal no agent gets that close to it.
    """
    layouts = world.layouts
    assert isinstance(layouts, MazeLayouts)
    generator = torch.Generator().manual_seed(seed)
    ids = layouts.ids("held_out")
    chosen = ids[torch.randint(len(ids), (8 * count,), generator=generator)]
    first, last = torch.randint(layouts.cells**2, (2, len(chosen)), generator=generator)
    starts, goals = (world.sample_states(chosen, cell, generator).round(decimals=3) for cell in (first, last))
    away = layouts.steps(chosen)[torch.arange(len(chosen)), first, last]
    world.reset(chosen, starts)
    end = travel(starts[:, None], (goals - starts)[:, None], world.solid)[:, 0]
    fit = (away >= passages.start) & (away < passages.stop) & ((goals - end).norm(dim=-1) > reach)
    return Tasks(*(part[fit][:count] for part in (chosen, starts, goals)))


def write_tasks(tasks: Tasks, path: Path) -> None:
    """Write tasks as JSON, one task a line."""
    lines = (
        json.dumps({"layout": layout, "start": [round(v, 3) for v in start], "goal": [round(v, 3) for v in goal]})
        for layout, start, goal in zip(tasks.layouts.tolist(), tasks.starts.tolist(), tasks.goals.tolist(), strict=True)
    )
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def load_tasks(name: str = "two_rooms", skip: int = 0) -> Tasks:
    """Read a committed list: layouts int64 [N], starts and goals float32 [N, 2] in pixels.

    Args:
        name: of the list.
        skip: tasks at its beginning to leave out, by which a recipe was chosen.

    Raises:
        ValueError: if there is no such list, or nothing of it would be left.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise ValueError(f"no list of tasks is called {name!r}; choose one of: {known}")
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not 0 <= skip < len(rows):
        raise ValueError(f"skip={skip}: {path.name} has {len(rows)} tasks")
    rows = rows[skip:]
    return Tasks(
        torch.tensor([row["layout"] for row in rows]),
        torch.tensor([row["start"] for row in rows]),
        torch.tensor([row["goal"] for row in rows]),
    )


if __name__ == "__main__":
    write_tasks(room_tasks(RoomsWorld(TwoRoomsLayouts())), FOLDER / "two_rooms.json")
    write_tasks(room_tasks(HazardRooms(HazardTwoRooms())), FOLDER / "hazards.json")
    for name, passages in MAZE_WAYS.items():
        write_tasks(maze_tasks(RoomsWorld(MazeLayouts(), "maze"), passages), FOLDER / f"{name}.json")
