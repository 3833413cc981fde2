"""Hold gradscore to autograd on one model of every architecture family of timm and torchvision.

For each family the smallest model, its weights drawn at random (some start with a zero head, where
every gradient is zero and a comparison proves nothing), two images and the first of them alone,
float64: norms of all parameters together, and of each top-level block, against one backward a
sample.

    python benchmarks/families.py                 all families, skipping those already recorded
    python benchmarks/families.py resnet beit     these, anew
"""

import csv
import math
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscore.capture.recording import record
from gradscore.norms import vector_norm
from gradscore.objective import Objective
from gradscore.reference import backward_norms, loss_function
from gradscore.selection import differentiable_parameters

RESULTS = Path(__file__).parent / "results" / "families.csv"
TABLE = Path(__file__).parent / "families.txt"
ORDERS = (1.0, 2.0)
OBJECTIVE = Objective()
TOLERANCE = 1e-8
IMAGE_SIZES = (64, 96, 128, 160, 192, 224, 240, 256, 299, 384, 512)
NOISE = 1e-12
"""Below this share of the whole norm a block's gradient is rounding noise, in both methods."""


@dataclass(frozen=True)
class Outcome:
    """One row of the record.

    Attributes:
        family: Module of the library.
        model: ``library:name``.
        image_size: Side of the square images.
        parameters: Number of parameter tensors.
        error_p1: Largest relative error of the whole norm and of the blocks' norms, p = 1.
        error_p2: The same, p = 2.
        zero: Parameter tensors whose gradient is zero for every image.
        generic: Parameters served by the generic rule, and for which functions.
        reference: Parameters served by the reference.
        seconds: Time of gradscore, one forward and backward.
        reference_seconds: Time of one backward a sample.
    """

    family: str
    model: str
    image_size: int
    parameters: int
    error_p1: float
    error_p2: float
    zero: int
    generic: str
    reference: str
    seconds: float
    reference_seconds: float


def models() -> Iterator[tuple[str, str]]:
    """Yield family and ``library:name`` from the table beside this file."""
    for line in TABLE.read_text().splitlines():
        family, model = line.split()
        yield family, model


def build(model: str, size: int) -> tuple[nn.Module, bool]:
    """Build a model for images of a size, and say whether it could be told one."""
    library, name = model.split(":")
    if library == "torchvision":
        import torchvision

        heads = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, **heads), False
    import timm

    try:
        return timm.create_model(name, img_size=size), True
    except TypeError:
        return timm.create_model(name), False


def draw_weights(model: nn.Module) -> None:
    """Draw every parameter and statistic, so that gradients are neither zero nor extreme."""
    rng = torch.Generator().manual_seed(0)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=rng, dtype=torch.float64).to(tensor.dtype)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(normal(parameter) / math.sqrt(parameter[0].numel()))
            else:
                level = 1.0 if name.endswith(("weight", "gamma", "scale", "gain")) else 0.0
                parameter.copy_(level + 0.1 * normal(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.1 * normal(buffer).abs())


def prepared(model: str) -> tuple[nn.Module, Tensor]:
    """Build a model in eval mode and float64, and images of the smallest size that it runs on."""
    problem: Exception | None = None
    sized = True
    for size in IMAGE_SIZES:
        try:
            if sized:
                network, sized = build(model, size)
                draw_weights(network)
                network = network.double().eval()
            channels = 1 if "_1ch" in model else 3
            rng = torch.Generator().manual_seed(1)
            images = torch.randn(2, channels, size, size, generator=rng, dtype=torch.float64)
            with torch.no_grad():
                logits = network(images)
            if logits.isfinite().all() and logits.std() > 0:
                return network, images
            problem = ValueError(f"logits of {model} are not finite at size {size}")
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            problem = error
    raise RuntimeError(f"{model} runs at none of the sizes {IMAGE_SIZES}") from problem


def relative_error(got: Tensor, expected: Tensor, names: list[str], p: float) -> float:
    """Return the largest relative error of the whole norm and of top-level blocks' norms."""
    blocks: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        blocks.setdefault(name.split(".")[0], []).append(column)
    whole = vector_norm(expected, p)
    worst = 0.0
    for columns in (list(range(len(names))), *blocks.values()):
        x, y = vector_norm(got[:, columns], p), vector_norm(expected[:, columns], p)
        error = (x - y).abs() / torch.maximum(y, NOISE * whole)
        worst = max(worst, float(error.max()))
    return worst


def examine(family: str, model: str) -> Outcome:
    """Compare gradscore with one backward a sample on one model."""
    network, images = prepared(model)
    parameters = differentiable_parameters(network)
    names = list(parameters)
    started = time.perf_counter()
    recording = record(network, images, parameters)
    got = recording.norms(OBJECTIVE.logit_gradient(recording.logits), ORDERS, last=True)
    seconds = time.perf_counter() - started
    lone = record(network, images[:1], parameters)
    cotangent = OBJECTIVE.logit_gradient(lone.logits)
    got = torch.cat([got, lone.norms(cotangent, ORDERS, last=True)], dim=1)
    started = time.perf_counter()
    losses = [loss_function(OBJECTIVE)] * len(images)
    expected = backward_norms(network, images, parameters, losses, ORDERS)
    reference_seconds = time.perf_counter() - started
    expected = torch.cat([expected, expected[:, :1]], dim=1)
    errors = [
        relative_error(x, y, names, p) for x, y, p in zip(got, expected, ORDERS, strict=True)
    ]
    served = recording.rules
    return Outcome(
        family=family,
        model=model,
        image_size=images.shape[-1],
        parameters=len(names),
        error_p1=errors[0],
        error_p2=errors[1],
        zero=int((expected[0] == 0).all(dim=0).sum()),
        generic=_counted(rule for rule in served.values() if "generic" in rule),
        reference=_counted(name for name, rule in served.items() if "reference" in rule),
        seconds=round(seconds, 2),
        reference_seconds=round(reference_seconds, 2),
    )


def _counted(entries: Iterator[str]) -> str:
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry] = counts.get(entry, 0) + 1
    return "; ".join(f"{entry} x{count}" for entry, count in counts.items())


def recorded() -> dict[str, dict[str, str]]:
    """Return the rows of earlier runs by model."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def main(wanted: list[str]) -> int:
    """Examine the families asked for, record them, and return how many are off or failed."""
    warnings.simplefilter("ignore")
    rows, bad = recorded(), 0
    for family, model in models():
        if (wanted and family not in wanted) or (not wanted and model in rows):
            continue
        try:
            outcome = examine(family, model)
        except Exception as error:  # one family must not end the others
            bad += 1
            print(f"FAILED {family} {model}: {type(error).__name__}: {error}", flush=True)
            continue
        off = not max(outcome.error_p1, outcome.error_p2) < TOLERANCE
        bad += off
        print("OFF" if off else "ok ", outcome, flush=True)
        rows = recorded() | {model: asdict(outcome)}
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Outcome)])
            writer.writeheader()
            writer.writerows(rows[m] for _, m in models() if m in rows)
    return bad


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
