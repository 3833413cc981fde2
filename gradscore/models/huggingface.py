"""Image classifiers as HuggingFace's transformers saves them: a folder, or a name on its hub.

Weights, class names and preprocessing all come from the folder. Code in it is never run.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from gradscore.errors import ModelError, WeightsError, reason_of
from gradscore.escapes import listed
from gradscore.models.libraries import cache_alone_if_offline
from gradscore.models.preprocessing import Preprocessing

PROCESSOR_FILE = "preprocessor_config.json"
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Interpolations by the numbers that PIL, and so the file, gives them."""
_PLAIN = ("ViT", "DeiT", "Bit", "Beit", "CLIP", "Siglip", "MobileNetV1", "MobileNetV2")
KINDS = dict.fromkeys(_PLAIN, "plain") | {
    "Levit": "levit",
    "ConvNext": "convnext",
    "EfficientNet": "efficientnet",
}
"""How processors treat a picture, by the first part of their class's name."""
KNOWN_KEYS = frozenset(
    {
        *("image_processor_type", "feature_extractor_type", "processor_class", "auto_map"),
        *("do_resize", "size", "resample", "default_to_square", "do_center_crop", "crop_size"),
        *("do_rescale", "rescale_factor", "rescale_offset", "do_normalize", "image_mean"),
        *("image_std", "include_top", "crop_pct", "do_convert_rgb", "do_pad", "pad_size"),
        *("do_reduce_labels", "reduce_labels", "do_flip_channel_order", "data_format"),
        *("input_data_format", "return_tensors", "device", "disable_grouping"),
        *("_valid_processor_keys", "image_seq_length", "antialias"),
    }
)
REFUSED_IF_TRUE = ("do_pad", "do_reduce_labels", "reduce_labels", "do_flip_channel_order")


def build(name: str, arguments: dict, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Return a classifier of transformers and the preprocessing that its folder asks for.

    Args:
        name: A folder, or ``owner/name`` on the hub, with ``@REVISION`` behind it or not.
        arguments: None are taken.
        pretrained: Whether its own weights are loaded; otherwise they are drawn.

    Raises:
        ModelError: If transformers is missing, there is no such model, it is no image classifier,
            or its preprocessing cannot be mapped.
        WeightsError: If weights are missing in the folder, or cannot be fetched.
    """
    if arguments or not name:
        raise ModelError(f"Expected hf:FOLDER or hf:OWNER/NAME[@REVISION] alone, got hf:{name!r}.")
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "Expected the package transformers for hf: models, found none; install gradscore "
            "with its extra hf."
        ) from None
    place, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    where = {"revision": revision or "main", "trust_remote_code": False}
    with cache_alone_if_offline():
        model, absent = _classifier(transformers, place, where, pretrained)
        preprocessing = _preprocessing(transformers, place, where, model.config)
    if absent:
        raise WeightsError(
            f"The weights of hf:{name} lack {listed(absent)}, which would be drawn at random; "
            "give a folder of a model fine-tuned for classification."
        )
    names = getattr(model.config, "id2label", None) or {}
    if names and any(label != f"LABEL_{number}" for number, label in names.items()):
        model.class_names = tuple(str(names[number]) for number in sorted(names))
    return model, preprocessing


def _classifier(
    transformers: Any, place: str, where: dict[str, Any], pretrained: bool
) -> tuple[nn.Module, list[str]]:
    """Return the model, and the names of weights that its folder lacks."""
    kind = transformers.AutoModelForImageClassification
    try:
        if not pretrained:
            config = transformers.AutoConfig.from_pretrained(place, **where)
            return kind.from_config(config, trust_remote_code=False), []
        model, report = kind.from_pretrained(place, output_loading_info=True, **where)
    except Exception as error:  # transformers, its hub and its files raise whatever they like
        raise WeightsError(
            f"Cannot load hf:{place}: {reason_of(error)} Give the path of a folder that "
            "save_pretrained wrote."
        ) from error
    unlike = [entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]]
    return model, sorted({*report["missing_keys"], *unlike})


def _preprocessing(
    transformers: Any, place: str, where: dict[str, Any], config: Any
) -> Preprocessing:
    from transformers.utils import cached_file

    try:
        file = cached_file(place, PROCESSOR_FILE, revision=where["revision"])
        said = json.loads(Path(file).read_text("utf-8"))
        processor = transformers.AutoImageProcessor.from_pretrained(place, backend="pil", **where)
    except Exception as error:  # as above
        raise ModelError(
            f"Expected {PROCESSOR_FILE} in hf:{place}, which says how pictures are made ready, "
            f"got {reason_of(error)}"
        ) from error
    try:
        return mapped(said, processor, getattr(config, "num_channels", 3))
    except (ModelError, TypeError, AttributeError) as error:
        raise ModelError(f"The {PROCESSOR_FILE} of hf:{place} cannot be mapped: {error}") from None


def mapped(said: dict[str, Any], processor: Any, channels: int = 3) -> Preprocessing:
    """Return the preprocessing that an image processor of transformers does.

    Args:
        said: Content of its file; a key that is not known might change pixels, and is refused.
        processor: The processor itself, which fills in what the file leaves out.
        channels: Of the model's input.

    Raises:
        ModelError: If it does what this package's preprocessing cannot.
    """
    kind = next((how for start, how in KINDS.items() if _class_name(processor) == start), None)
    if kind is None:
        raise ModelError(
            f"expected a processor of {', '.join(KINDS)}, got {type(processor).__name__}."
        )
    unknown = sorted(said.keys() - KNOWN_KEYS)
    if unknown:
        raise ModelError(f"unknown keys {listed(unknown)}; they may change the pixels.")
    for key in REFUSED_IF_TRUE:
        if getattr(processor, key, False):
            raise ModelError(f"expected {key} false, got true.")
    resize, crop = _sizes(processor, kind)
    mean, std = _affine(processor, kind)
    return Preprocessing(
        resize=resize,
        crop=crop,
        mean=mean,
        std=std,
        interpolation=RESAMPLING[int(processor.resample)],
        mode="L" if channels == 1 else "RGB",
        centre="before",
    )


def _class_name(processor: Any) -> str:
    name = type(processor).__name__
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(ending)
    return name


def _sizes(processor: Any, kind: str) -> tuple[Any, Any]:
    """Return what a picture is resized to, and cropped to."""
    crop = _pair(processor.crop_size) if processor.do_center_crop else None
    if not processor.do_resize:
        return None, crop
    size = processor.size
    if size.height and size.width:
        return (size.height, size.width), crop
    short = size.shortest_edge
    if not short or size.longest_edge:
        raise ModelError(f"expected a size of height and width or shortest_edge, got {size}.")
    if kind == "levit":
        return int(256 / 224 * short), crop
    if kind == "convnext":
        if crop:
            raise ModelError("expected do_center_crop false beside crop_pct, got true.")
        if short >= 384:
            return (short, short), None
        return int(short / processor.crop_pct), short
    return short, crop


def _pair(size: Any) -> tuple[int, int]:
    if not (size.height and size.width):
        raise ModelError(f"expected a crop_size of height and width, got {size}.")
    return size.height, size.width


def _affine(processor: Any, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of pictures scaled to 0..1 that give the processor's values."""
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    offset = 1.0 if kind == "efficientnet" and processor.rescale_offset else 0.0
    means, stds = (
        [float(v) for v in value] if isinstance(value, (list, tuple)) else [float(value)]
        for value in (processor.image_mean or 0.0, processor.image_std or 1.0)
    )
    again = stds if kind == "efficientnet" and processor.include_top else [1.0] * len(stds)
    if not processor.do_normalize:
        means, stds = [0.0] * len(means), [1.0] * len(stds)
    scale = 255 * factor
    mean = tuple((value + offset) / scale for value in means)
    std = tuple(one * two / scale for one, two in zip(stds, again, strict=True))
    return mean, std
