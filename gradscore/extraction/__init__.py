"""Extraction: every image through the model once, and what it answered onto the disk.

The work has three steps: resolve the model and the sets, plan with the run what it still lacks,
record that. Whatever ends it, finished shards stay, and the same call resumes.
"""

from gradscore.errors import DataError
from gradscore.extraction.classifier import float32_products
from gradscore.extraction.cluster import record_on_cluster, require_ray
from gradscore.extraction.directory import open_run
from gradscore.extraction.plan import make_plan, stretches, wanted_passes
from gradscore.extraction.record import record_stretch
from gradscore.extraction.resolved import resolve
from gradscore.extraction.settings import Settings
from gradscore.run import RunStore


def record_run(settings: Settings) -> RunStore:
    """Record what a model answers for sets of images, in a run on disk.

    Args:
        settings: What is asked; see :func:`gradscore.recorded.extract`.

    Returns:
        The run, open for reading.

    Raises:
        GradScoreError: As :func:`gradscore.recorded.extract`.
    """
    if settings.executor == "ray":
        require_ray()
    resolved = resolve(settings)
    passes = wanted_passes(settings, resolved)
    with float32_products(settings.precision), open_run(settings, resolved) as store:
        plan = make_plan(store, settings, resolved, passes)
        if settings.executor == "ray":
            record_on_cluster(store, settings, resolved, plan)
        for name in plan.sets:
            for stretch in stretches(store, name, plan.passes):
                record_stretch(store, settings, resolved, plan, name, stretch)
    if plan.left_out:
        raise DataError(f"{' '.join(plan.left_out)} The other sets are recorded.")
    return store
