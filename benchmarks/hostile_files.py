"""Files made to harm whoever reads them: of each kind as many as wanted, by a random generator."""

import hashlib
import io
import json
import os
import random
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_arrays import make_archive, make_arrays, make_weights, spoilt
from PIL import Image

Make = Callable[[Path, random.Random], str]
"""Makes a file in an empty folder; returns what is to be given, ``KIND=VALUE``."""
NAMES = ("\x1b[31mred", "\x1b]0;title\x07", "a\nError: forged", "\u202egnp", "=1+1", "@x", "[red]")
FORMATS = {
    "PNG": "png",
    "JPEG": "jpg",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "WEBP": "webp",
    "PPM": "ppm",
}


def bait(folder: Path) -> Path:
    """Put a program in Ghostscript's place that leaves a trace; return the folder of it."""
    program = folder / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {folder}/touched\n")
    program.chmod(0o755)
    return program.parent


def forge(
    folder: Path, kind: str, rng: random.Random, call: Callable[..., tuple[int | str, str]]
) -> tuple[str, str]:
    """Make a file of a kind, give it to its command, and return what came of it."""
    place, run = folder / "hostile", folder / "hostile-run"
    for one in (place, run):
        shutil.rmtree(one, ignore_errors=True)
    place.mkdir()
    option, _, value = KINDS[kind](place, rng).partition("=")
    before = {path: path.lstat().st_size for path in folder.iterdir() if path != run}
    where, skipped = ("--run", str(run)), ("--on-error", rng.choice(("skip", "fail")))
    images = ("extract", "--model", "digits", *where, "--layers", "last", "--workers", "0", "-q")
    words = {
        "data": (*images, "--data", f"x={value}", "--limit", "8", *skipped),
        "id": (*images, "--id", f"x={value}", "--limit", "8", *skipped),
        "weights": (*images, "--weights", value, "--data", "x=digits:test", "--limit", "8"),
        "run": ("extract", "--run", value, "-q"),
        "benchmark": ("manifest", "build", value, str(place), "-o", str(place)),
    }[option]
    code, told = call(*words)
    outcome = code if isinstance(code, str) else "refused" if code else "sound"
    errors = [line for line in told.splitlines() if line.startswith("Error: ")]
    if outcome == "refused" and len(errors) != 1 and option != "benchmark":
        outcome = "traceback"
    if not all(line.isprintable() for line in told.split("\n")):
        outcome = "outside"
    after = {path: path.lstat().st_size for path in folder.iterdir() if path != run}
    recorded = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    if before != after or any(b"SECRET" in content for content in recorded):
        outcome = "outside"
    if (folder / "touched").exists():
        (folder / "touched").unlink()
        outcome = "executed"
    return f"{kind}: {told.strip()[-300:]}", outcome


def picture(form: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    """Return the bytes of a picture."""
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, form)
    return buffer.getvalue()


def _spoilt_picture(place: Path, rng: random.Random) -> str:
    form = rng.choice(list(FORMATS))
    (place / f"a.{FORMATS[form]}").write_bytes(spoilt(picture(form), rng))
    return f"data={place}"


def _program(place: Path, rng: random.Random) -> str:
    (place / "class").mkdir()
    (place / "class" / f"a.{rng.choice(('png', 'jpg', 'tif'))}").write_bytes(picture("EPS"))
    return f"data={rng.choice((str(place), f'torchvision:ImageFolder@{place}'))}"


def _no_file(place: Path, rng: random.Random) -> str:
    (place / "class").mkdir()
    path, kind = place / "class" / "a.png", rng.randrange(4)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        here = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(f"/proc/self/fd/{here}/a.png")
        os.close(here)
    elif kind == 2:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/random", "/dev/tty", "/proc/kmsg")))
    else:
        path.touch()
        os.truncate(path, 1 << rng.randrange(30, 43))
    lists = place / "l.csv"
    lists.write_text("path\nclass/a.png\n")
    return f"data={rng.choice((str(place), f'torchvision:ImageFolder@{place}', str(lists)))}"


def _measures(place: Path, rng: random.Random) -> str:
    width, height = rng.choice(((1, 65000), (65000, 1), (2**31 - 1, 1), (60000, 60000), (0, 8)))
    content = bytearray(picture())
    content[16:24] = struct.pack(">II", width, height)
    checksum = zlib.crc32(content[12:29])
    content[29:33] = struct.pack(">I", checksum)
    (place / "a.png").write_bytes(content)
    return f"data={place}"


def _name(place: Path, rng: random.Random) -> str:
    name = rng.choice(NAMES)
    (place / f"{name}.png").write_bytes(rng.choice((b"", picture())))
    return f"data={place}"


def _list(place: Path, rng: random.Random) -> str:
    (place.parent / "SECRET.png").write_bytes(picture())
    (place / "out").symlink_to(place.parent)
    (place / "a.png").write_bytes(picture())
    path = rng.choice(("../SECRET.png", f"{place.parent}/SECRET.png", "out/SECRET.png", "a\0.png"))
    rows = rng.choice(
        (
            f"{path},0\n",
            f"a.png,{2**63 + rng.randrange(9)}\n",
            f"a.png,{'9' * 5000}\n",
            f"{'x' * 5000},1\n",
            "a.png,"
            + rng.choice(("nan", "inf", "1e400", "-5", "0x1", "\x1b[31m", "\u0661"))
            + "\n",
            "\0" * (1 << 21),
            '"' + "a\n" * 200_000,
        )
    )
    (place / "l.csv").write_text(f"path,label\n{rows}")
    if rng.random() < 0.1:
        os.truncate(place / "l.csv", 1 << 40)
    return f"id={place}/l.csv"


def _table(place: Path, rng: random.Random) -> str:
    count = 1000
    paths = [f"{k}.png" for k in range(count)]
    long = pa.DictionaryArray.from_arrays(pa.array([0] * count), ["x" * 10**6])
    columns = rng.choice(
        (
            {"path": long},
            {"path": paths, "label": np.full(count, 2**63, "u8")},
            {"path": [[path] for path in paths]},
            {"path": [path.encode() for path in paths]},
            {"path": paths, "label": [{"a": 1}] * count},
            {"path": paths, "label": [float("nan"), 0.5] * (count // 2)},
        )
    )
    pq.write_table(pa.table(columns), place / "l.parquet", compression="zstd")
    if rng.random() < 0.5:
        content = (place / "l.parquet").read_bytes()
        (place / "l.parquet").write_bytes(spoilt(content, rng))
    return f"id={place}/l.parquet"


def _index(place: Path, rng: random.Random) -> str:
    """Change the index of a run in a way that its checksum agrees with."""
    source = place.parent / "sound" / "run.json"
    fields = json.loads(source.read_bytes())
    harmful = rng.choice(
        (
            {"model": "python:os:system?command=gs"},
            {"model": "python:os:abort", "weights": "/etc/passwd"},
            {"sets": []},
            {"classes": -1},
            {"parameters": {"x": "y"}},
            {"versions": {"a\x1b[31m": "\ud800"}},
            {"groups": [[[[]]]]},
            {"extra": 1},
            {"format": "9" * 400},
            {"input_shape": [1 << 60] * 3},
        )
    )
    content = json.dumps({**fields, **harmful, "checksum": "0" * 64}, indent=1) + "\n"
    if rng.random() < 0.2:
        content = content.replace('"features": ', '"features": ' + "[" * 50_000, 1)
    before, _, after = content.encode().rpartition(b"0" * 64)
    digest = hashlib.sha256(content.encode()).hexdigest().encode()
    run = place / "run"
    shutil.copytree(source.parent, run)
    (run / "run.json").write_bytes(before + digest + after)
    if rng.random() < 0.2:
        (run / "run.json").unlink()
        os.mkfifo(run / "run.json")
    return f"run={run}"


def _benchmark(place: Path, rng: random.Random) -> str:
    words = ("name", "role", "title", "source", "citation", "licence", "files")
    entry: dict[str, object] = dict.fromkeys(words, "x") | {"count": 1, "files": "*.png"}
    (place / "a.png").write_bytes(picture())
    key = rng.choice([*words, "count", "folders", "labels", "unverified", "strange"])
    values = ("../SECRET", "/etc/*", "../*", -1, None, [], {}, "\x1b]0;x\x07", 1e400)
    entry[key] = rng.choice(values)
    text = json.dumps({"sets": [entry]})
    (place / "b.json").write_text(rng.choice((text, text, text, "[" * 10**5, "{", "\ud800x"[1:])))
    return f"benchmark={place}/b.json"


KINDS: dict[str, Make] = {
    "a spoilt picture": _spoilt_picture,
    "a picture that is a program": _program,
    "a picture that is no file": _no_file,
    "a picture without measure": _measures,
    "a name": _name,
    "a list": _list,
    "a table": _table,
    "arrays": make_arrays,
    "an archive": make_archive,
    "weights": make_weights,
    "the index of a run": _index,
    "a benchmark": _benchmark,
}
