"""Minari data sets into shards and back: every number comes back, and what is drawn is what happened."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Space

from data_pipelines.episodes import EpisodeFolder
from data_pipelines.sources import bouncing
from data_pipelines.sources import minari as source

pytest.importorskip("h5py", reason="HDF5 data sets need h5py: pip install 'lightning_jepa[minari]'")
minari = pytest.importorskip("minari", reason="needs Minari: pip install 'lightning_jepa[minari]'")
IMAGE = Box(0, 255, (40, 48, 3), np.uint8)
FLOAT = Box(-9, 9, (2,), np.float64)


@pytest.fixture(autouse=True)
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def make(name: str, observations: Space[Any], actions: Space[Any], buffers: list[dict[str, Any]], **more: Any) -> None:
    from minari.data_collector import EpisodeBuffer

    ended = [{"terminations": [False] * len(b["rewards"]), "truncations": [False] * len(b["rewards"])} for b in buffers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no author, no description, ...
        minari.create_dataset_from_buffers(
            name, [EpisodeBuffer(**end | buffer) for end, buffer in zip(ended, buffers, strict=True)],
            observation_space=observations, action_space=actions, jpeg_encoding=False, **more,
        )  # fmt: skip


def some(episodes: int, actions: Space[Any]) -> list[dict[str, Any]]:
    chance, found = np.random.default_rng(0), []
    actions.seed(0)
    for number in range(episodes):
        steps = 5 + number
        observations = {
            "camera": chance.integers(256, size=(steps + 1, 40, 48, 3), dtype=np.uint8),
            "arm": {"place": chance.normal(size=(steps + 1, 2)), "held": chance.integers(2, size=steps + 1)},
        }
        terminations = [False] * (steps - 1) + [number % 2 == 0]
        found.append(
            {
                "observations": observations,
                "actions": np.stack([actions.sample() for _ in range(steps)]),
                "rewards": chance.normal(size=steps),
                "terminations": terminations,
                "truncations": [False] * (steps - 1) + [number % 2 == 1],
            }
        )
    return found


SPACE = Dict({"camera": IMAGE, "arm": Dict({"place": FLOAT, "held": Discrete(2)})})


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["minari", *map(str, arguments)])
    source.main()


def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = Box(-1, 1, (3,), np.float32)
    buffers = some(7, actions)
    make("lab/arm-v0", SPACE, actions, buffers)
    command(monkeypatch, "pack", "lab/arm-v0", tmp_path / "shards", "--val-share", 0.3, "--episodes-per-shard", 2)
    kept = {"train": [1, 2, 4, 5], "val": [0, 3, 6]}
    for split, numbers in kept.items():
        folder = EpisodeFolder(tmp_path / "shards" / split)
        assert folder.manifest.truth_names == ("arm_held_0", "arm_held_1", "arm_place_0", "arm_place_1")
        assert folder.manifest.energy_names == ("cost",)
        for place, (number, episode) in enumerate(zip(numbers, folder, strict=True)):
            was = buffers[number]
            arm = was["observations"]["arm"]
            assert np.array_equal(episode.observations, was["observations"]["camera"].transpose(0, 3, 1, 2))
            assert np.array_equal(episode.actions, was["actions"])
            assert np.array_equal(episode.truth[:, :2], np.eye(2)[arm["held"]])
            assert np.array_equal(episode.truth[:, 2:], arm["place"].astype(np.float32))
            assert np.array_equal(episode.energies[1:, 0], -was["rewards"].astype(np.float32))
            assert episode.energies[0] == 0
            assert folder.meta(place) == {"data_set": "lab/arm-v0", "episode": number, "terminated": number % 2 == 0}

    command(monkeypatch, "export", tmp_path / "shards", "again/arm")
    for split, numbers in kept.items():
        back = minari.load_dataset(f"again/arm/{split}-v0")
        assert back.total_steps == sum(5 + number for number in numbers)
        for number, episode in zip(numbers, back.iterate_episodes(), strict=True):
            was = buffers[number]
            assert np.array_equal(episode.observations["picture"], was["observations"]["camera"])
            assert np.array_equal(
                episode.observations["truth"][:, 2:], was["observations"]["arm"]["place"].astype("f4")
            )
            assert np.array_equal(episode.actions, was["actions"])
            assert np.array_equal(episode.rewards, was["rewards"].astype(np.float32))
            assert episode.terminations.tolist() == was["terminations"]
            assert episode.truncations.tolist() == was["truncations"]
            assert back.observation_space["picture"] == IMAGE
    with pytest.raises(SystemExit, match="again/arm/train-v0 already exists"):
        command(monkeypatch, "export", tmp_path / "shards", "again/arm")


def test_what_is_only_looked_at_can_be_exported_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way = ["--train", "3", "--val", "1", "--steps", "4", "--encoding", "zstd"]
    monkeypatch.setattr(sys, "argv", ["bouncing", str(tmp_path / "digits"), *way])
    bouncing.main()
    command(monkeypatch, "export", tmp_path / "digits", "digits", "--version", 3)
    found = list(minari.load_dataset("digits/train-v3").iterate_episodes())
    assert [episode.observations["picture"].shape for episode in found] == [(5, 64, 64, 1)] * 3
    assert [episode.actions.shape for episode in found] == [(4, 0)] * 3
    assert all((episode.rewards == 0).all() for episode in found)


def test_a_picture_alone_with_discrete_actions_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = [b | {"observations": b["observations"]["camera"]} for b in some(3, Discrete(4))]
    make("plain-v1", IMAGE, Discrete(4), buffers)
    command(monkeypatch, "pack", "plain-v1", tmp_path, "--side", 20, "--workers", 2, "--episodes-per-shard", 1)
    episode = EpisodeFolder(tmp_path / "train")[1]
    assert episode.observations.shape == (8, 3, 20, 20)
    assert np.array_equal(episode.actions, np.eye(4)[buffers[2]["actions"]])
    assert episode.truth.shape == (8, 0)


@pytest.fixture
def lamps() -> Iterator[None]:
    """The data set "lamp-v0" of an environment, with seeds, and "other-v0", whose last episode has another seed."""
    gymnasium.register("Lamp-v0", entry_point="test_gymnasium_source:Lamp", disable_env_checker=True)
    env, buffers = gymnasium.make("Lamp-v0"), []
    env.action_space.seed(0)
    for seed in range(4):
        observations, actions = [env.reset(seed=seed)[0]], [env.action_space.sample() for _ in range(6)]
        observations += [env.step(action)[0] for action in actions]
        found = {"observations": np.stack(observations), "actions": np.stack(actions), "rewards": np.zeros(6)}
        buffers.append({**found, "seed": seed})
    for name, last in (("lamp-v0", 3), ("other-v0", 5)):
        buffers[3]["seed"] = last
        make(name, env.observation_space, env.action_space, buffers, env="Lamp-v0")
    yield
    del gymnasium.registry["Lamp-v0"]


@pytest.mark.usefixtures("lamps")
def test_episodes_are_done_again_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "pack", "lamp-v0", tmp_path / "data", "--render", "--side", 16)
    folder = EpisodeFolder(tmp_path / "data" / "train")
    assert folder.manifest.truth_names == ("observation_0", "observation_1")
    for episode in folder:
        light = episode.truth[:, 0]
        assert np.allclose(light[1:], light[:-1] + episode.actions[:, 0], atol=1e-5)
        assert np.allclose(episode.observations.mean((1, 2, 3)), 100 + 10 * light, atol=0.51)
    with pytest.raises(SystemExit, match=r"other-v0: episode 3 has another observation .* at step 0 .* its seed \(5\)"):
        command(monkeypatch, "pack", "other-v0", tmp_path / "other", "--render")
    with pytest.raises(SystemExit, match=r"lamp-v0 has the pictures \[\].* --render draws them"):
        command(monkeypatch, "pack", "lamp-v0", tmp_path / "none")


def test_what_cannot_be_packed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = Discrete(4)
    two = [b | {"observations": dict.fromkeys("ab", b["observations"]["camera"])} for b in some(2, actions)]
    make("two-v0", Dict({"a": IMAGE, "b": IMAGE}), actions, two)
    make("one-v0", SPACE, actions, some(1, actions))

    def refused(message: str, *arguments: object) -> None:
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            command(monkeypatch, "pack", arguments[0], tmp_path / "data", *arguments[1:])

    refused("there is no none-v0 here; to fetch it: minari download none-v0", "none-v0")
    refused("Malformed dataset ID|there is no two words", "two words")
    refused(r"two-v0 has the pictures \['a', 'b'\].* name one with --picture", "two-v0")
    refused(r"two-v0 has the pictures \['a', 'b'\]", "two-v0", "--picture", "c")
    refused("the environment of two-v0 cannot be made", "two-v0", "--render")
    refused("one-v0 has 1 episodes, too few", "one-v0")
    refused("val_share=0.7", "one-v0", "--val-share", 0.7)
    command(monkeypatch, "pack", "two-v0", tmp_path / "data", "--picture", "b")
    assert EpisodeFolder(tmp_path / "data" / "train").manifest.truth_names == ()


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        SystemExit, match=r"error: Minari data sets need Minari: pip install 'lightning_jepa\[minari\]'"
    ):
        command(monkeypatch, "pack", "some-v0", tmp_path)
