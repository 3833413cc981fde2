"""What there is to record: passes, agreed with the run, and what each set lacks of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from gradscore.data import ImageSet
from gradscore.errors import ModelError
from gradscore.extraction.agreement import agree_on_set, agree_on_sets
from gradscore.extraction.classifier import Classifier
from gradscore.extraction.probes import StageFit
from gradscore.extraction.replay import check_kept
from gradscore.extraction.resolved import Resolved
from gradscore.extraction.sets import set_notices
from gradscore.extraction.settings import Settings
from gradscore.extraction.stage_fit import LabelledImages, fit_to
from gradscore.layers.features import find_stages, observe_stages
from gradscore.objective import RecordedObjective, check_epsilon, check_temperature
from gradscore.run import (
    BASE,
    FitInfo,
    PassInfo,
    RunInfo,
    RunStore,
    mahalanobis_name,
    norms_name,
    odin_name,
)
from gradscore.run.identity import OF_PASS, require_same
from gradscore.run.layout import BLOCKS
from gradscore.selection import select

ODIN_TEMPERATURE = 1000.0


def wanted_passes(settings: Settings, resolved: Resolved) -> list[PassInfo]:
    """Return the passes that are asked for, but for those that need a fit.

    Raises:
        InvalidArgument: If a value is out of range, or names nothing of the model.
        ModelError: If the input of a module to keep does not determine the logits.
    """
    kept = keep_passes(settings.keep, settings.keep_dtype)
    norms = norm_passes(settings, resolved.info)
    check_kept(resolved.classifier.model, kept, resolved.image)
    temperatures = settings.temperature or (ODIN_TEMPERATURE,)
    perturbed = odin_passes(temperatures, settings.epsilon)
    return [*norms, *kept, *perturbed, *blocks_pass(settings, resolved)]


def norm_passes(settings: Settings, info: RunInfo) -> list[PassInfo]:
    """Return the norm passes that answer for some layers; none where the base pass does.

    Args:
        settings: What the extraction is asked: layers, targets, temperatures and orders.
        info: The run's description.

    Raises:
        InvalidArgument: If a value is out of range, or the layers match nothing.
    """
    layers = settings.layers
    parameters = select(list(info.parameters), info.groups, layers)
    text = layers if isinstance(layers, str) else ",".join(layers)
    values = product(settings.target, settings.temperature or (1.0,), settings.p)
    objectives = dict.fromkeys(RecordedObjective(order, T, t) for t, T, order in values)
    if info.head.closed_form and set(parameters) == set(info.head.weights):
        objectives = [o for o in objectives if o.target == "all-ones"]
    name = "all" if len(parameters) == len(info.parameters) else text
    return [
        PassInfo(
            norms_name(o.target, o.temperature, o.p, name, parameters),
            *("norms", o.target, o.temperature, o.p, settings.gradients, parameters),
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
    values = product(
        dict.fromkeys(check_temperature(t) for t in temperature),
        dict.fromkeys(check_epsilon(e) for e in epsilon),
    )
    return [
        PassInfo(odin_name(T, e), "odin", temperature=T, details={"epsilon": e}) for T, e in values
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


def blocks_pass(settings: Settings, resolved: Resolved) -> list[PassInfo]:
    """Return the pass that stores the channel means of each block; none where there is no block.

    Why a network with blocks has none whose output could be averaged is told.
    """
    if not any(name.startswith("block") for name in resolved.info.groups):
        return []
    image = resolved.image
    try:
        return [stages_pass(resolved.classifier, torch.cat([image, image.flip(-1)]))]
    except ModelError as error:
        settings.tell(f"Without block means: {error}")
        return []


def stages_pass(classifier: Classifier, images: Tensor) -> PassInfo:
    """Return the pass of the channel means of each stage.

    Args:
        classifier: The classifier.
        images: Two preprocessed images on its device, shape ``[2, channels, height, width]``.

    Raises:
        ModelError: If it has no stages, or one whose output has no entry an image.
    """
    stages = find_stages(classifier.model, classifier.head, images)
    with torch.inference_mode(), observe_stages(classifier.model, stages, images) as found:
        classifier(images)
    channels = {stage: found[stage].shape[1] for stage in stages}
    return PassInfo(BLOCKS, BLOCKS, details={"channels": channels, "modules": stages})


def agree_on_passes(info: RunInfo, passes: Sequence[PassInfo]) -> list[PassInfo]:
    """Return the passes as the run knows them, where it does.

    Raises:
        RunError: If a pass of the same name was recorded otherwise.
    """
    agreed = []
    for entry in passes:
        known = info.passes.get(entry.name)
        if known is not None:
            require_same(f"Pass {entry.name} of the run", OF_PASS, known, entry)
        agreed.append(known or entry)
    return agreed


@dataclass(frozen=True)
class Plan:
    """What is to be recorded in a run that is open for writing.

    Attributes:
        sets: The images by set name.
        passes: Every pass but the base pass, as the run knows it.
        fits: Name of each ``mahalanobis`` pass to what it is computed with.
        left_out: What was wrong with the sets that were left out.
    """

    sets: Mapping[str, ImageSet]
    passes: Sequence[PassInfo]
    fits: Mapping[str, StageFit]
    left_out: Sequence[str]


def make_plan(
    store: RunStore, settings: Settings, resolved: Resolved, passes: Sequence[PassInfo]
) -> Plan:
    """Agree with the run on passes and sets, learn what passes need, and write both down.

    Args:
        store: The run, open for writing.
        settings: What the extraction is asked.
        resolved: What it is about.
        passes: The passes that are asked for.

    Raises:
        DataError: If the images of every set have changed, or too few to fit to can be read.
        ModelError: If the network has no stages to tell apart.
        RunError: If the run was recorded otherwise, is damaged or cannot be written.
    """
    if store.whole is not None:
        agree_on_passes(store.whole.info, passes)
    agreed, fits = agree_on_passes(store.info, passes), {}
    sets, changed = agree_on_sets(store, settings.sets, resolved.sets)
    left_out = [*resolved.left_out, *changed]
    roles = {name: store.sets[name].role for name in sets}
    of_sets = set_notices(sets, roles, resolved.model.preprocessing, resolved.info.classes)
    for sentence in (*left_out, *resolved.model.notices, *of_sets):
        settings.tell(sentence)
    if resolved.labelled is not None:
        known = (store.whole or store).sets.get(settings.fit) or store.sets[settings.fit]
        agree_on_set(store, settings.fit, known.role, resolved.labelled)
        read = LabelledImages(
            resolved.labelled, resolved.model.preprocessing, resolved.info.input_shape, settings
        )
        about, learned = fit_to(store, resolved.classifier, resolved.image, read)
        entry = mahalanobis_pass(settings.fit, about, learned)
        agreed += agree_on_passes(store.info, [entry])
        fits[entry.name] = learned
    for entry in agreed:
        store.add_pass(entry)
    if store.info.part is not None:
        # A merge sees what each part was asked, also where it was killed before a first row.
        for name in sets:
            for one in lacking_passes(store, name, agreed):
                store.sets[name].passes.setdefault(one, [])
    store.save()
    return Plan(sets, agreed, fits, left_out)


class Stretch(NamedTuple):
    """Consecutive images of a set whose rows are computed together.

    Attributes:
        start: First image.
        stop: The one after the last.
        base: Whether base rows are lacking.
        passes: The passes that are lacking.
    """

    start: int
    stop: int
    base: bool
    passes: list[PassInfo]

    @property
    def names(self) -> list[str]:
        """Names of the passes whose rows come, ``base`` among them or not."""
        return [*([BASE] if self.base else []), *(entry.name for entry in self.passes)]


def lacking_passes(store: RunStore, set_name: str, passes: Sequence[PassInfo]) -> list[str]:
    """Return the passes of a set, base among them, that are recorded here or still to be.

    A part does not repeat what the whole run holds.
    """
    names = [BASE, *(known.name for known in passes)]
    return [name for name in names if store.holder_of(set_name, name) is store]


def stretches(store: RunStore, set_name: str, passes: Sequence[PassInfo]) -> Iterator[Stretch]:
    """Yield what a set still lacks, stretch by stretch, until nothing is lacking.

    What starts at the same image is computed together, from one forward.
    """
    entry, names = store.sets[set_name], lacking_passes(store, set_name, passes)
    by_name = {known.name: known for known in passes}
    while True:
        open_at = {name: entry.done(name) for name in names if not entry.complete(name)}
        if not open_at:
            return
        start = min(open_at.values())
        stop = min((done for done in open_at.values() if done > start), default=entry.stop)
        active = [name for name, done in open_at.items() if done == start]
        lacking = [by_name[name] for name in active if name != BASE]
        yield Stretch(start, stop, BASE in active, lacking)
