"""How many images at once: as given, as before, or found by trying."""

import gc
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument, ModelError
from gradscore.extraction.network import OutOfMemory, memory_for
from gradscore.run import SetInfo

AUTO = "auto"
LARGEST = {"cpu": 256, "cuda": 4096}
SMALLEST_GAIN = 1.05
SHORTEST_SECONDS = 0.1
LONGEST_SECONDS = 5.0


def check_batch_size(batch_size: int | str) -> int | str:
    """Return ``batch_size``, or raise unless it is positive or ``auto``.

    Raises:
        InvalidArgument: If it is neither.
    """
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size > 0
    if not whole and batch_size != AUTO:
        raise InvalidArgument(f"Expected a batch size of 1 or more, or auto, got {batch_size!r}.")
    return batch_size


def recorded_batch_size(entry: SetInfo, passes: Sequence[str], device: str) -> int | None:
    """Return the batch size that passes of a set were last written with on such a device."""
    for name in passes:
        for shard in reversed(entry.passes.get(name, [])):
            if shard.settings.get("device") == device:
                return shard.settings.get("batch_size")
    return None


def find_batch_size(
    compute: Callable[[Tensor], object], image: Tensor, device: torch.device
) -> int:
    """Return the batch size beyond which throughput stops growing, or memory ends.

    Where memory ends it is one size less than the largest that fitted: that one may not fit
    again, when memory is in more pieces or another image takes another way.

    Args:
        compute: Computes a batch on the device, and raises ModelError where it cannot, above all
            where memory does not suffice.
        image: One preprocessed image, shape ``[1, channels, height, width]``.
        device: Where it is computed.

    Raises:
        ModelError: If not even one image can be computed.
    """
    size, best, best_rate = 1, 0, 0.0
    while size <= LARGEST[device.type]:
        seconds = None
        try:
            seconds = _seconds(compute, image, size, device)
        except OutOfMemory:
            if not best:
                raise
        except ModelError:
            if not best:
                raise
            break
        if seconds is None:
            # Only now is the traceback gone, which held what the failed batch had taken.
            gc.collect()
            torch.cuda.empty_cache()
            return min(best, max(1, size // 4))
        rate = size / seconds
        # A short run tells little, on a busy machine least: a worse one must not end the search.
        if rate > SMALLEST_GAIN * best_rate:
            best, best_rate = size, rate
        elif size >= 4 * best and seconds > SHORTEST_SECONDS:
            break
        if seconds > LONGEST_SECONDS:
            break
        size *= 2
    return best


def _seconds(
    compute: Callable[[Tensor], object], image: Tensor, size: int, device: torch.device
) -> float:
    """Return the shorter of two runs over images made on the device, after one to warm up."""
    with memory_for(image.expand(size, -1, -1, -1)):
        images = _unlike(image.to(device), size)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        compute(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _unlike(image: Tensor, size: int) -> Tensor:
    """Return noisy copies of an image: from equal ones a model tells less than from others."""
    generator = torch.Generator(image.device).manual_seed(0)
    noise = image.new_empty(size, *image.shape[1:]).normal_(generator=generator)
    return noise.mul_(0.1).add_(image)
