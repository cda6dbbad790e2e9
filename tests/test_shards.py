"""Shards: a member that does not hold what it should is named, with its shard and what was expected."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.schema import Episode, Manifest
from data_pipelines.shards import EpisodeFolder, write_shard

Change = Callable[[str, bytes], bytes | None]


def rewritten(folder: Path, change: Change) -> EpisodeFolder:
    """A folder with one shard of one episode, whose tar is rewritten member by member as `change(name, bytes)` says,
    keeping the size that the manifest knows."""
    episode = Episode(
        np.zeros((4, 2, 5, 5), np.uint8),
        np.ones((3, 2), np.float32),
        np.zeros((4, 0), np.float32),
        np.ones((4, 1), np.float32),
    )
    shard = write_shard(folder / "000000.tar", [("e0", episode, {}), ("e1", episode, {})])
    with tarfile.open(folder / "000000.tar") as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(folder / "000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            content = change(member.name, content)
            if content is not None:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    size = (folder / "000000.tar").stat().st_size
    record = Manifest("train", {}, (2, 5, 5), 2, 0, ("x",), (type(shard)(**{**vars(shard), "bytes": size}),))
    record.write(folder)
    return EpisodeFolder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, content: None if name == "e1.actions.npy" else content, "cannot be read"),
        (lambda name, content: None if name.startswith("e1") else content, "holds 1 episodes, expected 2"),
        (
            lambda name, content: b"PICKLE" + content if name == "e0.truth.npy" else content,
            "e0.truth.npy is not a .npy",
        ),
        (lambda name, content: content[:-4] if name == "e0.truth.npy" else content, "e0.truth.npy holds float32"),
        (lambda name, content: content.replace(b"<f4", b"<i4") if "actions" in name else content, "holds int32"),
        (lambda name, content: content.replace(b"False", b"True ") if "actions" in name else content, "Fortran order"),
    ],
)
def test_members_that_do_not_hold_what_they_should_are_named(change: Change, message: str, tmp_path: Path) -> None:
    folder = rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=rf"000000.tar.*{message}.*Run the collection again"):
        folder[0]


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    folder = rewritten(tmp_path, lambda name, content: content)
    assert [len(episode.actions) for episode in folder] == [3, 3]
    path = tmp_path / "000000.tar"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(ValueError, match=r"000000.tar cannot be read"):
        EpisodeFolder(tmp_path)[0]


def test_an_empty_shard_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no samples"):
        write_shard(tmp_path / "000000.tar", [])
    assert not (tmp_path / "000000.tar").exists()
