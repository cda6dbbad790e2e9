"""Worlds of other libraries through the Gymnasium source: actions, truth and pictures belong together."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.episodes import EpisodeFolder

# Drawing needs no screen. The commands run in processes of their own, so that a driver that crashes or hangs, and the
# libraries' warnings, stay there.
HEADLESS = {**os.environ, "MUJOCO_GL": "egl", "SDL_VIDEODRIVER": "dummy", "PYTHONPATH": str(Path(__file__).parents[1])}
TRIES = {
    "gymnasium_robotics": "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).render()",
    "gym_pusht": "import gym_pusht",
}
COMMON = ["--policy", "smooth", "--val", "1", "--steps", "30", "--episodes-per-shard", "2"]


@cache
def why_not(library: str) -> str | None:
    """What keeps a library from drawing here."""
    if importlib.util.find_spec(library) is None:
        return f"{library} is not installed: pip install 'lightning_jepa[worlds]'"
    try:
        command = [sys.executable, "-c", TRIES[library]]
        subprocess.run(command, env=HEADLESS, check=True, capture_output=True, timeout=60)
    except subprocess.SubprocessError as error:
        return f"{library} cannot draw here: {error}; {(error.stderr or b'').decode()[-300:]}"
    return None


def collect(library: str, root: Path, *arguments: str) -> EpisodeFolder:
    if (reason := why_not(library)) is not None:
        pytest.skip(reason)
    command = [
        sys.executable,
        "-m",
        "data_pipelines.sources.gymnasium",
        arguments[0],
        str(root),
        *COMMON,
        *arguments[1:],
    ]
    done = subprocess.run(command, env=HEADLESS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return EpisodeFolder(root / "train")


def centre(shown: np.ndarray) -> np.ndarray:
    """Of the pixels that are true: [T, H, W] -> x, y [T, 2]."""
    weight = shown.sum((1, 2)).clip(1)
    y, x = np.mgrid[: shown.shape[1], : shown.shape[2]]
    return np.stack([(shown * axis).sum((1, 2)) / weight for axis in (x, y)], -1)


def test_point_maze(tmp_path: Path) -> None:
    """A ball that is pushed: the force changes its velocity, that changes its position, and the picture shows where."""
    folder = collect(
        "gymnasium_robotics", tmp_path, "gymnasium_robotics:PointMaze_UMaze-v3", "--train", "6",
        "--arguments", json.dumps({"render_mode": "rgb_array", "width": 64, "height": 64}),
    )  # fmt: skip
    names, episodes = folder.manifest.truth_names, list(folder)
    assert episodes[0].observations.shape == (31, 3, 64, 64)
    truth = np.stack([episode.truth for episode in episodes])
    place, speed = (truth[..., names.index(first) :][..., :2] for first in ("observation_0", "observation_2"))
    assert np.allclose(np.diff(place, axis=1), 0.01 * speed[:, 1:], atol=1e-4)
    gain = np.diff(speed, axis=1) / np.stack([episode.actions for episode in episodes])
    assert (np.abs(gain / np.median(gain) - 1) < 0.2).mean() > 0.7  # but at walls
    frames = np.concatenate([episode.observations for episode in episodes]).transpose(1, 0, 2, 3).astype(int)
    red, green, blue = frames
    ball = (green > red + 25) & (green > blue + 25)
    shown = ball.sum((1, 2)) > 2  # not behind a wall
    assert shown.mean() > 0.5
    # Where the ball is seen is an affine function of where it is, but for perspective.
    known, seen = np.c_[place.reshape(-1, 2), np.ones(ball.shape[0])][shown], centre(ball[shown])
    assert np.abs(known @ np.linalg.lstsq(known, seen, rcond=None)[0] - seen).max() < 1  # pixel


def test_push_t(tmp_path: Path) -> None:
    """An agent that goes where the action says; the picture shows it there."""
    arguments = {"obs_type": "pixels_agent_pos", "observation_width": 64, "observation_height": 64}
    what = ["--picture", "pixels", "--infos", "block_pose", "--arguments", json.dumps(arguments)]
    folder = collect("gym_pusht", tmp_path, "gym_pusht:gym_pusht/PushT-v0", "--train", "4", *what)
    assert folder.manifest.truth_names == (
        *(f"agent_pos_{i}" for i in range(2)),
        *(f"block_pose_{i}" for i in range(3)),
    )
    for episode in folder:
        where, aim = episode.truth[:, :2], episode.actions
        before, after = (np.linalg.norm(aim - at, axis=-1) for at in (where[:-1], where[1:]))
        far = before > 60
        assert (after[far] < before[far]).mean() > 0.8
        red, _, blue = episode.observations.transpose(1, 0, 2, 3).astype(int)
        assert np.abs(centre(blue > red + 80) - where / 8).max() < 1.5
    assert np.ptp(np.concatenate([episode.truth[:, 2:4] for episode in folder]), 0).min() > 10


def test_an_episode_is_the_same_whatever_came_before(tmp_path: Path) -> None:
    """Alone in a shard, made by an environment of its own, or after others."""
    way = ("gym_pusht:gym_pusht/PushT-v0", "--train", "3", "--arguments", '{"obs_type": "pixels"}')
    one = collect("gym_pusht", tmp_path / "one", *way)
    two = collect("gym_pusht", tmp_path / "two", *way, "--episodes-per-shard", "3")
    for first, second in zip(one, two, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
