"""Bouncing pictures: passive observation of small things that fly about and bounce off the borders.

`python -m data_pipelines.sources.bouncing data/digits --bounce random`. Things are scikit-learn's digits, or labelled
pictures of yours. Each flies straight on; at a border its velocity is mirrored, or, with random bounces, turned to any
direction that leads away from the border: several futures of equal right. Where things overlap, the brighter pixel
shows.
Legend: D things, h their side, T steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipelines.commands import run
from data_pipelines.schema import Episode, Manifest, episode_of
from data_pipelines.source import add_options, chance_of, pack_given
from data_pipelines.sources.idx import IdxPictures

HELD_OUT = 5  # of so many of the library's digits one is held out


class Labelled(Protocol):
    """Pictures and their classes."""

    @property
    def pictures(self) -> Mapping[str, NDArray[np.uint8]]:
        """By split, [N, h, h]."""
        ...

    @property
    def labels(self) -> Mapping[str, NDArray[Any]]:
        """By split, [N]."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides them, as JSON."""
        ...


class Clips(NamedTuple):
    """N clips: what was seen, what followed, and what did not."""

    seen: NDArray[np.uint8]  # [N, context, 1, side, side]
    true: NDArray[np.uint8]  # [N, horizon, 1, side, side]
    wrong: dict[str, NDArray[np.uint8]]  # other_clip, time_reversal, teleport, identity_swap: the same shape
    centres: NDArray[np.float32]  # [N, context + horizon, D, 2]: x and y in pixels


class BouncingPictures:
    """Episodes of flying things, each a function of (seed, split, its number).

    Args:
        train: episodes to train on.
        val: episodes of things held out.
        test: episodes of other things held out, which are for an exam alone.
        things: D, how many fly in each episode.
        side: pixels along each side of a picture.
        zoom: pixels of the picture for each of a thing's.
        steps: T, of an episode; it has T + 1 frames.
        slowest: pixels a step.
        fastest: pixels a step.
        bounce: "mirror" or "random".
        pictures: what flies, such as `IdxPictures`; None: scikit-learn's digits, of 8 x 8 pixels.
        seed: of everything.

    Raises:
        ValueError: if a number or a choice is impossible.
    """

    def __init__(
        self,
        train: int = 2000,
        val: int = 200,
        test: int = 0,
        things: int = 1,
        side: int = 64,
        zoom: int = 2,
        steps: int = 39,
        slowest: float = 1.0,
        fastest: float = 4.0,
        bounce: str = "mirror",
        pictures: Labelled | None = None,
        seed: int = 0,
    ) -> None:
        if bounce not in ("mirror", "random"):
            raise ValueError(f"bounce={bounce!r}: choose 'mirror' or 'random'")
        self.labelled = Digits() if pictures is None else pictures
        self.size = zoom * self.labelled.pictures["train"].shape[-1]
        if min(things, zoom, steps) < 1 or not 0 < slowest <= fastest < side - self.size:
            raise ValueError(
                f"things={things}, zoom={zoom}, steps={steps}, slowest={slowest}, fastest={fastest}, side={side}: give "
                "at least one thing, zoom and step, and speeds above 0 that are less than the room of a thing, "
                f"{side} - {self.size} pixels"
            )
        self.counts = {"train": train, "val": val, "test": test}
        self.things, self.side, self.zoom, self.steps = things, side, zoom, steps
        self.slowest, self.fastest, self.bounce, self.seed = slowest, fastest, bounce, seed
        names = ("things", "side", "zoom", "steps", "slowest", "fastest", "bounce", "seed")
        numbers = {name: getattr(self, name) for name in names}
        self.settings = {"source": "bouncing pictures", "pictures": dict(self.labelled.settings), **numbers}
        self.settings["drawn"] = "between pixels"
        # For each thing: its centre and velocity, pixels and pixels a step, and its class.
        self.truth_names = tuple(f"{what}_{d}" for d in range(things) for what in ("x", "y", "vx", "vy", "class"))
        self.body_names = ()
        self.energy_names = ()

    def count(self, split: str) -> int:
        """How many episodes a split has."""
        return self.counts[split]

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Episode, dict[str, Any]]]:
        """The episodes of these numbers."""
        for number in numbers:
            sprites, places, velocities, classes = self._scene(chance_of(self.seed, split, number), split)
            kinds = np.broadcast_to(classes, places.shape[:2])[..., None]
            truth = np.concatenate([self._centre(places), velocities, kinds], -1).astype(np.float32)
            frames, seen = self._draw(sprites, places), truth.reshape(self.steps + 1, -1)
            meta = {"source": "bouncing pictures", "stream": "passive observation", "seed": self.seed}
            yield episode_of(frames, truth=seen), meta

    def clips(self, split: str, count: int, context: int, horizon: int) -> Clips:
        """Clips of the first episodes, one of each, with continuations that did not happen.

        Args:
            split: of the data.
            count: episodes.
            context: frames that are known.
            horizon: frames that follow.

        Raises:
            ValueError: if episodes are too short, or there is one thing alone, which nothing can be exchanged with.
        """
        if self.things < 2 or max(context, horizon + 1) + horizon > self.steps + 1:
            raise ValueError(
                f"clips of {context} + {horizon} frames from episodes of {self.steps + 1} frames with {self.things} "
                f"thing(s): give two or more, and {max(context, horizon + 1) + horizon} frames"
            )
        room, found = self.side - self.size, list[tuple[NDArray[Any], ...]]()
        for number in range(count):
            chance = chance_of(self.seed, split, number)
            sprites, places, _, _ = self._scene(chance, split, different=True)
            now = int(chance.integers(max(context, horizon + 1), self.steps + 2 - horizon))
            ahead, jump = places[now : now + horizon], chance.integers(1, max(2, horizon // 2))
            away = chance.uniform(room / 3, room / 2, 2) * chance.choice([-1, 1], 2)
            folded = (ahead[:, 0] + away) % (2 * room)  # borders mirror
            elsewhere = ahead.copy()
            elsewhere[jump:, 0] = np.where(folded > room, 2 * room - folded, folded)[jump:]
            swapped = np.concatenate([self._draw(sprites, ahead[:jump]), self._draw(sprites[::-1], ahead[jump:])])
            back = places[now - 1 - horizon : now - 1][::-1]
            seen = self._draw(sprites, places[now - context : now])
            drawn = [self._draw(sprites, part) for part in (ahead, back, elsewhere)]
            found.append((seen, *drawn, swapped, self._centre(places[now - context : now + horizon])))
        seen, true, reversal, teleport, swap, centres = (np.stack(part) for part in zip(*found, strict=True))
        wrong = {"other_clip": np.roll(true, 1, 0), "time_reversal": reversal, "teleport": teleport}
        return Clips(seen, true, {**wrong, "identity_swap": swap}, centres.astype(np.float32))

    def _scene(
        self, chance: np.random.Generator, split: str, different: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Sprites [D, h, h], corners and velocities [T + 1, D, 2], and classes [D], which may have to differ."""
        pictures, classes = self.labelled.pictures[split], self.labelled.labels[split].astype(np.int64)
        chosen = chance.integers(len(pictures), size=self.things)
        while different and len(set(classes[chosen])) < min(self.things, len(set(classes))):
            chosen = chance.integers(len(pictures), size=self.things)
        places, velocities = self._fly(chance)
        return pictures[chosen].repeat(self.zoom, -1).repeat(self.zoom, -2), places, velocities, classes[chosen]

    def _centre(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        return places + self.size / 2 - 0.5

    def _fly(self, chance: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Upper left corners and velocities (x, y): [T + 1, D, 2] each."""
        room, shape = self.side - self.size, (self.things,)
        angle, speed = chance.uniform(0, 2 * np.pi, shape), chance.uniform(self.slowest, self.fastest, shape)
        place = chance.uniform(0, room, (*shape, 2))
        velocity = speed[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        places, velocities = [place], [velocity]
        for _ in range(self.steps):
            place = place + velocity
            low, high = place < 0, place > room
            place = np.where(low, -place, np.where(high, 2 * room - place, place))
            if self.bounce == "random":
                angle = chance.uniform(0, 2 * np.pi, shape)
                turned = speed[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
                velocity = np.where((low | high).any(-1, keepdims=True), turned, velocity)
            # Away from the borders that were touched.
            velocity = np.where(low, np.abs(velocity), np.where(high, -np.abs(velocity), velocity))
            places.append(place)
            velocities.append(velocity)
        return np.stack(places), np.stack(velocities)

    def _draw(self, sprites: NDArray[np.uint8], places: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Sprites [D, h, h] at places [T + 1, D, 2] -> frames [T + 1, 1, side, side].

        Between pixels a sprite's light is shared out, so that a few frames tell its velocity exactly.
        """
        frames = np.zeros((len(places), 1, self.side + 1, self.side + 1), np.uint8)
        corners, size = np.floor(places).astype(int), sprites.shape[-1] + 1
        x_share, y_share = np.moveaxis((places - corners).astype(np.float32), -1, 0)[..., None, None]
        for d, sprite in enumerate(np.pad(sprites, ((0, 0), (1, 1), (1, 1))).astype(np.float32)):
            rows = sprite[1:] + y_share[:, d] * (sprite[:-1] - sprite[1:])  # [T + 1, h + 1, h + 2]
            drawn = rows[..., 1:] + x_share[:, d] * (rows[..., :-1] - rows[..., 1:])
            for t, (x, y) in enumerate(corners[:, d]):
                part = frames[t, 0, y : y + size, x : x + size]
                np.maximum(part, drawn[t].round().astype(np.uint8), out=part)
        return np.ascontiguousarray(frames[..., : self.side, : self.side])


class Digits:
    """Scikit-learn's 1797 digits of 8 x 8 pixels: eight of ten to train on, one for "val", one for "test"."""

    settings: Mapping[str, Any] = {"source": "scikit-learn's digits", "held out": "a tenth for val, a tenth for test"}

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        self.pictures: dict[str, NDArray[np.uint8]] = {}
        self.labels: dict[str, NDArray[np.int64]] = {}
        numbers = np.arange(len(found.target))
        held_out, odd = numbers % HELD_OUT == 0, numbers // (2 * HELD_OUT) % 2 == 1
        for split, kept in {"train": ~held_out, "val": held_out & odd, "test": held_out & ~odd}.items():
            self.pictures[split] = (found.images[kept] * (255 / 16)).round().astype(np.uint8)
            self.labels[split] = found.target[kept]


def packed(given: argparse.Namespace) -> dict[str, Manifest]:
    """Pack both splits."""
    names = ("train", "val", "things", "side", "zoom", "steps", "slowest", "fastest", "bounce", "seed")
    pictures = None if given.pictures is None else IdxPictures(given.pictures)
    return pack_given(BouncingPictures(pictures=pictures, **{name: getattr(given, name) for name in names}), given)


def main() -> None:
    """The command line."""
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.sources.bouncing",
        description="Things that fly and bounce, into shards.",
        formatter_class=show,
    )
    add_options(parser)
    parser.add_argument("--train", type=int, default=2000, metavar="N", help="episodes to train on")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="episodes of things held out")
    parser.add_argument("--pictures", metavar="FOLDER", help="of labelled pictures in the IDX format; digits without")
    parser.add_argument("--things", type=int, default=1, metavar="N", help="in an episode")
    parser.add_argument("--side", type=int, default=64, metavar="PIXELS", help="of a picture")
    parser.add_argument("--zoom", type=int, default=2, metavar="N", help="pixels for each of a thing's")
    parser.add_argument("--steps", type=int, default=39, metavar="N", help="of an episode")
    parser.add_argument("--slowest", type=float, default=1.0, metavar="PIXELS", help="a step")
    parser.add_argument("--fastest", type=float, default=4.0, metavar="PIXELS", help="a step")
    parser.add_argument("--bounce", choices=["mirror", "random"], default="mirror", help="at a border")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything")
    run(packed, parser)


if __name__ == "__main__":
    main()
