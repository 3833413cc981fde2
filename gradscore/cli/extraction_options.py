"""The options of ``gradscore extract``."""

import click

from gradscore.choices import (
    AUTO,
    DEVICES,
    EXECUTORS,
    GRADIENTS,
    KEPT_TYPES,
    ON_ERROR,
    PRECISIONS,
    RECORDED_METHODS,
    RECORDED_TARGETS,
    STORED,
)
from gradscore.cli.options import (
    ORDER,
    TEMPERATURE,
    Pair,
    Positive,
    chained,
    model_options,
    one_of,
    preprocessing_options,
    quiet_option,
    run_option,
)


class BatchSize(click.ParamType):
    """A number of images, or ``auto``."""

    name = "N|auto"

    def convert(self, value, param, ctx):
        """Return the number, or ``auto``, or fail."""
        if value == AUTO or isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"expected a positive number or auto, got {value!r}.", param, ctx)
        return int(value)


def sets_option(*names: str, help: str):
    """Return an option that takes sets of one role."""
    return click.option(*names, metavar="NAME=PATH", type=Pair("PATH"), multiple=True, help=help)


computing_options = chained(
    one_of(
        "--device",
        values=DEVICES,
        help="Where to compute; auto: on CUDA where it is there.",
    ),
    click.option(
        "--workers",
        metavar="N",
        type=click.IntRange(0),
        help="Processes that decode images; 0: the main process alone.",
    ),
    click.option(
        "--max-pixels",
        metavar="N",
        type=click.IntRange(1),
        help="Decode images of up to N pixels; by default Pillow's limit, 89 million.",
    ),
    one_of(
        "--on-error",
        values=ON_ERROR,
        help="At an image that cannot be read: stop, or leave it out and record why.",
    ),
)
"""Where a forward computes, and how pictures are decoded for it."""

extract_options = chained(
    model_options,
    run_option,
    sets_option(
        "--id",
        "ids",
        help="ID set: images like those of the training, and new to the model. May be repeated.",
    ),
    sets_option(
        "--ood", "oods", help="OOD set: images that the model was not made for. May be repeated."
    ),
    sets_option(
        "--fit-set",
        "fit_sets",
        help="ID set that methods learn from; it is never evaluated. May be repeated.",
    ),
    sets_option(
        "--data",
        "data",
        help="Set without a role: it is scored, but not evaluated. May be repeated.",
    ),
    click.option(
        "--layers",
        metavar="L",
        multiple=True,
        help="Parameters whose gradient norms are recorded: all (default), last (a forward pass "
        "alone), a group, or a glob over names. May be repeated.",
    ),
    click.option(
        "-p",
        "p",
        metavar="P",
        type=ORDER,
        multiple=True,
        help="Order of the norm, default 1. May be repeated.",
    ),
    click.option(
        "-T",
        "--temperature",
        metavar="T",
        type=TEMPERATURE,
        multiple=True,
        help="Softmax temperature, default 1, for odin 1000. May be repeated.",
    ),
    click.option(
        "--target",
        type=click.Choice(RECORDED_TARGETS),
        multiple=True,
        help="What the loss compares the softmax with. uniform (default): the paper's. one-hot: "
        "the predicted class. all-ones: every class is the label; with -p 2 for the method "
        "lee_alregib. May be repeated.",
    ),
    click.option(
        "--keep",
        metavar="MODULE",
        multiple=True,
        help="Store the input of this module. Later commands can then score by it and by what "
        "follows it, with any settings and without the images. May be repeated.",
    ),
    click.option(
        "--keep-dtype",
        type=click.Choice(KEPT_TYPES),
        default=KEPT_TYPES[0],
        help="Type of the numbers that --keep stores; default float32.",
    ),
    click.option(
        "--record",
        type=click.Choice(RECORDED_METHODS),
        multiple=True,
        help="Record what a method needs beside features and logits. odin: perturbed images "
        "(--epsilon). mahalanobis: for mahalanobis_stages (--fit). surrogates: changed copies "
        "of ID images, for choose. May be repeated.",
    ),
    click.option(
        "--epsilon",
        metavar="E",
        type=Positive("E"),
        multiple=True,
        help="Perturbation of --record odin, in units of the normalised input. May be repeated.",
    ),
    click.option(
        "--fit", metavar="SET", help="Labelled ID set that --record mahalanobis learns from."
    ),
    click.option(
        "--blocks",
        metavar="NAME=PATTERN",
        type=Pair("PATTERN"),
        multiple=True,
        help="Name a group of parameters by a glob over names. May be repeated.",
    ),
    preprocessing_options,
    click.option(
        "--batch-size",
        type=BatchSize(),
        default=64,
        show_default=True,
        help="Images at once; auto: the fastest number that fits into memory.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Type of the forward, default float32; tf32, bfloat16, float16: faster on CUDA.",
    ),
    computing_options,
    click.option(
        "--limit",
        metavar="N",
        type=click.IntRange(1),
        help="Take N images of each set, spread over its classes (or folders), always the same.",
    ),
    one_of(
        "--gradients",
        values=GRADIENTS,
        help="How inner norms are computed; the results agree.",
    ),
    click.option(
        "--part",
        metavar="I/N",
        help="Record part I of N of each set; `gradscore run merge` joins them. env: "
        "take I and N from the variables of a Slurm array, a Kubernetes indexed job or torchrun. "
        "env/N: where these do not give N.",
    ),
    click.option(
        "--store",
        type=click.Choice(STORED),
        help="all (default): features and logits. features: only these; logits are then computed "
        "from the last layer when they are read. features-float16: features in half precision.",
    ),
    one_of(
        "--executor",
        values=EXECUTORS,
        help="Who computes: this process, or the workers of a Ray cluster that share the disk of "
        "the run and the images (pip install 'gradscore[ray]').",
    ),
    click.option(
        "--actors",
        metavar="N",
        type=click.IntRange(1),
        help="Workers of --executor ray; by default one a GPU, or a CPU.",
    ),
    quiet_option,
)
