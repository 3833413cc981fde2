"""``gradscore bench``: throughput beside its physical limit and the peers, on this machine."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from gradscore.cli.console import notice, print_table
from gradscore.cli.options import chained, output_option, quiet_option
from gradscore.errors import GradScoreError


def _present(ctx: click.Context, param: click.Parameter, device: str) -> str:
    """Return the device, or raise where there is none of its kind."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise GradScoreError("Expected a CUDA device, found none; use --device cpu.")
    return device


device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    callback=_present,
)
written = chained(output_option(".csv, .md, .json, .parquet"), quiet_option)
MODELS = {"cifar:resnet20": 64, "timm:resnet18": 16}


@click.group(short_help="Measure throughput beside limits and peers.")
def bench() -> None:
    """Measure how fast this machine scores, beside its limits and the alternatives."""


@bench.command("closed-form", short_help="The last layer's closed form.")
@device_option
@click.option("--peers/--no-peers", default=True, help="The ways others compute it, too.")
@written
def closed_form(device, peers, output, quiet) -> None:
    """Eq. 9 from features and logits, and from features and head, beside reading and the GEMM."""
    from gradscore.bench.closed_form import compare

    _report(compare(device=device, peers=peers), output, quiet)


@bench.command(short_help="Gradient norms beside an ordinary backward.")
@click.option("--model", metavar="SPEC", multiple=True, default=tuple(MODELS), show_default=True)
@click.option("--subset", type=click.Choice(["last", "block", "all"]), multiple=True)
@click.option("--batch-size", metavar="N", type=click.IntRange(1), help="Default: 16; CIFAR 64.")
@click.option("--peers/--no-peers", default=True, help="The ways others compute it, too.")
@device_option
@written
def norms(model, subset, batch_size, peers, device, output, quiet) -> None:
    """Gradient norms of the last layer, the last block and all, beside an ordinary backward."""
    from gradscore.bench.norms import METHODS, measure

    methods = tuple(METHODS) if peers else tuple(METHODS)[:2]
    rows = [
        row
        for spec in model
        for part in subset or ("last", "block", "all")
        for row in measure(
            spec, part, batch=batch_size or MODELS.get(spec, 16), device=device, methods=methods
        )
    ]
    _report(rows, output, quiet)
    if all(row["note"] for row in rows):
        raise GradScoreError(f"Every measurement failed, the first with: {rows[0]['note']}")


@bench.command(short_help="Extraction beside the bare forward.")
@click.option("--model", metavar="SPEC", multiple=True, default=tuple(MODELS), show_default=True)
@click.option("--images", metavar="N", type=click.IntRange(1), default=500, show_default=True)
@click.option("--layers", metavar="L", default="last", show_default=True)
@device_option
@written
def extract(model, images, layers, device, output, quiet) -> None:
    """Extraction beside the bare forward over the same loader."""
    from dataclasses import asdict

    from gradscore.bench.extract import measure

    found = measure(model, images=images, layers=layers, device=device)
    _report((asdict(entry) for entry in found), output, quiet)


@bench.command(short_help="Scoring a run beside plainly reading it.")
@click.option("--run", "run_path", metavar="DIR", help="A run to score. Default: a drawn one.")
@click.option("--rows", metavar="N", type=click.IntRange(1), default=50_000, show_default=True)
@written
def score(run_path, rows, output, quiet) -> None:
    """Scoring a run from disk beside plainly reading the same files."""
    import tempfile

    from gradscore.bench.score import measure, write_run

    if run_path:
        _report([measure(Path(run_path))], output, quiet)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        notice(f"Writing a run of {rows:,} rows.", quiet=quiet)
        write_run(path, rows=rows, features=2048, classes=1000)
        _report([measure(path)], output, quiet)


def _report(rows: Iterable[dict[str, Any]], output: str | None, quiet: bool) -> None:
    """Print the rows of a measurement, and write them if asked."""
    from gradscore.tables import ROW_ENDINGS, check_output, write_rows

    if output:
        check_output(output, ROW_ENDINGS)
    rows = list(rows)
    shown = [name for name in rows[0] if any(row[name] not in ("", None) for row in rows)]
    print_table(shown, [[_text(row[name]) for name in shown] for row in rows])
    if output:
        write_rows(output, rows)
        notice(f"Wrote {output}.", quiet=quiet)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value if value is not None else "")
