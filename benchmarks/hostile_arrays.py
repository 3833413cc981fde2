"""Arrays, archives and weights made to harm whoever reads them."""

import gzip
import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


class Intruder:
    """Starts a program when it is unpickled."""

    def __reduce__(self) -> tuple:
        """Ask for it."""
        return os.system, ("gs",)


def spoilt(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with some bits flipped, cut short, or with a part of zeros or ones."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    start = rng.randrange(len(changed))
    if rng.random() < 0.3:
        changed[start : start + 8] = rng.choice((b"\xff" * 8, bytes(8), b"\x7f" * 8))
    return bytes(changed[:start] if rng.random() < 0.2 else changed)


def npy(array: np.ndarray, **changed: object) -> bytes:
    """Return the bytes of an .npy whose header says something else."""
    buffer = io.BytesIO()
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(buffer, fields | changed)
    return buffer.getvalue() + (b"" if array.dtype.hasobject else array.tobytes())


def _zip(members: dict[str, bytes], rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((0, 8, 12, 14))) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    content = buffer.getvalue()
    if rng.random() < 0.2:  # said to be encrypted
        at = content.index(b"PK\x01\x02") + 8
        content = content[:at] + b"\x01" + content[at + 1 :]
    return spoilt(content, rng) if rng.random() < 0.4 else content


def make_arrays(place: Path, rng: random.Random) -> str:
    """Make a hostile .npz or .npy; return what is to be given."""
    images = np.zeros((4, 8, 8), np.uint8)
    shapes = ((4, 8, 9), (1 << 60, 8), (-4, 8, 8), (0,), (4, 8, 8, 7, 1), (4, 1 << 40, 8))
    member = rng.choice(
        (
            npy(images, shape=rng.choice(shapes)),
            npy(images, descr=rng.choice(("|O", "<M8[s]", "|V1", "<c16", "<f8", "|S1"))),
            npy(np.zeros((1 << 22, 8, 8), np.uint8)),
            np.lib.format.magic(1, 0) + struct.pack("<H", 9000) + b"(" * 9000,
            pickle.dumps(Intruder()),
            npy(np.array([Intruder()], object)) + pickle.dumps(Intruder()),
            npy(images),
        )
    )
    labels = rng.choice((npy(np.full(4, 2**63, "u8")), npy(np.full(4, np.nan)), npy(images)))
    bare = rng.random() < 0.2
    path = place / ("s.npy" if bare and rng.random() < 0.5 else "s.npz")
    path.write_bytes(member if bare else _zip({"images": member, "labels": labels}, rng))
    return f"id={path}"


def _header(name: str, size: bytes, kind: bytes, linked: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linked
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def make_archive(place: Path, rng: random.Random) -> str:
    """Make a hostile .tar; return what is to be given."""
    if rng.random() < 0.1:
        return f"data={place}/s-{{0..{'9' * rng.randrange(7, 40)}}}.tar"
    image = b"\x89PNG no picture".ljust(1024, b"\0")
    sizes = (b"%011o\0" % 1024, b"\xff" + struct.pack(">3xq", -1024), b"\x80" + b"\x7f" * 11)
    kinds = (b"0", b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"3", b"6", b"7")
    content = b"".join(
        _header(f"a{k}.png", rng.choice(sizes), rng.choice(kinds), "/etc/passwd") + image
        for k in range(rng.choice((1, 2, 5, 2000 if rng.random() < 0.1 else 3)))
    )
    content += bytes(1024)
    content = spoilt(content, rng) if rng.random() < 0.3 else content
    packed = rng.random() < 0.3
    path = place / ("s.tar.gz" if packed else "s.tar")
    path.write_bytes(gzip.compress(content) if packed else content)
    return f"data={path}"


def make_weights(place: Path, rng: random.Random) -> str:
    """Make a hostile weight file; return what is to be given."""
    from gradscore.models import create_model

    state = dict(create_model("digits").state_dict())
    name = rng.choice([key for key, value in state.items() if value.ndim > 1])
    path, kind = place / f"w.{rng.choice(('pth', 'pt', 'bin', 'ckpt', 'tar'))}", rng.randrange(9)
    if kind == 0:
        path.write_bytes(pickle.dumps(Intruder()))
    elif kind == 1:
        torch.save({"a": Intruder(), **state}, path)
    elif kind == 2:
        path = place / "w.npz"
        path.write_bytes(_zip({name: npy(state[name].numpy()), "x": b"hello"}, rng))
    elif kind == 3:
        path = place / "w.safetensors"
        save_file(state, path)
        content = path.read_bytes()
        path.write_bytes(spoilt(content[:600], rng) + content[600:])
    elif kind == 4:
        torch.save(state, path)
        path.write_bytes(spoilt(path.read_bytes(), rng)[: rng.choice((None, 100, -100))])
    else:
        odd = rng.choice(
            (
                state[name].to_sparse(),
                state[name].to("meta"),
                torch.complex(state[name], state[name]),
                state[name].to(torch.int8),
                torch.zeros(1).expand(1 << 40),
                {"deeper": {"still": state}},
            )
        )
        torch.save({**state, name: odd, rng.choice((1, None, b"x", "y")): state[name]}, path)
    return f"weights={path}"
