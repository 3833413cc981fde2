"""The choice of a score: what it reads, what it recommends, when it warns."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import gradscore as gs
from gradscore.choosing import choose, ood_aurocs
from gradscore.choosing.choice import Row, find_warning
from gradscore.choosing.specs import choice_specs
from gradscore.data import open_set
from gradscore.errors import InvalidArgument, NotRecorded
from gradscore.methods import METHODS, make_spec
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import RunStore, check, remove_set

SETS = {
    "digits": ("id", "digits:test"),
    "noise": ("ood", "digits:noise"),
    "unseen": ("ood", "digits:unseen"),
}
FAR = {"shuffle4", "phase", "inverted"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return gs.extract("digits", SETS, path, record="surrogates", limit=240).store


@pytest.fixture(scope="module")
def choice(run):
    return choose(run)


def test_surrogates_are_sets_that_no_table_counts(run):
    kinds = {name: entry.role for name, entry in run.sets.items() if "~" in name}
    assert set(kinds.values()) == {"surrogate"}
    assert {name.partition("~")[2] for name in kinds} == {*FAR, "amplitude", "rotated"}
    assert all(run.sets[name].rows == 200 for name in kinds)
    for name in kinds:
        assert run.sets[name].complete("norms-uniform-T1-p1")
        assert run.sets[name].complete("blocks")
    from gradscore.evaluation import evaluate_run

    rows = evaluate_run(run, [make_spec("msp")], replicates=0).rows
    assert {row["ood"] for row in rows} == {"noise", "unseen", "mean"}
    assert check(run.path) == []


def test_every_method_is_ranked_best_first(choice):
    values = [row.ranked.value for row in choice.far]
    assert values == sorted(values, reverse=True)
    asked = {row.spec.method for row in choice.far}
    assert asked == METHODS.keys() - {"mahalanobis", "mahalanobis_stages", "lee_alregib"}
    assert {row.spec.layers for row in choice.far if row.spec.method == "gradnorm"} >= {"block4"}
    near = {row.spec for row in choice.near}
    assert near < {row.spec for row in choice.far}
    assert not any(spec.layers not in (None, "last") for spec in near)
    assert choice.warning is None


def test_methods_of_one_remark_share_a_note_whatever_their_names_are(run):
    gs.register_method("a", lambda *given: given[0][:, 0], lambda *given: 0.0)
    try:
        choice_specs(run, notes := [])
    finally:
        del METHODS["a"]
    (told,) = (note for note in notes if "teach what scores the others" in note)
    assert told.partition(":")[0].split(", ")[-1] == "a"
    assert {"knn", "laplace_energy_blocks"} < set(told.partition(":")[0].split(", "))


def test_a_surrogate_that_keeps_the_predictions_is_left_out_and_told(choice):
    assert set(choice.far[0].ranked.aurocs) == FAR
    left_out = [note for note in choice.notes if "was left out: the model keeps" in note]
    assert len(left_out) == 2


def test_the_recommended_score_ties_with_the_best_and_ranks_above_msp(choice):
    row = next(row for row in choice.far if row.spec == choice.spec)
    assert row.ranked.tied
    msp = next(row for row in choice.far if row.spec.method == "msp")
    assert row.ranked.value > msp.ranked.value
    assert choice.by == "far"


def test_a_damaged_ood_set_does_not_matter(run, choice, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    for name in ("noise", "unseen"):
        for shard in copy.glob(f"{name}/*/*.h5"):
            shard.write_bytes(b"damaged")
    assert choose(copy).to_json() == choice.to_json()


def test_only_id_sets_are_asked_and_no_ood_set_is_learned_from(run):
    with pytest.raises(InvalidArgument, match="Expected ID sets to choose by, got 'noise' of rol"):
        choose(run, sets=["digits", "noise"])
    with pytest.raises(InvalidArgument, match="got 'digits~phase' of role surrogate"):
        choose(run, sets=["digits~phase"])
    with pytest.raises(InvalidArgument, match="ID images to fit to, got the OOD set 'noise'"):
        choose(run, fit="noise")
    with pytest.raises(InvalidArgument, match="Unknown set 'absent'"):
        choose(run, fit="absent")


def test_what_some_surrogates_lack_is_left_out_and_told(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    with RunStore.open_for_writing(copy) as store:
        del store.sets["digits~phase"].passes["norms-uniform-T1-p1"]
        del store.sets["digits~inverted"].passes["base"][-1:]
        store.save()
    choice = choose(copy)
    assert {row.spec.layers for row in choice.far} == {None, "last"}
    assert set(choice.far[0].ranked.aurocs) == FAR - {"inverted"}
    told = " ".join(choice.notes)
    assert "need norms-uniform-T1-p1, which digits~phase lacks" in told
    assert "Surrogate digits~inverted was left out: 0 of 200 images are recorded; go on" in told


def test_no_ood_set_is_read(run, choice, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    with RunStore.open_for_writing(copy) as store:
        for name in ("noise", "unseen"):
            remove_set(store, name)
    shutil.rmtree(copy / "noise", ignore_errors=True)
    again = choose(copy)
    assert again.to_json() == choice.to_json()
    assert (copy / "fits" / "choice.json").read_text() == choice.to_json()
    assert ood_aurocs(RunStore(copy), again) == {}
    assert set(ood_aurocs(run, choice)) == {row.spec for row in choice.far}


def test_an_unfinished_ood_set_does_not_count_when_a_choice_is_checked(run, choice, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    with RunStore.open_for_writing(tmp_path / "run") as store:
        del store.sets["noise"].passes["base"][-1:]
        store.save()
    unfinished = ood_aurocs(RunStore(tmp_path / "run"), choice)
    with RunStore.open_for_writing(tmp_path / "run") as store:
        remove_set(store, "noise")
    assert unfinished == ood_aurocs(RunStore(tmp_path / "run"), choice) != {}


def test_the_file_holds_the_recommendation_and_both_tables(choice):
    held = json.loads(choice.to_json())
    assert held["recommended"]["method"] == choice.spec.method
    assert held["warning"] is None
    figures = {"value", "value_low", "value_high", "aurocs", "tied"}
    for row in (*held["far"], *held["near"]):
        assert row.keys() == {"method", "options", *figures}
        assert row["value_low"] <= row["value"] <= row["value_high"]
    options = {k: v for k, v in held["recommended"].items() if k != "method"}
    assert make_spec(choice.spec.method, **options) == choice.spec


def test_without_surrogates_the_near_table_decides(tmp_path):
    sets = {"digits": SETS["digits"]}
    run = gs.extract("digits", sets, tmp_path / "run", layers="last", limit=240)
    choice = gs.choose(run)
    assert choice.by == "near"
    assert choice.far == []
    assert "record them with `gradscore extract" in choice.notes[-1]
    assert "--layers last --record surrogates" in choice.notes[-1]


def test_a_model_with_drawn_weights_is_warned_of(tmp_path):
    sets = {"digits": SETS["digits"]}
    how = {"layers": "last", "record": "surrogates", "limit": 240}
    run = gs.extract("digits", sets, tmp_path / "run", weights="random", **how)
    choice = choose(run)
    assert choice.warning.startswith("No score is to be trusted here: the model predicts the same")
    assert choice.far


def test_a_model_that_separates_little_is_warned_of(choice):
    low = [Row(row.spec, replace(row.ranked, aurocs={"phase": 0.79})) for row in choice.far]
    warning = find_warning(low, choice.near, False)
    assert "none separates even shuffled and scrambled copies of these images" in warning
    assert "(best AUROC 79.0, below 80)" in warning
    assert "for ranking and review, not as a gate" in warning
    low = [Row(row.spec, replace(row.ranked, aurocs={"classes 1": 0.84})) for row in choice.near]
    assert "images of classes removed from the last layer" in find_warning(choice.far, low, False)


def test_a_model_that_learned_shuffled_labels_is_warned_of():
    model = gs.create_model("digits")
    images = open_set("digits:train")
    inputs = torch.stack([model.preprocessing(images[k]) for k in range(len(images))])
    torch.manual_seed(0)
    labels = torch.from_numpy(images.labels)[torch.randperm(len(inputs))]
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        for part in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[part]), labels[part]).backward()
            optimizer.step()
    tested = open_set("digits:test")
    inputs = torch.stack([model.preprocessing(tested[k]) for k in range(len(tested))])
    choice = choose(model.eval(), inputs)
    assert choice.warning.startswith("No score is to be trusted here: ")


def test_it_is_told_why_an_evaluation_may_rank_otherwise(choice):
    chosen, other = choice.notes[:2]
    assert chosen.startswith("Chosen by all 240 images of digits. Images that chose a score give")
    assert other.endswith("On OOD sets their order may be another: those are other images.")


def test_a_set_to_fit_to_is_used(tmp_path):
    sets = {"digits": SETS["digits"], "train": ("fit", "digits:train")}
    run = gs.extract(
        "digits", sets, tmp_path / "run", layers="last", record="surrogates", limit=60
    )
    asked = {row.spec.method for row in choose(run).far}
    assert {"knn", "mahalanobis", "laplace_energy_blocks"} <= asked
    named = {row.spec.fit for row in choose(run, fit="train").far}
    assert "train" in named


@pytest.mark.parametrize(
    ("sets", "how", "error", "message"),
    [
        ({"a": ("ood", "digits:noise")}, {}, NotRecorded, "no ID set to choose by; add one with"),
        ({"a": ("id", "digits:test")}, {"sets": ["b"]}, InvalidArgument, "Unknown set 'b'"),
    ],
)
def test_without_an_id_set_it_is_refused(tmp_path, sets, how, error, message):
    run = gs.extract("digits", sets, tmp_path / "run", layers="last", limit=40)
    with pytest.raises(error, match=message):
        choose(run, **how)


def test_surrogates_need_an_id_set(tmp_path):
    with pytest.raises(InvalidArgument, match="an ID set to make surrogates of, got none"):
        gs.extract("digits", {"a": ("ood", "digits:noise")}, tmp_path, record="surrogates")


def test_surrogates_do_not_depend_on_the_limit(tmp_path):
    found = []
    for limit in (None, 230):
        run = gs.extract(
            "digits", {"digits": SETS["digits"]}, tmp_path / f"{limit}", layers="last",
            record="surrogates", limit=limit,
        )  # fmt: skip
        found.append(run.logits("digits~phase"))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("classes", [2, 3, 6, 10, 1000])
def test_images_without_labels_and_any_number_of_classes(tmp_path, classes):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(128, classes)).eval()
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.2,), mode="L")
    pixels = np.random.default_rng(0).integers(0, 255, (140, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=pixels)
    sets = {"mine": ("id", tmp_path / "mine.npz")}
    run = gs.extract(model, sets, tmp_path / "run", layers="last", record="surrogates")
    assert run.sets["mine~phase"].rows == 140
    choice = choose(run)
    assert {"knn", "laplace_energy", "fdbd"} <= {row.spec.method for row in choice.far}
    if classes < 4:
        assert not choice.near
        assert f"a head of {classes} classes has none to spare" in " ".join(choice.notes)
