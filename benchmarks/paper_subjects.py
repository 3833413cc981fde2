"""The models and sets of Huang, Geng & Li (NeurIPS 2021), and what stands in for them."""

from dataclasses import dataclass
from pathlib import Path

from gradscore.data.declared import build_list, problems, read_declaration

DECLARATION = Path(__file__).parents[1] / "data_manifests" / "paper_imagenet.json"
BIT, DENSENET = "bit:BiT-S-R101x1", "timm:densenet121"
FAMILY = tuple(f"BiT-S-R{size}" for size in ("50x1", "101x1", "50x3", "152x2", "101x3"))
AUTHORS = "http://pages.cs.wisc.edu/~huangrui/finetuned_model"
GOOGLE = "https://storage.googleapis.com/bit_models"
TIMM = "model.safetensors of https://huggingface.co/timm/densenet121.ra_in1k"
TRAIN, NOISE = "train", "noise"
CENTRAL = {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": 0.5, "std": 0.5}

Sets = dict[str, tuple[str | None, str]]


@dataclass(frozen=True)
class Subject:
    """One model of the paper on its sets, or what stands in for it.

    Attributes:
        name: The paper's model.
        model: Spec of the model that is run.
        weights: Its weight file.
        tables: Which tables it has rows in; ``ablations`` are tables 2 and 5, and the sweeps.
        sets: Set name to role and source; :data:`TRAIN` is the labelled ID set to learn from.
        origin: Where the weight file comes from.
        preprocessing: What differs from the model's own.
        noise: Side of the images that Lee & AlRegib learns to tell from ID, where it is compared.
    """

    name: str
    model: str
    weights: Path
    tables: tuple[str, ...]
    sets: Sets
    origin: str = ""
    preprocessing: dict | None = None
    noise: int | None = None

    @property
    def layers(self) -> str:
        """Return the parameters whose norms are recorded: ablations ask for every layer."""
        return "all" if "ablations" in self.tables else "last"

    @property
    def learning(self) -> dict[str, str]:
        """Return the methods that learn, each with its ``fit``; none without labelled images."""
        if TRAIN not in self.sets:
            return {}
        fits = {"mahalanobis_stages": TRAIN}
        return fits | ({"lee_alregib": f"{TRAIN},{NOISE}"} if self.noise else {})


def paper_sets(data: Path, lists: Path) -> tuple[Sets, list[str]]:
    """Return the declared sets that are there, listed with checksums, and what is missing."""
    sets: Sets = {}
    missing = []
    for declared in read_declaration(DECLARATION):
        found = list(problems(declared, data))
        missing += [f"set {declared.name}: {problem}" for problem in found]
        if not found:
            path = lists / f"{declared.name}.csv"
            if not path.exists():
                build_list(declared, data, path)
            sets[declared.name] = (declared.role, f"{path}@{data}")
    return sets, missing


def paper_subjects(data: Path, sets: Sets) -> list[Subject]:
    """Return the paper's models; Table 4 is of Google's weights, Tables 1, 2 and 5 of its own."""
    checkpoints = data / "checkpoints"
    own = "BiT-S-R101x1-flat-finetune.pth.tar"
    dense = "densenet121.safetensors"
    main = ("table1", "ablations")
    return [
        Subject(BIT, BIT, checkpoints / own, main, sets, f"{AUTHORS}/{own}", noise=480),
        Subject(DENSENET, DENSENET, checkpoints / dense, ("table3",), sets, TIMM),
        *(
            Subject(
                *(f"bit:{name}", f"bit:{name}", checkpoints / f"{name}.npz", ("table4",), sets),
                f"{GOOGLE}/{name}.npz",
            )
            for name in FAMILY
        ),
    ]


def stand_ins(data: Path) -> list[Subject]:
    """Return models and sets that are there in place of the paper's two main models."""

    def sets(folder: Path, names: str) -> Sets:
        roles = {"id": "id", TRAIN: None}
        pairs = [pair.split("=") for pair in names.split()]
        return {
            name: (roles.get(name, "ood"), str(folder / source / "manifest.csv"))
            for name, source in pairs
        }

    cifar, imagenet = data / "cifar10", data / "imagenet"
    return [
        Subject(
            *(BIT, "cifar:resnet20", cifar / "resnet20_cifar10.safetensors"),
            ("table1", "table4", "ablations"),
            sets(
                cifar,
                "id=id_cifar10_test train=id_cifar10_train_subset gtsrb=ood_gtsrb "
                "textures=ood_textures_dtd imagenet=ood_imagenet_resize",
            ),
            noise=32,
        ),
        Subject(
            *(DENSENET, "timm:mobilenetv2_100?pad_type=same"),
            *(imagenet / "mobilenetv2_100_imagenet.safetensors", ("table3", "table4")),
            sets(
                imagenet,
                "id=id_imagenet_samples flowers=ood_flowers sun=ood_scenes_sun "
                "textures=ood_textures_dtd",
            ),
            preprocessing=CENTRAL,
        ),
    ]
