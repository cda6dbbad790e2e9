"""How fast windows come from shards: `python benchmarks/stream.py --help`.

Prints batches and frames per second, and the share of one core that the asked rate would take.
"""

from __future__ import annotations

import argparse
import time

from data_pipelines.datamodule import EpisodeData


def main() -> None:
    """Read the arguments, measure, print one line."""
    parser = argparse.ArgumentParser(description="Measure the rate of the streaming data module on collected episodes.")
    parser.add_argument("root", help="folder of a data set, with train/ and val/")
    parser.add_argument("--level", action="append", metavar="LENGTH,STRIDE", help="repeat for several (default 17,1)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200, help="batches in an epoch; the first epoch is not counted")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=60_000, help="frames/s whose cost in cores is printed")
    given = parser.parse_args()
    levels = [
        dict(zip(("length", "stride"), map(int, text.split(",")), strict=True)) for text in given.level or ["17,1"]
    ]
    data = EpisodeData(given.root, levels, given.batch_size, given.steps, given.workers)
    batches = data.train_dataloader()
    frames = sum(level["length"] for level in levels) * given.batch_size * given.steps
    for epoch in range(given.epochs + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        taken = sum(1 for _ in batches)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if epoch:
            share = f"{given.rate * cpu / frames:.1%} of a core in this process at {given.rate:.0f} frames/s"
            print(f"{taken / wall:8.1f} batches/s {frames / wall:12.0f} frames/s   {share}")


if __name__ == "__main__":
    main()
