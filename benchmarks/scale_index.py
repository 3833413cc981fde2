"""What one more shard costs, as the run grows: the index beside the shards, and its figure.

    python benchmarks/scale_index.py [--shards 20000] [--output FILE.csv] [--plot FILE.png]

Shards of one row are written, so that little but the index is left: milliseconds a shard with all
that is synced, medians of twentieths of the run, and the bytes that the index took. Beside it:
what it would cost to write the whole index anew after each shard.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import records
import timing

import gradscore
from gradscore.plots.canvas import add_legend, new_figure, save_figure
from gradscore.run import HeadInfo, RunInfo, RunStore, SetInfo
from gradscore.run.index import encode

PARTS = 20


def grow(path: Path, shards: int) -> list[dict]:
    """Write a run of shards of one row; return what each twentieth of it took."""
    head = HeadInfo("fc", ("fc.weight",), None, True)
    groups = {"last": ("fc.weight",), "all": ("fc.weight",)}
    info = RunInfo(
        "drawn", None, "a" * 64, {}, "float32", 2, 2, (1, 2, 2), head, {"fc.weight": 4}, groups
    )
    found = []
    with RunStore.create(path, info, {"weight": np.ones((2, 2), np.float32)}) as store:
        store.add_set(SetInfo("id", "id", "drawn", "a" * 64, shards))
        for places in np.array_split(np.arange(shards), PARTS):
            taken = []
            for place in places.tolist():
                base = {
                    "index": np.array([place]),
                    "path": np.array([f"{place}.png"], object),
                    "label": np.array([0]),
                    "features": np.ones((1, 2), np.float32),
                    "logits": np.ones((1, 2), np.float32),
                }
                began = time.perf_counter()
                store.add_shards("id", {"base": base}, (place, place + 1))
                taken.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
            store.writer.write("whole.json", encode(store.info))
            whole = 1000 * (time.perf_counter() - began)
            journal = (path / ".journal").stat().st_size
            low, middle, high = np.percentile(taken, (25, 50, 75))
            row = {"shards": int(places[-1]) + 1, "ms a shard": f"{middle:.2f}"}
            row |= {"quartiles": f"{low:.2f} to {high:.2f}"}
            row |= {"journal bytes a shard": round(journal / (places[-1] + 1))}
            row |= {"ms of the whole index": f"{whole:.1f}"}
            row |= {"device": timing.device_name("cpu"), "gradscore": gradscore.__version__}
            print(row, flush=True)
            found.append(row)
        store.writer.delete("whole.json")
    return found


def draw(rows: list[dict], path: Path) -> None:
    """Draw both costs against the number of shards."""
    sizes = [row["shards"] for row in rows]
    figure, (axes,) = new_figure(path, 1, title="What one more shard costs", width=6.4)
    axes.plot(sizes, [float(row["ms a shard"]) for row in rows], "o-", label="a line of a journal")
    whole = [float(row["ms of the whole index"]) for row in rows]
    axes.plot(sizes, whole, "s--", color="0.5", label="the whole index anew")
    axes.set(xlabel="shards in the run", ylabel="milliseconds a shard", yscale="log")
    add_legend(figure, [axes])
    save_figure(figure, path)


def main() -> None:
    """Grow a run, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = grow(Path(name) / "run", chosen.shards)
    if chosen.output:
        records.write(chosen.output, rows)
    if chosen.plot:
        draw(rows, chosen.plot)


if __name__ == "__main__":
    main()
