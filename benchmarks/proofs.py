"""What it costs to prove that no sample depends on its company: first call, second kind, later.

python benchmarks/proofs.py -o benchmarks/results/proofs-cpu.csv
python benchmarks/proofs.py --model cifar:resnet20 -o benchmarks/results/proofs-cpu.csv

The second measures some models anew and keeps the other rows. A second kind of batch has one image
more than the first; its forwards are counted in whole batches, for a batch may go through the
model in parts. Later calls stand beside an engine in which the check does nothing, in turns and in
one process.
"""

import argparse
import csv
import gc
import importlib
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import records
import torch
from timing import interleaved
from torch import Tensor, nn

import gradscore as gs
from gradscore.network import check_independence

MODELS = {"timm:resnet18": 224, "timm:vit_tiny_patch16_224": 224, "cifar:resnet20": 32}
BATCHES = (8, 64)
LAYERS = ("last", "all")
CHECKED = ("gradscore.capture.recording", "gradscore.scorer", "gradscore.layers.head")

Call = Callable[[Tensor], object]


def unchecked(call: Call, images: Tensor) -> None:
    """Run a call with the check patched out."""
    modules = [importlib.import_module(name) for name in CHECKED]
    for module in modules:
        module.check_independence = lambda *_: None
    try:
        call(images)
    finally:
        for module in modules:
            module.check_independence = check_independence


def seconds(call: Call, images: Tensor) -> float:
    """Return the processor's time that one call takes, which a busy machine moves little."""
    start = time.process_time()
    call(images)
    return time.process_time() - start


def kept_bytes() -> int:
    """Return the bytes of memory behind all tensors that are alive."""
    gc.collect()
    alive = [x for x in gc.get_objects() if issubclass(type(x), Tensor) and not x.is_meta]
    memory = [x.untyped_storage() for x in alive]
    return sum({part.data_ptr(): part.nbytes() for part in memory}.values())


def measure(
    name: str, size: int, batch: int, layers: str, most_seconds: float
) -> dict[str, object]:
    """Return the figures of one model, batch size and choice of layers."""
    torch.manual_seed(0)
    model: nn.Module = gs.create_model(name, "random").eval()
    images = torch.randn(batch + 1, 3, size, size)
    first, second = images[:batch], images
    calls: dict[str, Call] = {
        "last": gs.GradNorm(model),
        "all": lambda x: gs.gradient_norms(model, x),
    }
    call = calls[layers]
    sizes: list[int] = []  # a hook that came later would make another state
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    before = kept_bytes()
    figures = {"first_s": seconds(call, first)}
    figures["kept_bytes"] = kept_bytes() - before
    sizes.clear()
    figures["second_kind_s"] = seconds(call, second)
    figures["second_kind_forwards"] = sum(sizes) / len(second)
    taken = interleaved(
        {"checked": lambda: call(first), "unchecked": lambda: unchecked(call, first)},
        repeats=40,
        seconds=most_seconds,
        clock=time.process_time,
    )
    figures["later_kept_bytes"] = kept_bytes() - before - figures["kept_bytes"]
    ratios = [a / b for a, b in zip(taken["checked"], taken["unchecked"], strict=True)]
    return {
        "model": name,
        "layers": layers,
        "batch": batch,
        **{key: round(value, 3) for key, value in figures.items()},
        "later_s": round(statistics.median(taken["checked"]), 4),
        "later_ratio": round(statistics.median(ratios), 4),
        "later_ratio_low": round(min(ratios), 4),
        "later_ratio_high": round(max(ratios), 4),
        "rounds": len(ratios),
        "threads": torch.get_num_threads(),
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def recorded(path: Path | None) -> dict[tuple[str, ...], dict[str, object]]:
    """Return the rows of an earlier run by what they are of."""
    if path is None or not path.exists():
        return {}
    with path.open(newline="") as file:
        return {key_of(row): row for row in csv.DictReader(file)}


def key_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """Return what a row is of."""
    return tuple(str(row[column]) for column in ("model", "layers", "batch"))


def main() -> None:
    """Measure, print and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="rows not measured anew are kept")
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all")
    parser.add_argument("--batch", action="append", type=int, help="default: 8 and 64")
    parser.add_argument("--layers", action="append", choices=LAYERS, help="default: both")
    parser.add_argument("--seconds", type=float, default=60.0, help="most, for later calls")
    options = parser.parse_args()
    rows = recorded(options.output)
    for name, batch, layers in itertools.product(
        options.model or MODELS, options.batch or BATCHES, options.layers or LAYERS
    ):
        row = measure(name, MODELS[name], batch, layers, options.seconds)
        rows[key_of(row)] = row
        print(*row.values(), sep="  ", flush=True)
        if options.output is not None:
            records.write(options.output, [*rows.values()])


if __name__ == "__main__":
    main()
