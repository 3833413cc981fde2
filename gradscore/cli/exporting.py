"""``gradscore export``: a detector as one ONNX file."""

import click

from gradscore.choices import INPUTS
from gradscore.cli.console import notice, say
from gradscore.cli.detectors import again_options, promise_text, score_text
from gradscore.cli.ending import begins_again
from gradscore.cli.options import one_of, quiet_option
from gradscore.cli.results import notice_written
from gradscore.escapes import counted

TRIED = 256
"""Images of the calibration that the file is tried with."""


@click.command(short_help="Write a detector as an ONNX file.")
@click.option("--detector", "path", metavar="FILE", required=True, help="The detector's file.")
@again_options
@one_of(
    "--input",
    "takes",
    values=INPUTS,
    help="normalized: preprocessed images. uint8: pixels at the model's size; the file then "
    "holds the normalisation.",
)
@click.option(
    "--data",
    metavar="PATH",
    help="Images to try the file with. Default: those of the calibration.",
)
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1),
    help="The one batch size that the file takes. Default: any.",
)
@click.option("-o", "--output", metavar="F.onnx", required=True, help="The file (.onnx).")
@quiet_option
@begins_again()
def export(path, model, weights, method, takes, data, batch, output, quiet) -> None:
    """Write a detector as ONNX: images in; logits, score and accepted out.

    The file is kept only if onnxruntime decides real images as the detector does. It runs without
    torch and without gradscore. Its threshold is the initializer `threshold`.
    """
    from gradscore.detector import Detector
    from gradscore.detector.trial import trial_images

    detector = Detector.load(path, model, weights, method=method)
    images, reason = trial_images(detector.info, data, takes, TRIED)
    if reason:
        notice(f"The file is tried with random numbers: {reason}", quiet=quiet)
    found = detector.export(output, images, takes=takes, batch=batch)
    what = "random images" if found.drawn else "images"
    say(f"{score_text(detector.info)}. {promise_text(detector.info)}")
    say(
        f"Tried in onnxruntime with {found.images:,} {what}: logits within {found.logits:.1g}, "
        f"scores within {found.score:.1g} of the largest; {counted(found.near, 'image')} so near "
        "the threshold that rounding may decide."
    )
    learned = f", of which the score learned {_mebibytes(found.learned)}" if found.learned else ""
    say(f"{_mebibytes(found.size)}{learned}.")
    notice_written(output, quiet=quiet)


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
