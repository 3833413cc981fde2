"""What a report says of a run, part by part, and where it is told why a part is absent."""

import numpy as np
import pytest
from helpers.commands import call, fails
from helpers.pages import Page, table_of
from helpers.recorded_run import drawn_set
from helpers.report_runs import drawn_run, with_many

import gradscore as gs
from gradscore.columns import DiskColumns
from gradscore.errors import InvalidArgument, NotRecorded
from gradscore.extraction.settings import Silent
from gradscore.methods import make_spec
from gradscore.metrics import auroc, fpr95
from gradscore.reporting.scored import score_for_report
from gradscore.run import RunStore

PARTS = ["run", "choice", "scores", "curves", "images", "classes", "layers", "factors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return drawn_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run):
    return Page(gs.report(run, run.parent / "report.html", images=False))


def energy(name):
    logits = drawn_set(name)["logits"].astype(np.float64)
    return np.log(np.exp(logits).sum(axis=1))


def threshold():
    """The largest that keeps at least 95% of the ID images."""
    return np.sort(energy("digits"))[2]  # 38 of 40


def test_every_part_is_there_in_its_order(page):
    assert [part.attributes["id"] for part in page.root.all("section")] == PARTS
    links = [link.attributes["href"] for link in page.root.one("nav").all("a")]
    assert links == [f"#{name}" for name in PARTS]


def test_the_head_names_the_model_its_accuracy_and_its_sets(page):
    assert page.root.one("h1").text == "python:tests:drawn"
    cards = [card.text for card in page.root.one("dl", class_="cards").all("div")]
    assert cards[1:3] == [
        "ID accuracy 97.4% of 38 labelled images (40 in all)",
        "ID images kept 95.0% at the report's threshold",
    ]
    rows = {row["Set"]: row for row in table_of(page.section("run"))}
    assert rows["digits"]["Role"] == "ID"
    assert rows["digits"]["Accuracy"] == "97.4% of 38 labelled images (40 in all)"
    assert rows["train"] | {"Accuracy": ""} == {
        "Set": "train",
        "Role": "no role",
        "Images recorded": "60 of 60",
        "Accuracy": "",
        "Images from": "drawn",
    }


def test_of_several_sets_the_lowest_and_the_highest_are_named(page):
    rows = {row["Set"]: row for row in table_of(page.section("scores").one(id="shares"))}
    flagged = {name: rows[f"{name} (OOD)"]["Flagged"] for name in ("noise", "photos")}
    low, high = sorted(flagged, key=lambda name: float(flagged[name].rstrip("%")))
    card = page.root.one("dl", class_="cards").all("div")[3].text
    shares = f"{flagged[low]} {low}, lowest {flagged[high]} {high}, highest"
    assert card.split() == f"OOD images flagged {shares} of 2 sets at the same threshold".split()


def test_classes_without_a_false_alarm_are_one_sentence(tmp_path):
    def equal(name, arrays):
        arrays["logits"][:] = 1

    run = drawn_run(tmp_path / "run", change=equal)
    page = Page(gs.report(run, tmp_path / "report.html", images=False))
    told = "None of the 40 ID images, of any class, is flagged at the report's threshold."
    assert told in page.section("classes").text
    assert page.section("classes").all("table") == []


def test_a_set_has_one_colour_on_the_whole_page(page):
    for name, tone in (("noise", "tone-ood0"), ("photos", "tone-ood1")):
        rows = page.section("scores").all("g", class_=tone)
        assert [row.text.split()[0] for row in rows if row.text] == [name]
        assert len(rows) == 2  # its curve and its label
        for part, place in (("curves", "figure"), ("factors", "strong")):
            classes = {
                element.attributes.get("class", "")
                for element in page.section(part).all(place)
                if name in element.text
            }
            assert all(tone in text.split() for text in classes), (part, classes)
            assert classes


def test_the_table_says_what_the_threshold_does(page):
    cut = threshold()
    rows = {row["Set"]: row for row in table_of(page.section("scores").one(id="shares"))}
    for name, role in (("digits", "ID"), ("noise", "OOD"), ("train", "no role")):
        scores = energy(name)
        flagged = int((scores < cut).sum())
        row = rows[f"{name} ({role})"]
        assert row["Images flagged"] == str(flagged)
        assert row["Images"] == str(len(scores))
        share = 100 * flagged / len(scores)
        assert abs(float(row["Flagged"].rstrip("%")) - share) <= 0.05
        assert abs(float(row["Kept"].rstrip("%")) - (100 - share)) <= 0.05
    assert rows["digits (ID)"]["Handled right"] == "95.0%"
    assert rows["digits (ID)"]["95% interval"] == "83.0% to 99.4%"
    assert rows["train (no role)"]["Handled right"] == "unknown"


def test_what_the_program_looks_up_is_exact_at_every_threshold(run, page):
    data = page.data
    values = np.array([float(text) for text in data["thresholds"]])
    assert (np.diff(data["at"]) >= 0).all()
    assert len(values) > 100
    for k, name in enumerate(("digits", "noise", "photos", "train")):
        of_set, scores = data["sets"][k], energy(name)
        assert of_set["n"] == len(scores)
        for value, flagged, share in zip(values, of_set["flagged"], of_set["share"], strict=True):
            # The text has four digits: a score as near to it may fall on either side.
            sure = np.abs(scores - value) > 1e-3 * abs(value)
            least = int((sure & (scores < value)).sum())
            assert least <= flagged <= least + int((~sure).sum())
            assert abs(share / 10 - 100 * flagged / len(scores)) <= 0.05
        assert of_set["low"] <= of_set["share"] <= of_set["high"]
    start = data["start"]
    assert values[start] == pytest.approx(threshold(), rel=1e-3)
    assert data["known"] == data["sets"][0]


def test_the_figure_agrees_with_the_table(page):
    data, at = page.data, page.data["start"]
    figure = page.section("scores").one("svg", class_="densities")
    (line,) = [one for one in figure.all("line") if "data-line" in one.attributes]
    assert line.attributes["x1"] == line.attributes["x2"] == f"{data['at'][at] / 10}%"
    drawn = figure.all()
    assert drawn.index(line) < min(map(drawn.index, figure.all("text", class_="name")))  # below
    (clip,) = [one for one in figure.all("rect") if "data-clip" in one.attributes]
    assert float(clip.attributes["width"]) == data["at"][at]
    for k, share in enumerate(of_set["share"][at] for of_set in data["sets"]):
        text = f"{share // 10}.{share % 10}%"
        shown = {one.text for one in page.root.all(data_set=k, data_show="flagged")}
        assert shown == {text}


def test_curves_have_the_figures_of_the_metrics(page):
    rows = {row["OOD set"]: row for row in table_of(page.section("curves"))}
    assert list(rows) == ["noise", "photos"]
    for name, row in rows.items():
        ids, oods = energy("digits"), energy(name)
        assert row["AUROC"].startswith(f"{100 * auroc(ids, oods):.1f}% (")
        assert row["FPR95"].startswith(f"{100 * fpr95(ids, oods):.1f}% (")
    dots = page.section("curves").all("circle")
    accepted = [(energy(name) >= threshold()).mean() for name in rows]
    assert [float(dot.attributes["cx"]) for dot in dots] == pytest.approx(
        [100 * share for share in accepted], abs=0.01
    )
    assert {dot.attributes["cy"] for dot in dots} == {"5.00"}


def test_false_alarms_are_counted_by_predicted_class(page):
    drawn = drawn_set("digits")
    predicted, flagged = drawn["logits"].argmax(axis=1), energy("digits") < threshold()
    rows = table_of(page.section("classes"))
    assert sum(int(row["Images"]) for row in rows) == 40
    for row in rows:
        of_class = predicted == int(row["Predicted class"].removeprefix("class "))
        assert int(row["Images"]) == of_class.sum()
        assert int(row["Flagged"]) == (of_class & flagged).sum()


def test_the_map_of_layers_has_their_aurocs(run, page):
    rows = {row["Layers"]: row for row in table_of(page.section("layers"))}
    assert list(rows) == ["stem", "block1", "all", "last"]
    stored = gs.Run(run)
    for layers, row in rows.items():
        of = [stored.score(name, layers=layers).numpy() for name in ("digits", "noise", "photos")]
        values = [auroc(of[0], oods) for oods in of[1:]]
        shown = [f"{100 * value:.1f}%" for value in (*values, np.mean(values))]
        assert [row["noise"], row["photos"], row["mean"]] == shown


def test_the_scores_of_layers_may_be_on_the_disk(run, page, tmp_path, monkeypatch):
    monkeypatch.setattr("gradscore.columns.IN_MEMORY", 0)
    kept, put = [], DiskColumns.put
    monkeypatch.setattr(DiskColumns, "put", lambda *how: kept.append(how[1]) or put(*how))
    large = gs.report(run, tmp_path / "report.html", images=False)
    assert large.read_bytes() == (run.parent / "report.html").read_bytes()
    assert {*kept} == {"stem", "block1", "all", "last"}


def test_the_factors_have_their_aurocs(run, page):
    rows = {row["OOD set"]: row for row in table_of(page.section("factors"))}
    stored = gs.Run(run)
    for name, row in rows.items():
        shown = {"U alone": "u", "V alone": "v", "U times V": "gradnorm"}
        for column, method in shown.items():
            value = auroc(stored.score("digits", method), stored.score(name, method))
            assert row[column] == f"{100 * value:.1f}%"


def test_the_images_that_are_drawn_are_spread_evenly_over_a_set(tmp_path):
    run = with_many(drawn_run(tmp_path / "run", keep=[]), rows=2500)
    (one,), left = score_for_report(
        RunStore(run), RunStore(run), make_spec("energy"), ["many"], Silent()
    )
    assert left == []
    stored = gs.Run(run)
    for factor, values in zip(("u", "v"), one.factors, strict=True):
        np.testing.assert_array_equal(values, stored.score("many", factor).numpy()[::9])


@pytest.mark.parametrize(
    ("keep", "part", "told"),
    [
        (["digits"], "curves", "No OOD set is shown here. Add one with gradscore extract"),
        (["digits"], "layers", "No OOD set is shown here."),
        (["noise"], "curves", "No ID set is shown here."),
        (["noise"], "classes", "--id NAME=PATH"),
        (["noise"], "scores", "No ID set is recorded: the threshold that 95% of all images"),
        ([], "scores", "No image of the run has a score yet."),
        ([], "run", "The run holds no set yet."),
        (["train"], "images", "Images were left out of this report"),
    ],
)
def test_a_run_without_sets_of_a_role_is_told_what_to_add(tmp_path, keep, part, told):
    run = drawn_run(tmp_path / "run", keep=keep)
    page = Page(gs.report(run, tmp_path / "report.html", images=False))
    assert told in page.section(part).text


def test_what_a_run_lacks_is_named_with_the_command_that_records_it(tmp_path):
    run = drawn_run(tmp_path / "run", closed_form=False, passes=())
    page = Page(gs.report(run, tmp_path / "report.html", images=False))
    assert "--layers all" in page.section("layers").one("code").text
    assert "something follows it" in page.section("factors").text
    assert page.section("choice").one("code").text == f"gradscore choose --run {run}"


def test_no_labels_are_no_error(tmp_path):
    def unlabelled(name, arrays):
        arrays["label"][:] = -1

    run = drawn_run(tmp_path / "run", change=unlabelled)
    page = Page(gs.report(run, tmp_path / "report.html", images=False))
    assert table_of(page.section("run"))[0]["Accuracy"] == "no labels"
    assert "ID accuracy" not in page.root.one("header").text


def test_an_accuracy_at_chance_is_a_warning(tmp_path):
    def shifted(name, arrays):
        arrays["label"] = (arrays["logits"].argmax(axis=1) + 1) % 5

    run = drawn_run(tmp_path / "run", change=shifted)
    page = Page(gs.report(run, tmp_path / "report.html", images=False))
    (warning,) = page.section("run").all("p", class_="warning")
    assert "the accuracy of 0.0% of 40 labelled images is chance for 5 classes" in warning.text
    assert "numbering" in warning.text


def test_sets_to_fit_to_and_unfinished_ones_are_left_out_and_told(tmp_path):
    run = drawn_run(tmp_path / "run", roles={"train": "fit"})
    with RunStore.open_for_writing(run) as store:
        store.sets["noise"].rows += 5
        store.save()
    page = Page(gs.report(run, tmp_path / "report.html", images=False))
    text = page.section("run").text
    assert "train is not shown: methods learn from it." in text
    assert "noise is not shown: 25 of 30 images are recorded so far." in text
    shown = [row["Set"] for row in table_of(page.section("scores").one(id="shares"))]
    assert shown == ["digits (ID)", "photos (OOD)"]


def test_several_id_sets_count_together(tmp_path):
    run = drawn_run(tmp_path / "run", roles={"train": "id"})
    page = Page(gs.report(run, tmp_path / "report.html", images=False))
    assert "The ID sets count together here." in page.section("curves").text
    assert page.data["known"]["n"] == 100
    both = np.concatenate([energy("digits"), energy("train")])
    row = table_of(page.section("curves"))[0]
    assert row["AUROC"].startswith(f"{100 * auroc(both, energy('noise')):.1f}%")


def test_one_score_for_all_images_is_still_a_page(tmp_path):
    def equal(name, arrays):
        arrays["logits"][:] = 1

    run = drawn_run(tmp_path / "run", change=equal)
    page = Page(gs.report(run, tmp_path / "report.html", images=False))
    rows = table_of(page.section("scores").one(id="shares"))
    assert {row["Flagged"] for row in rows} == {"0.0%"}


def test_another_method_or_other_sets_can_be_asked_for(run, tmp_path):
    path = gs.report(run, tmp_path / "a.html", method="msp", sets=["digits", "noise"])
    page = Page(path)
    assert "msp" in page.root.one("header").text
    assert [row["Set"] for row in table_of(page.section("scores").one(id="shares"))] == [
        "digits (ID)",
        "noise (OOD)",
    ]
    with pytest.raises(InvalidArgument, match="Unknown set 'mnist'; the run holds: digits, noise"):
        gs.report(run, tmp_path / "b.html", sets=["mnist"])
    with pytest.raises(NotRecorded, match="The run holds no block means"):
        gs.report(run, tmp_path / "b.html", method="laplace_energy_blocks")
    assert not (tmp_path / "b.html").exists()


def test_the_command_writes_the_page_and_says_so(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert call("report", "--run", run, "-o", out, "--no-images") == 0
    assert f"Wrote {out} (0.1 MB); open it in a browser." in capsys.readouterr().err
    assert out.read_bytes() == gs.report(run, tmp_path / "b.html", images=False).read_bytes()


def test_the_command_refuses_in_one_line(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    error = fails(capsys, "report", "--run", tmp_path, "-o", out)
    assert "No run in" in error
    error = fails(capsys, "report", "--run", run, "-o", tmp_path / "page.pdf")
    assert "Expected a file ending in .html" in error
    error = fails(capsys, "report", "--run", run, "-o", run / "digits" / "page.html")
    assert "it would be among the files of the run" in error
    error = fails(capsys, "report", "--run", run, "-o", out, "--data", "mnist=/tmp")
    assert "Expected the images of a set of the run (digits, noise, train, photos)" in error
    assert not out.exists()
