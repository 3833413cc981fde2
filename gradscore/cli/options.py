"""Options and value types that several commands share."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from gradscore.choices import BACKENDS, FIGURE_ENDINGS, METRICS, TARGETS

DEFAULT_RUN = "gradscore-run"


class Positive(click.ParamType):
    """A positive number; ``inf`` only where the quantity may be infinite."""

    def __init__(self, name: str, *, infinite: bool = False) -> None:
        self.name = name
        self.infinite = infinite

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return ``value`` as a float, or fail naming what is accepted."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not number > 0 or (math.isinf(number) and not self.infinite):
            allowed = "a positive number or inf" if self.infinite else "a positive number"
            self.fail(f"expected {allowed}, got {value!r}.", param, ctx)
        return number


class Pair(click.ParamType):
    """``NAME=VALUE``, split at the first equals sign."""

    def __init__(self, value: str) -> None:
        self.name = f"NAME={value}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the two parts, or fail showing the form."""
        if isinstance(value, tuple):
            return value
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            self.fail(f"expected {self.name}, got {value!r}.", param, ctx)
        return name, rest


class Numbers(click.ParamType):
    """Three numbers joined by commas, or one for all channels."""

    name = "A,B,C"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers, or fail showing the form."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 3):
            self.fail(f"expected one or three numbers such as 0.5,0.5,0.5, got {value!r}.")
        return numbers


ORDER = Positive("P", infinite=True)
TEMPERATURE = Positive("T")
TARGET = click.Choice(TARGETS)

run_option = click.option(
    "--run",
    "run_path",
    metavar="DIR",
    default=DEFAULT_RUN,
    show_default=True,
    help="The run's directory.",
)


def run_place(function: Callable) -> Callable:
    """Give a command the run's directory as ``run_path``, by argument or by ``--run`` alike."""

    @click.argument("place", metavar="[DIR]", required=False)
    @click.option("--run", "named", metavar="DIR", help="The run's directory, as DIR.")
    @functools.wraps(function)
    def placed(place, named, **how):
        if place is not None and named is not None:
            raise click.UsageError("Expected the run's directory once, as DIR or as --run DIR.")
        return function(run_path=place or named or DEFAULT_RUN, **how)

    return placed


id_sets_option = click.option(
    "--id",
    "sets",
    metavar="SET",
    multiple=True,
    help="ID set; default: all of them. May be repeated.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress, no notices.")


named_model_option = click.option(
    "--model",
    metavar="SPEC",
    help="The run's model again, where it is your own code (python:) and must be asked anew.",
)


def import_methods(names: Iterable[str]) -> None:
    """Import the scores of the user's own among names of methods."""
    own = [name for name in names if name.startswith("python:")]
    if own:
        from gradscore.methods.custom import import_method

        for name in own:
            import_method(name)


def output_option(endings: Sequence[str]) -> Callable:
    """Return an ``-o`` option for files of some endings.

    A file that could not be written is refused before anything is computed.
    """
    help, check = f"Write the result ({', '.join(endings)}).", checked_output(endings)
    return click.option("-o", "--output", metavar="FILE", callback=check, help=help)


def checked_output(endings: Sequence[str]) -> Callable:
    """Return a callback that refuses a file that could not be written, or has another ending."""

    def checked(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
        if path:
            from gradscore.tables import check_output

            check_output(path, endings)
        return path

    return checked


def _drawable(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    if path:
        from gradscore.plots import check_figure

        check_figure(path)
    return path


plot_option = click.option(
    "--plot",
    metavar="F.png",
    callback=_drawable,
    help=f"Draw the figure into a file ({', '.join(FIGURE_ENDINGS)}).",
)


def chained(*options: Callable) -> Callable:
    """Return one decorator that applies ``options`` in the order in which help shows them."""

    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def one_of(*names: str, values: Sequence[str], help: str) -> Callable:
    """Return an option that takes one of some words, by default the first."""
    choice = click.Choice(values)
    return click.option(*names, type=choice, default=values[0], show_default=True, help=help)


def repeatable(*names: str, help: str, **how: Any) -> Callable:
    """Return an option whose value is a tuple of all that were given, or None."""
    return click.option(
        *names,
        multiple=True,
        callback=lambda ctx, param, values: values or None,
        help=f"{help} May be repeated.",
        **how,
    )


backend_option = one_of(
    "--backend",
    values=BACKENDS,
    help="What computes the closed form. numba: on a CPU; triton: on CUDA; torch: anywhere; "
    "auto: numba where it runs, else torch.",
)
metric_option = repeatable(
    "--metric",
    "metrics",
    type=click.Choice(METRICS),
    help="Figure that the terminal, .md and .tex show; default: auroc and fpr95.",
)

model_options = chained(
    click.option(
        "--model",
        metavar="SPEC",
        help="digits, cifar:resnet20 (resnet20-b: 1x1 shortcuts), bit:BiT-S-R101x1, "
        "timm:NAME[?key=value&...], torchvision:NAME, hf:FOLDER or python:package.module:factory.",
    ),
    click.option(
        "--weights",
        metavar="FILE[#KEY]",
        help="Weight file (.safetensors, .pth, .ckpt, .npz, ...), or `random`. #KEY takes one set "
        "of a checkpoint that holds several, or the names that begin with KEY. Default: the "
        "pretrained weights of the model's library, or those that the python: factory made.",
    ),
)

preprocessing_options = chained(
    click.option("--resize", metavar="S|HxW", help="Short side, or exact height x width."),
    click.option("--crop", metavar="S", type=int, help="Side of the square cut from the centre."),
    click.option("--mean", metavar="A,B,C", type=Numbers(), help="Mean of each channel."),
    click.option(
        "--std", metavar="A,B,C", type=Numbers(), help="Standard deviation of each channel."
    ),
    click.option(
        "--interpolation", help="How --resize interpolates: nearest, bilinear, bicubic, ..."
    ),
)

own_method_option = click.option(
    "--method",
    "methods",
    metavar="python:MODULE:FUNCTION",
    multiple=True,
    help="Also a score of your own: FUNCTION(features, logits, head). May be repeated.",
)
