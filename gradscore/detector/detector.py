"""A classifier with a score and a threshold: images in, decisions out."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscore.detector.agreement import Agreement
from gradscore.detector.building import (
    calibrate_model,
    import_score,
    model_for,
    require_working,
    run_model,
    told_damaged,
    told_of_other,
)
from gradscore.detector.calibration import calibrate_run
from gradscore.detector.decision import Decision, decide
from gradscore.detector.exporting import export_onnx
from gradscore.detector.file import SCORES, DetectorInfo, read_detector, write_detector
from gradscore.detector.live import LiveScore, check_shape, device_of
from gradscore.detector.threshold import Share, Threshold
from gradscore.detector.wanted import Wanted
from gradscore.errors import DetectorError, InvalidArgument
from gradscore.methods import RecordedRun
from gradscore.methods.custom import OWN, import_method
from gradscore.models.preprocessing import Preprocessing
from gradscore.network import check_eval_mode
from gradscore.recorded import Run, open_store


class Detector(nn.Module):
    """A classifier that says of each image whether it is like those that it was calibrated with.

    An image is accepted where its score is at least the threshold. Make one by :meth:`calibrate`
    or :meth:`load`.

    Args:
        model: The classifier, in evaluation mode.
        info: What the detector's file says.
        arrays: The file's arrays.

    Attributes:
        model: The classifier.
        info: What the detector's file says.
        arrays: The file's arrays.

    Raises:
        DetectorError: If the model is not the one that was calibrated.
    """

    def __init__(
        self, model: nn.Module, info: DetectorInfo, arrays: Mapping[str, NDArray]
    ) -> None:
        super().__init__()
        self.model, self.info, self.arrays = model, info, dict(arrays)
        self.training = model.training
        self._live: LiveScore | None = None
        self._score()

    @classmethod
    def calibrate(
        cls,
        source: nn.Module | Run | RecordedRun | str | os.PathLike,
        images: Any = None,
        *,
        method: str | None = None,
        tpr: Share = "0.95",
        guarantee: str = "pac",
        confidence: Share = "0.95",
        fit: Any = None,
        cross_fit: bool = False,
        model: nn.Module | str | None = None,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Detector":
        """Return a detector whose threshold is taken from ID images.

        The images must be new to the model and to the score, and exchangeable with those to come:
        frames of one video, copies, or another mix of classes break the promise. ``info.notices``
        says what is doubtful.

        Args:
            source: A run or its directory; or a classifier in evaluation mode.
            images: Of a run the names of ID sets, by default all with the role ``id``. For a
                classifier its preprocessed ID images: a tensor ``[n, channels, height, width]``,
                or batches of these, alone or with class numbers, as a ``DataLoader`` gives them.
            method: The score: one of :data:`gradscore.methods.METHODS`, or a function of your
                own, ``python:MODULE:FUNCTION``. By default what :func:`gradscore.choose`
                recommended for the run, else energy.
            tpr: Share of ID images that shall be accepted; at most ``1 - tpr`` are flagged.
            guarantee: ``pac``: with probability ``confidence`` over the draw of the images.
                ``marginal``: on average over such draws.
            confidence: As said.
            fit: What a score that learns learns from: a set's name, or images. By default the
                run's sets with the role ``fit``, else one half of the images.
            cross_fit: Learn from all images but a tenth in turn; the promise is approximate.
            model: Of a run its model, or its spec, where the run's word is not enough
                (``python:``) or its weights have moved.
            preprocessing: How pictures become a classifier's input; kept in the file.
            **options: The score's own, such as ``layers``, ``p``, ``temperature``, ``k``.

        Raises:
            InvalidArgument: If an argument is out of range, or the images are too few for the
                promise; the message names the number that would do.
            NotRecorded: If the run lacks what the score needs.
            ModelError: If the model cannot be built or asked.
            DetectorError: If the score cannot be asked of new images.
        """
        how = {"tpr": tpr, "guarantee": guarantee, "confidence": confidence}
        wanted = Wanted(method, options, **how, cross_fit=cross_fit)
        if method is not None and method.startswith(OWN):
            import_method(method)
        if isinstance(source, nn.Module):
            if model is not None:
                raise InvalidArgument("Expected `model` with a run only, got it with a model.")
            made = calibrate_model(source, images, fit, wanted, preprocessing)
            return cls(source, made.info, made.arrays)
        if preprocessing is not None:
            raise InvalidArgument(
                "Expected `preprocessing` with a model only: a run says its own; leave it out."
            )
        store = open_store(source)
        ids = [images] if isinstance(images, str) else images
        wanted = Wanted(method, {**options, "fit": fit}, **how, cross_fit=cross_fit)
        made = calibrate_run(store, wanted, ids)
        return cls(run_model(store, model), made.info, made.arrays)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        model: nn.Module | str | None = None,
        weights: str | os.PathLike | None = None,
        *,
        method: str | None = None,
    ) -> "Detector":
        """Return the detector of a file.

        Args:
            path: The file.
            model: Its classifier or the spec of it; by default the file's spec, unless that could
                run code or fetch files.
            weights: Weight file, for a spec; by default where it was at the calibration.
            method: The file's score again, where it is a function of your own
                (``python:MODULE:FUNCTION``), which no file alone has imported.

        Raises:
            DetectorError: If the file is damaged, or of another model, other weights, another
                score, or a newer version.
            InvalidArgument: If its score is not known here.
            ModelError: If the model cannot be built.
            WeightsError: If the weights cannot be had.
        """
        info, arrays = read_detector(path)
        import_score(Path(path), info, method)
        with told_of_other(Path(path), info, model):
            built = model_for(Path(path), info, model, weights)
            with told_damaged(Path(path)):
                found = cls(built, info, arrays)
                require_working(Path(path), found, info)
        return found

    def save(self, path: str | os.PathLike) -> None:
        """Write the detector's file, without the model's weights.

        Raises:
            InvalidArgument: If the path does not end in ``.safetensors``.
            DetectorError: If it cannot be written.
        """
        write_detector(path, self.info, self.arrays)

    def export(
        self,
        path: str | os.PathLike,
        images: Tensor | None = None,
        *,
        takes: str = "normalized",
        batch: int | None = None,
    ) -> Agreement:
        """Write the detector as ONNX: ``images`` to ``logits``, ``score`` and ``accepted``.

        The file is kept once onnxruntime gave the same for some images.

        Args:
            path: Where to; it ends in ``.onnx``.
            images: Real images to try it with, as the file takes them. None draws numbers.
            takes: ``normalized``: preprocessed images, shape ``[n, channels, height, width]``.
                ``uint8``: pixels of the model's size, shape ``[n, height, width, channels]``; the
                file then holds the normalisation.
            batch: The one batch size that the file takes; None for any.

        Returns:
            How far the file and the detector are apart.

        Raises:
            InvalidArgument: If an argument is out of range.
            DetectorError: If the score needs gradients of inner layers, the model cannot be
                exported, a package is missing, or the file does not agree.
        """
        there = device_of(self.model)
        try:
            self.model.to("cpu")
            return export_onnx(self._score(), self.info, path, images, takes=takes, batch=batch)
        finally:
            self.model.to(there)

    @torch.compiler.disable
    def forward(self, images: Tensor) -> Decision:
        """Return the decisions on preprocessed images ``[batch, channels, height, width]``.

        Raises:
            InvalidArgument: If the images have another shape, or a score is not finite.
            ModelError: If the model is in train mode.
            DetectorError: If the model's weights have changed, or a graph is traced: it would
                hold the numbers of this one batch.
        """
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise DetectorError(
                "Expected `detector.export('gate.onnx')` for a graph of a detector, got "
                "torch.jit.trace or torch.export, which would freeze its numbers."
            )
        check_shape(images, self.info.input_shape)
        check_eval_mode(self.model)
        with torch.inference_mode(False), torch.no_grad():
            if len(images):
                logits, scores = self._score()(images)
            else:
                logits = torch.zeros(0, self.info.classes)
                scores = torch.zeros(0, dtype=torch.float64)
            decision = decide(logits, scores, self.scores, self.info.threshold.value)
            return Decision(*(values.to(images.device) for values in decision))

    @property
    def scores(self) -> Tensor:
        """The calibration scores in ascending order, shape ``[n]``, float64, on the CPU."""
        return torch.from_numpy(self.arrays[SCORES])

    @property
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes the model's input."""
        return Preprocessing.from_dict(self.info.preprocessing)

    def threshold(
        self,
        tpr: Share | None = None,
        *,
        guarantee: str | None = None,
        confidence: Share | None = None,
    ) -> Threshold:
        """Return the threshold, or that of another rate, from the same calibration scores.

        >>> # decision.score >= detector.threshold(tpr=0.99).value

        Args:
            tpr: Share of ID images that shall be accepted; by default the file's.
            guarantee: ``pac`` or ``marginal``; by default the file's.
            confidence: Probability with which ``pac`` holds; by default the file's.

        Raises:
            InvalidArgument: If one is out of range, or the images were too few for it.
        """
        kept = self.info.threshold
        return Threshold.of(
            self.arrays[SCORES],
            kept.tpr if tpr is None else tpr,
            guarantee=guarantee or kept.guarantee,
            confidence=kept.confidence if confidence is None else confidence,
        )

    def __repr__(self) -> str:
        """Return the score, the threshold and the promise; of the model its class."""
        info = self.info
        settings = "".join(f", {name}={value!r}" for name, value in info.settings.items())
        return (
            f"Detector({info.method!r}{settings}, threshold={info.threshold.value:.6g}, "
            f"model={type(self.model).__name__}: {info.threshold.promise()}; "
            f"{info.threshold.images:,} calibration images)"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: what computes scores is made anew."""
        return {**self.__dict__, "_live": None}

    def _score(self) -> LiveScore:
        live = self._live
        if live is None or live.device != device_of(self.model):
            live = self._live = LiveScore(self.model, self.info, self.arrays)
        return live
