"""Gymnasium environments into shards: pictures from observation or render, numbers as truth, repeatable by seed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from data_pipelines.episodes import EpisodeFolder
from data_pipelines.sources import gymnasium as source
from data_pipelines.worlds import TWO_ROOMS


class Lamp(gymnasium.Env[np.ndarray, Any]):
    """A number that actions change, drawn as the brightness of a picture 40 x 60; ends above 5."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None, discrete: bool = False) -> None:
        self.render_mode = render_mode
        self.observation_space = Box(-10, 10, (2,), np.float32)
        self.action_space = Discrete(3) if discrete else Box(-1, 1, (1,), np.float32)
        self.discrete = discrete

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.light, self.time = float(self.np_random.uniform(0, 3)), 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.light, self.time = self.light + (int(action) - 1 if self.discrete else float(action[0])), self.time + 1
        return self._observation(), 0.0, self.light > 5, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.light, self.time], np.float32)

    def render(self) -> Any:
        return None if self.render_mode is None else np.full((40, 60, 3), round(100 + 10 * self.light), np.uint8)


def always_up(space: Box) -> source.Policy:
    return lambda observation, chance: np.array([0.5], np.float32)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("Lamp-v0", entry_point=Lamp, disable_env_checker=True)
    yield
    del gymnasium.registry["Lamp-v0"]


def collect(root: Path, monkeypatch: pytest.MonkeyPatch, env_id: str, *more: object) -> EpisodeFolder:
    common = [env_id, root, "--train", 5, "--val", 2, "--steps", 8, "--side", 16, "--episodes-per-shard", 2]
    monkeypatch.setattr(sys, "argv", ["gymnasium", *map(str, [*common, *more])])
    source.main()
    return EpisodeFolder(root / "train")


RENDERED = ("--arguments", json.dumps({"render_mode": "rgb_array"}))


def test_rendered_pictures_go_with_the_numbers_and_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = collect(tmp_path, monkeypatch, "Lamp-v0", *RENDERED)
    assert folder.manifest.truth_names == ("observation_0", "observation_1")
    assert [shard.episodes for shard in folder.manifest.shards] == [2, 2, 1]
    for episode in folder:
        light, time = episode.truth.T
        assert time.tolist() == list(range(len(time)))
        assert np.allclose(light[1:], light[:-1] + episode.actions[:, 0], atol=1e-5)
        assert episode.observations.shape[1:] == (3, 16, 16)
        assert np.allclose(episode.observations.mean((1, 2, 3)), 100 + 10 * light, atol=0.51)
        assert len(time) == 9 or light[-1] > 5
    assert len({float(episode.truth[0, 0]) for episode in folder}) == 5


def test_the_same_seed_gives_the_same_bytes_in_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = collect(tmp_path / "one", monkeypatch, f"data_pipelines.worlds:{TWO_ROOMS}")
    two = collect(tmp_path / "two", monkeypatch, f"data_pipelines.worlds:{TWO_ROOMS}", "--workers", 2)
    other = collect(tmp_path / "three", monkeypatch, f"data_pipelines.worlds:{TWO_ROOMS}", "--seed", 1)
    assert one.manifest.digest == two.manifest.digest != other.manifest.digest
    assert one[0].observations.shape == (9, 2, 16, 16)  # the observation is a picture
    assert one[0].actions.shape == (8, 2)
    assert one.manifest.truth_names == ()


def test_discrete_actions_are_one_hot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = json.dumps({"render_mode": "rgb_array", "discrete": True})
    folder = collect(tmp_path, monkeypatch, "Lamp-v0", "--arguments", arguments)
    actions = np.concatenate([episode.actions for episode in folder])
    assert (np.sort(actions, 1) == [0, 0, 1]).all()
    assert np.allclose(folder[0].actions @ [-1, 0, 1], np.diff(folder[0].truth[:, 0]), atol=1e-5)


def test_a_policy_of_one_s_own_and_a_smooth_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = collect(tmp_path / "own", monkeypatch, "Lamp-v0", *RENDERED, "--policy", "test_gymnasium_source:always_up")
    assert all((episode.actions == 0.5).all() for episode in own)
    actions = {}
    for policy in ("random", "smooth"):
        arguments = (*RENDERED, "--policy", policy, "--train", 60)
        folder = collect(tmp_path / policy, monkeypatch, "Lamp-v0", *arguments)
        pairs = np.concatenate([np.stack([e.actions[:-1, 0], e.actions[1:, 0]]) for e in folder], 1)
        actions[policy] = np.corrcoef(pairs)[0, 1]
        assert np.abs(pairs).max() <= 1
    assert actions["random"] < 0.2
    assert actions["smooth"] > 0.6


@pytest.mark.parametrize(
    ("env_id", "more", "message"),
    [
        ("Nowhere-v0", (), "the environment 'Nowhere-v0' cannot be made"),
        ("no_such_module:X-v0", (), "the environment 'no_such_module:X-v0' cannot be made"),
        ("Lamp-v0", ("--arguments", '{"color": 3}'), "the environment 'Lamp-v0' cannot be made"),
        ("Lamp-v0", (), r"no uint8 image as observation, and render\(\) gives none.*\"rgb_array\""),
        ("Lamp-v0", (*RENDERED, "--policy", "nobody:no"), "policy='nobody:no': give random, smooth or module:name"),
        ("Lamp-v0", ("--arguments", '{"render_mode": "rgb_array", "discrete": true}', "--policy", "smooth"), "a Box"),
        (f"data_pipelines.worlds:{TWO_ROOMS}", ("--encoding", "jpeg"), "1 or 3 channels, not 2"),
        ("Lamp-v0", (*RENDERED, "--steps", 0), "steps=0"),
    ],
)
def test_what_cannot_be_collected_is_told(
    env_id: str, more: tuple[object, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        collect(tmp_path / "data", monkeypatch, env_id, *more)
    assert not (tmp_path / "data").exists()


class Named(Lamp):
    """The same, whose observation has named parts, a picture among them, and which tells the light squared."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        light, time = Box(-10, 10, (1,), np.float32), Box(0, 99, (1,), np.float32)
        image = Box(0, 255, (20, 20, 3), np.uint8)
        self.observation_space = Dict({"time": time, "lamp": Dict({"light": light, "on": Discrete(2)}), "eye": image})

    def reset(self, **how: Any) -> Any:
        return super().reset(**how)[0], {"squared": self.light**2}

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"squared": self.light**2}

    def _observation(self) -> Any:
        light, time = super()._observation()
        lamp = {"light": np.array([light]), "on": int(light > 2)}
        return {"time": np.array([time]), "lamp": lamp, "eye": np.full((20, 20, 3), round(100 + light), np.uint8)}


@pytest.mark.parametrize("seen", ["rendered", "eye"])
def test_the_parts_of_an_observation_keep_their_names(
    seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gymnasium.register("Named-v0", entry_point=Named, disable_env_checker=True)
    way = RENDERED if seen == "rendered" else ("--picture", "eye")
    folder = collect(tmp_path, monkeypatch, "Named-v0", *way, "--infos", "squared")
    names = ("lamp_light_0", "lamp_on_0", "lamp_on_1", "time_0", "squared_0")
    assert folder.manifest.truth_names == names
    light, off, on, time, squared = folder[0].truth.T
    assert time.tolist() == list(range(len(time)))
    assert np.allclose(light[1:], light[:-1] + folder[0].actions[:, 0], atol=1e-5)
    assert ((light > 2) == on).all()
    assert (off + on == 1).all()
    assert np.allclose(squared, light**2, atol=1e-4)
    zoom = 10 if seen == "rendered" else 1
    assert np.allclose(folder[0].observations.mean((1, 2, 3)), 100 + zoom * light, atol=0.51)
    with pytest.raises(SystemExit, match=r"picture='ear': the uint8 images .* Named-v0 are \['eye'\]"):
        collect(tmp_path / "ear", monkeypatch, "Named-v0", "--picture", "ear")
    with pytest.raises(SystemExit, match=r"infos=\['cubed'\]: Named-v0 tells \['squared'\]"):
        collect(tmp_path / "cubed", monkeypatch, "Named-v0", "--picture", "eye", "--infos", "cubed")
    with pytest.raises(SystemExit, match=r"\"rgb_array\"}; images among its observations: \['eye'\]"):
        collect(tmp_path / "none", monkeypatch, "Named-v0")
    del gymnasium.registry["Named-v0"]
