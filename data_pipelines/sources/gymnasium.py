"""Any Gymnasium environment with pictures -> shards: `python -m data_pipelines.sources.gymnasium ID data/mine --help`.

Pictures are the observation where that is a uint8 image, or its part that `--picture` names, else what `render()` gives
("rgb_array"), scaled to squares of `side` pixels. All numbers of the observation are the truth, and those of the
environment's info that `--infos` names. Actions are numbers: those of a Box flattened, a Discrete one as one-hot. Each
episode is a function of (seed, split, its number) as far as the environment is one of its seed.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, flatten
from numpy.typing import NDArray

from data_pipelines.commands import run
from data_pipelines.encodings import check
from data_pipelines.pictures import channels_first
from data_pipelines.schema import Episode, Manifest, episode_of
from data_pipelines.source import add_options, chance_of, pack_given
from data_pipelines.spaces import number_parts, picture_parts

Policy = Callable[[Any, np.random.Generator], Any]  # observation, chance -> action of the environment


class GymnasiumEpisodes:
    """Episodes of an environment.

    Args:
        env_id: its id; "module:Id" imports the module that registers it.
        arguments: of `gymnasium.make`.
        train: episodes to train on.
        val: episodes to validate on.
        policy: "random", "smooth" (a Box's actions change slowly), or "module:name" of a function that takes the action
            space and returns a policy.
        steps: most of an episode; it also ends where the environment ends it.
        side: pixels along each side of a picture.
        seed: of environment and policy.
        picture: the part of the observation to look at, if that is a Dict; keys are joined by "_".
        infos: entries of the environment's info that belong to the truth.

    Raises:
        ValueError: if the environment can't be made, or has no such pictures or infos.
    """

    def __init__(
        self,
        env_id: str,
        arguments: dict[str, Any],
        train: int = 1000,
        val: int = 100,
        policy: str = "random",
        steps: int = 100,
        side: int = 64,
        seed: int = 0,
        picture: str | None = None,
        infos: Sequence[str] = (),
    ) -> None:
        self.counts = {"train": train, "val": val}
        self.env_id, self.arguments, self.policy = env_id, dict(arguments), policy
        self.steps, self.side, self.seed, self.picture, self.infos = steps, side, seed, picture, list(infos)
        names = ("env_id", "arguments", "policy", "steps", "side", "seed", "picture", "infos")
        self.settings = {"source": "gymnasium", **{name: getattr(self, name) for name in names}}
        self.body_names = ()
        self.energy_names = ()
        if steps < 1 or side < 1:
            raise ValueError(f"steps={steps}, side={side}: give at least 1")
        env = self._make()
        try:
            self._policy(env)  # may be refused
            known = picture_parts(env.observation_space)
            if picture is not None and picture not in known:
                raise ValueError(
                    f"picture={picture!r}: the uint8 images in the observations of {env_id} are {list(known)}"
                )
            self.seen = known.get(picture or "")
            observation, info = env.reset(seed=seed)
            if self.seen is None and not isinstance(env.render(), np.ndarray):
                raise ValueError(
                    f"{env_id} has no uint8 image as observation, and render() gives none. Environments that draw need "
                    f'the argument {{"render_mode": "rgb_array"}}; images among its observations: {list(known)}'
                )
            self.truth_names = tuple(self._truth_names(env.observation_space, info))
            self.channels = self._picture(env, observation).shape[0]
        finally:
            env.close()

    def count(self, split: str) -> int:
        """How many episodes a split has."""
        return self.counts[split]

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Episode, dict[str, Any]]]:
        """The episodes of these numbers."""
        meta = {"world": self.env_id, "policy": self.policy, "seed": self.seed, "stream": "agency"}
        env = self._make()
        try:
            for number in numbers:
                yield self._episode(env, self._policy(env), chance_of(self.seed, split, number)), meta
        finally:
            env.close()

    def _episode(self, env: gymnasium.Env[Any, Any], policy: Policy, chance: np.random.Generator) -> Episode:
        observation, info = env.reset(seed=int(chance.integers(2**31)))
        frames, actions, truth = [self._picture(env, observation)], [], [self._truth(env, observation, info)]
        for _ in range(self.steps):
            action = policy(observation, chance)
            observation, _, terminated, truncated, info = env.step(action)
            frames.append(self._picture(env, observation))
            actions.append(np.asarray(flatten(env.action_space, action), np.float32))
            truth.append(self._truth(env, observation, info))
            if terminated or truncated:
                break
        return episode_of(np.stack(frames), actions=np.stack(actions), truth=np.stack(truth))

    def _make(self) -> gymnasium.Env[Any, Any]:
        try:
            return gymnasium.make(self.env_id, **self.arguments)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ValueError(f"the environment {self.env_id!r} cannot be made: {error}") from error

    def _policy(self, env: gymnasium.Env[Any, Any]) -> Policy:
        if self.policy == "random":
            return lambda _, chance: _sample(env.action_space, chance)
        if self.policy == "smooth":
            if not isinstance(env.action_space, Box):
                raise ValueError(f"policy='smooth' needs actions that are a Box, not {env.action_space}: choose random")
            return _Smooth(env.action_space)
        module, _, name = self.policy.partition(":")
        try:
            policy: Policy = getattr(importlib.import_module(module), name)(env.action_space)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"policy={self.policy!r}: give random, smooth or module:name ({error})") from error
        return policy

    def _picture(self, env: gymnasium.Env[Any, Any], observation: Any) -> NDArray[np.uint8]:
        """uint8 [C, side, side]."""
        picture = env.render() if self.seen is None else self.seen.of(observation)
        return channels_first(np.asarray(picture), self.side)

    def _truth_names(self, space: gymnasium.Space[Any], info: dict[str, Any]) -> Iterator[str]:
        for part in number_parts(space):
            yield from part.columns("observation")
        for name in self.infos:
            if name not in info:
                raise ValueError(f"infos={self.infos}: {self.env_id} tells {sorted(info)} when an episode begins")
            yield from (f"{name}_{column}" for column in range(np.size(info[name])))

    def _truth(self, env: gymnasium.Env[Any, Any], observation: Any, info: dict[str, Any]) -> NDArray[np.float32]:
        found = [part.flat(part.of(observation)) for part in number_parts(env.observation_space)]
        told = [np.ravel(info[name]) for name in self.infos]
        return np.concatenate([np.empty(0), *found, *told]).astype(np.float32)


class _Smooth:
    """Actions that forget slowly: a[t + 1] = .9 a[t] + noise, clipped to the Box."""

    def __init__(self, space: Box) -> None:
        low, high = np.clip(space.low, -1e3, 1e3), np.clip(space.high, -1e3, 1e3)
        self.space, self.centre, self.reach = space, (low + high) / 2, (high - low) / 2
        self.state = np.zeros(space.shape)

    def __call__(self, observation: Any, chance: np.random.Generator) -> Any:
        self.state = 0.9 * self.state + np.sqrt(1 - 0.9**2) * chance.normal(size=self.space.shape) * 0.6
        action = self.centre + self.reach * self.state
        return np.clip(action, self.space.low, self.space.high).astype(self.space.dtype)


def _sample(space: gymnasium.Space[Any], chance: np.random.Generator) -> Any:
    space.seed(int(chance.integers(2**31)))
    return space.sample()


def collect(given: argparse.Namespace) -> dict[str, Manifest]:
    """Pack both splits."""
    names = ("env_id", "arguments", "train", "val", "policy", "steps", "side", "seed", "picture", "infos")
    source = GymnasiumEpisodes(**{name: getattr(given, name) for name in names})
    check(given.encoding, source.channels)
    return pack_given(source, given)


def main() -> None:
    """The command line."""
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.sources.gymnasium",
        description="Episodes of a Gymnasium environment into shards.",
        formatter_class=show,
    )
    parser.add_argument("env_id", help="the environment's id; module:Id imports the module that registers it")
    add_options(parser)
    parser.add_argument("--arguments", type=json.loads, default={}, metavar="JSON", help="of gymnasium.make")
    parser.add_argument("--picture", metavar="PART", help="of an observation that is a Dict; else it is rendered")
    parser.add_argument("--infos", nargs="*", default=[], metavar="NAME", help="what of the info belongs to the truth")
    parser.add_argument("--policy", default="random", help="random, smooth, or module:name of your own")
    parser.add_argument("--train", type=int, default=1000, metavar="N", help="episodes to train on")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="episodes to validate on")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="most of an episode")
    parser.add_argument("--side", type=int, default=64, metavar="PIXELS", help="of a picture")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of environment and policy")
    run(collect, parser)


if __name__ == "__main__":
    main()
