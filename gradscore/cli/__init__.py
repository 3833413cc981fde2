"""The command line: parse, call the library, print.

Only click is imported here and in the commands' modules; torch and the rest are imported by the
command that needs them, so that ``gradscore --help`` answers at once.
"""

import sys

import click

from gradscore import __version__
from gradscore.cli.choosing import choose
from gradscore.cli.detectors import calibrate, detector
from gradscore.cli.ending import end_with, open_streams, stopped_by_signals
from gradscore.cli.example import demo
from gradscore.cli.exporting import export
from gradscore.cli.extraction import extract
from gradscore.cli.manifests import manifest
from gradscore.cli.models import layers, verify
from gradscore.cli.prediction import predict
from gradscore.cli.reporting import report
from gradscore.cli.runs import run
from gradscore.cli.scores import ablate, compare, evaluate, score

COMMANDS = (
    demo,
    layers,
    extract,
    score,
    evaluate,
    choose,
    calibrate,
    predict,
    export,
    detector,
    ablate,
    compare,
    report,
    verify,
    run,
    manifest,
)


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [command.name for command in COMMANDS]


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Gradient-norm out-of-distribution scores for any PyTorch classifier.

    `gradscore demo` runs the whole job on an embedded example, and names each command of it:
    extract, choose, evaluate, calibrate, score, report. Then `predict` decides about new images,
    and `export` writes the detector for use without torch.

    \b
    spec      text that names a model, such as timm:resnet18
    run       folder with what one model gave for all sets of images
    set       images under one name, with a role: ID, OOD, to fit to, or none
    pass      one kind of numbers of a set in a run, such as base: features and logits
    group     parameters under one name: last, block1, ..., all
    method    way to score images, such as energy
    detector  file with a score, its threshold, and what it promises
    rule      code that computes the per-sample norms of one kind of layer
    """  # noqa: D301


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line; errors are one line on stderr and exit code 1, usage errors 2."""
    open_streams()
    # For python: models, as `python -m` has it; last, so that it hides no installed package.
    if "" not in sys.path:
        sys.path.append("")
    try:
        with stopped_by_signals():
            code = cli.main(standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        code = end_with(error)
    sys.exit(code or 0)
