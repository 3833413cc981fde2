"""``gradscore demo``: the whole job on the embedded model and its images."""

from pathlib import Path
from shlex import quote

import click

from gradscore.cli.choosing import show_recommendation
from gradscore.cli.console import Progress, say
from gradscore.cli.evaluations import show_evaluation
from gradscore.cli.extraction import EMBEDDED
from gradscore.cli.options import quiet_option
from gradscore.cli.results import choose_specs, notice_fits


@click.command(short_help="Run the whole job on an embedded example.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    default="gradscore-demo",
    show_default=True,
    help="Where the run, the tables and the figure go.",
)
@quiet_option
def demo(output, quiet) -> None:
    """Do the whole job on the embedded model and its images, step by step.

    The model is a small convolutional network for the handwritten digits 0 to 5; the OOD sets are
    the digits 6 to 9, patches of photographs, and noise.
    """
    from gradscore.choosing import choose as choose_score
    from gradscore.evaluation import evaluate_run
    from gradscore.plots import plot_scores
    from gradscore.recorded import extract
    from gradscore.scoring import score_sets
    from gradscore.tables import write_evaluation, write_scores

    folder = Path(output)
    path = folder / "run"
    _step(1, "Run the model once over the images, and record what it answers", "extract", path)
    run = extract("digits", EMBEDDED, path, record="surrogates", progress=Progress(quiet=quiet))
    store = run.store
    _step(2, "Which score to trust, asked of ID images alone", "choose", path)
    choice = choose_score(store)
    show_recommendation(choice, path)
    _step(3, "How well each score tells ID from OOD", "evaluate", path)
    specs = choose_specs(store, (), {}, quiet=quiet)
    everything = evaluate_run(store, specs)
    notice_fits(store, specs, (), quiet=quiet)
    show_evaluation(everything, full=False)
    write_evaluation(folder / "evaluation.csv", everything)
    _step(4, "A score for every image, and how the scores lie", "score", path)
    scored = score_sets(store, EMBEDDED, [choice.spec])
    write_scores(folder / "scores.csv", scored.values())
    plot_scores(store, scored, [choice.spec], folder / "scores.png")
    say(f"Wrote into {folder}: run, evaluation.csv, scores.csv, scores.png.")


def _step(number: int, what: str, command: str, path: Path) -> None:
    """Say what comes, and which command does it."""
    gap = "\n" if number > 1 else ""
    click.echo(gap, nl=False)
    say(f"{number}. {what}: gradscore {command} --run {quote(str(path))}")
