"""How long a job of many parts takes when workers die and some are slow: a simulation.

    python benchmarks/scale_failures.py [--output FILE.csv]

Workers die by a Poisson process and are replaced after a wait; a part goes on from its last shard.
Speeds are drawn anew for each machine: log-normal, and one in fifty is five times slower. A worker
that is free takes the next part, as a job array with a limit does (`--array=1-N%W`). Each part
begins with a start: a process, its libraries, the model, the list of images. The figure is the
makespan over that of the same machines without starts, deaths, losses and waiting at the end.
"""

import argparse
import heapq
import math
from pathlib import Path

import numpy as np
import records

IMAGES = 100_000_000
RATE = 1000.0
"""Images a second of a usual worker."""
START_S, REPLACE_S = 60.0, 300.0
SHARD_IMAGES = 4096
SPREAD, SLOW_SHARE, SLOWNESS = 0.15, 0.02, 5.0
MINUTES = (1, 2, 5, 10, 20, 40, 80, 160)
"""Lengths of a part on a usual worker."""
TRIALS = 15


def makespan(
    workers: int, parts: int, deaths_an_hour: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the seconds until the last part is done, and those that perfect use would take."""

    def speed() -> float:
        slow = SLOWNESS if rng.random() < SLOW_SHARE else 1.0
        return RATE * math.exp(rng.normal(0, SPREAD)) / slow

    each = IMAGES / parts
    speeds = [speed() for _ in range(workers)]
    free = [(0.0, worker) for worker in range(workers)]
    deaths = [rng.exponential(3600 / deaths_an_hour) for _ in range(workers)]
    ideal = IMAGES / sum(speeds)
    last = 0.0
    for _ in range(parts):
        now, worker = heapq.heappop(free)
        left = each
        while True:
            ends = now + START_S + left / speeds[worker]
            if ends <= deaths[worker]:
                break
            worked = max(0.0, deaths[worker] - now - START_S) * speeds[worker]
            left -= worked // SHARD_IMAGES * SHARD_IMAGES
            now = deaths[worker] + REPLACE_S
            speeds[worker] = speed()
            deaths[worker] = now + rng.exponential(3600 / deaths_an_hour)
        last = max(last, ends)
        heapq.heappush(free, (ends, worker))
    return last, ideal


def main() -> None:
    """Simulate parts of several lengths, and write the makespans."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    rows = []
    for workers in (8, 64):
        for deaths in (0.05, 0.5):
            for minutes in MINUTES:
                parts = max(workers, round(IMAGES / (RATE * 60 * minutes)))
                rng = np.random.default_rng([workers, minutes])
                ratios, hours = [], []
                for _ in range(TRIALS):
                    seconds, ideal = makespan(workers, parts, deaths, rng)
                    ratios.append(seconds / ideal)
                    hours.append(seconds / 3600)
                row = {
                    "workers": workers,
                    "deaths a worker and hour": deaths,
                    "minutes a part": minutes,
                    "parts": parts,
                    "hours": f"{np.median(hours):.2f}",
                    "makespan / ideal": f"{np.median(ratios):.3f}",
                    "spread": f"{min(ratios):.3f} to {max(ratios):.3f}",
                }
                rows.append(row)
                print(*row.values(), sep="  ")
    if chosen.output:
        records.write(chosen.output, rows)


if __name__ == "__main__":
    main()
