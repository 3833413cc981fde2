"""What a detector's file says of its score, and the score that it says."""

import hashlib
from collections.abc import Mapping
from math import isinf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.detector.file import DetectorInfo
from gradscore.detector.images import FIT_SET
from gradscore.detector.threshold import Threshold
from gradscore.errors import DetectorError
from gradscore.methods import METHODS, Plan, RecordedRun, ScoreSpec, find_method, make_spec
from gradscore.methods.base import OPTIONS
from gradscore.methods.custom import own_digest
from gradscore.run.layout import BLOCKS
from gradscore.selection import select

MORE_THAN_ONE_FORWARD = ("mahalanobis_stages", "lee_alregib")
"""Methods that change images, or learn from noise as well."""


def require_one_forward(method: str, options: Mapping[str, Any]) -> None:
    """Raise unless one forward gives a score, as a detector of new images needs it.

    Raises:
        DetectorError: If it takes more; the message lists the methods that do not.
    """
    if method not in MORE_THAN_ONE_FORWARD and not options.get("epsilon"):
        return
    known = [name for name in METHODS if name not in MORE_THAN_ONE_FORWARD]
    what = f"{method} with epsilon" if options.get("epsilon") else method
    raise DetectorError(
        f"Expected a score that one forward gives, got {what}; choose one of {', '.join(known)}."
    )


def options_of(spec: ScoreSpec) -> dict[str, Any]:
    """Return the options of a spec as JSON keeps them; infinity as text."""
    given = {name: getattr(spec, name) for name in OPTIONS if name != "fit"}
    return {
        name: "inf" if isinstance(value, float) and isinf(value) else value
        for name, value in given.items()
        if value is not None
    }


def spec_of(info: DetectorInfo) -> ScoreSpec:
    """Return the spec of what a detector's file says.

    Raises:
        DetectorError: If one forward does not give the score.
        InvalidArgument: If there is no such method, or it does not honour an option.
    """
    require_one_forward(info.method, info.settings)
    options = {n: float(v) if n == "p" and v == "inf" else v for n, v in info.settings.items()}
    fit = {"fit": FIT_SET} if "fit" in find_method(info.method).options else {}
    return make_spec(info.method, **options, **fit)


def describe_score(
    run: RecordedRun, spec: ScoreSpec, threshold: Threshold, plan: Plan, **more: Any
) -> DetectorInfo:
    """Return what a file says of a score of a run.

    Args:
        run: The run.
        spec: The score.
        threshold: Its threshold.
        plan: How the score follows from the run.
        **more: Further fields.
    """
    about = run.info
    norms = [about.passes[name] for name in plan.passes if name != BLOCKS]
    inner = select(tuple(about.parameters), about.groups, spec.layers) if norms else ()
    stages = about.passes[BLOCKS].details["modules"] if BLOCKS in plan.passes else {}
    return DetectorInfo(
        method=spec.method,
        settings=options_of(spec),
        threshold=threshold,
        model=about.model,
        weights=about.weights,
        weights_sha256=about.weights_sha256,
        head_sha256=head_digest(run.head()) if about.head.closed_form else "",
        preprocessing=about.preprocessing,
        precision=about.precision,
        input_shape=tuple(about.input_shape),
        classes=about.classes,
        class_names=about.class_names,
        parameters=inner,
        stages=dict(stages),
        versions=about.versions,
        own=own_digest(find_method(spec.method)),
        **more,
    )


def head_digest(head: Mapping[str, NDArray]) -> str:
    """Return a SHA-256 of a last layer's weight and bias."""
    digest = hashlib.sha256()
    for name, values in sorted(head.items()):
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(np.ascontiguousarray(values, dtype=np.float32).data)
    return digest.hexdigest()
