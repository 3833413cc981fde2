"""Every method against a literal float64 transcription, and what may be asked of it."""

import math

import pytest
import torch
from helpers.recorded_run import ROLES, SIZES, drawn_norms, drawn_set, make_run, tensors

from gradscore import choices, scoring
from gradscore.errors import InvalidArgument, ModelError, NotRecorded, RunError
from gradscore.methods import METHODS, ScoreSpec, column_names, make_specs
from gradscore.methods.gradnorm import recorded_groups
from gradscore.methods.learned import LEARNED
from gradscore.run import RunStore
from gradscore.scoring import iterate_scores, score_sets


def p_norm(x, p):
    return x.abs().amax(1) if p == math.inf else x.abs().pow(p).sum(1).pow(1 / p)


def gradnorm(x, f, p=1.0, t=1.0, target="uniform"):
    """Eqs. 7 to 9, and its one-hot counterpart."""
    q = torch.softmax(f / t, dim=1)
    if target == "one-hot":
        e = torch.nn.functional.one_hot(f.argmax(1), f.shape[1])
        return -p_norm(x, p) * p_norm(q - e, p) / t
    return p_norm(x, p) * p_norm(1 - f.shape[1] * q, p) / (f.shape[1] * t)


# name: the spec, and the paper's equation for it
CASES = {
    "gradnorm": (ScoreSpec("gradnorm"), gradnorm),
    "gradnorm p T": (
        ScoreSpec("gradnorm", p=0.3, temperature=4),
        lambda x, f: gradnorm(x, f, 0.3, 4),
    ),
    "gradnorm one-hot": (
        ScoreSpec("gradnorm", target="one-hot", p=2),
        lambda x, f: gradnorm(x, f, 2, target="one-hot"),
    ),
    "u": (ScoreSpec("u", p=math.inf), lambda x, f: x.abs().amax(1)),
    "v": (
        ScoreSpec("v", temperature=2),
        lambda x, f: (1 - 5 * torch.softmax(f / 2, 1)).abs().sum(1),
    ),
    "kl": (
        ScoreSpec("kl", temperature=3),
        lambda x, f: -math.log(5) - torch.log_softmax(f / 3, 1).mean(1),
    ),
    "msp": (ScoreSpec("msp"), lambda x, f: torch.softmax(f, 1).amax(1)),
    "max_logit": (ScoreSpec("max_logit"), lambda x, f: f.amax(1)),
    "gen": (
        ScoreSpec("gen"),
        lambda x, f: -(torch.softmax(f, 1) * (1 - torch.softmax(f, 1))).pow(0.1).sum(1),
    ),
    "odin": (ScoreSpec("odin"), lambda x, f: torch.softmax(f / 1000, 1).amax(1)),
    "energy": (
        ScoreSpec("energy", temperature=2),
        lambda x, f: 2 * torch.logsumexp(f / 2, 1),
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    passes = (("uniform", 1.0, 1.0), ("one-hot", 2.0, 2.0))
    return RunStore(make_run(tmp_path_factory.mktemp("runs") / "run", passes=passes))


@pytest.mark.parametrize(("spec", "equation"), CASES.values(), ids=CASES.keys())
def test_equals_the_equation(run, spec, equation):
    scored = score_sets(run, ["digits", "photos"], [spec])
    for name, scores in scored.items():
        (column,) = scores.columns.values()
        expected = equation(*tensors(name))
        torch.testing.assert_close(torch.from_numpy(column), expected, rtol=2e-6, atol=1e-12)


def test_the_table_has_the_names_that_the_command_line_shows():
    assert tuple(METHODS) == choices.METHODS
    assert all(name == method.name for name, method in METHODS.items())


def test_every_method_that_needs_no_fit_has_a_case():
    tested = {spec.method for spec, _ in CASES.values()} | {method.name for method in LEARNED}
    assert {name for name, method in METHODS.items() if not method.required} == tested


def test_one_read_gives_all_scores_as_each_alone(run):
    specs = [spec for spec, _ in CASES.values()]
    together = score_sets(run, ["noise"], specs)["noise"]
    assert list(together.columns) == column_names(specs)
    for spec, column in zip(specs, together.columns.values(), strict=True):
        (alone,) = score_sets(run, ["noise"], [spec])["noise"].columns.values()
        assert column.tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    ("specs", "fewer"),
    [([ScoreSpec("gradnorm"), ScoreSpec("u")], 1), ([ScoreSpec("gradnorm"), ScoreSpec("kl")], 0)],
    ids=["light", "heavy"],
)
def test_a_thread_is_left_to_reading_only_while_a_light_block_is_scored(
    run, monkeypatch, specs, fewer
):
    threads = []
    check = scoring._check_finite
    monkeypatch.setattr(
        scoring, "_check_finite", lambda *a: (threads.append(torch.get_num_threads()), check(*a))
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in iterate_scores(run, ["noise"], specs):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threads == [3 - fewer] * 2


def test_a_large_finite_value_is_no_damage(tmp_path):
    def enlarge(name, arrays):
        arrays["features"][:, :3] = 3e38

    run = RunStore(make_run(tmp_path / "run", change=enlarge))
    (scores,) = score_sets(run, ["noise"], [ScoreSpec("u", p=math.inf)]).values()
    assert len(scores) == 25


def test_rows_keep_the_order_of_the_manifest(run):
    drawn, scores = drawn_set("digits"), score_sets(run, ["digits"], [ScoreSpec("u")])["digits"]
    assert scores.path.tolist() == drawn["path"].tolist()
    assert scores.label.tolist() == drawn["label"].tolist()
    assert scores.predicted.tolist() == drawn["logits"].argmax(1).tolist()
    assert [len(b) for b in iterate_scores(run, ["digits"], [ScoreSpec("u")])] == [16, 16, 8]


def test_layers_combine_recorded_norms(run):
    norms = torch.from_numpy(drawn_norms("noise")).double()
    cases = {
        "block1": norms[:, 1:3].sum(1),
        "all": norms.sum(1),
        "body.*": norms[:, 1:3].sum(1),
        "stem": norms[:, 0],
    }
    specs = [ScoreSpec("gradnorm", layers=layers) for layers in cases]
    columns = score_sets(run, ["noise"], specs)["noise"].columns
    for (layers, expected), column in zip(cases.items(), columns.values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(column), expected, msg=layers)
    spec = ScoreSpec("gradnorm", layers="all", target="one-hot", temperature=2.0, p=2.0)
    (column,) = score_sets(run, ["noise"], [spec])["noise"].columns.values()
    expected = -(2 * norms).pow(2).sum(1).sqrt()
    torch.testing.assert_close(torch.from_numpy(column), expected, rtol=1e-6, atol=0)


def test_without_a_closed_form_last_is_recorded_and_its_factors_refused(tmp_path):
    run = RunStore(make_run(tmp_path / "run", closed_form=False))
    column = score_sets(run, ["noise"], [ScoreSpec("gradnorm")])["noise"].columns["gradnorm"]
    assert column.tolist() == drawn_norms("noise")[:, 3].tolist()
    for method in ("u", "v"):
        with pytest.raises(ModelError, match=r"Expected logits that are W .*something follows it"):
            score_sets(run, ["noise"], [ScoreSpec(method)])


def test_groups_that_the_run_answers_end_with_last(run, tmp_path):
    assert recorded_groups(run) == ["stem", "block1", "all", "last"]
    bare = RunStore(make_run(tmp_path / "run", passes=()))
    with pytest.raises(
        NotRecorded,
        match=r"record them with `.*run --model python:tests:drawn --layers all`",
    ):
        recorded_groups(bare)


def test_what_is_not_recorded_names_the_option_that_records_it(run):
    spec = ScoreSpec("gradnorm", layers="block1", p=0.5, temperature=2)
    named = rf"`gradscore extract --run {run.path} --model python:tests:drawn"
    expected = rf"{named} --layers block1 -p 0.5 -T 2 --target uniform`"
    with pytest.raises(NotRecorded, match=expected):
        next(iterate_scores(run, ["noise"], [spec]))


@pytest.mark.parametrize(
    ("sets", "specs", "message"),
    [
        (["absent"], [ScoreSpec("u")], "Unknown set 'absent'; the run holds: digits, noise"),
        (["noise"], [], "at least one question, got none"),
        (["noise"], [ScoreSpec("gradnorm", layers="block9")], "block9"),
    ],
)
def test_wrong_sets_and_specs_are_refused(run, sets, specs, message):
    with pytest.raises(InvalidArgument, match=message):
        score_sets(run, sets, specs)


@pytest.mark.parametrize("field", ["features", "logits"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named_with_its_row(tmp_path, field, value):
    def spoil(name, arrays):
        if name == "noise":
            arrays[field][21, 1] = value

    run = RunStore(make_run(tmp_path / "run", change=spoil))
    with pytest.raises(RunError, match=rf"finite {field}.*row 21 of set 'noise' \(noise/21.png\)"):
        score_sets(run, ["digits", "noise"], [ScoreSpec("gradnorm")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "absent"}, "Unknown method 'absent'; known: gradnorm, u, v, kl, msp"),
        ({"method": "enrgy"}, "Did you mean energy?"),
        ({"method": "msp", "p": 2}, "msp does not honour p; it honours temperature"),
        ({"method": "max_logit", "temperature": 2}, "max_logit .* honours no option"),
        ({"method": "gradnorm", "p": 0}, "p > 0, got p = 0"),
        ({"method": "v", "temperature": -1}, "temperature > 0, got -1"),
        ({"method": "gradnorm", "target": "both"}, "uniform or one-hot, got 'both'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        ScoreSpec(**options)


def test_an_option_goes_to_the_methods_that_honour_it():
    asked = make_specs(["gradnorm", "msp", "u", "u"], p=2, temperature=None)
    assert asked == [ScoreSpec("gradnorm", p=2), ScoreSpec("msp"), ScoreSpec("u", p=2.0)]
    with pytest.raises(InvalidArgument, match=r"None of the chosen methods \(msp\) honours p"):
        make_specs(["msp"], p=2)
    with pytest.raises(InvalidArgument, match="Unknown option depth; known: layers, p"):
        make_specs(["msp"], depth=2)


def test_columns_name_what_differs():
    specs = [
        ScoreSpec("gradnorm", layers="block4", p=2),
        ScoreSpec("gradnorm", p=math.inf),
        ScoreSpec("energy"),
        ScoreSpec("msp", temperature=2),
        ScoreSpec("msp", temperature=0.5),
    ]
    assert column_names(specs) == [
        "gradnorm[layers=block4,p=2]",
        "gradnorm[layers=last,p=inf]",
        "energy",
        "msp[T=2]",
        "msp[T=0.5]",
    ]


def test_confident_softmax_does_not_tie():
    from gradscore.methods.confidence import max_softmax

    f = torch.tensor([[20.0, 0.0], [21.0, 0.0], [25.0, 0.0]])
    assert max_softmax(f, 1.0).diff().gt(0).all()


def test_the_drawn_sets_are_what_the_tests_think():
    assert sorted(ROLES) == sorted(SIZES)
