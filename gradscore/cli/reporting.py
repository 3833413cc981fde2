"""``gradscore report``: a run as one page to look at."""

import click

from gradscore.choices import REPORT_ENDINGS
from gradscore.cli.console import Progress, notice
from gradscore.cli.options import (
    Pair,
    chained,
    checked_output,
    import_methods,
    named_model_option,
    quiet_option,
    run_place,
)


@click.command(short_help="Write a run as one page to look at.")
@chained(run_place, named_model_option)
@click.option("--detector", metavar="FILE", help="Show the score and threshold of this detector.")
@click.option(
    "--method",
    metavar="M",
    help="Show this score. Default: the detector's, else what `choose` took, else energy.",
)
@click.option(
    "--set", "sets", metavar="NAME", multiple=True, help="Only these sets. May be repeated."
)
@click.option(
    "--data",
    "moved",
    metavar="NAME=PATH",
    type=Pair("PATH"),
    multiple=True,
    help="Where the images of a set are now, if they have moved. May be repeated.",
)
@click.option("--images/--no-images", default=True, help="With small copies of images.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default="report.html",
    show_default=True,
    callback=checked_output(REPORT_ENDINGS),
    help="The page (.html).",
)
@quiet_option
def report(run_path, model, detector, method, sets, moved, images, output, quiet) -> None:
    """Write one HTML file that shows what a run says.

    The sets and the model's accuracy, which score to trust, the scores of each set, a slider over
    the threshold, ROC curves, the worst mistakes, false alarms by class, and what each layer
    tells. It needs no network and no other file, and can be sent to others: mind that it holds
    small copies of your images, unless --no-images.
    """
    from gradscore.reporting import report as write_report
    from gradscore.run import RunStore

    import_methods([method] if method else ())
    written = write_report(
        RunStore(run_path, model),
        output,
        detector=detector,
        method=method,
        sets=sets,
        images=images,
        data=dict(moved),
        progress=Progress(quiet=quiet),
    )
    size = written.stat().st_size
    notice(f"Wrote {written} ({size / 1e6:.1f} MB); open it in a browser.", quiet=quiet)
