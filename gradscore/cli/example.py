"""``gradscore demo``: the whole job on the embedded model and its images."""

from pathlib import Path
from shlex import quote

import click

from gradscore.cli.choosing import show_choice
from gradscore.cli.console import Progress, notice
from gradscore.cli.extraction import EMBEDDED
from gradscore.cli.options import quiet_option
from gradscore.cli.results import choose_specs, hint_to_choose, notice_fits, show_evaluation


@click.command(short_help="Run the whole job on an embedded example.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    default="gradscore-demo",
    show_default=True,
    help="Where the run and the tables go.",
)
@quiet_option
def demo(output, quiet) -> None:
    """Extract, score and evaluate the embedded model on its ID and OOD images.

    The model is a small convolutional network for the handwritten digits 0 to 5; the OOD sets are
    the digits 6 to 9, patches of photographs, and noise.
    """
    from gradscore.ablation import ablate
    from gradscore.choosing import choose as choose_score
    from gradscore.choosing import ood_aurocs
    from gradscore.evaluation import evaluate_run
    from gradscore.methods import make_specs
    from gradscore.recorded import extract
    from gradscore.scoring import iterate_scores
    from gradscore.tables import write_evaluation, write_scores

    folder = Path(output)
    progress = Progress(quiet=quiet)
    path = folder / "run"
    run = extract("digits", EMBEDDED, path, record="surrogates", progress=progress).store
    specs = choose_specs(run, (), {}, quiet=quiet)
    everything = evaluate_run(run, specs)
    notice_fits(run, specs, (), quiet=quiet)
    show_evaluation(everything, title="Every method, mean over the OOD sets", full=False)
    hint_to_choose(everything.rows, path)
    choice = choose_score(run)
    show_choice(choice, ood_aurocs(run, choice), path)
    layers = ablate(run, "layers")["layers"]
    show_evaluation(layers, title="GradNorm by layers")
    write_scores(folder / "scores.csv", iterate_scores(run, EMBEDDED, make_specs(["gradnorm"])))
    write_evaluation(folder / "evaluation.csv", everything)
    write_evaluation(folder / "layers.csv", layers)
    notice(
        f"Wrote {folder}/run, scores.csv, evaluation.csv and layers.csv. "
        f"Ask it more: gradscore score --run {quote(f'{folder}/run')} --layers block4",
        quiet=quiet,
    )
