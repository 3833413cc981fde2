"""A recorded run: made by :func:`extract`, read as a :class:`Run`."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradscore.errors import InvalidArgument
from gradscore.methods import RecordedRun, make_spec, make_specs
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import RunStore
from gradscore.run.description import summary_html, summary_text
from gradscore.score_table import rows_table
from gradscore.scoring import known_sets, score_sets

if TYPE_CHECKING:
    import pyarrow

    from gradscore.extraction.settings import Progress


class Run:
    """A run on disk; in a notebook it shows what it holds.

    Args:
        path: The run's directory.
        model: The run's model, or its spec, where a part of it is run again and the run names
            what could run code (``python:``) or fetch files.

    Raises:
        RunError: If there is no run, or it is damaged.
    """

    def __init__(self, path: str | os.PathLike, model: Any = None) -> None:
        self.path = Path(path)
        self.store = RunStore(self.path, model)

    @property
    def sets(self) -> dict[str, Any]:
        """The recorded sets by name, each with its role and number of rows."""
        return dict(self.store.sets)

    def features(self, name: str) -> Tensor:
        """Return the inputs of the last layer, shape ``[rows, in_features]``, float32.

        Raises:
            InvalidArgument: If the set is unknown.
            RunError: If the run is damaged.
        """
        return self._field(name, "features")

    def logits(self, name: str) -> Tensor:
        """Return the network's outputs, shape ``[rows, classes]``, float32.

        Raises:
            InvalidArgument: If the set is unknown.
            RunError: If the run is damaged.
        """
        return self._field(name, "logits")

    def labels(self, name: str) -> Tensor:
        """Return the class numbers, shape ``[rows]``, int64; -1 where unknown.

        Raises:
            InvalidArgument: If the set is unknown.
            RunError: If the run is damaged.
        """
        return self._field(name, "label")

    def predicted(self, name: str) -> Tensor:
        """Return the class of each row's first largest logit, shape ``[rows]``, int64.

        Raises:
            InvalidArgument: If the set is unknown.
            RunError: If the run is damaged.
        """
        return torch.cat([values.argmax(dim=1) for values in self._blocks(name, "logits")])

    def paths(self, name: str) -> list[str]:
        """Return where each row's image came from, below the set's source.

        Raises:
            InvalidArgument: If the set is unknown.
            RunError: If the run is damaged.
        """
        known_sets(self.store, [name])
        blocks = self.store.blocks(name, fields=("path",))
        return [path for block in blocks for path in block["path"].tolist()]

    def score(self, name: str, method: str = "gradnorm", **how: Any) -> Tensor:
        """Return one set's scores; higher means more ID.

        Args:
            name: Name of the set.
            method: A method of :data:`gradscore.methods.METHODS`.
            **how: Its options, such as ``layers``, ``p``, ``temperature``, ``target``,
                ``epsilon``, ``fit``.

        Returns:
            Scores, shape ``[rows]``, float64, rows in the order of the set's manifest.

        Raises:
            InvalidArgument: If the set, the method or an option is unknown or out of range.
            NotRecorded: If the run does not hold what the score needs; the message names the
                option of ``gradscore extract`` that would.
            RunError: If the run is damaged or a recorded value is not finite.
        """
        (scores,) = score_sets(self.store, [name], [make_spec(method, **how)]).values()
        (column,) = scores.columns.values()
        return torch.from_numpy(column)

    def table(self, name: str, methods: str | Iterable[str] = (), **how: Any) -> "pyarrow.Table":
        """Return one row an image as a table of pyarrow; ``.to_pandas()`` where pandas is.

        Args:
            name: Name of the set.
            methods: Methods whose scores are columns, too.
            **how: Their options, each for those methods that honour it; several values of one
                make a column each.

        Returns:
            Columns ``set``, ``index``, ``path``, ``label``, ``predicted``; the names of the
            classes as ``label_name`` and ``predicted_name`` where the run knows them; then one
            column a score, higher = more ID.

        Raises:
            InvalidArgument: If the set, a method or an option is unknown or out of range.
            NotRecorded: If the run does not hold what a score needs.
            RunError: If the run is damaged or a recorded value is not finite.
        """
        chosen = [methods] if isinstance(methods, str) else list(methods)
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in how.items()}
        specs = make_specs(chosen, **options) if chosen or options else []
        return rows_table(self.store, name, specs)

    def __repr__(self) -> str:
        """Return what the run holds, a line a set."""
        return summary_text(self.path, self.store.info)

    def _repr_html_(self) -> str:
        return summary_html(self.path, self.store.info)

    def _blocks(self, name: str, field: str) -> Iterator[Tensor]:
        known_sets(self.store, [name])
        for block in self.store.blocks(name, fields=(field,)):
            yield torch.as_tensor(block[field], device="cpu")

    def _field(self, name: str, field: str) -> Tensor:
        return torch.cat(list(self._blocks(name, field)))


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
    part: str | tuple[int, int] | None = None,
    store: str = "all",
    executor: str = "local",
    actors: int | None = None,
    progress: "Progress | None" = None,
) -> Run:
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
        part: Record only part ``(I, N)`` of each set, I of 1 to N, or ``I/N``; ``env`` takes both
            from the variables of a cluster's job. Parts may be recorded at once, and are joined
            by ``gradscore run merge``.
        store: ``all``; ``features`` for the input of the last layer alone, which then gives the
            logits; or ``features-float16``. How far these are is recorded beside each shard.
        executor: ``local``, or ``ray`` for a cluster (extra ``ray``) that shares the run's disk.
        actors: Workers of the cluster; by default one for each of its GPUs, or CPUs.
        progress: Is told how far the work has come.

    Returns:
        The run, with the model that was asked; its sets tell which images failed. Of a part its
        own directory, below that of the run.

    Raises:
        InvalidArgument: If an argument is out of range.
        DataError: If a set cannot be opened, or an image cannot be read.
        ModelError: If the model cannot be built or asked.
        WeightsError: If the weights cannot be had.
        RunError: If the run differs in a field, is in use or damaged, or cannot be written.
    """
    from gradscore.extraction import record_run  # a run is read without it
    from gradscore.extraction.part import parse_part
    from gradscore.extraction.settings import Settings, Silent, several

    numbers, said = parse_part(part)
    settings = Settings(
        model=model,
        sets=sets,
        run=Path(run),
        layers=layers,
        p=several(p),
        temperature=several(temperature),
        target=several(target),
        keep=several(keep),
        keep_dtype=keep_dtype,
        record=several(record),
        epsilon=several(epsilon),
        fit=fit,
        preprocessing=preprocessing,
        weights=weights,
        batch_size=batch_size,
        device=device,
        precision=precision,
        workers=workers,
        limit=limit,
        max_pixels=max_pixels,
        on_error=on_error,
        gradients=gradients,
        blocks=blocks or {},
        shard_rows=shard_rows,
        part=numbers,
        store=store,
        executor=executor,
        actors=actors,
        progress=progress or Silent(),
    )
    if said:
        settings.tell(said)
    return Run(record_run(settings).path, model)


def open_store(run: Run | RecordedRun | str | os.PathLike) -> RecordedRun:
    """Return the store of a run given as an object or a directory.

    Raises:
        InvalidArgument: If it is neither.
        RunError: If there is no run, or it is damaged.
    """
    if isinstance(run, str | os.PathLike):
        return RunStore(run)
    store = getattr(run, "store", run)
    if not hasattr(store, "fit_blocks"):
        raise InvalidArgument(f"Expected a run or its directory, got a {type(run).__name__}.")
    return store
