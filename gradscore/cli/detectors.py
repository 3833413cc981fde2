"""``gradscore calibrate`` and ``gradscore detector info``: a threshold, and what it promises."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gradscore.choices import GUARANTEES
from gradscore.cli.console import notice, print_facts, print_table, say
from gradscore.cli.ending import begins_again
from gradscore.cli.options import (
    chained,
    id_sets_option,
    import_methods,
    named_model_option,
    one_of,
    quiet_option,
    run_place,
)
from gradscore.cli.results import notice_written
from gradscore.cli.score_options import one_score_options
from gradscore.escapes import counted

if TYPE_CHECKING:
    from gradscore.detector.calibration import Calibration
    from gradscore.detector.file import DetectorInfo
    from gradscore.run import RunStore

SHOWN = 10
"""Predicted classes in the table of false alarms."""
DETECTOR = "detector.safetensors"

again_options = chained(
    click.option(
        "--model",
        metavar="SPEC",
        help="The detector's model again, where it is code of your own (python:) or is fetched.",
    ),
    click.option("--weights", metavar="FILE[#KEY]", help="Its weight file, where it has moved."),
    click.option(
        "--method",
        metavar="python:MODULE:FUNCTION",
        help="The detector's score again, where it is one of your own.",
    ),
)


@click.command(short_help="Find a threshold with a guarantee, and write the detector.")
@chained(run_place, named_model_option, id_sets_option)
@click.option("--method", metavar="M", help="The score; default: what `choose` found, or energy.")
@one_score_options
@click.option(
    "--tpr",
    metavar="SHARE",
    default="0.95",
    show_default=True,
    help="Share of ID images to accept; at most the rest is flagged.",
)
@one_of(
    "--guarantee",
    values=GUARANTEES,
    help="pac: holds with the confidence. marginal: holds on average.",
)
@click.option(
    "--confidence",
    metavar="SHARE",
    default="0.95",
    show_default=True,
    help="Confidence with which pac holds.",
)
@click.option(
    "--cross-fit",
    is_flag=True,
    help="For few images: a score learns from all but a tenth in turn. Approximate.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default=DETECTOR,
    show_default=True,
    help="The detector's file (.safetensors).",
)
@quiet_option
@begins_again()
def calibrate(
    run_path, model, sets, method, tpr, guarantee, confidence, cross_fit, output, quiet, **given
) -> None:
    """Find the threshold of a score from a run's ID images, and write a detector's file.

    The images must be new to the model and like those to come. A score that learns needs other
    images for that: the run's sets to fit to, or a half of the ID images.
    """
    from gradscore.detector.calibration import calibrate_run
    from gradscore.detector.file import check_ending, write_detector
    from gradscore.detector.wanted import Wanted
    from gradscore.run import RunStore

    check_ending(output)
    run = RunStore(run_path, model)
    options = {name: value for name, value in given.items() if value is not None}
    import_methods([method] if method else ())
    promised = {"tpr": tpr, "guarantee": guarantee, "confidence": confidence}
    wanted = Wanted(method, options, **promised, cross_fit=cross_fit)
    made = calibrate_run(run, wanted, sets or None)
    for sentence in made.info.notices:
        notice(f"{sentence[0].upper()}{sentence[1:]}.", quiet=quiet)
    write_detector(output, made.info, made.arrays)
    _show(made, run)
    notice_written(output, quiet=quiet)


@click.group(short_help="Look into a detector's file.")
def detector() -> None:
    """Look into a detector's file."""


@detector.command(short_help="Show what a detector promises.")
@click.argument("file")
def info(file) -> None:
    """Show what a detector's file holds and what it promises."""
    from gradscore.detector.file import read_detector
    from gradscore.run.description import preprocessing_text, weights_text

    about, _ = read_detector(file)
    threshold = about.threshold
    names = {"calibration images": about.calibration, "learned from": about.fit}
    facts = {
        "detector": file,
        "score": score_text(about),
        "threshold": f"{threshold.value:.6g}",
        "promise": promise_text(about).removesuffix("."),
        "model": about.model,
        "weights": weights_text(about),
        "weights' SHA-256": about.weights_sha256,
        "preprocessing": preprocessing_text(about),
        "input": " x ".join(map(str, about.input_shape)),
        "classes": f"{about.classes:,}",
        "ID accuracy": "unknown" if about.id_accuracy is None else _percent(about.id_accuracy),
    }
    facts |= {what: _sources(sources) for what, sources in names.items() if sources}
    facts["versions"] = ", ".join(f"{name} {text}" for name, text in about.versions.items())
    facts |= {f"notice {k}": text for k, text in enumerate(about.notices, start=1)}
    facts |= {"size": counted(os.path.getsize(file), "byte")}
    print_facts(facts)


def score_text(about: "DetectorInfo") -> str:
    """Return a score with its settings."""
    settings = ", ".join(f"{name} {value}" for name, value in about.settings.items())
    return f"{about.method} ({settings})" if settings else about.method


def promise_text(about: "DetectorInfo") -> str:
    """Return what a detector promises, as one sentence."""
    threshold = about.threshold
    promise = threshold.promise()
    approximate = " (approximate: cross-fit)" if about.cross_fit else ""
    return (
        f"{promise[0].upper()}{promise[1:]}{approximate}; {threshold.flagged:,} of these "
        f"{threshold.images:,} are."
    )


def _show(made: "Calibration", run: "RunStore") -> None:
    about = made.info
    say(f"{score_text(about)}: images with a score below {about.threshold.value:.6g} are flagged.")
    say(promise_text(about))
    say("This holds for images like the calibration images: drawn alike, and new to the model.")
    worst = sorted(made.by_class.items(), key=lambda one: (-one[1].flagged, one[0]))
    names = about.class_names
    rows = [
        (class_text(names, y), f"{found.flagged:,}", f"{found.images:,}", _share(found))
        for y, found in worst
        if found.flagged
    ]
    columns = ("predicted class", "flagged", "of", "share")
    if rows:
        more = f" (first {SHOWN} of {len(rows)})" if len(rows) > SHOWN else ""
        print_table(columns, rows[:SHOWN], title=f"False alarms by predicted class{more}")
    if made.ood:
        rows = [(n, f"{f.flagged:,}", f"{f.images:,}", _share(f)) for n, f in made.ood.items()]
        print_table(("OOD set", *columns[1:]), rows, title="OOD sets of the run")


def class_text(class_names: Sequence[str] | None, number: int) -> str:
    """Return a class by its name where that is known, else by its number."""
    return class_names[number] if class_names else str(number)


def _share(found: Any) -> str:
    return _percent(found.flagged / found.images) if found.images else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _sources(sources: Any) -> str:
    return "; ".join(f"{one.images:,} of {one.name} ({one.source})" for one in sources)
