"""Time and memory of per-sample gradient norms beside an ordinary training step and the peers.

The measure is one batched forward and backward, with the gradients of the whole batch, of the same
parameters: for a block, the whole forward and the backward down to that block. L1 norm, uniform
target, temperature 1. There are two ways to measure, and both are shown. ``apart``: a method has a
fresh process of its own, in which it takes turns with the measure. ``together``: all methods take
turns in one warm process. A ratio is taken within a round. Peak memory is the median of further
fresh processes, above what they hold with libraries, model and input loaded. A ratio of 1.1 is a
tenth slower than the measure. Of vmap(grad) the best of its chunk sizes counts. On a GPU the table
is taken with and without TF32.

python benchmarks/norms.py -o norms-cpu.csv
python benchmarks/norms.py --device cuda --batch 256 -o norms-cuda.csv
"""

import argparse
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import memory
import records
import torch
from peers import PEERS, Run, ordinary
from processes import in_fresh_process
from timing import device_option, interleaved
from torch import Tensor, nn

import gradscore as gs
from gradscore.layers.groups import parameter_groups
from gradscore.layers.head import find_head
from gradscore.models import create_model

MODELS = {
    "cifar:resnet20": (64, 32),
    "timm:resnet18": (16, 224),
    "timm:vit_tiny_patch16_224": (16, 224),
    "timm:mobilenetv2_100": (16, 224),
    "timm:resnetv2_50x1_bit": (16, 224),
}
"""The models by default: images in a batch, and their side in pixels."""
ORDINARY, OURS = "forward and backward", "gradscore"
SUBSETS = ("last", "block", "all")
WAYS = ("apart", "together")
"""A fresh process for each method; or all of them in turns in one warm process."""
PEAKS = 3
"""Processes in which peak memory is measured."""


def ours(model: nn.Module, names: Sequence[str], images: Tensor) -> Run:
    """Return a call of this library for the named parameters."""
    return lambda: gs.gradient_norms(model, images, layers=list(names))


METHODS = {ORDINARY: ordinary, OURS: ours, **PEERS}


def drawn(spec: str, batch: int, size: int, device: str) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights, none of them zero, and random images."""
    torch.manual_seed(0)
    model = create_model(spec, weights="random").to(device)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    channels = model.preprocessing.input_shape()[0]
    return model, torch.randn(batch, channels, size, size, device=device)


def subset_names(model: nn.Module, images: Tensor, subset: str) -> tuple[str, ...]:
    """Return the parameters of ``last``, of the last ``block``, or ``all``."""
    groups = parameter_groups(model, find_head(model, images[:2]))
    if subset == "block":
        subset = max(name for name in groups if name.startswith("block"))
    return tuple(groups[subset])


@dataclass(frozen=True)
class Case:
    """What is measured: a method for a subset of a model's parameters, on one kind of batch."""

    model: str
    subset: str
    method: str
    batch: int
    size: int
    device: str = "cpu"
    tf32: bool = False

    def prepared(self) -> tuple[nn.Module, tuple[str, ...], Tensor]:
        """Return the model, the names of the subset's parameters, and the images."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        model, images = drawn(self.model, self.batch, self.size, self.device)
        return model, subset_names(model, images, self.subset), images


def measure(
    spec: str,
    subset: str,
    *,
    batch: int,
    size: int | None = None,
    device: str = "cpu",
    tf32: bool = False,
    way: str = "apart",
    methods: Iterable[str] = tuple(METHODS),
    repeats: int = 7,
    seconds: float = 20.0,
    thread_time: bool = False,
    memory: Collection[str] = tuple(METHODS),
) -> Iterator[dict[str, Any]]:
    """Measure methods on one model and subset, each in turns with the ordinary pass.

    Args:
        spec: The model, its weights random.
        subset: ``last``, ``block`` (the last one) or ``all``.
        batch: Number of images.
        size: Their height and width in pixels; by default those that the model expects.
        device: ``cpu`` or ``cuda``.
        tf32: Whether CUDA may multiply with 10 bits of mantissa.
        way: One of :data:`WAYS`.
        methods: Names from :data:`METHODS`; the ordinary pass is always there.
        repeats: Most rounds.
        seconds: No round of a method begins after this much time.
        thread_time: Whether to let torch have one thread and to count the seconds that it ran,
            which what else a busy machine does hardly changes.
        memory: Methods whose peak memory is measured too.

    Yields:
        Rows: ``model, subset, way, method, ratio`` (median over rounds of the time over that of
        the ordinary pass), ``lowest, highest`` (of the rounds), ``rounds, seconds`` (median),
        ``peak_mib``, and the circumstances. A method that cannot do it has its reason in ``note``.
    """
    if size is None:
        size = create_model(spec, "random").preprocessing.input_shape()[-1]
    methods = tuple(dict.fromkeys((ORDINARY, *methods)))
    cases = [Case(spec, subset, method, batch, size, device, tf32) for method in methods]
    options = repeats, seconds, thread_time
    found = _fresh(timed, cases, *options) if way == "together" else {}
    for case in cases:
        method = case.method
        if way == "apart":
            both = [cases[0]] if method == ORDINARY else [cases[0], case]
            found = _fresh(timed, both, *options)
        taken = found.get(method, found)
        weighed = way == "apart" and "ratio" in taken and method in memory
        peak = median_peak_mib(case) if weighed else ""
        blank = dict.fromkeys(("ratio", "lowest", "highest", "rounds", "seconds"), "")
        measured = {name: taken.get(name, empty) for name, empty in blank.items()}
        yield (
            {"model": spec, "subset": subset, "way": way, "method": method}
            | measured
            | {
                "peak_mib": peak,
                "batch": batch,
                "size": size,
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "tf32": tf32,
                "threads": 1 if thread_time else torch.get_num_threads(),
                "clock": "thread_time" if thread_time else "perf_counter",
                "torch": torch.__version__,
                "gradscore": gs.__version__,
                "note": taken.get("note", ""),
            }
        )


def _fresh(
    function: Callable[..., dict[str, Any]], cases: Sequence["Case"], *options: Any
) -> dict[str, Any]:
    """Return what a function of this module gives for some cases in a process of its own."""
    plain = [asdict(case) for case in cases]
    return in_fresh_process(Path(__file__), "called", function.__name__, plain, *options)


def called(name: str, cases: Sequence[Mapping[str, Any]], *options: Any) -> dict[str, Any]:
    """Return what a function of this module gives for cases that came as plain mappings."""
    return globals()[name]([Case(**case) for case in cases], *options)


def timed(
    cases: Sequence[Case], repeats: int, seconds: float, thread_time: bool
) -> dict[str, dict[str, Any]]:
    """Return ratio, spread, rounds and seconds of each case's method, or a note why not.

    Args:
        cases: The ordinary pass, and the methods that take turns with it.
        repeats: Most rounds.
        seconds: No round begins after this much time for each case.
        thread_time: Whether one thread's own seconds count.
    """
    clock = time.perf_counter
    if thread_time:
        torch.set_num_threads(1)
        clock = time.thread_time
    runs, found = {}, {}
    for case in cases:
        model, names, images = case.prepared()
        try:
            run = METHODS[case.method](model, names, images)
            run()
        except Exception as error:  # whatever a peer raises is its result
            found[case.method] = {"note": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
            found[case.method]["note"] = found[case.method]["note"][:120]
        else:
            runs[case.method] = run
    seconds *= len(runs)
    taken = interleaved(
        runs, repeats=repeats, seconds=seconds, device=cases[0].device, clock=clock
    )
    for method, own in taken.items():
        ratios = [mine / measure for mine, measure in zip(own, taken[ORDINARY], strict=True)]
        found[method] = {
            "ratio": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
            "rounds": len(ratios),
            "seconds": round(statistics.median(own), 4),
        }
    return found


def median_peak_mib(case: Case) -> float | str:
    """Return the median of some processes' :func:`peak_memory`, or nothing if one did not survive.

    Where blocks come to lie in the allocator's pools varies from process to process.
    """
    found = [_fresh(peak_memory, [case]).get("peak_mib") for _ in range(PEAKS)]
    return "" if None in found else statistics.median(found)


def peak_memory(cases: Sequence[Case]) -> dict[str, float]:
    """Return the most memory in MiB that one run of one case holds above libraries and input."""
    (case,) = cases
    model, names, images = case.prepared()
    make = METHODS[case.method]
    # One image first, so that code that loads on the first call does not count.
    make(model, names, images[:1])()
    run = make(model, names, images)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return {"peak_mib": round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)}
    return {"peak_mib": round(memory.peak_mib(run), 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and append to a CSV row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", metavar="SPEC", help="default: several")
    parser.add_argument("--subset", action="append", choices=SUBSETS)
    parser.add_argument("--way", action="append", choices=WAYS, help="default: both")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--device", default="cpu", type=device_option, metavar="cpu|cuda")
    parser.add_argument("--batch", type=int, help="in place of the model's own")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each method")
    parser.add_argument("--thread-time", action="store_true", help="one thread's own seconds")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--memory", action="append", choices=METHODS, help="methods whose peak memory to take"
    )
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    notes = []
    for row in _rows(options):
        print(row, flush=True)
        notes.append(row["note"])
        if options.output:
            records.append(options.output, row)
    if all(notes):
        raise SystemExit(f"Every measurement failed, the first with: {notes[0]}")


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of every model and subset asked for, on a GPU with and without TF32."""
    how = {"device": options.device, "methods": options.method or METHODS}
    how |= {"repeats": options.repeats, "seconds": options.seconds}
    how |= {"thread_time": options.thread_time}
    how |= {"memory": METHODS if options.memory is None else options.memory}
    for tf32 in (False, True) if options.device == "cuda" else (False,):
        for spec in options.model or MODELS:
            batch, size = MODELS.get(spec, (16, None))
            for subset in options.subset or SUBSETS:
                for way in options.way or WAYS:
                    here = {"batch": options.batch or batch, "size": size, "tf32": tf32}
                    yield from measure(spec, subset, way=way, **here, **how)


if __name__ == "__main__":
    main()
