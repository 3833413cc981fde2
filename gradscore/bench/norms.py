"""Time and memory of per-sample gradient norms beside an ordinary training step and the peers.

The measure is one batched forward and backward, with the gradients of the whole batch, of the same
parameters: for a block, the whole forward and the backward down to that block. L1 norm, uniform
target, temperature 1. Times are taken in turns and compared within a round. Peak memory is that
of a fresh process each, above what it holds with libraries, model and input loaded.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradscore as gs
from gradscore.bench.peers import PEERS, Run, ordinary
from gradscore.bench.timing import interleaved
from gradscore.models import create_model
from gradscore.models.groups import parameter_groups
from gradscore.models.head import find_head

ORDINARY, OURS = "forward and backward", "gradscore"
SUBSETS = ("last", "block", "all")


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
    return model, torch.randn(batch, 3, size, size, device=device)


def subset_names(model: nn.Module, images: Tensor, subset: str) -> tuple[str, ...]:
    """Return the parameters of ``last``, of the last ``block``, or ``all``."""
    groups = parameter_groups(model, find_head(model, images[:2]))
    if subset == "block":
        subset = max(name for name in groups if name.startswith("block"))
    return tuple(groups[subset])


def measure(
    spec: str,
    subset: str,
    *,
    batch: int,
    size: int,
    device: str = "cpu",
    methods: Iterable[str] = tuple(METHODS),
    repeats: int = 7,
    seconds: float = 40.0,
    thread_time: bool = False,
    memory: Collection[str] = tuple(METHODS),
) -> Iterator[dict[str, Any]]:
    """Measure methods on one model and subset.

    Args:
        spec: The model, its weights random.
        subset: ``last``, ``block`` (the last one) or ``all``.
        batch: Number of images.
        size: Their height and width in pixels.
        device: ``cpu`` or ``cuda``.
        methods: Names from :data:`METHODS`; the ordinary pass is always there.
        repeats: Most rounds.
        seconds: No round begins after this much time.
        thread_time: Whether to let torch have one thread and to count the seconds that it ran,
            which what else a busy machine does hardly changes.
        memory: Methods whose peak memory is measured too, with one fresh process each.

    Yields:
        Rows: ``model, subset, method, ratio`` (median over rounds of the time over that of the
        ordinary pass), ``lowest, highest`` (of the rounds), ``seconds`` (median), ``peak_mib``,
        and the circumstances. A method that cannot do it has its reason in ``note``.
    """
    clock = time.perf_counter
    if thread_time:
        torch.set_num_threads(1)
        clock = time.thread_time
    model, images = drawn(spec, batch, size, device)
    names = subset_names(model, images, subset)
    runs, notes = {}, {}
    for method in dict.fromkeys((ORDINARY, *methods)):
        own, _ = drawn(spec, 1, size, device)
        try:
            runs[method] = METHODS[method](own, names, images)
            runs[method]()
        except Exception as error:  # whatever a peer raises is its result
            runs.pop(method, None)
            notes[method] = f"{type(error).__name__}: {str(error).splitlines()[:1]}"[:120]
    taken = interleaved(runs, repeats=repeats, seconds=seconds, device=device, clock=clock)
    circumstances = {
        "batch": batch,
        "size": size,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": clock.__name__,
        "torch": torch.__version__,
        "gradscore": gs.__version__,
    }
    for method in dict.fromkeys((ORDINARY, *methods)):
        row = {"model": spec, "subset": subset, "method": method}
        row |= dict.fromkeys(("ratio", "lowest", "highest", "rounds", "seconds", "peak_mib"), "")
        if method in taken:
            pairs = zip(taken[method], taken[ORDINARY], strict=True)
            ratios = [own / measure for own, measure in pairs]
            row["ratio"] = round(statistics.median(ratios), 3)
            row["lowest"], row["highest"] = round(min(ratios), 3), round(max(ratios), 3)
            row["rounds"] = len(ratios)
            row["seconds"] = round(statistics.median(taken[method]), 4)
            if method in memory:
                row["peak_mib"] = fresh_peak_mib(spec, subset, method, batch, size, device)
        yield row | circumstances | {"note": notes.get(method, "")}


def fresh_peak_mib(
    spec: str, subset: str, method: str, batch: int, size: int, device: str
) -> float | str:
    """Return :func:`peak_mib` of a fresh process, or nothing where it did not survive."""
    arguments = json.dumps([spec, subset, method, batch, size, device])
    code = "import json, sys; from gradscore.bench.norms import peak_mib; "
    code += "print('peak', peak_mib(*json.loads(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, arguments], capture_output=True, text=True, check=False
    )
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("peak ")]
    return float(found[0]) if found and done.returncode == 0 else ""


def peak_mib(spec: str, subset: str, method: str, batch: int, size: int, device: str) -> float:
    """Return the most memory in MiB that one run holds above libraries, model and input."""
    model, images = drawn(spec, batch, size, device)
    names = subset_names(model, images, subset)
    # One image first, so that code that loads on the first call does not count.
    METHODS[method](model, names, images[:1])()
    run = METHODS[method](model, names, images)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kib("VmRSS")
    run()
    return round((_status_kib("VmHWM") - before) / 2**10, 1)


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
