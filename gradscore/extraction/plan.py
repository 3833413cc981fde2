"""What there is to record, and which stretches of a set still lack it."""

from collections.abc import Iterator, Sequence
from itertools import product

from gradscore.extraction.identity import require_equal
from gradscore.extraction.stage_fit import StageFit
from gradscore.objective import RecordedObjective, check_epsilon, check_temperature
from gradscore.run import (
    BASE,
    FitInfo,
    PassInfo,
    RunInfo,
    SetInfo,
    mahalanobis_name,
    norms_name,
    odin_name,
)
from gradscore.selection import select


def norm_passes(
    info: RunInfo,
    layers: str | Sequence[str],
    p: Sequence[float],
    temperature: Sequence[float],
    target: Sequence[str],
    gradients: str,
) -> list[PassInfo]:
    """Return the norm passes that answer for some layers; none where the base pass does.

    Args:
        info: The run's description.
        layers: A group, a glob, a comma list, or several of them.
        p: Orders of the norm.
        temperature: Softmax temperatures.
        target: Of ``uniform``, ``one-hot`` and ``all-ones``.
        gradients: What computes them.

    Raises:
        InvalidArgument: If a value is out of range, or ``layers`` match nothing.
    """
    parameters = select(list(info.parameters), info.groups, layers)
    text = layers if isinstance(layers, str) else ",".join(layers)
    settings = product(target, temperature, p)
    objectives = dict.fromkeys(RecordedObjective(order, T, t) for t, T, order in settings)
    if info.head.closed_form and set(parameters) == set(info.head.weights):
        objectives = [o for o in objectives if o.target == "all-ones"]
    name = "all" if len(parameters) == len(info.parameters) else text
    return [
        PassInfo(
            norms_name(o.target, o.temperature, o.p, name, parameters),
            *("norms", o.target, o.temperature, o.p, gradients, parameters),
        )
        for o in objectives
    ]


def odin_passes(temperature: Sequence[float], epsilon: Sequence[float]) -> list[PassInfo]:
    """Return the passes that store the logits of inputs perturbed as ODIN does.

    The perturbation depends on the temperature, so that each has passes of its own.

    Args:
        temperature: Softmax temperatures.
        epsilon: Magnitudes in units of the normalised input, positive.
    """
    questions = product(
        dict.fromkeys(check_temperature(t) for t in temperature),
        dict.fromkeys(check_epsilon(e) for e in epsilon),
    )
    return [
        PassInfo(odin_name(T, e), "odin", temperature=T, details={"epsilon": e})
        for T, e in questions
    ]


def mahalanobis_pass(fit_set: str, fit: FitInfo, learned: StageFit) -> PassInfo:
    """Return the pass that stores every stage's confidence.

    Args:
        fit_set: Name of the labelled set.
        fit: The run's entry of what was learned from it.
        learned: The same itself.
    """
    details = {"fit": fit.name, "magnitude": learned.magnitude, "stages": dict(learned.stages)}
    return PassInfo(mahalanobis_name(fit_set), "mahalanobis", details=details)


def keep_passes(keep: Sequence[str], dtype: str) -> list[PassInfo]:
    """Return the passes that store what enters some modules.

    Args:
        keep: Names of modules.
        dtype: ``float32`` or ``float16``.
    """
    return [
        PassInfo(f"keep-{module}", "keep", details={"module": module, "dtype": dtype})
        for module in dict.fromkeys(keep)
    ]


def agree_on_passes(info: RunInfo, passes: Sequence[PassInfo]) -> list[PassInfo]:
    """Return the passes as the run knows them, where it does.

    Raises:
        RunError: If a pass of the same name was recorded otherwise.
    """
    agreed = []
    for entry in passes:
        known = info.passes.get(entry.name)
        if known is not None:
            what = f"Pass {entry.name} of the run"
            require_equal(what, "gradients", known.gradients, entry.gradients)
            require_equal(what, "parameters", list(known.parameters), list(entry.parameters))
            require_equal(what, "details", known.details, entry.details)
        agreed.append(known or entry)
    return agreed


def stretches(
    entry: SetInfo, passes: Sequence[PassInfo]
) -> Iterator[tuple[int, int, bool, list[PassInfo]]]:
    """Yield what a set still lacks, stretch by stretch, until nothing is lacking.

    What starts at the same image is computed together, from one forward.

    Yields:
        First image, the one after the last, whether base rows are lacking, and which passes.
    """
    names = [BASE, *(known.name for known in passes)]
    by_name = {known.name: known for known in passes}
    while True:
        open_at = {name: entry.done(name) for name in names if not entry.complete(name)}
        if not open_at:
            return
        start = min(open_at.values())
        stop = min((done for done in open_at.values() if done > start), default=entry.rows)
        active = [name for name, done in open_at.items() if done == start]
        yield start, stop, BASE in active, [by_name[name] for name in active if name != BASE]
