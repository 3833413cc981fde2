"""The gallery: which images, from wherever they are kept, and what is told where they are not."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
from helpers.pages import Page, table_of
from helpers.report_runs import EMBEDDED, drawn_run, embedded_run, with_many
from PIL import Image

import gradscore as gs
from gradscore.data.manifest import file_sha256
from gradscore.data.named import digit_arrays
from gradscore.errors import DataError
from gradscore.reporting.thumbnails import SIDE, make_thumbnail
from gradscore.run import import_set

ENERGY = {"method": "energy"}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    return embedded_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def folder(tmp_path):
    """Embedded images as files: 30 a class of ID images, and 20 of noise."""
    images, labels, _ = digit_arrays("test")
    for k in range(60):
        place = tmp_path / "images" / "id" / str(labels[k]) / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[k]).save(place)
    noise, _, _ = digit_arrays("noise")
    (tmp_path / "images" / "ood").mkdir()
    for k in range(20):
        Image.fromarray(noise[k]).save(tmp_path / "images" / "ood" / f"{k}.png")
    return tmp_path / "images"


def extracted(folder, path, **how):
    sets = {"id": ("id", folder / "id"), "ood": ("ood", folder / "ood")}
    return gs.extract("digits", sets, path, layers="last", **how)


def decoded(image):
    """Return the pixels of an image of the page."""
    kind, _, text = image.attributes["src"].partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def gallery(page):
    """Return each set's strips: title to the names of its images, or what is told instead."""
    found = {}
    for part in page.section("images").all("div", class_="gallery"):
        titles = [title.text for title in part.all("h4")]
        strips = [[i.attributes["alt"] for i in strip.all("img")] for strip in part.all("ul")]
        strips += [[]] * (len(titles) - len(strips))
        found[part.one("h3").text] = dict(zip(titles, strips, strict=True))
    return found


def test_worst_mistakes_come_first_and_borderline_ones_stand_at_the_threshold(embedded, tmp_path):
    page = Page(gs.report(embedded, tmp_path / "report.html", **ENERGY))
    run = gs.Run(embedded)
    scores = {name: run.score(name, "energy").numpy() for name in EMBEDDED}
    paths = {name: [p for b in run.store.blocks(name) for p in b["path"]] for name in EMBEDDED}
    cut = np.sort(scores["digits"])[2]
    shown = gallery(page)
    order = np.argsort(scores["digits"], kind="stable")
    worst = [paths["digits"][k] for k in order if scores["digits"][k] < cut]
    assert shown["digits (ID)"]["Worst false alarms"] == worst
    assert len(worst) == 2
    for name in ("unseen", "noise"):
        order = np.argsort(scores[name], kind="stable")
        accepted = [paths[name][k] for k in order[::-1] if scores[name][k] >= cut][:12]
        assert shown[f"{name} (OOD)"]["Worst misses"] == accepted
        borderline = shown[f"{name} (OOD)"]["Borderline"]
        assert not set(borderline) & set(accepted)
        assert len(borderline) <= 12
    near = shown["digits (ID)"]["Borderline"]
    ranks = sorted(
        np.argsort(np.argsort(scores["digits"], kind="stable"))[paths["digits"].index(p)]
        for p in near
    )
    assert ranks == list(range(2, 14))  # none is flagged that is no worst mistake already


def test_of_many_mistakes_the_worst_are_shown_and_the_nearest_of_both_sides(tmp_path):
    run = with_many(drawn_run(tmp_path / "run", keep=[]), rows=2000, role="id")
    page = Page(gs.report(run, tmp_path / "report.html", **ENERGY))
    scores = gs.Run(run).score("many", "energy").numpy()
    order = np.argsort(scores, kind="stable")
    # None of the pictures can be had: images are listed in words, not as empty tiles.
    assert page.section("images").all("ul") == []
    tables = [table_of(part) for part in page.section("images").all("details")]
    assert [[row["Image"] for row in rows] for rows in tables] == [
        [f"many/{k}.png" for k in order[:12]],
        [f"many/{k}.png" for k in order[94:106]],  # 100 of 2,000 are flagged
    ]


def test_the_images_are_those_that_were_recorded(embedded, tmp_path):
    page = Page(gs.report(embedded, tmp_path / "report.html", **ENERGY))
    for split in ("test", "unseen", "noise"):
        images, _, names = digit_arrays(split)
        known = dict(zip(names, images, strict=True))
        shown = [i for i in page.root.all("img") if i.attributes["alt"] in known]
        assert shown
        for image in shown:
            np.testing.assert_array_equal(decoded(image), known[image.attributes["alt"]])


def test_a_long_name_is_never_broken_in_its_ending(folder, tmp_path):
    page = Page(gs.report(extracted(folder, tmp_path / "run"), tmp_path / "a.html", **ENERGY))
    for tile in page.section("images").all("figure"):
        (name,) = tile.all("span", class_="file")
        (end,) = name.all("span")
        whole = tile.one("img").attributes["alt"].rpartition("/")[2]
        assert name.text.replace(" ", "") == whole
        assert end.text == whole[-8:]


def test_images_of_a_folder_are_shown_and_moved_ones_told(folder, tmp_path):
    run = extracted(folder, tmp_path / "run")
    page = Page(gs.report(run, tmp_path / "a.html", **ENERGY))
    assert len(page.root.all("img")) >= 24
    assert not page.root.all("div", class_="absent")
    gone = page.root.all("img")[0].attributes["alt"]
    (folder / "id" / gone).unlink()
    page = Page(gs.report(run, tmp_path / "b.html", **ENERGY))
    (absent,) = page.root.all("div", class_="absent")
    assert absent.text == "moved or removed"
    shutil.move(folder, tmp_path / "elsewhere")
    page = Page(gs.report(run, tmp_path / "c.html", **ENERGY))
    assert not page.root.all("img")
    text = page.section("images").text
    assert f"The images are not at '{folder / 'id'}' any more." in text
    assert "Say where they are: --data id=PATH." in text
    moved = {name: tmp_path / "elsewhere" / name for name in ("id", "ood")}
    page = Page(gs.report(run, tmp_path / "d.html", **ENERGY, data=moved))
    assert len(page.root.all("img")) >= 23
    assert "any more" not in page.section("images").text


def test_a_file_that_has_changed_is_told_where_the_list_has_digests(folder, tmp_path):
    files = sorted((folder / "id").rglob("*.png"))
    rows = [
        f"{file.relative_to(folder).as_posix()},{file.parent.name},{file_sha256(file)}\n"
        for file in files
    ]
    (folder / "list.csv").write_text("path,label,sha256\n" + "".join(rows))
    sets = {"id": ("id", folder / "list.csv")}
    run = gs.extract("digits", sets, tmp_path / "run", layers="last")
    first = Page(gs.report(run, tmp_path / "a.html", **ENERGY)).root.all("img")[0]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / first.attributes["alt"])
    page = Page(gs.report(run, tmp_path / "b.html", **ENERGY))
    (absent,) = page.root.all("div", class_="absent")
    assert "its SHA-256 is not the one in the manifest" in absent.text


def test_a_list_that_has_changed_is_told_and_its_images_found_by_name(folder, tmp_path):
    files = sorted((folder / "id").rglob("*.png"))
    names = [file.relative_to(folder).as_posix() for file in files]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{name} 0\n" for name in names))
    sets = {"id": ("id", f"{listed}@{folder}")}
    run = gs.extract("digits", sets, tmp_path / "run", layers="last")
    before = {
        image.attributes["alt"]: image.attributes["src"]
        for image in Page(gs.report(run, tmp_path / "a.html", **ENERGY)).root.all("img")
    }
    first = next(iter(before))
    listed.write_text("".join(f"{name} 0\n" for name in reversed(names) if name != first))
    page = Page(gs.report(run, tmp_path / "b.html", **ENERGY))
    assert "The list of these images has changed" in page.section("images").text
    after = {image.attributes["alt"]: image.attributes["src"] for image in page.root.all("img")}
    assert after == {name: source for name, source in before.items() if name != first}


def test_names_that_lead_out_of_a_folder_are_not_followed(tmp_path):
    def elsewhere(name, arrays):
        paths = ["../secret.png", str(tmp_path / "secret.png"), "a\0b", "x/../../secret.png"]
        arrays["path"] = np.array([paths[k % 4] for k in arrays["index"]], dtype=object)

    inside = tmp_path / "inside"
    inside.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "secret.png")
    run = drawn_run(tmp_path / "run", change=elsewhere, sources={"digits": inside})
    page = Page(gs.report(run, tmp_path / "report.html", sets=["digits"]))
    assert not page.root.all("img")
    told = {absent.text for absent in page.root.all("div", class_="absent")}
    assert told == {"its name leads out of the folder"}


@pytest.mark.parametrize("kind", ["npz", "npy", "tar"])
def test_images_come_out_of_arrays_and_archives(folder, tmp_path, kind):
    images, labels, _ = digit_arrays("test")
    place = tmp_path / f"set.{kind}"
    if kind == "npz":
        np.savez(place, images=images[:40], labels=labels[:40])
    elif kind == "npy":
        np.save(place, images[:40])
    else:
        place = shutil.make_archive(tmp_path / "set", "tar", folder, "id")
    run = gs.extract("digits", {"id": ("id", place)}, tmp_path / "run", layers="last")
    page = Page(gs.report(run, tmp_path / "report.html", **ENERGY))
    shown = page.root.all("img")
    assert len(shown) >= 12
    known = {image.tobytes() for image in images}
    assert all(decoded(image).tobytes() in known for image in shown)


def test_skipped_images_are_named_and_of_many_the_first(folder, tmp_path):
    for k in range(25):
        (folder / "ood" / f"broken{k:02}.png").write_bytes(b"no image")
    run = extracted(folder, tmp_path / "run", on_error="skip")
    page = Page(gs.report(run, tmp_path / "report.html", **ENERGY))
    text = page.section("run").text
    assert "ood: 25 images skipped" in text
    assert "broken19.png" in text
    assert "broken20.png" not in text
    assert "... and 5 more." in text
    assert not page.root.all("div", class_="absent")


def test_a_data_set_of_a_library_is_opened_only_where_it_is_named(tmp_path):
    run = drawn_run(tmp_path / "run", sources={"digits": "torchvision:CIFAR10:test"})
    page = Page(gs.report(run, tmp_path / "report.html"))
    assert "--data digits=torchvision:CIFAR10:test" in page.section("images").text


def test_features_that_came_without_images_can_be_shown_beside_them(tmp_path):
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(361, 4)), rng.normal(size=(6, 4))
    arrays = {"features": features.astype(np.float32), "head": {"weight": np.float32(weight)}}
    arrays["logits"] = (features @ weight.T).astype(np.float32)
    import_set(tmp_path / "run", "mine", "id", **arrays)
    page = Page(gs.report(tmp_path / "run", tmp_path / "a.html"))
    told = page.section("images").text
    assert "Say where the images are, in the same order: --data mine=PATH." in told
    assert page.section("curves").one("code").text.startswith("gradscore run import --ood NAME")
    page = Page(gs.report(tmp_path / "run", tmp_path / "b.html", data={"mine": "digits:test"}))
    known = {image.tobytes() for image in digit_arrays("test")[0]}
    assert len(page.root.all("img")) == 24
    assert {decoded(image).tobytes() for image in page.root.all("img")} <= known
    page = Page(gs.report(tmp_path / "run", tmp_path / "c.html", data={"mine": "digits:noise"}))
    assert "Expected 361 images in the order of the features, got 500" in page.source


def test_images_of_an_unknown_set_are_refused(embedded, tmp_path):
    with pytest.raises(DataError, match=r"set of the run \(digits, unseen, noise\), got 'mnist'"):
        gs.report(embedded, tmp_path / "report.html", data={"mnist": "digits:test"})


def test_without_images_no_image_is_opened(folder, tmp_path):
    run = extracted(folder, tmp_path / "run")
    shutil.rmtree(folder)
    page = Page(gs.report(run, tmp_path / "report.html", images=False, **ENERGY))
    assert not page.root.all("img")
    assert "Images were left out of this report, as asked." in page.section("images").text


def test_large_pictures_become_small_and_lose_what_is_no_pixel():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (300, 600, 3), dtype=np.uint8))
    file = io.BytesIO()
    picture.save(file, "JPEG", comment=b"where it was taken", exif=b"Exif\0\0" + b"x" * 64)
    opened = Image.open(io.BytesIO(file.getvalue()))
    opened.load()
    thumbnail = make_thumbnail(opened)
    content = base64.b64decode(thumbnail.address.partition(",")[2])
    assert b"where it was taken" not in content
    assert b"Exif" not in content
    assert Image.open(io.BytesIO(content)).size == (SIDE, SIDE // 2)
    assert len(content) < 12_000
    assert not thumbnail.small


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_floats_become_pictures(channels):
    values = np.linspace(-0.1, 1.1, channels * 20, dtype=np.float32).reshape(channels, 4, 5)
    values[0, 0, 0] = np.nan
    thumbnail = make_thumbnail(values)
    text = re.fullmatch(r"data:image/png;base64,(.*)", thumbnail.address)[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    assert pixels.shape == ((4, 5) if channels < 3 else (4, 5, 3))
    assert pixels.flat[0] == 0
