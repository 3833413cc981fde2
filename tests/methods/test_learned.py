"""Scores learned from the ID images of a run: from whose rows, when refused, how stored."""

import numpy as np
import pytest
import torch
from helpers import detectors as literal

from gradscore.errors import InvalidArgument, ModelError, NotRecorded, RunError
from gradscore.methods import ScoreSpec
from gradscore.methods.fitted import repeat_notices
from gradscore.methods.learned import LEARNED
from gradscore.methods.part_of_run import Chosen, PartOfRun
from gradscore.methods.rows import fold_of
from gradscore.run import HeadInfo, PassInfo, RunInfo, RunStore, SetInfo, check
from gradscore.scoring import score_sets

FEATURES, CLASSES, CHANNELS = 6, 5, {"block1": 3, "block2": 4}
W = np.random.default_rng(9).normal(size=(CLASSES, FEATURES)).astype(np.float32)
LEARNING = [method.name for method in LEARNED if "fit" in method.options]


def drawn(name, rows):
    """Return the arrays of a set, the same for every call."""
    rng = np.random.default_rng(list(name.encode()))
    features = rng.exponential(size=(rows, FEATURES)).astype(np.float32)
    blocks = {b: rng.normal(size=(rows, c)).astype(np.float32) for b, c in CHANNELS.items()}
    return {"features": features, "logits": features @ W.T, **blocks}


def make_run(path, roles, rows=80, *, blocks=True, closed_form=True):
    """Write a run of drawn sets: name to role, or to role and rows."""
    reason = "" if closed_form else "something follows it"
    head = HeadInfo("head", ("head.weight",), None, closed_form, reason)
    info = RunInfo(
        model="python:tests:drawn",
        weights=None,
        weights_sha256="a" * 64,
        preprocessing={},
        precision="float32",
        classes=CLASSES,
        features=FEATURES if closed_form else 0,
        input_shape=(1, 8, 8),
        head=head,
        parameters={"a.weight": 6, "head.weight": W.size},
        groups={"all": ("a.weight", "head.weight"), "last": ("head.weight",)},
    )
    if blocks is not None:
        info.groups["block1"] = ("a.weight",)
    with RunStore.create(path, info, {"weight": W} if closed_form else None) as store:
        if blocks:
            store.add_pass(PassInfo("blocks", "blocks", details={"channels": CHANNELS}))
        for name, role in roles.items():
            role, count = role if isinstance(role, tuple) else (role, rows)
            arrays = drawn(name, count)
            store.add_set(SetInfo(name, role, "drawn", "a" * 64, count))
            base = {
                "index": np.arange(count),
                "path": np.array([f"{k}.png" for k in range(count)], dtype=object),
                "label": np.full(count, -1),
                "logits": arrays["logits"],
            }
            if closed_form:
                base["features"] = arrays["features"]
            shards = {"base": base}
            if blocks:
                means = {block: arrays[block] for block in CHANNELS}
                shards["blocks"] = {"index": np.arange(count), **means}
            store.add_shards(name, shards, (0, count))
    return RunStore(path)


def score(run, name, method, **how):
    (scores,) = score_sets(run, [name], [ScoreSpec(method, **how)]).values()
    (column,) = scores.columns.values()
    return column


def expected(method, x, known):
    """Return the literal score of some rows, learned from others."""
    blocks, blocks0 = ([arrays[b].astype(float) for b in CHANNELS] for arrays in (x, known))
    x, f, x0, f0 = (a[n].astype(float) for a in (x, known) for n in ("features", "logits"))
    b = np.zeros(CLASSES)
    return {
        "react": lambda: literal.react(x, x0, W, b),
        "ash": lambda: literal.ash_s(x, W, b),
        "scale": lambda: literal.scale(x, W, b),
        "knn": lambda: literal.knn(x, x0, 10),
        "nnguide": lambda: literal.nnguide(x, f, x0, f0, 10),
        "fdbd": lambda: literal.fdbd(x, f, x0, W),
        "vim": lambda: literal.vim(x, f, x0, f0, W, b, 3),
        "laplace_energy": lambda: literal.laplace_energy(x, f, x0, f0),
        "laplace_energy_blocks": lambda: literal.laplace_energy_blocks(
            x, f, blocks, x0, f0, blocks0
        ),
    }[method]()


@pytest.mark.parametrize("method", [method.name for method in LEARNED])
def test_a_set_to_fit_to_is_learned_from(tmp_path, method):
    run = make_run(tmp_path / "run", {"mine": "id", "other": "ood", "train": "fit"})
    for name in ("mine", "other"):
        found = score(run, name, method)
        wanted = expected(method, drawn(name, 80), drawn("train", 80))
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-7)
    assert check(run.path) == []
    again = score(RunStore(run.path), "other", method)
    assert again.tobytes() == found.tobytes()


@pytest.mark.parametrize("method", LEARNING)
@pytest.mark.parametrize("how", [{}, {"fit": "mine"}], ids=["default", "named"])
def test_id_rows_that_are_learned_from_are_scored_out_of_fold(tmp_path, method, how):
    run = make_run(tmp_path / "run", {"mine": "id", "other": "ood"})
    known = drawn("mine", 80)
    for name in ("mine", "other"):
        found = score(run, name, method, **how)
        for fold in range(2):
            mine = fold_of(range(80)).numpy() == fold
            learned = {key: values[~mine] for key, values in known.items()}
            rows = {key: values[mine] for key, values in drawn(name, 80).items()}
            wanted = expected(method, rows, learned)
            np.testing.assert_allclose(found[mine], wanted, rtol=2e-5, atol=1e-7)
    assert check(run.path) == []


@pytest.mark.parametrize("method", LEARNING)
def test_several_id_sets_are_learned_from_together_and_scored_out_of_fold(tmp_path, method):
    run = make_run(tmp_path / "run", {"a": "id", "b": ("id", 60), "other": "ood"})
    known = [drawn("a", 80), drawn("b", 60)]
    for name, rows in (("a", 80), ("b", 60), ("other", 80)):
        found = score(run, name, method)
        for fold in range(2):
            others = [fold_of(range(n)).numpy() != fold for n in (80, 60)]
            halves = {
                key: [x[key][other] for x, other in zip(known, others, strict=True)]
                for key in known[0]
            }
            learned = {key: np.concatenate(parts) for key, parts in halves.items()}
            here = fold_of(range(rows)).numpy() == fold
            mine = {key: values[here] for key, values in drawn(name, rows).items()}
            wanted = expected(method, mine, learned)
            np.testing.assert_allclose(found[here], wanted, rtol=2e-5, atol=1e-7)
    assert [list(fit.sets) for fit in run.info.fits.values()] == [["a", "b"]]
    assert check(run.path) == []


def test_several_sets_to_fit_to_are_learned_from_together(tmp_path):
    run = make_run(tmp_path / "run", {"mine": "id", "s": "fit", "t": ("fit", 40)})
    both = [drawn("s", 80), drawn("t", 40)]
    known = {key: np.concatenate([x[key] for x in both]) for key in both[0]}
    wanted = expected("fdbd", drawn("mine", 80), known)
    np.testing.assert_allclose(score(run, "mine", "fdbd"), wanted, rtol=2e-5)


@pytest.mark.parametrize("method", LEARNING)
def test_a_fit_is_stored_once_for_each_setting(tmp_path, method):
    run = make_run(tmp_path / "run", {"mine": "id", "train": "fit"})
    score(run, "mine", method)
    score(run, "mine", method, fit="train")
    assert [fit.method for fit in run.info.fits.values()] == [method]
    score(run, "mine", method, fit="mine")
    assert len(run.info.fits) == 2
    assert check(run.path) == []


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"mine": ("id", 59)}, "at least 30 images to fit to, got 29 in half of the set mine"),
        ({"mine": "id", "t": ("fit", 29)}, "at least 30 images to fit to, got 29 in the set t"),
        ({"a": ("id", 30), "b": ("id", 28)}, "got 29 in half of the set a and b; add a set with"),
        ({"mine": "id", "s": ("fit", 9), "t": ("fit", 20)}, "got 29 in the set s and t; add"),
        ({"other": "ood"}, "Expected a set to fit to, got none;"),
    ],
)
def test_without_enough_images_to_fit_to_it_is_refused(tmp_path, roles, message):
    run = make_run(tmp_path / "run", roles)
    with pytest.raises(NotRecorded, match=message):
        score(run, next(iter(roles)), "knn")


@pytest.mark.parametrize(
    ("roles", "notice"),
    [
        ({"mine": "id", "t": ("fit", 30)}, "learned from 30 images of t (fewer than 100)"),
        ({"mine": "id", "t": ("fit", 100)}, ""),
        ({"mine": "id"}, "no set to fit to: 40 images of mine (fewer than 100) teach what"),
        ({"mine": ("id", 200)}, "no set to fit to: 100 images of mine teach what scores the oth"),
        (
            {"a": ("id", 99), "b": "id"},
            "no set to fit to: 89 images of a and b (fewer than 100) teach",
        ),
    ],
)
def test_what_is_learned_from_little_or_from_the_id_set_itself_is_told(tmp_path, roles, notice):
    spec = ScoreSpec("knn")
    plan = spec.definition.plan(spec, make_run(tmp_path / "run", roles))
    assert plan.notice.startswith(notice)
    assert bool(plan.notice) == bool(notice)


def test_a_set_that_its_user_gave_no_name_is_told_of_without_one(tmp_path):
    run = make_run(tmp_path / "run", {"mine": "id", "t": ("fit", 30)})
    part = PartOfRun(run, {"~fit": ("fit", [Chosen("t")])})
    spec = ScoreSpec("knn", fit="~fit")
    notice = spec.definition.plan(spec, part).notice
    assert notice == "learned from 30 images (fewer than 100)"


@pytest.mark.parametrize("count", [30, 100, 300])
@pytest.mark.parametrize("method", LEARNING)
def test_few_and_many_images_to_fit_to(tmp_path, method, count):
    run = make_run(tmp_path / "run", {"mine": "id", "train": ("fit", count)})
    wanted = expected(method, drawn("mine", 80), drawn("train", count))
    np.testing.assert_allclose(score(run, "mine", method), wanted, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("stages", [["block1"], ["block1", "block2"]])
def test_what_never_varies_or_is_masked_is_told(tmp_path, monkeypatch, stages):
    arrays = drawn("mine", 80)
    for stage in stages:
        arrays[stage] = np.ones_like(arrays[stage])
    arrays["logits"] = np.where(np.arange(CLASSES) == 3, np.float32(-1e9), arrays["logits"])
    monkeypatch.setitem(globals(), "drawn", lambda name, rows: arrays)
    run = make_run(tmp_path / "run", {"mine": "id"})
    plan = ScoreSpec("laplace_energy").definition.plan(ScoreSpec("laplace_energy"), run)
    (masked,) = plan.find_remarks()
    assert masked.startswith("left out of the evidence, as masked: classes 3, whose logits mostly")
    spec = ScoreSpec("laplace_energy_blocks")
    plan = spec.definition.plan(spec, run)
    if len(stages) == 2:
        with pytest.raises(InvalidArgument, match=r"stages whose outputs vary .* laplace_energy"):
            plan.fit()
    else:
        assert plan.find_remarks() == [masked, "left out, as their outputs never vary: block1"]
        assert np.isfinite(score(run, "mine", "laplace_energy_blocks")).all()


@pytest.mark.parametrize("method", LEARNING)
def test_a_value_that_is_not_finite_is_named_and_nothing_is_stored(tmp_path, monkeypatch, method):
    arrays = drawn("mine", 80)
    arrays["features"][7, 3] = np.nan
    monkeypatch.setitem(globals(), "drawn", lambda name, rows: arrays)
    run = make_run(tmp_path / "run", {"mine": "id"})
    with pytest.raises(RunError, match="finite features to learn from, got nan in row 7 of"):
        score(run, "mine", method)
    assert run.info.fits == {}


def test_images_that_are_learned_from_and_tested_on_are_told_of(tmp_path, monkeypatch):
    arrays = drawn("mine", 80)
    for values in arrays.values():
        values[1] = values[0]  # in either half
    monkeypatch.setitem(globals(), "drawn", lambda name, rows: arrays)
    run = make_run(tmp_path / "own", {"mine": "id"})
    (told,) = repeat_notices(run, [ScoreSpec("knn")], ["mine"])
    assert told == "2 images of mine are in both of its halves: scores learned from one know them."
    run = make_run(tmp_path / "run", {"mine": "id", "train": "fit"})
    (told,) = repeat_notices(run, [ScoreSpec("knn")], ["mine", "train"])
    assert told == "80 images of mine are in train, too: methods that learned from it know them."
    assert list(repeat_notices(run, [ScoreSpec("msp")], ["mine"])) == []


def test_a_run_without_block_means_says_how_to_add_them(tmp_path):
    run = make_run(tmp_path / "run", {"mine": "id"}, blocks=False)
    with pytest.raises(NotRecorded, match="no block means; record them with `gradscore extract"):
        score(run, "mine", "laplace_energy_blocks")
    assert len(score(run, "mine", "laplace_energy")) == 80


def test_a_network_without_stages_is_referred_to_the_score_without(tmp_path):
    run = make_run(tmp_path / "run", {"mine": "id"}, blocks=None)
    with pytest.raises(NotRecorded, match=r"No stages were found in .*; laplace_energy needs"):
        score(run, "mine", "laplace_energy_blocks")


@pytest.mark.parametrize("method", [method.name for method in LEARNED])
def test_a_head_without_closed_form_is_refused(tmp_path, method):
    run = make_run(tmp_path / "run", {"mine": "id"}, closed_form=False)
    with pytest.raises(ModelError, match="Expected logits that are W x"):
        score(run, "mine", method)


@pytest.mark.parametrize(
    ("method", "how", "message"),
    [
        ("knn", {"k": 0}, "Expected k of 1 or more, got 0"),
        ("knn", {"k": 1.5}, "Expected k of 1 or more, got 1.5"),
        ("react", {"percentile": 101}, "Expected percentile of 0 to 100, got 101"),
        ("vim", {"dimension": -1}, "Expected dimension of 0 or more, got -1"),
        ("laplace_energy", {"clip": float("nan")}, "Expected clip of 0 to 100, got nan"),
        ("laplace_energy", {"two_sided": True}, "does not honour two_sided; it honours fit, clip"),
        ("knn", {"fit": "absent"}, "Unknown set 'absent' to fit to"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, method, how, message):
    run = make_run(tmp_path / "run", {"mine": "id"})
    with pytest.raises(InvalidArgument, match=message):
        score(run, "mine", method, **how)


@pytest.mark.parametrize("method", LEARNING)
def test_a_fit_of_another_shape_is_refused(tmp_path, method):
    run = make_run(tmp_path / "run", {"mine": "id", "train": "fit"})
    score(run, "mine", method)
    (entry,) = run.info.fits.values()
    arrays = run.read_fit(entry.name)
    largest = max(arrays, key=lambda name: arrays[name].size)
    arrays[largest] = np.zeros((2, 3, 4), arrays[largest].dtype)
    with RunStore.open_for_writing(run.path) as store:
        store.write_fit(entry, arrays)
    with pytest.raises(RunError, match=f"is damaged: no {method} of this run is like it"):
        score(RunStore(run.path), "mine", method)


def test_a_default_device_does_not_reach_scores(tmp_path):
    run = make_run(tmp_path / "run", {"mine": "id"})
    with torch.device("meta"):
        assert np.isfinite(score(run, "mine", "laplace_energy_blocks")).all()
