"""The closed form beside its physical limits and the ways others compute the same score.

Limits, taken in the same rounds: from features and logits, reading both once (a ``sum`` over each
on a CPU, a copy's bytes on CUDA); from features and head, the bare matrix product.

From features and logits, several ways take part in the same rounds: ours as users call it (numba
on a CPU, Triton on CUDA), at T = 1 and T = 1024; our plain form in torch; Eq. 9 as it stands, over
all rows at once, in blocks, and with ``--compile`` compiled by ``torch.compile``. In float32 it
loses the digits of nearly uniform rows.

Peers: ``backward``, one backward a row with one layer kept, as the authors' code does; ``fresh``,
one backward a row with a ``Linear`` made anew for it, as OpenOOD does; ``vmap``, per-sample
gradients by ``vmap(grad)``; ``pytorch-ood``, its detector on the layer alone. They run on fewer
rows, and are given as time a row.

All that is compared runs in torch's own threads, one straight after the other. Each thread is kept
on a core of its own by ``OMP_PROC_BIND``: a busy system at times wakes two of them on one.

export OMP_PROC_BIND=true
python benchmarks/closed_form.py -o benchmarks/results/closed-form-cpu.csv
python benchmarks/closed_form.py --sweep -o benchmarks/results/closed-form-cpu-sweep.csv
python benchmarks/closed_form.py --device cuda --dtype bfloat16 -o closed-form-h200.csv
"""

import argparse
import copy
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import records
import torch
from peers import pytorch_ood
from timing import device_name, device_option, fraction, interleaved
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax

from gradscore.closed_form import head_score, last_layer_score

SHAPES = (
    (20_000, 2048, 1000),
    (2000, 2048, 21_843),
    (200_000, 512, 100),
    (1_000_000, 64, 10),
)
"""Rows, features and classes at which the limits are compared."""

LARGE = ((1_000_000, 2048, 1000), (50_000, 2048, 21843), (10_000_000, 64, 10))
"""Rows, features and classes that fill a data-centre device."""

SWEEPS = {
    "rows": [(n, 512, 100) for n in (1000, 10_000, 100_000, 1_000_000)],
    "classes": [(1000, 512, c) for c in (10, 100, 1000, 10_000, 100_000)],
    "features": [(20000, m, 100) for m in (64, 256, 1024, 4096, 16384)],
}
"""One size grows while the others stay; rows at 1e6 take 2.4 GB."""

PEER_ROWS = 8
EQUATION_BLOCK_BYTES = 2 << 20
"""Size of a block of logits with which Eq. 9 as it stands is fastest on a CPU."""


def compare(
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    repeats: int = 15,
    seconds: float = 5.0,
    peers: bool = True,
    compiled: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each shape and way of computing the score (p = 1, T = 1, uniform).

    Args:
        shapes: Rows, features and classes.
        dtype: Type of the inputs.
        device: ``cpu`` or ``cuda``.
        repeats: Most rounds of each comparison.
        seconds: Longest time to go on with one comparison.
        peers: Whether to run the other ways too.
        compiled: Whether to run what ``torch.compile`` makes, which takes a minute a shape.

    Yields:
        ``figure, rows, features, classes, us_per_row, rows_per_second, limit, of_limit`` (the
        limit's time over its own, median over rounds), ``spread`` (of that fraction, highest less
        lowest), ``device, dtype, torch``.
    """
    for rows, in_features, classes in shapes:
        x, weight, bias = _drawn(rows, in_features, classes, dtype, device)
        logits = linear(x, weight, bias)
        read = _copy if device == "cuda" else _sums
        limits = {
            "logits": ("read once", lambda x=x, f=logits, read=read: read(x, f)),
            "head": ("bare product", lambda x=x, w=weight: x @ w.t()),
        }
        ours = {
            "logits": lambda x=x, f=logits: last_layer_score(x, f),
            "head": lambda x=x, w=weight, b=bias: head_score(x, w, b),
        }
        for source, (limit, bare) in limits.items():
            runs = {limit: bare, f"gradscore from {source}": ours[source]}
            if source == "logits":
                runs["gradscore from logits, T = 1024"] = lambda x=x, f=logits: last_layer_score(
                    x, f, temperature=1024
                )
            if peers and source == "logits":
                runs["plain form"] = lambda x=x, f=logits: last_layer_score(x, f, backend="torch")
                runs["equation"] = lambda x=x, f=logits: _equation(x, f)
                runs["equation, in blocks"] = lambda x=x, f=logits: _equation_in_blocks(x, f)
            if compiled and source == "logits":
                function = torch.compile(_equation, dynamic=False)
                runs["equation, torch.compile"] = lambda x=x, f=logits, g=function: g(x, f)
            taken = interleaved(runs, repeats=repeats, seconds=seconds, device=device, pause=0)
            yield _record(limit, rows, x, classes, taken[limit], {"limit": limit}, device)
            how = {"limit": limit, "of_limit": taken.pop(limit)}
            for figure, of_each in taken.items():
                yield _record(figure, rows, x, classes, of_each, how, device)
        if peers:
            few = min(rows, PEER_ROWS)
            for name, function in _peers(x[:few], weight, bias).items():
                taken = interleaved({name: function}, repeats=3, seconds=seconds, device=device)
                yield _record(name, few, x, classes, taken[name], {}, device)


def sweep(*, device: str = "cpu", seconds: float = 2.0) -> Iterator[dict[str, Any]]:
    """Yield the cost from features and logits as one size grows; ``sweep`` names which."""
    for name, shapes in SWEEPS.items():
        for rows, in_features, classes in shapes:
            x, _, _ = _drawn(rows, in_features, 1, torch.float32, device)
            logits = 3 * torch.randn(rows, classes, device=device)
            taken = interleaved(
                {"ours": lambda x=x, f=logits: last_layer_score(x, f)},
                seconds=seconds,
                device=device,
                pause=0,
            )
            row = _record("gradscore from logits", rows, x, classes, taken["ours"], {}, device)
            yield {**row, "sweep": name}


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the fitted exponent of cost against size: the log-log slope by least squares."""
    return statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(taken) for taken in seconds]
    ).slope


def _drawn(
    rows: int, in_features: int, classes: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(rows, in_features, device=device).relu_()
    weight = torch.randn(classes, in_features, device=device) * (3 / math.sqrt(in_features))
    return x.to(dtype), weight.to(dtype), torch.zeros(classes, device=device, dtype=dtype)


def _sums(*tensors: Tensor) -> None:
    for tensor in tensors:
        tensor.sum()


def _copy(*tensors: Tensor) -> None:
    """Move as many bytes as the inputs have: half of each is read, and written to the other."""
    for tensor in tensors:
        half = len(tensor) // 2
        tensor[:half].copy_(tensor[half : 2 * half])


def _equation(x: Tensor, logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    deviation = (1 - classes * logits.softmax(dim=1)).abs().sum(dim=1)
    return x.abs().sum(dim=1) * deviation / classes


def _equation_in_blocks(x: Tensor, logits: Tensor) -> Tensor:
    rows = max(1, EQUATION_BLOCK_BYTES // logits[0].nbytes)
    return torch.cat(
        [_equation(*some) for some in zip(x.split(rows), logits.split(rows), strict=True)]
    )


def _peers(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Callable[[], object]]:
    classes, in_features = weight.shape
    kept = nn.Linear(in_features, classes, device=x.device, dtype=x.dtype)
    kept.load_state_dict({"weight": weight, "bias": bias})

    def one_backward_a_row(layer: Callable[[], nn.Linear]) -> None:
        for sample in x:
            module = layer()
            module.zero_grad()
            loss = -log_softmax(module(sample[None]), dim=-1).sum()
            loss.backward()
            module.weight.grad.abs().sum().item()

    def fresh() -> nn.Linear:
        module = nn.Linear(in_features, classes, device=x.device, dtype=x.dtype)
        module.load_state_dict({"weight": weight, "bias": bias})
        return module

    def loss_of(w: Tensor, sample: Tensor) -> Tensor:
        return -log_softmax(linear(sample, w, bias), dim=-1).mean()

    gradients = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0))
    peers: dict[str, Callable[[], object]] = {
        "backward a row": lambda: one_backward_a_row(lambda: kept),
        "backward a row, fresh layer": lambda: one_backward_a_row(fresh),
        "vmap(grad)": lambda: gradients(weight, x).abs().sum(dim=(1, 2)),
    }
    if find_spec("pytorch_ood") is not None:
        peers["pytorch-ood"] = pytorch_ood(copy.deepcopy(kept), ("weight",), x)
    return peers


def _record(
    figure: str,
    rows: int,
    x: Tensor,
    classes: int,
    taken: list[float],
    limit: dict[str, Any],
    device: str,
) -> dict[str, Any]:
    median = statistics.median(taken)
    of_limit, spread = "", ""
    if "of_limit" in limit:
        each = [bound / ours for bound, ours in zip(limit["of_limit"], taken, strict=True)]
        of_limit = round(fraction(limit["of_limit"], taken), 3)
        spread = round(max(each) - min(each), 3)
    return {
        "figure": figure,
        "rows": rows,
        "features": x.shape[1],
        "classes": classes,
        "us_per_row": round(median / rows * 1e6, 4),
        "rows_per_second": round(rows / median),
        "limit": limit.get("limit", ""),
        "of_limit": of_limit,
        "spread": spread,
        "device": device_name(device),
        "dtype": str(x.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write a CSV, for a sweep a plot beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=device_option, metavar="cpu|cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--sweep", action="store_true", help="cost against each size")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    if options.sweep:
        measured = sweep(device=options.device)
    else:
        shapes = {"shapes": LARGE} if options.device == "cuda" else {}
        measured = compare(
            **shapes,
            dtype=getattr(torch, options.dtype),
            device=options.device,
            peers=not options.no_peers,
            compiled=options.compile,
        )
    for row in measured:
        rows.append(row)
        print(*row.values(), sep="  ", flush=True)
    if options.output is not None:
        records.write(options.output, rows)
    if options.sweep:
        plot(rows, options.output and options.output.with_suffix(".png"))


def plot(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Print the fitted slopes, and draw cost against size on logarithmic axes."""
    lines = defaultdict(list)
    for row in rows:
        lines[row["sweep"]].append((row[row["sweep"]], row["us_per_row"] * row["rows"] / 1e6))
    slopes = {name: slope(*zip(*points, strict=True)) for name, points in lines.items()}
    print({name: round(value, 2) for name, value in slopes.items()})
    if path is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot(
        xscale="log",
        yscale="log",
        xlabel="size",
        ylabel="seconds",
        title="Cost of the closed form",
    )
    others = {
        "rows": "512 features, 100 classes",
        "classes": "1,000 rows, 512 features",
        "features": "20,000 rows, 100 classes",
    }
    for (name, points), marker in zip(lines.items(), "os^", strict=True):
        label = f"{name}: slope {slopes[name]:.2f} ({others[name]})"
        axes.plot(*zip(*points, strict=True), marker=marker, label=label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
