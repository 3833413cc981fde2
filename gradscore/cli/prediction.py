"""``gradscore predict``: a detector's decisions on new images."""

import os

import click

from gradscore.choices import PREDICTION_ENDINGS
from gradscore.cli.console import Progress, notice, print_table, say, say_left_out
from gradscore.cli.detectors import DETECTOR, again_options, class_text
from gradscore.cli.ending import begins_again
from gradscore.cli.extraction_options import computing_options
from gradscore.cli.options import chained, checked_output, quiet_option
from gradscore.escapes import counted

SHOWN = 5
"""Images with the lowest p-values that are shown by default."""
STDOUT = "-"


def _checked(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    return path if path == STDOUT else checked_output(PREDICTION_ENDINGS)(ctx, param, path)


detector_options = chained(
    click.option(
        "--detector",
        metavar="FILE",
        default=DETECTOR,
        show_default=True,
        help="What `gradscore calibrate` wrote.",
    ),
    again_options,
)


@click.command(short_help="Decide which new images to accept.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@detector_options
@click.option(
    "--show",
    metavar="N",
    type=click.IntRange(0),
    default=SHOWN,
    show_default=True,
    help="Show the N images with the lowest p-values.",
)
@click.option(
    "--fail-on-drift",
    is_flag=True,
    help="Exit with 1 where more images are flagged than clean ones would be.",
)
@click.option(
    "--batch-size",
    metavar="N",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Images at once.",
)
@computing_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    callback=_checked,
    help=f"Write the decisions ({', '.join(PREDICTION_ENDINGS)}); - writes JSON lines to standard "
    "output, and all else to standard error.",
)
@quiet_option
@begins_again()
def predict(
    paths, detector, model, weights, method, show, fail_on_drift, output, quiet, **how
) -> None:
    """Decide by a detector which new images to accept; say whether it flags more than usual.

    PATH is a folder, a list or an archive, as `gradscore extract` takes them. A file has a row an
    image: path, predicted (class number), predicted_name where names are known, score, p_value
    (share of clean images with so low a score) and accepted. Ctrl-C keeps the rows that are
    there. The images are only read.
    """
    import sys
    from contextlib import nullcontext, redirect_stdout

    from gradscore.data import open_set
    from gradscore.detector import Detector
    from gradscore.detector.building import UNKNOWN
    from gradscore.detector.file import read_detector
    from gradscore.detector.prediction import Tally, predict_images
    from gradscore.detector.prediction_file import streamed_predictions, written_predictions
    from gradscore.errors import InvalidArgument
    from gradscore.extraction.classifier import device_for

    info, _ = read_detector(detector)
    if UNKNOWN in info.notices:
        notice(f"{UNKNOWN[0].upper()}{UNKNOWN[1:]}.", quiet=quiet)
    if fail_on_drift and info.cross_fit:
        raise InvalidArgument(
            "Expected no --fail-on-drift with a cross-fitted detector: whether too many images "
            "are flagged is not known."
        )
    sets = [open_set(path, labelled=False, max_pixels=how["max_pixels"]) for path in paths]
    place = device_for(how["device"], info.precision)
    tally, progress = Tally(info, show), Progress(quiet=quiet)
    progress.start(sum(map(len, sets)), "Predicting")
    workers = min(4, (os.cpu_count() or 1) - 1) if how["workers"] is None else how["workers"]
    asked = {"batch_size": how["batch_size"], "workers": workers}
    asked["skip"] = how["on_error"] == "skip"
    if output == STDOUT:
        opened = streamed_predictions(sys.stdout.buffer, info)
    else:
        opened = written_predictions(output, info) if output else nullcontext()
    rows = None
    try:
        found = Detector.load(detector, model, weights, method=method).to(place)
        with opened as rows:
            for images in sets:
                for part in predict_images(found, images, **asked):
                    tally.add(part)
                    if rows is not None:
                        rows.add(part)
                    progress.advance(part.done)
    except BaseException:
        if rows is not None and rows.kept:
            progress.finish()
            notice(f"{output} holds the first {counted(rows.kept, 'image')}.", quiet=quiet)
        raise
    finally:
        progress.finish()
    with redirect_stdout(sys.stderr) if output == STDOUT else nullcontext():
        show_tally(tally)
    if output and output != STDOUT:
        notice(f"Wrote {output}.", quiet=quiet)
    if fail_on_drift:
        _fail_where_drifted(tally)


def show_tally(tally) -> None:
    """Print the lowest p-values, how many images are flagged, and whether that is too many."""
    from gradscore.errors import DataError

    for reason in tally.failed:
        notice(reason)
    if tally.unread:
        notice(f"{counted(tally.unread, 'image')} without a decision: not readable.")
    if not tally.images:
        raise DataError("Expected an image that can be read, got none.")
    rows = [
        (
            path,
            class_text(tally.info.class_names, int(predicted)),
            f"{score:.6g}",
            f"{p:.4f}",
            "yes" if accepted else "no",
        )
        for path, predicted, score, p, accepted in tally.lowest
    ]
    if rows:
        columns = ("path", "predicted", "score", "p-value", "accepted")
        dropped = print_table(columns, rows, left=2, title="Lowest p-values", droppable=(2, 4))
        say_left_out(dropped)
    say(tally.summary())
    say(tally.verdict())


def _fail_where_drifted(tally) -> None:
    from gradscore.errors import GradScoreError

    if tally.drifted:
        raise GradScoreError(f"Drift: {tally.summary()} {tally.verdict()}")
