"""Stand-ins for a CUDA device, where none is."""

from contextlib import contextmanager

import torch


class OnCuda(torch.Tensor):
    """A tensor that says it is on CUDA, and is not."""

    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)


def note_launches(monkeypatch, module, kernel):
    """Let nothing be launched; return the list of launches that are asked for from now on.

    Args:
        monkeypatch: Puts a kernel in the place of the module's, and watches the current device.
        module: Holds the kernel.
        kernel: Its name.

    Returns:
        Of each launch the grid, and the devices that were made the current one.
    """
    current, seen = [], []

    @contextmanager
    def device(place):
        current.append(place)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: seen.append((grid, list(current)))

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(module, kernel, Kernel())
    return seen
