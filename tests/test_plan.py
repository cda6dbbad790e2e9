"""The plan: a batch is a pure function of (index, seed, number); each window once before any comes again."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.plan import EveryWindow, Level, ShuffledWindows, hashed, mixed, permuted

LEVELS = [Level(5, 1), Level(3, 4), Level(2, 1)]

episodes = st.lists(st.lists(st.integers(1, 16), min_size=1, max_size=4), min_size=1, max_size=4)


def index(shards: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    actions = np.concatenate([np.array(shard, np.int64) for shard in shards])
    return actions, np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])


def test_splitmix64_gives_its_published_sequence() -> None:
    # The first outputs of the generator whose state starts at 1234567 (Vigna's splitmix64.c).
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + golden * np.arange(3, dtype=np.uint64)
    assert mixed(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(1, 5000), st.integers(0, 2**40))
def test_a_permutation_takes_each_number_to_another_one(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permuted(np.arange(size), size, key)), np.arange(size))


def test_permutations_are_uniform() -> None:
    """Over many keys, each number goes to each place equally often, and pairs are as often in order as not."""
    size, keys = 6, 6000
    moved = np.stack([permuted(np.arange(size), size, key) for key in range(keys)])
    counts = np.stack([np.bincount(column, minlength=size) for column in moved.T])
    assert ((counts - keys / size) ** 2 / (keys / size)).sum() < 60  # chi-square, 25 degrees of freedom
    assert abs((moved[:, 0] < moved[:, 1]).mean() - 0.5) < 0.03


@settings(deadline=None)
@given(episodes, st.integers(1, 4), st.integers(1, 3), st.integers(0, 99), st.sampled_from([None, 1, 2]))
def test_training_deals_each_window_once_in_a_pass_whatever_the_ranks(
    shards: list[list[int]], size: int, ranks: int, seed: int, block: int | None
) -> None:
    actions, of = index(shards)
    alone = ShuffledWindows(actions, of, LEVELS, size * ranks, seed, block)
    passes = size * ranks  # so many whole passes are dealt by as many batches as there are windows
    assert alone.total == sum(max(0, t - 4 + 1) for t in actions.tolist() if t >= 8)
    if alone.total == 0:
        return
    parts = [ShuffledWindows(actions, of, LEVELS, size, seed, block, rank, ranks) for rank in range(ranks)]
    taken = []
    for batch in range(alone.total):
        rows, shares = alone(batch), [part(batch) for part in parts]
        for name in ("windows", "episodes", "starts"):
            assert np.array_equal(getattr(rows, name), np.concatenate([getattr(s, name) for s in shares], -1))
        taken.append(rows)
    windows = np.concatenate([rows.windows for rows in taken])
    assert (np.bincount(windows, minlength=alone.total) == passes).all()
    for one in np.split(windows, passes):
        assert len(set(one.tolist())) == alone.total
    starts, picked = np.concatenate([rows.starts for rows in taken], 1), np.concatenate([r.episodes for r in taken])
    for level, start in zip(LEVELS, starts, strict=True):
        assert (start >= 0).all()
        assert (start + level.steps <= actions[picked]).all()
    first, longer, shorter = starts
    assert ((longer <= first) & (first + 4 <= longer + 8)).all()
    assert ((first <= shorter) & (shorter + 1 <= first + 4)).all()


@settings(deadline=None)
@given(episodes, st.integers(1, 7), st.integers(1, 4), st.sampled_from([None, 1, 3]))
def test_validation_takes_each_window_exactly_once_over_all_ranks(
    shards: list[list[int]], size: int, ranks: int, each: int | None
) -> None:
    actions, _ = index(shards)
    plans = [EveryWindow(actions, LEVELS, size, each, rank, ranks) for rank in range(ranks)]
    counts = [max(0, t - 4 + 1) if t >= 8 else 0 for t in actions.tolist()]
    expected = sum(count if each is None else min(each, count) for count in counts)
    assert {len(plan) for plan in plans} == {-(-expected // (size * ranks))}
    rows = [plan(batch) for plan in plans for batch in range(len(plan))]
    assert {len(row.episodes) for row in rows} <= {size}
    windows = [window for row in rows for window in row.windows[row.mask].tolist()]
    assert len(windows) == len(set(windows)) == expected
    if each is None:
        assert set(windows) == set(range(expected))


def test_the_order_is_pinned() -> None:
    """It must survive updates of NumPy, and of this code: checkpoints resume in it."""
    actions = np.array([40, 40, 25, 31, 60, 12], np.int64)
    plan = ShuffledWindows(actions, np.array([0, 0, 1, 1, 1, 2]), LEVELS, 16, seed=0, block_shards=2)
    digest = hashlib.sha256()
    for batch in range(40):
        for part in plan(batch)[:3]:
            digest.update(np.ascontiguousarray(part, "<i8").tobytes())
    assert digest.hexdigest() == "1ace838502f309ee2d74c847f4394d689627ac7c53844e07c813e17ab192436b"


def test_orders_differ_between_passes_and_seeds() -> None:
    actions, of = index([[40] * 5] * 3)
    plan, other = (ShuffledWindows(actions, of, LEVELS[:1], 555, seed) for seed in (0, 1))
    assert plan.total == 555
    orders = [plan(0).windows, plan(1).windows, other(0).windows]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert (orders[one] == orders[two]).mean() < 0.05


@pytest.mark.parametrize(("block", "least_episodes", "least_shards"), [(None, 30.5, 13), (4, 28, 3.9)])
def test_a_batch_mixes_many_episodes_and_shards(block: int | None, least_episodes: float, least_shards: float) -> None:
    """640 episodes in 16 shards, batches of 32: full randomness gives 31.2 different episodes and 14 shards."""
    actions, of = index([[100] * 40] * 16)
    plan = ShuffledWindows(actions, of, [Level(16, 1)], 32, 0, block)
    rows = [plan(batch).episodes for batch in range(300)]
    assert np.mean([len(set(row.tolist())) for row in rows]) > least_episodes
    assert np.mean([len(set(of[row].tolist())) for row in rows]) > least_shards


def test_blocks_bound_the_shards_in_use() -> None:
    actions, of = index([[30] * 2] * 12)
    plan = ShuffledWindows(actions, of, [Level(5, 1)], 27, 0, block_shards=3)  # 162 windows in a block: 6 batches
    for block in range(0, 24, 6):
        used = {int(of[e]) for batch in range(block, block + 6) for e in plan(batch).episodes}
        assert len(used) == 3


def test_longer_windows_are_laid_around_the_first_level_s_at_all_possible_places() -> None:
    plan = ShuffledWindows(np.full(400, 40), np.zeros(400, np.int64), [Level(5, 1), Level(5, 5)], 400 * 37, 0)
    first, longer = plan(0).starts
    for at in (0, 10, 20, 36):
        least, most = max(0, at + 4 - 20), min(at, 20)
        assert set(longer[first == at].tolist()) == set(range(least, most + 1))


def test_hashes_of_numbers_and_of_arrays_agree() -> None:
    both = hashed(3, np.array([5, 7]))
    assert both.tolist() == [int(hashed(3, 5)[0]), int(hashed(3, 7)[0])]
    assert len(set(hashed(np.arange(10_000)).tolist())) == 10_000


def test_a_hundred_million_windows_are_planned_in_bounded_memory() -> None:
    """A million episodes of 100 windows: their index is all that is held."""
    actions = np.full(1_000_000, 114, np.int64)
    of = np.repeat(np.arange(2000), 500)
    tracemalloc.start()
    plan = ShuffledWindows(actions, of, [Level(16, 1)], 256, 0, block_shards=8)
    assert plan.total == 100_000_000
    plan(0)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    far = [plan(batch).windows for batch in (0, 123_456, 390_624, 7_000_000)]
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert len(np.unique(np.concatenate(far))) > 1020
    assert peak < 4_000_000  # an order of all would take 800 MB
