"""Large sets choose by some of their images, those of the surrogates among them."""

import numpy as np
import pytest
from helpers.recorded_run import make_run

import gradscore as gs
from gradscore.choosing import choose_by_half, fewer, ood_aurocs
from gradscore.choosing.halves import split
from gradscore.methods import make_spec
from gradscore.methods.rows import drawn_places
from gradscore.metrics import auroc
from gradscore.run import FailedRow, RunStore
from gradscore.scoring import score_sets

SETS = {"digits": ("id", "digits:test"), "noise": ("ood", "digits:noise")}
SPEC = make_spec("energy")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return gs.extract("digits", SETS, path, layers="last", record="surrogates", limit=240).store


def test_images_are_drawn_by_a_fixed_seed(monkeypatch):
    mask = np.arange(20) % 2 == 0
    assert fewer.at_most(mask) is mask
    monkeypatch.setattr(fewer, "MOST_IMAGES", 4)
    few = fewer.at_most(mask)
    assert few.sum() == 4
    assert not few[~mask].any()
    np.testing.assert_array_equal(few, fewer.at_most(mask))
    other = np.flatnonzero(mask & ~few)[0]
    np.testing.assert_array_equal(np.flatnonzero(fewer.at_most(mask, {other}) & ~few), [other])


def test_images_of_classes_in_turn_are_of_every_class(monkeypatch):
    monkeypatch.setattr(fewer, "MOST_IMAGES", 200)
    few = fewer.at_most(np.ones(1000, bool))
    assert set((np.flatnonzero(few) % 10).tolist()) == set(range(10))


def test_large_sets_alone_are_asked_in_part(tmp_path, monkeypatch):
    whole = RunStore(make_run(tmp_path / "run"))
    assert fewer.fewer(whole, ["digits", "noise"]) is whole
    monkeypatch.setattr(fewer, "MOST_IMAGES", 25)
    part = fewer.fewer(whole, ["digits", "noise"])
    for name, most in (("digits", 25), ("noise", None), ("train", None)):
        kept, every = (
            np.concatenate([block["features"] for block in one.blocks(name, ("features",))])
            for one in (part, whole)
        )
        places = slice(None) if most is None else drawn_places(len(every), most)
        np.testing.assert_array_equal(kept, every[places])
        assert part.sets[name].recorded() == len(kept)
    whole.sets["digits"].failed[:] = [FailedRow(0, "a", "b"), FailedRow(2, "a", "b")]
    assert fewer.fewer(whole, ["digits"]).sets["digits"].recorded() == 25


def test_a_choice_by_some_images_is_told_and_is_that_of_these(run, monkeypatch):
    whole = choose_by_half(run)
    monkeypatch.setattr(fewer, "MOST_IMAGES", 80)
    choice = choose_by_half(run)
    changed = {path for block in run.blocks("digits~phase") for path in block["path"]}
    paths = [path for block in run.blocks("digits") for path in block["path"]]
    half = split(run, "digits", 2)[0]
    made = [place for place in np.flatnonzero(half) if paths[place] in changed]
    asked = np.flatnonzero(fewer.at_most(half, made))
    told = f"Chosen by {len(asked)} of the 240 images of digits, drawn by a fixed seed."
    assert choice.notes[0].startswith(told)
    assert [(one.images, one.of) for one in choice.chosen_by] == [(len(asked), 240)]
    scored = score_sets(run, ["digits", "digits~phase", "noise"], [SPEC])
    ids, shifted, ood = (one.columns["energy"] for one in scored.values())
    kept = [paths[place] for place in made]
    of_half = [path in kept for block in run.blocks("digits~phase") for path in block["path"]]
    found = next(row.ranked for row in choice.far if row.spec == SPEC)
    assert found.aurocs["phase"] == auroc(ids[asked], shifted[of_half])
    # Which surrogates are no shift is asked of the same images as ever.
    assert [n for n in choice.notes if "keeps" in n] == [n for n in whole.notes if "keeps" in n]
    ids, ood = (x[drawn_places(len(x), 80)] for x in (ids, ood))
    assert ood_aurocs(run, choice)[SPEC] == auroc(ids, ood)


def test_a_choice_finds_the_rows_that_it_asks_once(run, monkeypatch):
    monkeypatch.setattr(fewer, "MOST_IMAGES", 80)
    read, scored = type(run).blocks, []

    def blocks(self, name, fields=(), *how):
        scored.append(name) if "logits" in fields else None
        return read(self, name, fields, *how)

    monkeypatch.setattr(type(run), "blocks", blocks)
    choice = choose_by_half(run)
    assert len(choice.far) > 10
    assert scored.count("digits") == 1
    assert max(map(scored.count, scored)) == 1
