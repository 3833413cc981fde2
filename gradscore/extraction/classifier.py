"""The classifier as an extraction asks it: its device, its precision, how many images at once.

Left alone, torch computes float32 convolutions on CUDA in TF32, whose products keep 10 bits: norms
of their gradients are then off by up to a thousandth, and differ from a CPU's by as much.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradscore.capture import own_images
from gradscore.errors import ModelError, memory_ended
from gradscore.layers.head import Head
from gradscore.network import preserve_state, wrap_forward_errors
from gradscore.outputs import logits_of
from gradscore.run import SetInfo

NO_ENGINE = "unable to find an engine"
"""What cuDNN says where no algorithm finds the working memory that it needs."""
LARGEST = {"cpu": 256, "cuda": 4096}
SMALLEST_GAIN = 1.05
SHORTEST_SECONDS = 0.1
LONGEST_SECONDS = 5.0


@dataclass(frozen=True)
class Classifier:
    """A classifier on its device.

    Attributes:
        model: The classifier, in evaluation mode.
        head: Its last layer.
        device: Where it is.
        precision: One of :data:`~gradscore.choices.PRECISIONS`; in half precision the
            forward runs under autocast.
    """

    model: nn.Module
    head: Head
    device: torch.device
    precision: str = "float32"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of a batch on the device, shape ``[batch, classes]``.

        Raises:
            ModelError: If the model does not return logits.
        """
        with self.autocast(), preserve_state(self.model), wrap_forward_errors(self.model, images):
            own = own_images(self.model, images)
            return logits_of(self.model(own), len(images))

    def autocast(self) -> AbstractContextManager:
        """Return the context of a forward."""
        if self.precision in ("float32", "tf32"):
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.precision))


def device_for(device: str, precision: str) -> torch.device:
    """Return the device that is meant by ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ModelError: If it is not there, or does not have the precision.
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ModelError("Expected a CUDA device, found none; use `device='cpu'`.")
    place = torch.device("cuda" if there and device != "cpu" else "cpu")
    if precision == "tf32" and place.type != "cuda":
        raise ModelError("Expected a CUDA device for precision tf32, got a CPU; use float32.")
    return place


class OutOfMemory(ModelError):
    """Memory does not suffice for a batch."""


@contextmanager
def memory_for(images: Tensor) -> Iterator[None]:
    """Name the batch size where memory does not suffice for a batch.

    Raises:
        OutOfMemory: In place of the error that says so.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory_ended(error) and NO_ENGINE not in str(error):
            raise
        raise OutOfMemory(
            f"Out of memory with {len(images)} images at once; choose a smaller "
            "`batch_size=N`, or `batch_size='auto'`."
        ) from error


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Compute products and convolutions of float32 in float32, or in TF32 for ``tf32``.

    Settings of the whole process are changed, and put back at the end.
    """
    tf32 = precision == "tf32"
    backends = torch.backends
    on_cuda = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    on_cpu = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    # The older names come first: they say the same, and raise where the newer ones disagree.
    settings = [
        _Setting(
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            "high" if tf32 else "highest",
        ),
        _Setting.of(backends.cudnn, "allow_tf32", tf32),
        *(_Setting.of(part, "fp32_precision", "tf32" if tf32 else "ieee") for part in on_cuda),
        *(_Setting.of(part, "fp32_precision", "ieee") for part in on_cpu),
    ]
    before = []
    for setting in settings:
        # Whoever has used the newer names cannot ask by the older ones.
        with suppress(RuntimeError):
            before.append(setting._replace(value=setting.get()))
    try:
        for setting in settings:
            setting.set(setting.value)
        yield
    finally:
        for setting in before:
            setting.set(setting.value)


class _Setting(NamedTuple):
    """How a setting of torch is read and written, and a value of it."""

    get: Callable[[], Any]
    set: Callable[[Any], None]
    value: Any

    @classmethod
    def of(cls, owner: Any, name: str, value: Any) -> "_Setting":
        """Return the setting that is an attribute."""
        return cls(partial(getattr, owner, name), partial(setattr, owner, name), value)


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
