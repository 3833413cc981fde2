"""The command line: parse, call the library, print.

Only click is imported here and in the commands' modules; torch and the rest are imported by the
command that needs them, so that ``gradscore --help`` answers at once.
"""

import errno
import os
import sys

import click

from gradscore import __version__
from gradscore.cli.ablate import ablate, compare
from gradscore.cli.bench import bench
from gradscore.cli.demo import demo
from gradscore.cli.evaluate import evaluate
from gradscore.cli.extract import extract
from gradscore.cli.layers import layers
from gradscore.cli.manifests import manifest
from gradscore.cli.runs import run
from gradscore.cli.score import score
from gradscore.cli.verify import verify
from gradscore.errors import GradScoreError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
COMMANDS = (
    demo,
    layers,
    extract,
    score,
    evaluate,
    ablate,
    compare,
    verify,
    bench,
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

    `gradscore demo` runs the whole job on an embedded example. `gradscore extract`, then
    `gradscore score` and `gradscore evaluate`, are the three steps of it.
    """


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line; errors are one line on stderr and exit code 1, usage errors 2."""
    if sys.stdout is None:
        sys.exit("Error: Expected an open standard output, got a closed one.")
    # For python: models, as `python -m` has it; last, so that it hides no installed package.
    if "" not in sys.path:
        sys.path.append("")
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Interrupted. What was finished is kept; the same command resumes.", err=True)
        code = 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except GradScoreError as error:
        click.echo(f"Error: {' '.join(str(error).split())}", err=True)
        code = 1
    except OSError as error:
        # Files' own errors are told where they are written; what has no name is the output.
        if error.filename is not None or error.errno not in FULL:
            raise
        # What is left in the buffer is not tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"Error: Cannot write to standard output: {error.strerror}.", err=True)
        code = 1
    sys.exit(code or 0)
