"""``gradscore demo``: the whole job on the embedded model and its images."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradscore.cli.choosing import show_recommendation
from gradscore.cli.console import Progress, say
from gradscore.cli.detectors import promise_text
from gradscore.cli.evaluations import show_evaluation
from gradscore.cli.extraction import EMBEDDED
from gradscore.cli.judged import judge
from gradscore.cli.options import quiet_option
from gradscore.cli.results import notice_fits

if TYPE_CHECKING:
    from gradscore.detector.calibration import Calibration
    from gradscore.methods import ScoreSpec
    from gradscore.run import RunStore

COMPARED = ("energy", "msp", "gradnorm")
"""Scores that stand beside the chosen one."""


@click.command(short_help="Run the whole job on an embedded example.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    default="gradscore-demo",
    show_default=True,
    help="Where the run, the detector and the report go.",
)
@quiet_option
def demo(output, quiet) -> None:
    """Do the whole job on the embedded model and its images, step by step.

    The model is a small convolutional network for the handwritten digits 0 to 5; the OOD sets are
    the digits 6 to 9, patches of photographs, and noise.
    """
    from gradscore.choosing import choose as choose_score
    from gradscore.recorded import extract
    from gradscore.reporting import report

    folder = Path(output)
    path = folder / "run"
    step = Steps(path)
    step("Run the model once over the images, and record what it answers", "extract")
    run = extract("digits", EMBEDDED, path, record="surrogates", progress=Progress(quiet=quiet))
    step("Which score to trust, asked of ID images alone", "choose")
    choice = choose_score(run.store)
    show_recommendation(choice, path)
    evaluation = folder / "evaluation.csv"
    asked = list(dict.fromkeys([choice.spec, *map(make_default, COMPARED)]))
    methods = [word for spec in asked for word in ("--method", spec.method)]
    step("How well it tells ID from OOD, beside others", "evaluate", *methods, "-o", evaluation)
    _evaluate(run.store, asked, evaluation, quiet)
    detector = folder / "detector.safetensors"
    step("A threshold that holds what it promises, and the detector", "calibrate", "-o", detector)
    say(promise_text(_calibrate(run.store, detector).info))
    scores, figure = folder / "scores.csv", folder / "scores.png"
    words = ("--detector", detector, "-o", scores, "--plot", figure)
    step("The detector's score of every image, and a picture of them", "score", *words)
    _score(run.store, detector, scores, figure, quiet)
    page = folder / "report.html"
    step("All of it on one page", "report", "--detector", detector, "-o", page)
    report(run.store, page, detector=detector)
    say(f"Open {page} in a browser.")


class Steps:
    """Says what comes next, and which command does it.

    Args:
        run: The run that all commands are about.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._number = run, 0

    def __call__(self, what: str, command: str, *words: object) -> None:
        """Say one step."""
        click.echo("\n" if self._number else "", nl=False)
        self._number += 1
        say(f"{self._number}. {what}:")
        say(f"   {shlex.join(('gradscore', command, '--run', *map(str, (self._run, *words))))}")


def make_default(method: str) -> "ScoreSpec":
    """Return a score with its default settings."""
    from gradscore.methods import ScoreSpec

    return ScoreSpec(method)


def _evaluate(run: "RunStore", specs: "list[ScoreSpec]", path: Path, quiet: bool) -> None:
    from gradscore.evaluation import evaluate_run
    from gradscore.tables import write_evaluation

    evaluation = evaluate_run(run, specs)
    notice_fits(run, specs, (), quiet=quiet)
    write_evaluation(path, evaluation)
    show_evaluation(evaluation, full=False)


def _score(run: "RunStore", detector: Path, path: Path, figure: Path, quiet: bool) -> None:
    from gradscore.plots import plot_scores
    from gradscore.scoring import score_sets
    from gradscore.tables import write_scores

    judged = judge(run, str(detector), (), {}, quiet=quiet)
    scored = score_sets(judged.run, EMBEDDED, [judged.spec])
    write_scores(path, scored.values(), run.info.class_names)
    plot_scores(judged.run, scored, [judged.spec], figure, **judged.line())


def _calibrate(run: "RunStore", path: Path) -> "Calibration":
    from gradscore.detector.calibration import calibrate_run
    from gradscore.detector.file import write_detector
    from gradscore.detector.wanted import Wanted

    made = calibrate_run(run, Wanted())
    write_detector(path, made.info, made.arrays)
    return made
