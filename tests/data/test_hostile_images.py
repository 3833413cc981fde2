"""Pictures made to hang, to start programs or to fill memory: each is refused by its name."""

import contextlib
import io
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import EpsImagePlugin, Image
from PIL.Image import open as pil_open

from gradscore.cli import cli
from gradscore.data import decoding_processes, load_batches, open_set
from gradscore.data.pictures import Items, decode_image, decoding_here
from gradscore.errors import DataError
from gradscore.models.preprocessing import Preprocessing

GREY = Preprocessing(8, 8, (0.0,), (1.0,), mode="L")


def refused(images, match):
    """Check that the first image is refused in one line that names it."""
    with pytest.raises(DataError, match=match) as caught:
        images[0]
    assert "\n" not in str(caught.value)


@pytest.fixture
def bait(tmp_path, monkeypatch):
    """Put a program in Ghostscript's place; return the file that it would write."""
    (tmp_path / "bin").mkdir()
    program, touched = tmp_path / "bin" / "gs", tmp_path / "touched"
    program.write_text(f"#!/bin/sh\ntouch {touched}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return touched


def test_no_program_is_started_for_a_picture(tmp_path, bait):
    folder = tmp_path / "set" / "class"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "a.png", "EPS")
    for source in (f"torchvision:ImageFolder@{tmp_path}/set", tmp_path / "set"):
        refused(open_set(source), r"a\.png: not an image \(")

    class OwnLoader:
        def __getitem__(self, place):
            """Open as most of torchvision's data sets do."""
            return Image.open(folder / "a.png").convert("RGB"), 0

    with pytest.raises(DataError, match=r"a\.png: not an image"):
        Items(OwnLoader(), "own").read(0)
    assert not bait.exists()
    assert Image.open is pil_open


def test_data_sets_of_libraries_are_decoded_as_all_others(tmp_path):
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    with decoding_here(), open(tmp_path / "a.png", "rb") as file:
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), file):
            assert np.asarray(Image.open(source)).tolist() == [[0, 0, 1, 255]]


@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    folder = tmp_path / "set" / "class"
    folder.mkdir(parents=True)
    if kind == "FIFO":
        os.mkfifo(folder / "a.png")
    else:
        (folder / "a.png").symlink_to("/dev/zero")
    (tmp_path / "l.csv").write_text("path\nset/class/a.png\n")
    Image.new("L", (8, 8)).save(folder / "b.png")
    sources = [f"torchvision:ImageFolder@{tmp_path}/set", tmp_path / "set"]
    if kind == "FIFO":  # a list's links may not leave its folder
        sources.append(tmp_path / "l.csv")
    for source in sources:
        told = rf"a\.png: cannot be read: expected a regular file, got a {kind}"
        refused(open_set(source), told)
    run = tmp_path / "run"
    how = ("--model", "digits", "--run", str(run), "--layers", "last", "--on-error", "skip")
    done = CliRunner().invoke(cli, ["extract", "--data", f"a={tmp_path}/set", *how])
    assert done.exit_code == 0, done.output
    assert "1 image in 1 set recorded" in done.output


def test_files_without_end_and_pictures_without_measure_are_refused(tmp_path):
    (tmp_path / "a.png").touch()
    os.truncate(tmp_path / "a.png", 1 << 40)
    refused(open_set(tmp_path), "cannot be read: expected at most 536,870,912 bytes, got 1,099,5")
    Image.new("L", (1, 60_000)).save(tmp_path / "a.png")
    batch = next(iter(load_batches(open_set(tmp_path), GREY, [(0, 1)])))
    assert batch.failed == []
    wide = Preprocessing(480, 480, (0.0,), (1.0,), mode="L")
    ((_, reason),) = next(iter(load_batches(open_set(tmp_path), wide, [(0, 1)]))).failed
    assert "a.png: Expected a picture of at most 89478485 pixels at a short side of 480" in reason


def test_what_the_machine_lacks_is_not_recorded_against_the_image(tmp_path, monkeypatch):
    def scarce(*arguments, **options):
        raise OSError(24, "Too many open files")

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    images = open_set(tmp_path)
    monkeypatch.setattr(os, "open", scarce)
    with pytest.raises(OSError, match="Too many open files"):
        next(iter(load_batches(images, GREY, [(0, 1)])))


def test_data_sets_that_unpickle_or_hold_no_pictures_are_refused():
    with pytest.raises(DataError, match="torchvision:LSUN would run code"):
        open_set("torchvision:LSUN:test")
    with pytest.raises(DataError, match="own/0: expected a picture, got Tensor"):
        Items([(torch.zeros(3), 0)], "own").read(0)


class Killer:
    """Ends the process that decodes with it."""

    def __call__(self, picture):
        """Kill the process."""
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_decoding_process_is_one_line_wherever_it_is_noticed(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    batches = load_batches(open_set(tmp_path), Killer(), [(0, 1)], workers=1)
    told = "A decoding process ended: DataLoader worker"
    with pytest.raises(DataError, match=told), decoding_processes():
        next(iter(batches))
    with pytest.raises(RuntimeError, match="own"), decoding_processes():
        raise RuntimeError("own")


def test_a_damaged_picture_is_told_of_by_the_error_alone(recwarn):
    warnings.simplefilter("always")
    whole = io.BytesIO()
    Image.new("L", (8, 8)).save(whole, "TIFF")
    for place in range(8, len(whole.getvalue())):
        content = bytearray(whole.getvalue())
        content[place] ^= 0xFF
        with contextlib.suppress(DataError):
            decode_image(bytes(content), "a.tif")
    assert [str(warning.message) for warning in recwarn] == []
