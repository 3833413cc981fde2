"""Arrays, archives and weights made to hang, to fill memory or to run code: one line each."""

import io
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gradscore.data import open_set
from gradscore.errors import DataError, WeightsError
from gradscore.models.weights import Weights, fit_weights, load_weights
from gradscore.numpy_files import load_npy

IMAGES = np.zeros((3, 8, 8), np.uint8)


def npy(array, **header):
    """Return the bytes of an .npy, its header changed."""
    buffer = io.BytesIO()
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue() + array.tobytes()


def archive(path, members, method=zipfile.ZIP_STORED):
    """Write an .npz of given bytes."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def encrypted(content):
    """Set the bit that says so in both headers of a zip's only member."""
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(magic) + place
        content = content[:at] + bytes([content[at] | 1]) + content[at + 1 :]
    return content


def flipped(content):
    """Change a value in the middle of an archive's content."""
    place = content.index(bytes(150)) + 100
    return content[:place] + b"\x01" + content[place + 1 :]


NPZ = {
    "encrypted": ({"images": npy(IMAGES)}, encrypted, "is encrypted"),
    "damaged": ({"images": npy(IMAGES)}, flipped, "Bad CRC-32"),
    "truncated": ({"images": npy(IMAGES)}, lambda content: content[:-50], "not a zip file"),
    "bare": ({}, lambda content: npy(IMAGES), "not a zip file"),
    "empty": ({}, lambda content: b"", "not a zip file"),
    "larger by its shape": ({"images": npy(IMAGES, shape=(3, 8, 9))}, None, "of 216 bytes by"),
    "smaller by its shape": ({"images": npy(IMAGES, shape=(3, 8, 7))}, None, "of 168 bytes by"),
    "enormous by its shape": ({"images": npy(IMAGES, shape=(1 << 60, 8))}, None, "bytes by its"),
    "of negative shape": ({"images": npy(IMAGES, shape=(-3, -8, 8))}, None, "no such shape"),
    "of Python objects": ({"images": npy(np.array([1, 2], object))}, None, "Python objects"),
    "of nothing": ({"images": npy(IMAGES[:0], descr="|V0", shape=(9**15,))}, None, "no such"),
    "nested": ({"images": npy(IMAGES, descr="|u1", shape=((),))}, None, "shape"),
    "no header": ({"images": b"\x93NUMPY\x01\x00\x10\x00" + b"[" * 16}, None, "header"),
    "deep header": ({"images": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10000}, None, "eader"),
    "no array": ({"images": b"hello"}, None, "magic string|EOF"),
    "of labels too large": ({"images": npy(IMAGES), "labels": npy(np.full(3, 2**63, "u8"))}, None,
                            "label below 2.63"),
}  # fmt: skip


@pytest.mark.parametrize("name", NPZ)
def test_hostile_arrays_are_refused(tmp_path, name):
    members, change, told = NPZ[name]
    path = tmp_path / "s.npz"
    archive(path, members)
    if change:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=told):
        open_set(path)
    if "labels" not in members:
        with pytest.raises(WeightsError):
            load_weights(path)


def test_an_array_that_comes_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as file:
        file.writestr("images.npy", npy(IMAGES))
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("images.npy", npy(IMAGES + np.uint8(1)))
    with pytest.raises(DataError, match="a name comes twice"):
        open_set(tmp_path / "s.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_unfolds_to_far_more_is_refused_unread(tmp_path, monkeypatch, method):
    monkeypatch.setattr("gradscore.files.FEW_BYTES", 1000)
    archive(tmp_path / "s.npz", {"images": npy(np.zeros((1000, 8, 8), np.uint8))}, method)
    with pytest.raises(DataError, match=r"would unfold from|is compressed by method"):
        open_set(tmp_path / "s.npz")


def test_stored_and_compressed_arrays_of_either_order_are_read(tmp_path):
    values = np.arange(192, dtype=np.uint8).reshape(3, 8, 8)
    for save in (np.savez, np.savez_compressed):
        for array in (values, np.asfortranarray(values)):
            save(tmp_path / "s.npz", images=array, labels=np.array([0, 1, 2]))
            images = open_set(tmp_path / "s.npz")
            assert images.labels.tolist() == [0, 1, 2]
            np.testing.assert_array_equal(np.asarray(images[2]), values[2])


@pytest.mark.parametrize("change", [{"shape": (1 << 50,)}, {"descr": "|O"}, {"shape": (2, 8, 8)}])
def test_hostile_files_of_one_array_are_refused(tmp_path, change):
    (tmp_path / "s.npy").write_bytes(npy(IMAGES, **change))
    with pytest.raises(DataError, match="Cannot read"):
        open_set(tmp_path / "s.npy")
    with pytest.raises(ValueError, match=r"bytes by its shape|Python objects"):
        load_npy(tmp_path / "s.npy")


def header(name, size, kind=b"0", linked=""):
    """Return a tar header whose size field holds what is given."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linked
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def png():
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue().ljust(512, b"\0")


NEGATIVE = b"\xff" + struct.pack(">3xq", -1024)
ENORMOUS = b"\x80" + struct.pack(">3xq", 1 << 60)
PIECE = b"%011o\0" % len(png())
LONG = b"%011o\0" % (1 << 19)
TARS = {
    "of negative size": header("a.png", NEGATIVE) + png(),
    "of enormous size": header("a.png", ENORMOUS) + png(),
    "with a name of negative size": header("x", NEGATIVE, b"L") + png(),
    "with a name of enormous size": header("x", ENORMOUS, b"L") + png(),
    "with pax fields of enormous size": header("x", ENORMOUS, b"x") + png(),
    "sparse": header("a.png", PIECE, b"S") + png(),
    "with a longer name than any": header("x", LONG, b"L")
    + b"b.png".ljust(1 << 19, b"\0")
    + header("a.png", PIECE)
    + png(),
    "with more fields than any": header("x", LONG, b"g")
    + bytes(1 << 19)
    + header("a.png", PIECE)
    + png(),
    "with digits without end": header("x", PIECE, b"x")
    + b"1" * 512
    + header("a.png", PIECE)
    + png(),
    "without an end mark": header("a.png", PIECE) + png(),
    "damaged between members": header("a.png", PIECE) + png() + b"x" * 512,
    "of nested headers": header("x", b"%011o\0" % 0, b"L") * 3000,
    "cut short": header("a.png", PIECE) + png()[:100],
    "of links alone": header("a.png", b"%011o\0" % 0, b"2", "/etc/passwd"),
    "of devices alone": header("a.png", b"%011o\0" % 0, b"3") + header("b.png", b"0" * 11, b"6"),
}


@pytest.mark.parametrize("packed", ["", "gz"])
@pytest.mark.parametrize("name", TARS)
def test_hostile_archives_are_refused(tmp_path, name, packed):
    content = TARS[name] + bytes(1024) * (name not in ("cut short", "without an end mark"))
    if packed:
        import gzip

        content = gzip.compress(content)
    path = tmp_path / ("s.tar" if not packed else "s.tar.gz")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"s\.tar"):
        open_set(path)[0]


@pytest.mark.parametrize("change", ["checksum", "length", "tail"])
def test_a_packed_archive_is_read_to_its_checksum(tmp_path, change, monkeypatch):
    import gzip

    monkeypatch.setattr("gradscore.files.FEW_BYTES", 1 << 16)
    monkeypatch.setattr("gradscore.data.tar_members.PIECE_BYTES", 1 << 10)
    sound = header("a.png", PIECE) + png() + bytes(1024)
    content = bytearray(gzip.compress(sound + bytes(1 << 20) * (change == "tail")))
    if change == "checksum":
        content[-8] ^= 1
    (tmp_path / "s.tar.gz").write_bytes(content[:-6] if change == "length" else content)
    with pytest.raises(DataError, match=r"Cannot read the archive .*s\.tar\.gz"):
        open_set(tmp_path / "s.tar.gz")
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(sound))
    assert open_set(tmp_path / "s.tar.gz")[0].size == (8, 8)


def test_a_map_of_holes_in_front_of_the_data_is_not_read(tmp_path):
    (tmp_path / "s.tar").touch()
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        info.size = 512
        archive.addfile(info, io.BytesIO(b"9\n0\n512\n".ljust(512, b"\0")))
    with pytest.raises(DataError, match="is stored with holes"):
        open_set(tmp_path / "s.tar")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("bound", ["MOST_OPERATIONS", "DEEPEST"])
def test_a_pickle_of_endless_steps_is_refused_unread(tmp_path, monkeypatch, legacy, bound):
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "w.pth")
    assert load_weights(tmp_path / "w.pth").tensors["weight"].shape == (2, 3)
    monkeypatch.setattr(f"gradscore.models.checkpoint.{bound}", 30)
    monkeypatch.setattr("torch.load", None)
    steps = b"(" * 40 if bound == "DEEPEST" else b"N" * 40
    if legacy:
        (tmp_path / "w.pth").write_bytes(b"\x80\x02" + steps + b".")
    else:
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as whole:
            whole.writestr("w/data.pkl", b"\x80\x02" + steps + b".")
    with pytest.raises(WeightsError, match="Expected a pickle of at most"):
        load_weights(tmp_path / "w.pth")


def test_a_key_of_tuples_in_tuples_is_not_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.load", None)
    pairs = b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 40 + b"K\x01s."
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as whole:
        whole.writestr("w/data.pkl", pairs)
    with pytest.raises(WeightsError, match="Expected a pickle of at most"):
        load_weights(tmp_path / "w.pth")


def test_links_of_archives_are_left_out(tmp_path):
    content = header("a.png", b"%011o\0" % 0, b"2", "/etc/passwd") + header("b.png", PIECE) + png()
    (tmp_path / "s.tar").write_bytes(content + bytes(1024))
    images = open_set(tmp_path / "s.tar")
    assert list(images.paths) == ["b.png"]
    assert images[0].size == (8, 8)


@pytest.mark.parametrize("braces", ["{0..999999999}", "{0..99999999999999999999999999999999}"])
def test_ranges_of_archives_are_bounded(tmp_path, braces):
    with pytest.raises(DataError, match="Expected at most 1,000,000 files, got"):
        open_set(f"{tmp_path}/s-{braces}.tar")


def spoilt(kind):
    """Return a tensor ``[2, 3]`` that no model takes as it is."""
    plain = torch.ones(2, 3)
    return {
        "sparse": plain.to_sparse,
        "without values": lambda: plain.to("meta"),
        "quantised": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "complex64": lambda: torch.complex(plain, plain),
        "int8": lambda: plain.to(torch.int8),
    }[kind]()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["sparse", "without values", "quantised", "complex64", "int8"])
def test_tensors_that_are_not_plain_are_named(tmp_path, kind):
    model = nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    torch.save({"weight": spoilt(kind)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"1 of another kind: weight \({kind}\)|Cannot read"):
        fit_weights(model, load_weights(tmp_path / "w.pth"))
    torch.testing.assert_close(model.weight.detach(), before)


@pytest.mark.parametrize("content", [{1: torch.ones(2)}, {"a": {2: torch.ones(2)}}, {b"a": 3}])
def test_names_that_are_no_text_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="Expected named tensors"):
        load_weights(tmp_path / "w.pth")


def test_names_of_any_length_are_looked_at_to_a_bounded_depth():
    deep = Weights({"a." * 10**5 + "weight": torch.ones(2, 3)}, "w.pth")
    with pytest.raises(WeightsError, match="do not fit"):
        fit_weights(nn.Linear(3, 2, bias=False), deep)


def test_parts_of_a_folder_are_files_in_it(tmp_path):
    (tmp_path / "w").mkdir()
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "pytorch_model.bin")
    index = tmp_path / "w" / "model.safetensors.index.json"
    os.mkdir(tmp_path / "w" / "sub")
    for text in ('{"weight_map": {"a": ".."}}', '{"weight_map": {"a": "sub"}}', "[" * 10**5):
        index.write_text(text)
        with pytest.raises(WeightsError, match=r"a weight_map of file names|got the folder"):
            load_weights(tmp_path / "w")


def test_a_checkpoint_that_unfolds_to_far_more_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("gradscore.files.FEW_BYTES", 1000)
    torch.save({"weight": torch.zeros(10**5)}, tmp_path / "w.pth")
    assert load_weights(tmp_path / "w.pth").tensors["weight"].shape == (10**5,)
    with zipfile.ZipFile(tmp_path / "w.pth") as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    with pytest.raises(WeightsError, match="would unfold to 40"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_a_shape_of_truth_values_is_refused(tmp_path, ending):
    content = npy(IMAGES[:1], shape=(True, *IMAGES.shape[1:]))
    if ending == "npy":
        (tmp_path / "s.npy").write_bytes(content)
    else:
        archive(tmp_path / "s.npz", {"images": content}, zipfile.ZIP_STORED)
    with pytest.raises(DataError, match="no such shape"):
        open_set(tmp_path / f"s.{ending}")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_without_one_shape_are_named(tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"weight": nested}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"1 of another kind: weight \(nested\)\.$"):
        fit_weights(nn.Linear(3, 2, bias=False), load_weights(tmp_path / "w.pth"))


def test_long_names_are_shown_by_their_beginning(tmp_path):
    long = "a" * 10**5
    model = nn.Linear(3, 2, bias=False)
    with pytest.raises(WeightsError, match=r"1 unexpected: a{80}\.\.\.") as caught:
        fit_weights(model, Weights({long: torch.ones(2, 3)}, "w.pth", place="w.pth#"))
    assert len(str(caught.value)) < 400
    inner = Weights({f"{long}.weight": torch.ones(2, 3)}, "w.pth", place="w.pth#")
    (told,) = fit_weights(model, inner)
    assert len(told) < 400
    both = Weights({f"{long}.weight": torch.ones(2, 3), "b": torch.ones(1)}, "w", place="w#")
    with pytest.raises(WeightsError) as caught:
        fit_weights(model, both)
    assert len(str(caught.value)) < 400
