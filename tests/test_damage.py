"""Damage: what can happen to a shard ends with one message that names shard, key, member and offset; or is skipped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clocks import STEPS, clock, data, exactly, fingerprint, taken, write

from data_pipelines import index
from data_pipelines.episodes import DamagedEpisode, EpisodeFolder
from data_pipelines.schema import Episode, Manifest
from data_pipelines.shards import verify, write_shard

SHARDS = [[STEPS] * 10, [STEPS] * 10]
PART = (0, 4)  # the episode in the first shard, and its place there, whose members are damaged


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, SHARDS)
    return tmp_path


def place(root: Path, member: str) -> tuple[int, int]:
    """Offset and size of a member of episode 4."""
    offset, size, _ = EpisodeFolder(root / "train").rows[member][4].item()
    return offset, size


def overwrite(root: Path, at: int, content: bytes) -> None:
    with (root / "train" / "000000.tar").open("r+b") as file:
        file.seek(at)
        file.write(content)


def truncate(root: Path, at: int) -> None:
    with (root / "train" / "000000.tar").open("r+b") as file:
        file.truncate(at)


def flip(root: Path) -> None:
    offset, size = place(root, "observations")
    content = (root / "train" / "000000.tar").read_bytes()[offset + size // 2]
    overwrite(root, offset + size // 2, bytes([content ^ 1]))


# What the webdataset library reads without a word in all cases but the first and the last two.
CUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "inside a payload": (
        lambda root: truncate(root, sum(place(root, "observations")) - 1),
        r"000000.tar has \d+ bytes, expected \d+: it ends before s000000-e000004.observations.npy at offset \d+ does",
    ),
    "inside a header": (
        lambda root: truncate(root, place(root, "truth")[0] - 100),
        r"ends before s000000-e000004.truth.npy at offset \d+ does",
    ),
    "between samples": (
        lambda root: truncate(root, place(root, "actions")[0] - index.HEADER),
        r"ends before s000000-e000004.actions.npy at offset \d+ does",
    ),
    "between members": (
        lambda root: truncate(root, place(root, "truth")[0] - index.HEADER),
        r"ends before s000000-e000004.truth.npy at offset \d+ does",
    ),
    "empty": (lambda root: truncate(root, 0), r"000000.tar has 0 bytes, expected \d+: it ends before s000000-e000000"),
    "missing": (lambda root: (root / "train" / "000000.tar").unlink(), "000000.tar is missing"),
}
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a hole": (lambda root: overwrite(root, place(root, "body")[0] - index.HEADER, bytes(1024)), "body.npy"),
    "a header": (lambda root: overwrite(root, place(root, "body")[0] - 360, b"777"), "body.npy"),
    "a bit of a payload": (flip, "observations.npy"),
    "a bit of the notes": (lambda root: overwrite(root, place(root, "meta")[0], b" "), "meta.json"),
}


@pytest.mark.parametrize("kind", CUTS)
def test_what_is_cut_or_missing_is_found_in_setup(kind: str, root: Path) -> None:
    change, message = CUTS[kind]
    change(root)
    for check in (lambda: data(root).setup("fit"), lambda: verify(root / "train", thorough=False)):
        with pytest.raises(
            ValueError, match=rf"damaged episodes in .*train: .*{message}.*Run the command that made it"
        ):
            check()
    skipping = data(root, on_damage="skip", skip_limit=0.9)
    assert {number for number, _ in taken(skipping.train_dataloader())} <= set(range(10, 20))
    assert skipping.stream is not None
    assert skipping.stream.skipped > 0


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_changed_is_found_when_it_is_read(kind: str, workers: int, root: Path) -> None:
    change, member = CHANGES[kind]
    change(root)
    named = (
        rf"000000.tar: s000000-e000004.{member} at offset \d+: expected the hash [0-9a-f]{{16}}, found [0-9a-f]{{16}}"
    )
    module = data(root, workers=workers, steps_per_epoch=20)
    module.setup("fit")
    with pytest.raises(ValueError, match=f"^[^\n]*{named}[^\n]*$"):
        list(module.train_dataloader())
    with pytest.raises(DamagedEpisode, match=named):
        EpisodeFolder(root / "train")[4]
    with pytest.raises(ValueError, match=named):
        verify(root / "train")
    assert len(list(data(root, verify="size", steps_per_epoch=20).train_dataloader())) == 20


def test_bytes_between_members_are_verified_too(root: Path) -> None:
    offset, size = place(root, "body")
    overwrite(root, offset + size, b"x")
    with pytest.raises(ValueError, match=r"000000.tar has another content .* between its members \(sha256 differs\)"):
        verify(root / "train")
    EpisodeFolder(root / "train")[4]


def test_skipping_takes_other_windows_counts_them_and_repeats_itself(root: Path) -> None:
    whole = taken(data(root, steps_per_epoch=30).train_dataloader())
    flip(root)
    runs = []
    for workers in (0, 2):
        module = data(root, steps_per_epoch=30, on_damage="skip", skip_limit=0.2, workers=workers)
        batches = list(module.train_dataloader())
        for batch in batches:
            exactly(batch, ({"length": 5, "stride": 1}, {"length": 4, "stride": 6}))
        runs.append((fingerprint(batches), module.stream.skipped if module.stream else 0))
    assert runs[0] == runs[1]
    now = taken(batches)
    assert 4 not in {number for number, _ in now}
    changed = [before for before, after in zip(whole, now, strict=True) if before != after]
    assert {number for number, _ in changed} == {4}
    assert runs[0][1] == len(changed) > 0


def test_too_many_skipped_windows_end_it(root: Path) -> None:
    flip(root)
    module = data(root, steps_per_epoch=30, on_damage="skip", skip_limit=0.01)  # 2.4 rows
    with pytest.raises(ValueError, match=r"3 damaged windows .* data.skip_limit=0.01 allows \(2.4\).*s000000-e000004"):
        list(module.train_dataloader())


def test_nothing_but_damage_ends_it(root: Path) -> None:
    for shard in (root / "train").glob("*.tar"):
        shard.unlink()
    with pytest.raises(ValueError, match=r"100 windows in a row are damaged; the last: .* is missing"):
        list(data(root, on_damage="skip", skip_limit=1.0).train_dataloader())


def test_validation_never_skips(root: Path) -> None:
    (root / "val" / "000001.tar").unlink()
    with pytest.raises(ValueError, match="000001.tar is missing"):
        data(root, on_damage="skip").setup("fit")


def test_both_ranks_skip_alike(root: Path) -> None:
    """What a rank takes instead depends on the damaged window alone, so steps and global batches stay equal."""
    flip(root)
    alone = data(root, on_damage="skip", skip_limit=0.5)
    batches = list(alone.train_dataloader())
    ranks = [data(root, on_damage="skip", skip_limit=0.5, batch_size=4) for _ in range(2)]
    for rank, module in enumerate(ranks):
        module._rank = lambda rank=rank: (rank, 2)  # type: ignore[method-assign]
    shares = [list(module.train_dataloader()) for module in ranks]
    joined = [taken([one]) + taken([two]) for one, two in zip(*shares, strict=True)]
    assert joined == [taken([batch]) for batch in batches]


def test_an_index_of_other_shards_is_refused(root: Path) -> None:
    path = root / "train" / index.INDEX
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"index.npy is not the index that its manifest knows"):
        EpisodeFolder(root / "train")
    path.unlink()
    with pytest.raises(ValueError, match=r"index.npy is missing"):
        EpisodeFolder(root / "train")


GOOD = clock(0)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (GOOD._replace(actions=GOOD.actions.astype(np.float64)), r"actions float64 \[40, 2\].*needs float32, 2 axes"),
        (GOOD._replace(observations=GOOD.observations[:-1]), r"observations uint8 \[40, .*needs uint8, .* and 41 rows"),
        (GOOD._replace(body=GOOD.body[:, 0]), r"body float32 \[41\]"),
        (
            Episode(*(array[:1] for array in GOOD))._replace(actions=GOOD.actions[:0], plans=GOOD.plans[:0]),
            "at least 1",
        ),
        (GOOD._replace(goal=GOOD.goal[:, :5]), "a goal of 5 bytes"),
        (GOOD._replace(truth=GOOD.truth[:, :1]), r"the shapes of the episodes before it: \(\(3, 4, 5\), "),
        (clock(0, shape=(3, 4, 6)), "shapes of the episodes before it"),
    ],
)
def test_episodes_that_do_not_fit_are_not_written(episode: Episode, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"episode s000003-e000001 has .*?{message}"):
        write_shard(tmp_path, 3, [(GOOD, {}), (episode, {})])
    assert not (tmp_path / "000003.tar").exists()


def test_an_empty_shard_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no episodes"):
        write_shard(tmp_path, 0, [])
    assert not (tmp_path / "000000.tar").exists()


def test_shards_of_different_shapes_are_no_data_set(tmp_path: Path) -> None:
    from data_pipelines.pack import pack

    def make(number: int) -> object:
        return write_shard(tmp_path / "train", number, [(clock(0, shape=(3, 4, 4 + number)), {})])

    with pytest.raises(ValueError, match=re.escape("a data set holds pictures and vectors of one size")):
        pack(tmp_path / "train", make, [1, 1], {}, "train", "raw", ("a", "b"), ("c", "d"))
    with pytest.raises(ValueError, match="no manifest.json"):
        Manifest.load(tmp_path / "train")


def test_names_must_fit_the_columns(tmp_path: Path) -> None:
    from data_pipelines.pack import pack

    def make(number: int) -> object:
        return write_shard(tmp_path / "train", number, [(GOOD, {})])

    with pytest.raises(ValueError, match=r"truth_names \['x'\] name 1 columns, the episodes have 2"):
        pack(tmp_path / "train", make, [1], {}, "train", "raw", ("body",), ("a", "b"), ("x",))
