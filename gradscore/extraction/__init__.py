"""Extraction: every image through the model once, and what it answered onto the disk.

Decoding (worker processes), copies to the device, the forward with its backwards, and writing (a
thread) overlap. Whatever ends it, finished shards stay, and the same call resumes.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradscore.data import (
    batch_spans,
    decoding_processes,
    load_batches,
)
from gradscore.errors import DataError
from gradscore.extraction.batching import (
    AUTO,
    check_batch_size,
    find_batch_size,
    recorded_batch_size,
)
from gradscore.extraction.computing import Computer
from gradscore.extraction.identity import (
    check_format,
    describe,
    open_run,
    resolve_model,
)
from gradscore.extraction.keeping import prove_replay
from gradscore.extraction.network import Network, device_for
from gradscore.extraction.opening import (
    Opener,
    agree_on_set,
    agree_on_sets,
    first_image,
    open_sets,
    what_to_know,
)
from gradscore.extraction.options import check_options, check_sets, several
from gradscore.extraction.plan import (
    agree_on_passes,
    keep_passes,
    mahalanobis_pass,
    norm_passes,
    odin_passes,
    stretches,
)
from gradscore.extraction.precision import float32_products
from gradscore.extraction.probes import make_probes
from gradscore.extraction.progress import Progress, Silent, piece_of_work, tell
from gradscore.extraction.recording import (
    Reader,
    check_recording,
    fit_to,
    open_fit_set,
)
from gradscore.extraction.sameness import SamePictures
from gradscore.extraction.writing import Computed, ShardWriter
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import BASE, RunStore, SetInfo
from gradscore.run.layout import RUN_FILE

ODIN_TEMPERATURE = 1000.0


def extract(
    model: str | nn.Module,
    sets: Mapping[str, tuple[str | None, str | os.PathLike]],
    run: str | os.PathLike,
    *,
    layers: str | Sequence[str] = "all",
    p: float | Sequence[float] = (1.0,),
    temperature: float | Sequence[float] | None = None,
    target: str | Sequence[str] = ("uniform",),
    keep: str | Sequence[str] = (),
    keep_dtype: str = "float32",
    record: str | Sequence[str] = (),
    epsilon: float | Sequence[float] = (),
    fit: str | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    weights: str | os.PathLike | None = None,
    batch_size: int | str = 64,
    device: str = "auto",
    precision: str = "float32",
    workers: int = 0,
    limit: int | Mapping[str, int] | None = None,
    max_pixels: int | None = None,
    on_error: str = "fail",
    gradients: str = "rules",
    blocks: Mapping[str, str | Sequence[str]] | None = None,
    shard_rows: int = 4096,
    progress: Progress | None = None,
) -> RunStore:
    """Record what a model answers for sets of images, in a run on disk.

    Features and logits are always recorded. Unless ``layers`` is ``last``, so are the gradient
    norms of each parameter tensor of ``layers``: one pass for every target, temperature and order.
    A run that is there already is resumed or added to, never repeated.

    Args:
        model: A spec such as ``timm:resnet18``, or a module in evaluation mode.
        sets: Set name to ``(role, source)``; the role is ``id``, ``ood``, ``fit`` (ID data that
            methods learn from, and are never tested on) or None.
        run: The run's directory, new or of a run of the same model and configuration.
        layers: Group, glob or comma list (or several) whose norms are recorded. ``last`` needs
            no backward where the last layer has a closed form.
        p: Orders of the norms.
        temperature: Softmax temperatures; by default 1 for the norms, and 1000 for ODIN.
        target: ``uniform``, ``one-hot`` or both.
        keep: Modules whose input is stored, so that norms of them and of what follows them, with
            any settings, then need no images; see :mod:`gradscore.extraction.replay`.
        keep_dtype: ``float32`` or ``float16``, what they are stored in.
        record: What methods read beside features, logits and norms, each in its own pass:
            ``odin`` the logits of perturbed inputs, for each ``epsilon`` and temperature;
            ``mahalanobis`` every stage's confidence, fitted first to the set ``fit``.
        epsilon: Magnitudes of ODIN's perturbation, in units of the normalised input.
        fit: The labelled ID set that Mahalanobis learns from: of ``sets``, or of the run.
        preprocessing: From pictures to the model's input; by default the model's own. A mapping
            overrides some of its fields.
        weights: Weight file, ``random``, or None for the library's own.
        batch_size: Images at once, or ``auto`` for the largest that pays and fits.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``float32``, ``tf32`` for products rounded as CUDA does by default, or
            ``bfloat16`` or ``float16`` for a forward under autocast; everything but a kept input
            is stored in float32.
        workers: Processes that decode images; 0 decodes in this one.
        limit: Take only so many images of each set, spread over its classes by a fixed seed; or
            set name to that number.
        max_pixels: Pictures of more are refused; by default those beyond Pillow's own limit.
        on_error: ``fail`` at an image that cannot be read, or ``skip`` it and record why.
        gradients: ``rules``, or for comparison ``vmap`` or ``reference``.
        blocks: Group names to globs, redefining groups of parameters.
        shard_rows: Rows in a shard; what is lost by a kill is at most one shard.
        progress: Is told how far the work has come.

    Returns:
        The run, open for reading; its sets tell which images failed.

    Raises:
        InvalidArgument: If an argument is out of range.
        DataError: If a set cannot be opened, or an image cannot be read.
        ModelError: If the model cannot be built or asked.
        WeightsError: If the weights cannot be had.
        RunError: If the run differs in a field, is in use or damaged, or cannot be written.
    """
    check_sets(sets, limit, blocks)
    check_options(device, precision, workers, on_error, gradients, shard_rows)
    p, target, keep, record = map(several, (p, target, keep, record))
    temperature, epsilon = several(temperature), several(epsilon)
    check_batch_size(batch_size)
    check_recording(record, epsilon, fit)
    check_format(Path(run))
    progress = progress or Silent()
    subject = resolve_model(model, weights, preprocessing)
    for sentence in getattr(subject.model, "notices", ()):
        tell(progress, sentence)
    place = device_for(device, precision)
    image = first_image(sets, subject, max_pixels)
    subject.model.to(place)
    image_there = image.to(place)
    blocks = blocks or {}
    info, head, arrays = describe(subject, image_there, precision=precision, blocks=blocks)
    network = Network(subject.model, head, place, precision)
    opener = Opener(subject, info.classes, max_pixels)
    recorded = RunStore(run).sets if Path(run, RUN_FILE).exists() else {}
    opened, left_out = open_sets(sets, limit, opener, recorded)
    labelled = open_fit_set(Path(run), fit, opened, opener) if fit is not None else None
    asked = norm_passes(info, layers, p, temperature or (1.0,), target, gradients)
    kept = keep_passes(keep, keep_dtype)
    prove_replay(network.model, kept, image_there)
    perturbed = odin_passes(temperature or (ODIN_TEMPERATURE,), epsilon)
    fits = {}
    with (
        float32_products(precision),
        open_run(Path(run), info, arrays, blocks=bool(blocks)) as store,
    ):
        passes = agree_on_passes(store.info, [*asked, *kept, *perturbed])
        left_out += agree_on_sets(store, sets, opened)
        for sentence in (*left_out, *what_to_know(subject, opened, info.classes)):
            tell(progress, sentence)
        if labelled is not None:
            agree_on_set(store, fit, store.sets[fit].role, labelled)
            read = Reader(
                labelled,
                subject.preprocessing,
                info.input_shape,
                batch_size,
                workers,
                on_error == "skip",
            )
            about, learned = fit_to(store, network, image_there, fit, read, progress)
            entry = mahalanobis_pass(fit, about, learned)
            passes += agree_on_passes(store.info, [entry])
            fits[entry.name] = learned
        for entry in passes:
            store.add_pass(entry)
        store.save()
        for name in opened:
            entry = store.sets[name]
            for start, stop, base, active in stretches(entry, passes):
                probes = make_probes(network, active, fits)
                computer = Computer(network, image_there, base=base, passes=active, probes=probes)
                names = [*([BASE] if base else []), *(known.name for known in active)]
                size = batch_size
                if size == AUTO:
                    size = recorded_batch_size(entry, names, place.type) or find_batch_size(
                        computer, image, place
                    )
                settings = {
                    "device": place.type,
                    "batch_size": size,
                    "workers": workers,
                    "layout": computer.layout,
                }
                loader = load_batches(
                    opened[name],
                    subject.preprocessing,
                    batch_spans(start, stop, size),
                    shape=info.input_shape,
                    skipped=_failed_places(entry) if not base else frozenset(),
                    workers=workers,
                    pin_memory=place.type == "cuda",
                )
                writer = ShardWriter(
                    store,
                    opened[name],
                    name,
                    names,
                    settings,
                    shard_rows=shard_rows,
                    skip=on_error == "skip",
                    same=None
                    if base
                    else SamePictures(store, opened[name], name, start, place.type),
                )
                with piece_of_work(progress, stop - start, name):
                    _record(loader, computer, writer, progress)
    if left_out:
        raise DataError(f"{' '.join(left_out)} The other sets are recorded.")
    return store


def _record(
    loader: torch.utils.data.DataLoader,
    computer: Computer,
    writer: ShardWriter,
    progress: Progress,
) -> None:
    """Compute one stretch of a set."""
    with decoding_processes(), writer:
        for batch in loader:
            writer.check_failures(batch.failed)
            rows = computer(batch.images) if len(batch.index) else {}
            ready = torch.cuda.Event() if computer.on_cuda else None
            if ready is not None:
                ready.record()
            writer.put(Computed(batch.span, batch.index.numpy(), rows, batch.failed, ready))
            progress.advance(batch.span[1] - batch.span[0])


def _failed_places(entry: SetInfo) -> frozenset[int]:
    return frozenset(row.index for row in entry.failed)
