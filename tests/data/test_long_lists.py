"""Long lists read a column at a time mean what they mean a row at a time, or are read so."""

import hashlib
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscore.data import open_set
from gradscore.data.identity import rows_sha256
from gradscore.data.long_lists import Unclear, read_long
from gradscore.data.manifest import read_manifest
from gradscore.data.texts import Texts, some_of
from gradscore.errors import DataError

LONG = "gradscore.data.long_lists.LONG"
NAMES = ("cat", "dog")


def meant(path, classes=2):
    try:
        listed = read_manifest(path, NAMES, classes)
    except DataError as error:
        return str(error)
    kind = type(listed.paths)
    return kind, list(listed.paths), listed.labels.tolist(), list(listed.sha256), listed.notice


def both(path, monkeypatch, **how):
    """Return what a list means a row at a time, and whether a column at a time says the same."""
    with monkeypatch.context() as patch:
        patch.setattr(LONG, 1 << 60)
        slow = meant(path, **how)
        patch.setattr(LONG, 0)
        fast = meant(path, **how)
    same = fast == slow if isinstance(slow, str) else fast[1:] == slow[1:]
    return slow, same, fast[0] is Texts


PLAIN = {
    "numbers.csv": "path,label\na/1.png,0\na/2.png,1\n\nb/3.png,\nb/4.png,-1\n",
    "names.csv": "label;file\ncat;a b.png\ndog;é.png\ncat;x.png\n",
    "no labels.csv": "image\na.png\nb.png\n",
    "tabs.csv": "id\tfilename\ttarget\n1\ta.png\t01\n2\tb.png\t1\n",
    "digests.csv": f"path,label,sha256\na.png,0,{'a' * 64}\nb.png,1, {'b' * 64}\n",
    "empty digests.csv": "path,label,sha256\na.png,0,\nb.png,1,\n",
    "windows.csv": "path,label\r\na.png,0\r\nb.png,1\r\n",
    "strange names.csv": "path,label\na.png,0.0\nb.png,1.0\n",
    "numbers.txt": "a/1.png 0\na/2.png 1\n\nb/3.png -1\n",
    "mark.txt": "\ufeffa.png 0\nb.png 1\n",
    "names.txt": "a/1.png cat\na/2.png dog\n",
}
OTHER = {
    "quotes.csv": 'path,label\n"a,b.png",0\nb.png,1\n',
    "apostrophe.csv": "path,label\n'=1.png,0\nb.png,1\n",
    "ragged.csv": "path,label\na.png\nb.png,1,2\n",
    "spaces.csv": "path, label\na.png, 0\nb.png, 1\n",
    "backslashes.csv": "path,label\na\\b.png,0\nb.png,1\n",
    "absolute.csv": "path,label\n/elsewhere/a.png,0\nb.png,1\n",
    "up.csv": "path,label\n../a.png,0\nb.png,1\n",
    "twice.csv": "path,path,label\na.png,b.png,0\n",
    "byte order.csv": "\ufeffpath,label\na.png,0\nb.png,1\n",
    "negative.csv": "path,label\na.png,0\nb.png,-7\n",
    "mixed.csv": "path,label\na.png,0\nb.png,cat\n",
    "empty path.csv": "path,label\na.png,0\n,1\n",
    "some digests.csv": f"path,label,sha256\na.png,0,{'a' * 64}\nb.png,1,\n",
    "long.csv": f"path,label\n{'a' * 5000}.png,0\n",
    "control.csv": "path,label\na\x01.png,0\nb.png,1\n",
    "old line ends.csv": "path,label\na.png,0\rb.png,1\n",
    "no header.csv": "a.png,0\nb.png,1\n",
    "nothing.csv": "path,label\n",
    "no endings.csv": "path,label\na,0\nb,1\n",
    "spaces.txt": "a b.png 0\nb.png 1\n",
    "commas.txt": "a.png, 0\nb.png,1\n",
    "three.txt": "a.png 0 1\n",
    "paths.txt": "a.png\nb.png\n",
    "tabs.txt": "a.png\t0\nb.png\t1\n",
    "no-break space.txt": "a.png\xa0 0\nb.png 1\n",
}


@pytest.mark.parametrize("name", [*PLAIN, *OTHER])
def test_a_list_means_the_same_by_columns_as_by_rows(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes((PLAIN | OTHER)[name].encode())
    slow, same, by_columns = both(path, monkeypatch)
    assert same, slow
    assert by_columns == (name in PLAIN)


ROW = st.lists(st.text("ab/.\\'\", \t\xa0é01-", min_size=0, max_size=6), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([".csv", ".txt"]), st.lists(ROW, max_size=4), st.sampled_from(",; \t"))
def test_drawn_lists_mean_the_same(tmp_path_factory, suffix, rows, delimiter):
    path = tmp_path_factory.mktemp("drawn") / f"list{suffix}"
    header = [["path", "label", "sha256"][: len(rows[0])]] if rows and suffix == ".csv" else []
    text = "".join(delimiter.join(row) + "\n" for row in [*header, *rows])
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        slow, same, _ = both(path, patch)
    assert same, slow


@pytest.mark.parametrize(
    ("columns", "by_columns"),
    [
        ({"path": ["a.png", "b/c.png"], "label": [1, 0]}, True),
        ({"path": ["a.png", "b.png"], "label": [None, 1]}, True),
        ({"path": ["a.png", "b.png"], "label": ["dog", "cat"], "sha256": ["a" * 64] * 2}, True),
        ({"path": pa.array(["a.png"] * 3).dictionary_encode(), "label": [0, 1, 0]}, True),
        ({"path": ["a.png", "b.png"], "label": pa.nulls(2), "sha256": pa.nulls(2)}, True),
        ({"path": ["a.png", "b.png"], "label": [0.0, float("nan")]}, False),
        ({"path": ["a.png", None], "label": [0, 1]}, False),
        ({"path": ["a.png", "b.png"], "label": [0, -3]}, False),
    ],
    ids=[
        *("labels", "a label missing", "names and digests", "dictionary", "columns of nulls"),
        *("floats", "a path missing", "a negative label"),
    ],
)
def test_a_parquet_means_the_same(tmp_path, monkeypatch, columns, by_columns):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table(columns), path)
    slow, same, fast = both(path, monkeypatch)
    assert same, slow
    assert fast == by_columns


def test_labels_and_identity_are_those_of_the_rows(tmp_path, monkeypatch):
    path = tmp_path / "list.csv"
    paths = [f"d{k % 7}/{k}.png" for k in range(2000)]
    labels = [k * 7 % 5 for k in range(2000)]
    path.write_text("path,label\n" + "".join(map("{},{}\n".format, paths, labels)))
    monkeypatch.setattr(LONG, 0)
    images = open_set(path, classes=5)
    assert isinstance(images.paths, Texts)
    assert images.labels.tolist() == labels
    lines = "".join(map("{}\0{}\n".format, paths, labels))
    assert images.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    some = open_set(path, classes=5, limit=20)
    monkeypatch.setattr(LONG, 1 << 60)
    same = open_set(path, classes=5, limit=20)
    assert (list(some.paths), some.sha256) == (list(same.paths), same.sha256)
    assert images.beginning_sha256(7) == rows_sha256(paths[:7], np.array(labels[:7]))


def test_absolute_paths_below_the_root_are_relative(tmp_path, monkeypatch):
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{tmp_path}/a/{k}.png {k % 2}\n" for k in range(9)))
    slow, same, by_columns = both(path, monkeypatch)
    assert (same, by_columns) == (True, True)
    assert slow[1][8] == "a/8.png"


def test_a_link_out_of_the_root_is_not_read(tmp_path, monkeypatch):
    outside, root = tmp_path / "outside", tmp_path / "root"
    for folder in (outside, root):
        folder.mkdir()
        (folder / "a.png").write_bytes(b"x")
    path = root / "list.csv"
    path.write_text("path,label\na.png,0\nlink.png,1\nb/a.png,1\n")
    (root / "link.png").symlink_to(outside / "a.png")
    monkeypatch.setattr(LONG, 0)
    images = open_set(path)
    with pytest.raises(
        DataError, match=r"link.png: expected a file inside .*, got a link out of it"
    ):
        images[1]
    (root / "b").symlink_to(outside)
    with pytest.raises(DataError, match=r"Expected paths inside .*, got 'link.png' \(image 2\)"):
        open_set(path)


def test_a_short_list_is_read_by_rows(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,label\na.png,0\n")
    with path.open("rb") as file, pytest.raises(Unclear):
        read_long(file, path, path.stat().st_size)


def test_texts_are_a_sequence():
    words = ["", "é/1.png", "a\udcff.png", "b", "😀"] * 3
    texts = Texts.of(words)
    assert (list(texts), texts, len(texts)) == (words, words, 15)
    assert texts[-2] == "b"
    assert (texts[3:7], texts[::-2], texts[4:2]) == (words[3:7], words[::-2], [])
    assert pickle.loads(pickle.dumps(texts)) == texts
    assert list(some_of(texts, np.array([4, 0]))) == some_of(words, np.array([4, 0]))
    assert texts.lengths.tolist() == [len(word.encode(errors="surrogateescape")) for word in words]
    assert Texts.of_arrow([texts.arrow()[2:9], texts.arrow()[:0]]) == words[2:9]
    assert texts != words[1:]
    assert len(Texts.of(())) == 0
    with pytest.raises(IndexError, match="Expected a text of 0 to 14, got 15"):
        texts[15]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_identity_is_that_of_every_line(monkeypatch, count):
    monkeypatch.setattr("gradscore.data.identity.ROWS", 2)
    paths = [f"é{k}\udcff.png" for k in range(count)]
    labels = np.arange(count) - 1
    lines = "".join(map("{}\0{}\n".format, paths, labels.tolist())) + "x\ny\n" * (count > 0)
    extra = [["x", "y"] * (count > 0), []]
    expected = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
    assert rows_sha256(paths, labels, *extra) == expected
    assert rows_sha256(Texts.of(paths), labels, *map(Texts.of, extra)) == expected
