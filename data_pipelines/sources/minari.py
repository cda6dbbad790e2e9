"""Minari data sets -> shards and back: `python -m data_pipelines.sources.minari --help`.

Pictures are the observation where that is a uint8 image, or its one part that is, or the part that `--picture` names;
`--render` does each episode again in its environment and draws it. All other parts of an observation are the truth.
Actions are numbers: those of a Box flattened, a Discrete one as one-hot. A reward belongs to a transition, an energy to
what was observed after it: the energy "cost" is -reward[t] at t + 1, and 0 at 0.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import Env
from gymnasium.error import Error
from gymnasium.spaces import Box, Dict, Space, Tuple
from numpy.typing import NDArray
from rich.progress import track

from data_pipelines.commands import run, splits
from data_pipelines.episodes import EpisodeFolder
from data_pipelines.pictures import channels_first
from data_pipelines.schema import Episode, Manifest, episode_of
from data_pipelines.source import add_options, pack_given
from data_pipelines.spaces import Part, number_parts, parts, picture_parts
from data_pipelines.store import Cache


class MinariEpisodes:
    """Episodes of a Minari data set on this machine.

    Args:
        data_set: its id.
        picture: the part of the observations to look at, where several are pictures; keys are joined by "_".
        render: draw the pictures. An episode that does not come out the same when it is done again is refused: it takes
            the seed and the versions of the libraries that it was made with.
        val_share: of the episodes, for validation: 0.1 is the first of every ten.
        side: pixels along each side of a picture; None leaves them as they are.

    Raises:
        ValueError: if there is no such data set, it has no pictures, or too few episodes.
    """

    def __init__(
        self,
        data_set: str,
        picture: str | None = None,
        render: bool = False,
        val_share: float = 0.1,
        side: int | None = None,
    ) -> None:
        if not 0 < val_share <= 0.5 or (side is not None and side < 1):
            raise ValueError(f"val_share={val_share}, side={side}: give a share from 0 to 0.5, and at least 1 pixel")
        found = _load(data_set)
        self.data_set, self.render, self.side = data_set, render, side
        self.picture = None if render else _picture_of(found, picture)
        if render:
            _environment(found).close()  # may be refused
        self.truth_names = tuple(
            name for part in number_parts(found.observation_space) for name in part.columns("observation")
        )
        self.body_names = ()
        self.energy_names = ("cost",)
        count, every = int(found.total_episodes), round(1 / val_share)
        self.numbers = {"train": [n for n in range(count) if n % every], "val": list(range(0, count, every))}
        if not self.numbers["train"]:
            raise ValueError(f"{data_set} has {count} episodes, too few for training and validation")
        self.settings = {
            "source": "minari",
            "data_set": data_set,
            "picture": "rendered" if self.picture is None else self.picture.name,
            "val_share": val_share,
            "side": side,
        }

    def count(self, split: str) -> int:
        """How many episodes a split has."""
        return len(self.numbers[split])

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Episode, dict[str, Any]]]:
        """The episodes of these numbers."""
        found = _load(self.data_set)
        env = _environment(found) if self.render else None
        try:
            for one in found.iterate_episodes(self.numbers[split][numbers.start : numbers.stop]):
                if env is not None:
                    (known,) = found.storage.get_episode_metadata([one.id])
                    seen = _done_again(env, one, known, f"{self.data_set}: episode {one.id}")
                else:
                    assert self.picture is not None
                    seen = self.picture.of(one.observations)
                frames = np.stack([channels_first(np.asarray(picture), self.side) for picture in seen])
                truth = [_rows(part, one.observations) for part in number_parts(found.observation_space)]
                actions = [_rows(part, one.actions) for part in parts(found.action_space)]
                cost = np.concatenate([[0], 0 - np.asarray(one.rewards)])[:, None].astype(np.float32)
                nothing = np.empty((len(frames), 0), np.float32)
                rest = {"energies": cost, "truth": np.concatenate([nothing, *truth], 1)}
                meta = {"data_set": self.data_set, "episode": int(one.id), "terminated": bool(one.terminations[-1])}
                yield episode_of(frames, actions=np.concatenate([nothing[1:], *actions], 1), **rest), meta
        finally:
            if env is not None:
                env.close()


def _rows(part: Part, data: Any) -> NDArray[np.float32]:
    """What belongs to a part over time: [rows, its numbers]."""
    return np.stack([part.flat(row) for row in part.of(data)])


def _picture_of(found: Any, name: str | None) -> Part:
    """The part of the observations to look at."""
    known = picture_parts(found.observation_space)
    chosen = list(known) if name is None else [name]
    if len(chosen) != 1 or chosen[0] not in known:
        raise ValueError(
            f"{found.id} has the pictures {list(known)}, uint8 images among its observations: name one with "
            f"--picture; --render draws them where there are none. Its observations are {found.observation_space}"
        )
    return known[chosen[0]]


def _environment(found: Any) -> Env[Any, Any]:
    """The environment that a data set was made in, drawing."""
    try:
        env: Env[Any, Any] = found.recover_environment(render_mode="rgb_array")
    except (Error, ImportError, TypeError, ValueError) as error:
        raise ValueError(f"the environment of {found.id} cannot be made: {error}") from error
    if isinstance(env.action_space, Dict | Tuple):
        raise ValueError(f"{found.id}: only single actions can be done again, not {env.action_space}")
    return env


def _done_again(env: Env[Any, Any], one: Any, known: dict[str, Any], what: str) -> list[Any]:
    """Pictures of an episode, drawn while its actions lead to its observations once more."""
    observation, _ = env.reset(seed=known.get("seed"), options=known.get("options"))
    drawn = []
    for t in range(len(one.actions) + 1):
        if t:
            observation, *_ = env.step(one.actions[t - 1])
        for part in number_parts(env.observation_space):
            if not np.allclose(part.of(observation), part.of(one.observations)[t], rtol=1e-4, atol=1e-5):
                raise ValueError(
                    f"{what} has another observation {part.name} at step {t} when it is done again from its seed "
                    f"({known.get('seed')}), so what would be drawn is not what happened. Use a data set with pictures"
                )
        drawn.append(env.render())
    return drawn


def _load(data_set: str) -> Any:
    try:
        return _minari().load_dataset(data_set)
    except FileNotFoundError as error:
        raise ValueError(f"there is no {data_set} here; to fetch it: minari download {data_set}") from error


def _minari() -> ModuleType:
    try:
        import h5py  # noqa: F401  # most data sets are HDF5
        import minari
    except ImportError as error:
        raise ValueError("Minari data sets need Minari: pip install 'lightning_jepa[minari]'") from error
    return minari


def into(given: argparse.Namespace) -> dict[str, Manifest]:
    """Pack a data set."""
    names = ("data_set", "picture", "render", "val_share", "side")
    return pack_given(MinariEpisodes(**{name: getattr(given, name) for name in names}), given)


def back(given: argparse.Namespace) -> None:
    """Write each split as a data set of its own.

    Observations are a Dict of the picture [H, W, C], and of body, energies and truth where there are any. The reward is
    -cost of the observation that follows, where an energy has that name, else 0.
    """
    minari = _minari()
    for folder in splits(given.root):
        name = f"{given.name}/{folder.name}-v{given.version}"
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each of author, description, ... that is not given
            episodes = EpisodeFolder(folder, Cache(scratch))
            manifest = episodes.manifest
            minari.create_dataset_from_buffers(
                name,
                _buffers(minari, episodes),
                observation_space=_observations_of(manifest),
                action_space=Box(-np.inf, np.inf, (manifest.action_size,), np.float32),
                description=f"energies: {', '.join(manifest.energy_names)}; truth: {', '.join(manifest.truth_names)}",
                jpeg_encoding=False,  # bit by bit
            )
        print(f"{name}: {len(episodes)} episodes")


def _observations_of(manifest: Manifest) -> Space[Any]:
    channels, height, width = manifest.observation_shape
    others = {name: manifest.widths[name] for name in ("body", "energies", "truth") if manifest.widths[name]}
    numbers = {name: Box(-np.inf, np.inf, (size,), np.float32) for name, size in others.items()}
    return Dict({"picture": Box(0, 255, (height, width, channels), np.uint8), **numbers})


def _buffers(minari: ModuleType, episodes: EpisodeFolder) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    names = episodes.manifest.energy_names
    for number in track(range(len(episodes)), f"exporting {episodes.location}"):
        episode, steps = episodes[number], int(episodes.actions[number])
        picture = {"picture": episode.observations.transpose(0, 2, 3, 1)}
        others = {name: getattr(episode, name) for name in ("body", "energies", "truth")}
        cost = episode.energies[1:, names.index("cost")] if "cost" in names else np.zeros(steps, np.float32)
        last = np.arange(steps) == steps - 1
        terminated = last & episodes.meta(number).get("terminated", False)
        yield EpisodeBuffer(
            observations=picture | {name: array for name, array in others.items() if array.shape[1]},
            actions=episode.actions,
            rewards=0 - cost,
            terminations=terminated,
            truncations=last & ~terminated,
        )


def main() -> None:
    """The command line."""
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.sources.minari", description="Minari data sets into shards, and back."
    )
    ways = parser.add_subparsers(required=True)
    way = ways.add_parser("pack", help="a Minari data set -> shards", formatter_class=show)
    way.set_defaults(command=into)
    way.add_argument("data_set", metavar="ID", help="of a data set on this machine; 'minari list local' shows them")
    add_options(way)
    way.add_argument("--picture", metavar="PART", help="of the observations, where several are pictures")
    way.add_argument("--render", action="store_true", help="do the episodes again in their environment and draw them")
    way.add_argument(
        "--val-share", type=float, default=0.1, metavar="SHARE", help="of the episodes; the first of every 10"
    )
    way.add_argument("--side", type=int, metavar="PIXELS", help="of a picture; without it they stay as they are")
    way = ways.add_parser("export", help="shards -> Minari data sets NAME/train-v0, NAME/val-v0", formatter_class=show)
    way.set_defaults(command=back)
    way.add_argument("root", type=Path, help="the data set to read")
    way.add_argument("name", help="of the Minari data sets, such as mine or mine/rooms")
    way.add_argument("--version", type=int, default=0, metavar="N", help="of the Minari data sets")
    run(lambda given: given.command(given), parser)


if __name__ == "__main__":
    main()
