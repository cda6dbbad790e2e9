"""Two-Rooms speaks Gymnasium: it passes its checker, and an episode is truncated after 200 steps, never terminated."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from data_pipelines.worlds import TWO_ROOMS, register_worlds


def made(**arguments: object) -> gymnasium.Env:
    return gymnasium.make(TWO_ROOMS, **arguments)


def test_it_passes_gymnasiums_checker() -> None:
    with warnings.catch_warnings():
        # Actions are displacements in pixels on purpose, not numbers within [-1, 1].
        warnings.filterwarnings("ignore", message=".*we recommend using a symmetric and normalized space")
        check_env(made(render_mode="rgb_array").unwrapped)
    register_worlds()  # a second time is harmless


def test_an_expert_episode_succeeds_and_ends_by_truncation_alone() -> None:
    env = made()
    observation, info = env.reset(seed=3)
    assert observation.shape == (2, 33, 33)
    ends = []
    for _ in range(200):
        action = env.unwrapped._world.expert(env.unwrapped._goal)[0].numpy()
        observation, reward, terminated, truncated, info = env.step(action)
        ends.append((terminated, truncated))
    assert ends == [(False, False)] * 199 + [(False, True)]
    assert info["success"]
    assert reward == 1.0
    assert np.linalg.norm(info["state"] - info["goal"]) <= 4.5
    assert np.abs(observation[0].astype(int) - info["goal_observation"][0]).max() < 60


def test_layout_start_and_goal_can_be_chosen() -> None:
    env = made(resolution=65, split="held_out")
    observation, info = env.reset(seed=0, options={"layout": 0, "start": [10, 30], "goal": np.array([40.0, 50.0])})
    assert info["layout"] == 0
    assert info["state"].tolist() == [10, 30]
    assert info["goal"].tolist() == [40, 50]
    assert not info["success"]
    assert observation.shape == (2, 65, 65)
    assert observation[0, 30, 10] == 255
    assert info["goal_observation"][0, 50, 40] == 255


def test_a_seed_fixes_the_task_and_the_next_reset_is_another_one() -> None:
    env = made()
    first, again, other = (env.reset(seed=seed)[1] for seed in (5, 5, None))
    assert np.array_equal(first["goal"], again["goal"])
    assert not np.array_equal(first["goal"], other["goal"])


def test_the_picture_shows_agent_walls_and_goal() -> None:
    env = made(render_mode="rgb_array")
    env.reset(options={"layout": 0, "start": [10.0, 30.0], "goal": [40.0, 50.0]})
    picture = env.render()
    assert picture.shape == (65, 65, 3)
    assert picture[30, 10].argmax() == 2
    assert picture[50, 40].argmax() == 0
    assert picture[40, 20].tolist() == [90, 90, 90]
    assert picture[40, 30].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaol": [1, 2]}, r"unknown reset options \['gaol'\]"),
        ({"layout": 99999}, "choose an id from 0 to 1124"),
        ({"layout": 0, "start": [20, 40]}, "inside or beyond a wall"),
        ({"layout": 0, "goal": [200, 40]}, "inside or beyond a wall"),
        ({"start": [1, 2, 3]}, r"start has shape \(3,\)"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made().reset(options=options)


def test_an_unknown_render_mode_is_refused() -> None:
    from data_pipelines.worlds.gym import TwoRoomsEnv

    with pytest.raises(ValueError, match="choose None or 'rgb_array'"):
        TwoRoomsEnv(render_mode="human")
    env = TwoRoomsEnv()
    env.reset()
    assert env.render() is None
