"""What all tests share: each of several test processes keeps to one thread."""

import functools
import gc
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported; commands that a test starts inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is imported stays: to look through it for garbage, again and again, would take long.
gc.disable()


def pytest_collection_finish():
    """Collect garbage again, but not among what was imported until here."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish():
    """Let plugins that report at the end find what refers to an object; workers report nothing."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk():
    """Let nothing wait for the disk: what a killed process wrote is there, and no power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """Return the run that ``gradscore extract`` makes by itself; what changes it takes a copy."""
    from helpers.commands import call

    path = tmp_path_factory.mktemp("embedded") / "run"
    assert call("extract", "--run", path, "--quiet") == 0
    return path


@pytest.fixture(scope="session")
def known_operators():
    """Let torch's exporter read the tables of ONNX's and its own operators once, not each time."""
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        read_once = functools.cache(ONNXRegistry.from_torchlib)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(read_once))
        asked_once = functools.cache(utils._materialize_cpp_cia_ops)
        patch.setattr(utils, "_materialize_cpp_cia_ops", asked_once)
        yield
