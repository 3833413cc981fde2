"""Check the rules, and the closed form where it is valid, against one backward a sample."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from gradscore.capture.crosscheck import rules_alone
from gradscore.closed_form import last_layer_score
from gradscore.engine import gradient_norms
from gradscore.errors import InvalidArgument
from gradscore.layers.features import observe_features
from gradscore.layers.head import Head, find_head
from gradscore.network import ONE_AT_A_TIME, check_images, check_model, dry_run
from gradscore.norms import vector_norm
from gradscore.objective import Objective
from gradscore.outputs import logits_of
from gradscore.reference import one_backward_a_sample

NOISE = 1e-6
"""Share of a sample's whole norm to which smaller norms are held instead of to themselves: that
of a key bias before a softmax is zero on paper and rounding noise in a computer. An error of 1e-8
of it is 1e-14 of the whole."""

ONE_IMAGE = "one image does not show whether samples depend on each other; give two or more"


@dataclass(frozen=True)
class Verification:
    """How far gradient norms are from autograd's.

    Attributes:
        errors: Largest relative error over samples, by parameter name. Norms below a millionth
            of the sample's whole norm are checked against that instead.
        rules: What served each parameter, by name.
        total_error: Relative error of the norm over all parameters.
        closed_form_error: Relative error of the last layer's closed form, or ``None`` where it
            does not hold for this model.
        closed_form_reason: Why it does not, empty if it does.
        caution: What the images given could not show, empty if nothing.
    """

    errors: Mapping[str, float]
    rules: Mapping[str, str]
    total_error: float
    closed_form_error: float | None
    closed_form_reason: str
    caution: str = ""

    @property
    def max_relative_error(self) -> float:
        """The worst of all: parameters, whole and closed form."""
        return max(*self.errors.values(), self.total_error, self.closed_form_error or 0.0)

    @property
    def worst(self) -> str:
        """Name of the parameter with the largest error, ``whole norm`` or ``closed form``."""
        errors = dict(self.errors) | {"whole norm": self.total_error}
        if self.closed_form_error is not None:
            errors["closed form"] = self.closed_form_error
        return max(errors, key=errors.__getitem__)


def verify(
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Sequence[str] = "all",
    p: float = 1.0,
    temperature: float = 1.0,
    target: str = "uniform",
    dtype: torch.dtype = torch.float64,
) -> Verification:
    """Compare gradient norms with those of one backward a sample.

    The engine answers for all images at once, and for the last one alone if the model can; the
    reference, which shares nothing with it, for each image alone.

    Args:
        model: A classifier in eval mode; it is brought to ``dtype`` for that while, and left as
            it is found.
        images: Its input, shape ``[batch, ...]``, at least one sample, better several.
        layers: What :func:`gradscore.gradient_norms` takes.
        p: Order of the norm, positive.
        temperature: Softmax temperature, positive.
        target: ``uniform`` or ``one-hot``.
        dtype: Precision to compare in.

    Returns:
        The errors, and what served each parameter.

    Raises:
        InvalidArgument: If a setting is outside its range, or there are no samples.
        ModelError: If the model is in train mode, or its output is not a matrix of logits.
    """
    objective = Objective(p, temperature, target)
    check_images(images)
    check_model(model)
    if not len(images):
        raise InvalidArgument("Expected at least one image, got an empty batch.")
    with torch.inference_mode(False), _converted(model, dtype):
        images = images.to(dtype) if images.is_floating_point() else images.clone()
        head = find_head(model, images)
        with rules_alone():
            got = gradient_norms(model, images, layers=layers, **asdict(objective))
            last = images[-1 if _takes_one(model, images) else len(images) :]
            single = gradient_norms(model, last, layers=layers, **asdict(objective))
        expected = one_backward_a_sample(model, images, objective, layers=got.parameters).norms
        closed = _closed_form_error(model, images, head, objective) if head.closed_form else None
    answers = torch.cat([got.norms, single.norms])
    expected = torch.cat([expected, expected[len(expected) - len(last) :]])
    whole = vector_norm(expected, objective.p)
    total = _relative(vector_norm(answers, objective.p), whole, NOISE * whole)
    errors = _relative(answers, expected, NOISE * whole.unsqueeze(1)).amax(dim=0).tolist()
    return Verification(
        errors=dict(zip(got.parameters, errors, strict=True)),
        rules=got.rules,
        total_error=float(total.max()),
        closed_form_error=closed,
        closed_form_reason=head.reason,
        caution=ONE_IMAGE if len(images) == 1 else "",
    )


def _takes_one(model: nn.Module, images: Tensor) -> bool:
    """Say whether a model takes one image alone; some take batches of one size only."""
    with dry_run(model, images[-1:]) as own:
        try:
            logits_of(model(own), 1)
        except Exception:
            return False
    return True


@contextmanager
def _converted(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Have a model in another precision for a while.

    A copy would not do: a function that the model keeps may hold the model, and not its copy.
    """
    with ONE_AT_A_TIME:
        tensors = [
            x
            for x in (*model.parameters(), *model.buffers())
            if (x.is_floating_point() or x.is_complex()) and not x.is_inference()
        ]
        before = [(x.data, x.grad) for x in tensors]
        try:
            for x in tensors:
                x.grad = None  # of another type it would be dropped
                x.data = x.data.to(dtype.to_complex() if x.is_complex() else dtype)
            yield
        finally:
            for x, (data, gradient) in zip(tensors, before, strict=True):
                x.data, x.grad = data, gradient


def _closed_form_error(
    model: nn.Module, images: Tensor, head: Head, objective: Objective
) -> float:
    with torch.no_grad(), observe_features(model, head) as observed:
        logits = logits_of(model(images.clone()), len(images))
    got = last_layer_score(observed.features, logits, **asdict(objective)).abs()
    expected = one_backward_a_sample(model, images, objective, layers=head.weights).norms[:, 0]
    return float(_relative(got, expected, torch.zeros_like(expected)).max())


def _relative(got: Tensor, expected: Tensor, floor: Tensor) -> Tensor:
    """Return relative errors; where both are zero there is none, of what is no number all."""
    difference = (got - expected).abs()
    error = torch.where(difference == 0, 0, difference / torch.maximum(expected, floor))
    return torch.where(error.isnan(), torch.inf, error)
