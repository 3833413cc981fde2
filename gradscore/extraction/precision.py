"""In which precision a network runs: half precision under autocast, float32 products, TF32.

Left alone, torch computes float32 convolutions on CUDA in TF32, whose products keep 10 bits: norms
of their gradients are then off by up to a thousandth, and differ from a CPU's by as much.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The type of a forward; float32 products are rounded to TF32 for ``tf32`` alone."""


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
