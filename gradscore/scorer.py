"""A classifier with its GradNorm score, as one module."""

import warnings
from dataclasses import asdict

import torch
from torch import Tensor, nn

from gradscore.capture import own_images
from gradscore.closed_form import check_finite, last_layer_score
from gradscore.engine import layer_norms
from gradscore.errors import GradScoreWarning
from gradscore.layers.features import observe_features
from gradscore.layers.head import Head, head_of
from gradscore.network import (
    check_eval_mode,
    check_images,
    check_independence,
    check_model,
    hold_state,
)
from gradscore.norms import vector_norm
from gradscore.objective import Objective
from gradscore.outputs import OutputWatch, check_classes, logits_of


class GradNorm(nn.Module):
    """Score each image by the gradient norm of a wrapped classifier; larger means more ID.

    For the last layer the score comes from one forward in closed form, at the price of the forward
    itself. For other layers one backward of the batch is added. The model is left as it is: it
    gets no hook beyond the call, and works frozen, in ``no_grad`` and in ``inference_mode``.

    Outputs that are probabilities are scored as they are, and reported by one GradScoreWarning.

    Args:
        model: A classifier in eval mode, ``images -> logits [batch, classes]``.
        layers: Parameters whose gradient is scored: ``last``, another group such as ``block4``
            or ``all``, or a glob over parameter names.
        p: Order of the norm, positive.
        temperature: Softmax temperature ``T``, positive.
        target: ``uniform``, or ``one-hot`` for minus the norm of the predicted class's gradient.

    Raises:
        InvalidArgument: If a setting is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str = "last",
        p: float = 1.0,
        temperature: float = 1.0,
        target: str = "uniform",
    ) -> None:
        super().__init__()
        check_model(model)
        self.model = model
        self.layers = layers
        self._objective = Objective(p, temperature, target)
        self.training = model.training
        self._watch = OutputWatch()

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of ``images [batch, ...]``, shape ``[batch]``.

        Raises:
            ModelError: If a layer is in train mode, or the model cannot be scored so.
            InvalidArgument: If features or logits are not finite.
        """
        return self.logits_and_scores(images)[1]

    def logits_and_scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[batch, classes]`` and scores ``[batch]`` from one forward.

        Raises:
            ModelError: If a layer is in train mode, or the model cannot be scored so.
            InvalidArgument: If features or logits are not finite.
        """
        check_images(images)
        check_model(self.model)
        if not len(images):
            check_eval_mode(self.model)
            with torch.no_grad():
                logits = logits_of(self.model(images), 0)
            return logits, logits.new_zeros(0, dtype=torch.float32)
        with hold_state(self.model):
            check_eval_mode(self.model)
            if self.layers == "last" and (head := self._head(images)).closed_form:
                found = self._closed_form(images, head)
            else:
                found = self._by_rules(images)
        if found is None:  # the forward may have left something in the model: look at it anew
            found = self._by_rules(images)
        logits, scores = found
        check_classes(logits)
        if fault := self._watch.fault(logits):
            warnings.warn(f"{type(self.model).__name__}: {fault}.", GradScoreWarning, stacklevel=2)
        return logits, scores

    def extra_repr(self) -> str:
        """Return the settings."""
        p, temperature, target = self.p, self.temperature, self.target
        return f"layers={self.layers!r}, p={p:g}, temperature={temperature:g}, target={target!r}"

    @property
    def p(self) -> float:
        """Order of the norm."""
        return self._objective.p

    @property
    def temperature(self) -> float:
        """Softmax temperature ``T``."""
        return self._objective.temperature

    @property
    def target(self) -> str:
        """``uniform`` or ``one-hot``."""
        return self._objective.target

    def _head(self, images: Tensor) -> Head:
        """Return the last layer, found anew where anything of the model was changed."""
        return head_of(self.model, images[:2])

    def _closed_form(self, images: Tensor, head: Head) -> tuple[Tensor, Tensor] | None:
        """Return logits and scores; nothing if what was observed does not explain the logits."""
        weights = [self.model.get_parameter(name) for name in head.weights]
        check_independence(self.model, images, weights)
        # No graph is recorded, which nobody needs and which costs a seventh of the forward.
        with torch.no_grad(), observe_features(self.model, head) as observed:
            own = own_images(self.model, images)
            logits = logits_of(self.model(own), len(images))
        if not observed.explains(logits):
            return None
        with torch.no_grad():
            scores = last_layer_score(
                observed.features.detach(),
                logits.detach(),
                **asdict(self._objective),
            )
        return logits, scores

    def _by_rules(self, images: Tensor) -> tuple[Tensor, Tensor]:
        result = layer_norms(self.model, images, self.layers, self._objective)
        score = check_finite(vector_norm(result.norms, self.p), "images and logits")
        return result.logits, score if self.target == "uniform" else -score
