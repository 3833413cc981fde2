"""A run scored as a detector scores it, for ``gradscore score --detector``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradscore.cli.console import notice
from gradscore.cli.options import import_methods

if TYPE_CHECKING:
    from gradscore.methods import RecordedRun, ScoreSpec
    from gradscore.run import RunStore


@dataclass(frozen=True)
class Judged:
    """What a detector makes of a run.

    Attributes:
        run: The run with what the detector learned, without the images that it learned from.
        spec: Its score.
        threshold: Images below it are flagged.
        label: What the threshold is, in a figure's legend.
        promise: What it promises, in a sentence.
    """

    run: "RecordedRun"
    spec: "ScoreSpec"
    threshold: float
    label: str
    promise: str

    def line(self) -> dict:
        """Return what :func:`gradscore.plots.plot_scores` draws of the threshold."""
        return {
            "threshold": self.threshold,
            "threshold_label": self.label,
            "promise": self.promise,
        }


def judge(
    run: "RunStore", detector: str, methods: Sequence[str], options: dict, *, quiet: bool
) -> Judged:
    """Return what a detector makes of a run.

    Raises:
        DetectorError: If the file cannot be read, or is of another model.
    """
    from gradscore.detector.about import spec_of
    from gradscore.detector.detected import run_for, seen_images
    from gradscore.detector.file import read_detector

    info, arrays = read_detector(detector)
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if methods and list(methods) != [info.method]:
        given.insert(0, "--method")
    if given:
        raise click.UsageError(
            f"Expected --detector without {', '.join(given)}: it has a score of its own, "
            f"{info.method}."
        )
    import_methods(methods)
    for sentence in seen_images(run, info):
        notice(sentence, quiet=quiet)
    promise = info.threshold.promise()
    return Judged(
        run_for(run, info, arrays, detector),
        spec_of(info),
        info.threshold.value,
        f"threshold of {Path(detector).name}",
        f"Threshold: {promise}.",
    )
