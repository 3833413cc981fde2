"""The choice for a model and ID images that are held in Python."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import gradscore as gs
from gradscore.choosing import choose_by_half
from gradscore.choosing.halves import split
from gradscore.choosing.recording import recorded_images
from gradscore.data import images_in_memory, open_set
from gradscore.errors import DataError, InvalidArgument, NotRecorded
from gradscore.models.preprocessing import Preprocessing

COUNT = 160


@pytest.fixture(scope="module")
def model():
    return gs.create_model("digits")


@pytest.fixture(scope="module")
def pictures():
    images = open_set("digits:test", classes=10)
    return [images[place] for place in range(COUNT)], torch.from_numpy(images.labels[:COUNT])


@pytest.fixture(scope="module")
def inputs(model, pictures):
    return torch.stack([model.preprocessing(picture) for picture in pictures[0]])


@pytest.fixture(scope="module")
def by_hand(model, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hand")
    arrays = np.stack([np.asarray(picture) for picture in pictures[0]])
    np.savez(folder / "id.npz", images=arrays, labels=pictures[1].numpy())
    sets = {"id": ("id", folder / "id.npz")}
    run = gs.extract(model, sets, folder / "run", layers="last", record="surrogates")
    return gs.choose(run)


@pytest.fixture(scope="module")
def by_tensor(model, inputs):
    return gs.choose(model, inputs)


def test_labelled_inputs_give_the_answer_of_the_two_steps_by_hand(
    model, pictures, inputs, by_hand
):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labels = pictures[1]
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
    assert gs.choose(model, loader).to_json() == by_hand.to_json()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


class Pictures(Dataset):
    """Pictures of PIL with labels that are known without reading one, as torchvision has them."""

    def __init__(self, pictures, targets):
        self.pictures, self.targets = pictures, targets.tolist()

    def __len__(self):  # noqa: D105
        return len(self.pictures)

    def __getitem__(self, place):  # noqa: D105
        return self.pictures[place], self.targets[place]


def test_pictures_of_pil_are_preprocessed_as_files_are(model, pictures, by_hand):
    assert gs.choose("digits", Pictures(*pictures)).to_json() == by_hand.to_json()


def test_a_tensor_needs_no_labels(by_tensor):
    assert by_tensor.by == "far"
    assert by_tensor.sets == ("id",)
    assert len(by_tensor.far[0].ranked.aurocs) >= 3


def test_of_the_half_that_is_kept_for_the_threshold_nothing_is_looked_at(model, inputs, by_tensor):
    def chosen(images):
        with recorded_images(model, images, None, **HOW) as run:
            return choose_by_half(run)

    with recorded_images(model, inputs, None, **HOW) as run:
        first = split(run, "id", 2)[0]
    order = [int(path.rpartition("/")[2]) for path in images_in_memory("id", inputs).paths]
    chose = torch.tensor(order)[torch.from_numpy(first)]
    changed = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(1))
    changed[chose] = inputs[chose]
    choice = chosen(inputs)
    assert [(one.images, one.of) for one in choice.chosen_by] == [(COUNT // 2, COUNT)]
    assert "80 of the 160 images of id, drawn by a fixed seed" in choice.notes[0]
    assert chosen(changed).to_json() == choice.to_json()
    assert gs.choose(model, changed).to_json() != by_tensor.to_json()


HOW = {"preprocessing": None, "layers": "last", "batch_size": 64}


def test_further_images_are_fitted_to(model, inputs):
    notes = gs.choose(model, inputs[:120], fit=inputs[60:]).notes
    assert not any("no set to fit to" in note for note in notes)
    assert "60 images of id are in fit, too: methods that learned from it know them." in notes


def own_model(channels=1, classes=6):
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes)]
    return nn.Sequential(*layers).eval()


def test_without_a_known_normalisation_the_near_table_decides_and_the_far_one_is_told_of(inputs):
    choice = gs.choose(own_model(), inputs)
    assert choice.by == "near"
    assert "Without surrogates there is no far table; give how images are normalised" in (
        " ".join(choice.notes)
    )
    how = {"mean": 0.3, "std": 0.38}
    assert gs.choose(own_model(), inputs, preprocessing=how).far


def test_tensors_are_not_resized_again(inputs):
    model = own_model()
    model.preprocessing = Preprocessing(4, 4, (0.3,), (0.38,), mode="L")
    assert gs.choose(model, inputs[:60]).far


def test_layers_of_the_model_are_compared_where_they_are_asked_for(model, inputs):
    layers = {row.spec.layers for row in gs.choose(model, inputs[:80], layers="all").far}
    assert {"last", "all"} < layers


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, 1, 8, 8), "at least one image, got none"),
        (torch.zeros(5, 64), r"a DataLoader of one, got a tensor \[5, 64\]"),
        (
            torch.zeros(5, 1, 8, 8, dtype=torch.uint8),
            r"Expected floating .*, got torch\.uint8",
        ),
        (torch.zeros(5, 2, 8, 8), "channels"),
        ("digits:test", "got str"),
        (iter([]), "got list_iterator"),
        ([1, 2], "got int as item 0"),
        ([{"label": 1}], "got NoneType as item 0"),
        (3, "got int"),
    ],
)
def test_what_holds_no_images_is_one_line(model, images, message):
    with pytest.raises(InvalidArgument, match=message):
        gs.choose(own_model(2) if "channels" in message else model, images)


def test_a_stream_of_images_is_refused_with_the_way_out(model):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([torch.zeros(1, 8, 8)])

    for stream in (Stream(), DataLoader(Stream())):
        with pytest.raises(InvalidArgument, match=r"got Stream.*torch\.cat"):
            gs.choose(model, stream)


def test_images_that_are_normalised_otherwise_are_refused(model, inputs):
    with pytest.raises(DataError, match=r"image \d+: expected values of 0 to 1 before a"):
        gs.choose(model, inputs * 255)
    with pytest.raises(DataError, match=r"image \d+: .* got nan to nan"):
        gs.choose(model, inputs * float("nan"))


def test_a_model_without_images_and_a_run_with_images_are_one_line(model, inputs, tmp_path):
    with pytest.raises(InvalidArgument, match="Expected ID images with a model"):
        gs.choose(model)
    run = gs.extract(
        "digits", {"a": ("id", "digits:test")}, tmp_path / "r", layers="last", limit=30
    )
    with pytest.raises(InvalidArgument, match=r"ask a run without them: `choose\(run\)`"):
        gs.choose(run, inputs)


def test_pictures_need_to_know_how_they_become_inputs(pictures):
    with pytest.raises(InvalidArgument, match="Expected how pictures become the model's input"):
        gs.choose(own_model(), Pictures(*pictures))


def test_too_few_images_or_no_table_at_all_are_refused(inputs):
    with pytest.raises(NotRecorded, match="Expected at least 10 ID images to choose by, got 9"):
        gs.choose(own_model(), inputs[:9])
    with pytest.raises(
        NotRecorded, match=r"^Without surrogates .*; give how .* There is no near table: a h"
    ):
        gs.choose(own_model(classes=3), inputs[:30])


def test_arguments_of_a_run_and_of_a_model_are_kept_apart(model, inputs):
    with pytest.raises(InvalidArgument, match="Expected sets with a run only, got 'a' with a mod"):
        gs.choose(model, inputs, sets="a")
    with pytest.raises(InvalidArgument, match="Expected layers with a model and images only, got"):
        gs.choose("run", layers="all")
    with pytest.raises(InvalidArgument, match="Expected the name of a set to fit to, got a Tenso"):
        gs.choose("run", fit=inputs)
    for wrong in (None, 3):
        with pytest.raises(InvalidArgument, match="Expected a run or its directory, got a"):
            gs.choose(wrong)
    with pytest.raises(InvalidArgument, match="Expected preprocessing with fields of"):
        gs.choose(model, inputs, preprocessing={"maen": 1})
    with pytest.raises(DataError, match="Expected images of 1 channels, as the model takes them"):
        gs.choose(model, torch.rand(20, 3, 8, 8))


def test_outputs_that_are_no_logits_are_told_of(model, inputs):
    outputs = nn.Sequential(model, nn.Softmax(1)).eval()
    assert "its outputs are probabilities, not logits" in " ".join(
        gs.choose(outputs, inputs).notes
    )


def test_labels_are_taken_where_they_are_known_without_reading_an_image(inputs):
    labels = torch.arange(COUNT) % 10
    whole = TensorDataset(inputs, labels)
    assert images_in_memory("a", whole).labels.tolist() == labels.tolist()
    part = images_in_memory("a", DataLoader(Subset(whole, [5, 7])))
    assert part.labels.tolist() == [5, 7]
    assert part.paths == ["a/0", "a/1"]
    assert set(images_in_memory("a", inputs).labels.tolist()) == {-1}


def test_images_without_labels_are_taken_in_a_drawn_order(inputs):
    first, again = images_in_memory("a", inputs), images_in_memory("a", inputs)
    assert first.paths == again.paths != sorted(first.paths)
    place = int(first.paths[3].rpartition("/")[2])
    np.testing.assert_array_equal(first[3], inputs[place].numpy())


def test_mappings_and_a_loaders_collate_are_understood(inputs):
    items = [{"pixel_values": image, "labels": 0} for image in inputs[:3]]
    held = images_in_memory("a", items)
    assert held[0].shape == (1, 8, 8)

    def collate(batch):
        return torch.stack([entry["pixel_values"] * 2 for entry in batch])

    loader = images_in_memory("a", DataLoader(items, collate_fn=collate))
    np.testing.assert_array_equal(loader[1], held[1] * 2)


@pytest.mark.parametrize("mean", [0.0, 0.1307, 0.485])
def test_an_8_bit_picture_comes_back_as_it_was(mean):
    preprocessing = Preprocessing(None, None, (mean,), (0.229,), mode="L")
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    tensor = preprocessing(picture)[None]
    back = images_in_memory("a", tensor, mean=(mean,), std=(0.229,))[0]
    assert torch.equal(preprocessing(back), tensor[0])
    np.testing.assert_array_equal(back[0], np.arange(256, dtype=np.float32).reshape(16, 16) / 255)
