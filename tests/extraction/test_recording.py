"""``extract --record``: ODIN and Mahalanobis as their papers write them, each its own pass."""

import numpy as np
import pytest
import torch
from helpers.transcriptions import literal_confidence
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from gradscore.data import open_set
from gradscore.errors import DataError, GradScoreError, InvalidArgument, NotRecorded, RunError
from gradscore.extraction.stage_fit import FGSM_STEP, MAGNITUDES, SEED, images_a_side
from gradscore.models.preprocessing import Preprocessing
from gradscore.recorded import Run, extract
from gradscore.run import RunStore, check

SETS = {
    "digits": ("id", "digits:test"),
    "noise": ("ood", "digits:noise"),
    "train": (None, "digits:train"),
}
LIMIT = 30
SMALL = {"layers": "last", "limit": LIMIT, "batch_size": 8}
ODIN = {"record": "odin", "epsilon": (0.0014, 0.2)}
STAGES = {"record": ("mahalanobis",), "fit": "train"}


class Staged(nn.Module):
    """Two stages, computed in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer1 = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.Tanh())
        self.fc = nn.Linear(24, 6)
        self.double().eval()
        self.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
        self.spec = "staged"

    def stages(self, x):
        first = self.layer1(x.double())
        return [first, self.layer2(first)]

    def forward(self, x):
        return self.fc(self.stages(x)[-1].flatten(1))


def inputs(source, limit=LIMIT):
    images = open_set(source, limit=limit)
    prepare = Staged().preprocessing
    return torch.stack([prepare(images[k]) for k in range(len(images))]), images.labels


def files(run):
    return {path.name: path.read_bytes() for path in sorted(run.rglob("*.h5"))} | {
        path.name: path.read_bytes() for path in sorted(run.rglob("*.safetensors"))
    }


def test_odin_is_the_equation(tmp_path):
    store = extract(Staged(), SETS, tmp_path, **ODIN, **SMALL).store
    odin = [name for name in store.info.passes if name != "blocks"]
    assert odin == ["odin-T1000-eps0.0014", "odin-T1000-eps0.2"]
    assert store.info.passes["odin-T1000-eps0.2"].details == {"epsilon": 0.2}
    model = Staged()
    for epsilon in ODIN["epsilon"]:
        got = Run(tmp_path).score("digits", "odin", epsilon=epsilon)
        for score, image in zip(got, inputs("digits:test")[0], strict=True):
            x = image[None].double().requires_grad_()
            torch.softmax(model(x) / 1000, dim=1).max().log().backward()
            logits = model(x + epsilon * x.grad.sign())
            expected = torch.softmax(logits / 1000, dim=1).max()
            # At T = 1000 the scores differ from 1/6 in the fourth digit.
            torch.testing.assert_close(score - 1 / 6, expected.detach() - 1 / 6, rtol=1e-4, atol=0)
    plain = Run(tmp_path).score("digits", "odin")
    assert (Run(tmp_path).score("digits", "odin", epsilon=0.2) > plain).all()
    assert check(tmp_path) == []


def test_a_perturbation_answers_for_its_own_temperature_only(tmp_path):
    extract(Staged(), SETS, tmp_path, **ODIN, **SMALL)
    with pytest.raises(NotRecorded, match=r"record odin -T 10 --epsilon 0.2`"):
        Run(tmp_path).score("digits", "odin", temperature=10, epsilon=0.2)
    with pytest.raises(NotRecorded, match="--layers last --record odin -T 1000 --epsilon"):
        Run(tmp_path).score("digits", "odin", epsilon=0.3)
    store = extract(Staged(), SETS, tmp_path, temperature=(10,), **ODIN, **SMALL).store
    assert "odin-T10-eps0.2" in store.info.passes
    assert Run(tmp_path).score("digits", "odin", temperature=10, epsilon=0.2).shape == (LIMIT,)
    assert Run(tmp_path).score("digits", "odin", temperature=3).shape == (LIMIT,)


def literal_fit(model, magnitudes):
    """Lee et al., Algorithm 1, with FGSM images as OOD; returns magnitudes' FPR95 and a scorer."""
    images, labels = inputs("digits:train")

    def features(x):
        return [stage.mean(dim=(2, 3)) for stage in model.stages(x)]

    with torch.no_grad():
        learned = [z.numpy() for z in features(images)]

    def confidence(stage, x):
        return literal_confidence(features(x)[stage].detach().numpy(), learned[stage], labels)

    def perturbed(stage, image, magnitude):
        x = image[None].double().requires_grad_()
        z = features(x)[stage]
        means = np.stack([learned[stage][labels == c].mean(axis=0) for c in np.unique(labels)])
        centred = learned[stage] - means[np.searchsorted(np.unique(labels), labels)]
        precision = torch.from_numpy(np.linalg.pinv(centred.T @ centred / len(centred)))
        differences = z - torch.from_numpy(means)
        distances = 0.5 * ((differences @ precision) * differences).sum(dim=1)
        distances.min().backward()  # minus the largest confidence
        return x.detach() - magnitude * x.grad.sign()

    def confidences(batch, magnitude):
        rows = [
            [confidence(k, perturbed(k, x, magnitude))[0] for k in range(len(learned))]
            for x in batch
        ]
        return np.array(rows)

    def adversarial(places):
        result = []
        for place in places:
            x = images[place][None].double().requires_grad_()
            nn.functional.cross_entropy(model(x), torch.tensor([labels[place]])).backward()
            result.append((x + FGSM_STEP * x.grad.sign()).detach()[0])
        return torch.stack(result)

    drawn = np.random.default_rng(SEED).permutation(LIMIT)
    half = images_a_side(LIMIT)
    fitting, choosing = np.sort(drawn[:half]), np.sort(drawn[half : 2 * half])
    rates, scorers = [], []
    for magnitude in magnitudes:
        x = np.concatenate(
            [
                confidences(images[fitting], magnitude),
                confidences(adversarial(fitting), magnitude),
            ]
        )
        scaler = StandardScaler().fit(x)
        model_ = LogisticRegression(max_iter=1000)
        model_.fit(scaler.transform(x), np.repeat([0, 1], half))

        def score(batch, scaler=scaler, model_=model_, magnitude=magnitude):
            log_p = model_.predict_log_proba(scaler.transform(confidences(batch, magnitude)))
            return log_p[:, 0] - log_p[:, 1]

        clean, wrong = score(images[choosing]), score(adversarial(choosing))
        threshold = np.sort(clean)[::-1][int(np.ceil(0.95 * half)) - 1]
        rates.append((wrong >= threshold).mean())
        scorers.append(score)
    return rates, scorers[int(np.argmin(rates))]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    extract(Staged(), SETS, run, **STAGES, **SMALL)
    return run


@pytest.mark.parametrize("magnitudes", [MAGNITUDES, (0.1, 0.3), (1.0, 0.3)], ids=str)
def test_mahalanobis_over_stages_is_the_papers(tmp_path, monkeypatch, magnitudes):
    monkeypatch.setattr("gradscore.extraction.stage_fit.MAGNITUDES", magnitudes)
    store = extract(Staged(), SETS, tmp_path, **STAGES, **SMALL).store
    rates, score = literal_fit(Staged(), magnitudes)
    details = store.info.passes["mahalanobis-train"].details
    np.testing.assert_allclose(store.read_fit(details["fit"])["fpr95"], rates)
    assert details["magnitude"] == magnitudes[int(np.argmin(rates))]
    assert details["stages"] == {"block1": "layer1", "block2": "layer2"}
    for name in ("digits", "noise"):
        got = Run(tmp_path).score(name, "mahalanobis_stages", fit="train").numpy()
        np.testing.assert_allclose(got, score(inputs(SETS[name][1])[0]), rtol=1e-4, atol=1e-4)
    assert check(tmp_path) == []


def test_a_small_labelled_set_is_told_of(recorded):
    (fit,) = RunStore(recorded).info.fits.values()
    assert fit.name.startswith("mahalanobis_stages-train-")
    assert fit.notice == (
        "30 labelled images, fewer than 1000: 15 fit the regression and 15 choose the magnitude"
    )


def test_two_runs_are_equal_byte_for_byte(recorded, tmp_path):
    extract(Staged(), SETS, tmp_path, **STAGES, **SMALL)
    assert files(tmp_path) == files(recorded)


class Stop:
    """Raises after some images of a piece of work."""

    def __init__(self, word, after):
        self.word, self.left = word, after

    def start(self, total, description):
        self.counting = description == self.word

    def advance(self, n):
        self.left -= n * self.counting
        if self.left < 0:
            raise KeyboardInterrupt

    def finish(self):
        self.counting = False


@pytest.mark.parametrize(("word", "after"), [("fit train", 40), ("noise", 9)])
def test_an_interrupted_recording_resumes_to_the_same_bytes(tmp_path, word, after):
    how = {**ODIN, **STAGES, **SMALL, "record": ("odin", "mahalanobis"), "shard_rows": 8}
    extract(Staged(), SETS, tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        extract(Staged(), SETS, tmp_path / "run", progress=Stop(word, after), **how)
    assert check(tmp_path / "run") == []
    extract(Staged(), SETS, tmp_path / "run", **how)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_a_stored_fit_is_read_not_learned_again(recorded, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("learned again")

    extract(Staged(), SETS, tmp_path, **STAGES, **SMALL)
    monkeypatch.setattr("gradscore.extraction.stage_fit.learn_stages", never)
    later = {"photos": ("ood", "digits:photos")}
    extract(Staged(), later, tmp_path, **STAGES, **SMALL)
    assert Run(tmp_path).score("photos", "mahalanobis_stages", fit="train").shape == (LIMIT,)


def test_a_changed_setting_is_another_fit(tmp_path, monkeypatch):
    extract(Staged(), SETS, tmp_path, **STAGES, **SMALL)
    monkeypatch.setattr("gradscore.extraction.stage_fit.FGSM_STEP", 0.1)
    with pytest.raises(RunError, match=r"Pass mahalanobis-train of the run has fit 'mahala"):
        extract(Staged(), SETS, tmp_path, **STAGES, **SMALL)
    assert len(RunStore(tmp_path).info.fits) == 1


def test_damage_to_a_fit_is_found(tmp_path):
    extract(Staged(), SETS, tmp_path, **STAGES, **SMALL)
    (file,) = (tmp_path / "fits").iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    (problem,) = check(tmp_path)
    assert problem.file == f"fits/{file.name}"
    assert "SHA-256 is not the recorded one" in problem.reason
    with pytest.raises(RunError, match="is damaged: its SHA-256"):
        Run(tmp_path).score("noise", "mahalanobis_stages", fit="train")
    file.unlink()
    assert check(tmp_path)[0].reason == "is missing"


def test_what_the_run_lacks_is_answered_by_the_option(tmp_path):
    extract(Staged(), SETS, tmp_path, **SMALL)
    run = Run(tmp_path)
    with pytest.raises(NotRecorded, match="--layers last --record mahalanobis --fit train"):
        run.score("noise", "mahalanobis_stages", fit="train")
    with pytest.raises(InvalidArgument, match="Unknown set 'absent' to fit to; the run holds"):
        run.score("noise", "mahalanobis_stages", fit="absent")
    with pytest.raises(InvalidArgument, match="Method msp does not honour epsilon"):
        run.score("noise", "msp", epsilon=0.1)
    with pytest.raises(InvalidArgument, match=r"Expected epsilon >= 0, got -0.1"):
        run.score("noise", "odin", epsilon=-0.1)


def test_a_set_of_the_run_can_be_fitted_to_later(tmp_path):
    extract(Staged(), SETS, tmp_path, **SMALL)
    only = {"noise": SETS["noise"]}
    store = extract(Staged(), only, tmp_path, **STAGES, **SMALL).store
    assert store.sets["noise"].complete("mahalanobis-train")
    assert not store.sets["digits"].complete("mahalanobis-train")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"record": "energy"}, "record odin or mahalanobis or surrogates, got 'energy'"),
        ({"record": "odin"}, "epsilon > 0 to record odin with, got None; without perturbation"),
        ({"record": "odin", "epsilon": (0.1, 0)}, "epsilon > 0 to record odin with, got 0.1, 0"),
        ({"record": "odin", "epsilon": (-1,)}, "Expected epsilon >= 0, got -1"),
        ({"epsilon": (0.1,)}, "epsilon with record odin only"),
        ({"fit": "train"}, "fit with record mahalanobis only"),
        ({"record": "mahalanobis"}, "labelled ID set to fit to, to record mahalanobis with"),
        (
            {"record": "mahalanobis", "fit": "absent"},
            "Unknown set 'absent' to fit to; give its images, too, as a set of that name",
        ),
        ({"record": "mahalanobis", "fit": "noise"}, "no image of set 'noise' has one"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(tmp_path, how, message):
    with pytest.raises(GradScoreError, match=message):
        extract(Staged(), SETS, tmp_path / "run", **how, **SMALL)
    assert not (tmp_path / "run").exists()


def test_labels_that_the_model_lacks_are_refused(tmp_path):
    images = np.zeros((4, 1, 8, 8), np.float32)
    np.savez(tmp_path / "set.npz", images=images, labels=np.array([0, 1, 6, 2]))
    sets = {"train": (None, tmp_path / "set.npz")}
    with pytest.raises(DataError, match="labels of 0 to 5 in set 'train', got 6"):
        extract(Staged(), sets, tmp_path / "run", **STAGES, **SMALL)


def test_images_that_cannot_be_read_are_left_out_of_the_fit(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = "".join(f"{number}.png,{number % 6}\n" for number in range(12))
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    (tmp_path / "5.png").write_bytes(b"broken")
    sets = {"train": (None, tmp_path / "list.csv")}
    with pytest.raises(DataError, match=r"5\.png: not an image.*`on_error='skip'`"):
        extract(Staged(), sets, tmp_path / "run", **STAGES, **SMALL)
    store = extract(Staged(), sets, tmp_path / "run", on_error="skip", **STAGES, **SMALL).store
    assert store.sets["train"].recorded() == 11
    assert check(tmp_path / "run") == []


def recorded_in(precision, folder):
    how = {**ODIN, **STAGES, **SMALL, "record": ("odin", "mahalanobis")}
    sets = {name: SETS[name] for name in ("digits", "train")}
    extract("digits", sets, folder, precision=precision, **how)
    return Run(folder)


@pytest.fixture(scope="module")
def in_single(tmp_path_factory):
    return recorded_in("float32", tmp_path_factory.mktemp("single"))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_close(in_single, tmp_path, precision):
    lower = recorded_in(precision, tmp_path)
    for method, options in (("odin", {"epsilon": 0.2}), ("mahalanobis_stages", {"fit": "train"})):
        single, half = (run.score("digits", method, **options) for run in (in_single, lower))
        assert torch.corrcoef(torch.stack([single, half]))[0, 1] > 0.9
