"""Packing: a folder of shards from a function of the shard's number. Resumable, parallel, never half.

While it goes on, a journal lists the shards that are whole. At the end the index and then the manifest are written, so
a folder that has a manifest is complete. Whoever makes shards (a simulator, a video, arrays) comes in through here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
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
from rich.text import Text

from data_pipelines import index
from data_pipelines.schema import MANIFEST, Manifest, canonical, shard_from, write_atomically
from data_pipelines.shards import Packed, damage, split_index

JOURNAL = "unfinished.jsonl"


def pack(
    folder: Path,
    make: Callable[[int], Packed],
    episodes: Sequence[int],
    configuration: Mapping[str, Any],
    split: str,
    encoding: str,
    body_names: Sequence[str] = (),
    energy_names: Sequence[str] = (),
    truth_names: Sequence[str] = (),
    workers: int = 0,
) -> Manifest:
    """Make all shards that are not there yet, then index and manifest. A data set grows if more are asked for.

    Args:
        folder: of the split.
        make: writes the shard of a number into `folder`; a function of the number alone. Pickled if there are workers.
        episodes: how many episodes the shard of each number will hold.
        configuration: what decides the content. A folder that was begun with another one is refused.
        split: name of the split.
        encoding: of the observations.
        body_names: of the body's columns.
        energy_names: of the energies' columns.
        truth_names: of the truth's columns.
        workers: processes; 0 makes shards in this one.

    Raises:
        ValueError: if the folder can't be written, holds data of another configuration, or shards don't fit together.
    """
    _make_folder(folder)
    plain: dict[str, Any] = json.loads(canonical(configuration))
    done = _finished(folder, plain, encoding)
    if len(done) > len(episodes):
        raise ValueError(
            f"{folder} holds {sum(packed.shard.episodes for packed in done.values())} episodes, more than the "
            f"{sum(episodes)} asked for. Ask for as many, choose another root, or delete {folder}"
        )
    # The last shard of a smaller data set may have been smaller too.
    done = {number: packed for number, packed in done.items() if packed.shard.episodes == episodes[number]}
    missing = [number for number in range(len(episodes)) if number not in done]
    if not missing and (folder / MANIFEST).is_file():
        return Manifest.load(folder)
    journal = folder / JOURNAL
    lines = [canonical(plain), *(_line(packed) for packed in done.values())]
    write_atomically(journal, ("\n".join(lines) + "\n").encode())
    (folder / MANIFEST).unlink(missing_ok=True)
    with open(journal, "a", encoding="utf-8") as file, _progress() as progress:
        already = sum(episodes[number] for number in done)
        bar = progress.add_task(f"packing {folder.parent.name}/{split}", total=sum(episodes), completed=already)
        for number, packed in _make_all(make, missing, workers):
            done[number] = packed
            file.write(_line(packed) + "\n")
            file.flush()
            progress.advance(bar, packed.shard.episodes)
    ordered = [done[number] for number in range(len(episodes))]
    observation, action, body, energies, truth, plans, goal, weights = _shapes(folder, ordered)
    named = (("body", body_names, body), ("energy", energy_names, energies), ("truth", truth_names, truth))
    for what, names, width in named:
        if len(names) != width[0]:
            raise ValueError(
                f"{folder}: {what}_names {list(names)} name {len(names)} columns, the episodes have {width[0]}"
            )
    manifest = Manifest(
        split=split,
        configuration=plain,
        observation_shape=(observation[0], observation[1], observation[2]),
        action_size=action[0],
        body_names=tuple(body_names),
        energy_names=tuple(energy_names),
        truth_names=tuple(truth_names),
        plan_size=plans[0],
        has_goal=goal[0] > 0,
        weights_size=weights[0],
        encoding=encoding,
        shards=tuple(packed.shard for packed in ordered),
        index_sha256=index.write(folder, np.concatenate([packed.rows for packed in ordered])),
    )
    manifest.write(folder)
    journal.unlink()
    return Manifest.load(folder)


def shard_sizes(episodes: int, episodes_per_shard: int) -> list[int]:
    """How many episodes each shard holds: all alike but the last.

    Raises:
        ValueError: if one of the numbers is below 1.
    """
    if min(episodes, episodes_per_shard) < 1:
        raise ValueError(f"episodes={episodes}, episodes_per_shard={episodes_per_shard}: give at least 1 of each")
    return [min(episodes_per_shard, episodes - first) for first in range(0, episodes, episodes_per_shard)]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        raise ValueError(f"cannot write episodes to {folder} ({error}). Choose another root") from error


def _shapes(folder: Path, packed: Sequence[Packed]) -> tuple[tuple[int, ...], ...]:
    """The shapes that all shards share."""
    for other in packed:
        if other.shapes != packed[0].shapes:
            raise ValueError(
                f"{folder / other.shard.name} has arrays of {other.shapes} for each step, {packed[0].shard.name} of "
                f"{packed[0].shapes}: a data set holds pictures and vectors of one size"
            )
    return packed[0].shapes


def _line(packed: Packed) -> str:
    return canonical({"shard": asdict(packed.shard), "rows": packed.rows.tolist(), "shapes": packed.shapes})


def _read_line(line: str) -> Packed:
    content = json.loads(line)
    # A structured row is a tuple, and so is each of its parts.
    rows = np.array([(*row[:2], *map(tuple, row[2:])) for row in content["rows"]], index.ROW)
    return Packed(shard_from(content["shard"]), rows, tuple(map(tuple, content["shapes"])))


def _finished(folder: Path, configuration: dict[str, Any], encoding: str) -> dict[int, Packed]:
    """Shards of an earlier, perhaps killed run with the same configuration that are whole, by number."""
    if (folder / MANIFEST).is_file():
        manifest = Manifest.load(folder)
        found, packed = manifest.configuration, _from_manifest(folder, manifest)
    elif (folder / JOURNAL).is_file():
        # A line without its end was being written when the run was killed.
        first, *rest = (folder / JOURNAL).read_text(encoding="utf-8").split("\n")[:-1]
        found, packed = json.loads(first), [_read_line(line) for line in rest]
    elif any(folder.glob("*.tar")):
        raise ValueError(f"{folder} holds tar files but no manifest.json. Choose another root")
    else:
        return {}
    if found != configuration:
        raise ValueError(
            f"{folder} holds other data: {'; '.join(_differences(found, configuration))}. "
            f"Choose another root, or delete {folder}"
        )
    return {
        int(Path(one.shard.name).stem): one
        for one in packed
        if damage(folder, one.shard, one.rows, encoding, thorough=True) is None
    }


def _from_manifest(folder: Path, manifest: Manifest) -> list[Packed]:
    widths = manifest.widths
    shapes = (manifest.observation_shape, *((width,) for name, width in widths.items() if name != "observations"))
    rows = split_index(folder, manifest)
    return [Packed(shard, part, shapes) for shard, part in zip(manifest.shards, rows, strict=True)]


def _make_all(make: Callable[[int], Packed], numbers: list[int], workers: int) -> Iterator[tuple[int, Packed]]:
    """Make shards here or in worker processes, in any order."""
    if workers == 0 or len(numbers) < 2:
        for number in numbers:
            yield number, make(number)
        return
    # Forking a process whose libraries run threads can hang, so workers start afresh.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(make, number): number for number in numbers}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any], path: str = "") -> list[str]:
    lines: list[str] = []
    for name in sorted({*found, *asked}):
        there, here = found.get(name), asked.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            lines += _differences(there, here, f"{path}{name}.")
        elif there != here:
            lines.append(f"{path}{name} is {there} there and {here} here")
    return lines


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Episodes per second."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f} episodes/s" if speed else "")


def _progress() -> Progress:
    text = TextColumn("{task.description}")
    return Progress(text, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
