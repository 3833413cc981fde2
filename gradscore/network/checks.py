"""What is refused before or when a model is run: models, modes, images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from gradscore.errors import GradScoreError, InvalidArgument, ModelError


def check_images(images: Any) -> None:
    """Refuse what is not a batch of images.

    Raises:
        InvalidArgument: If it is not a tensor with a batch axis.
    """
    if not isinstance(images, Tensor):
        raise InvalidArgument(
            f"Expected images as a torch.Tensor [batch, ...], got {type(images).__name__}; "
            "convert it, as with torch.as_tensor or torch.stack."
        )
    if images.ndim < 2:
        raise InvalidArgument(f"Expected images [batch, ...], got {list(images.shape)}.")


def check_model(model: Any) -> None:
    """Refuse what is not a module, or has no parameters.

    Raises:
        ModelError: Saying what to pass instead.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        remedy = (
            "pass its .module()"
            if kind == "ExportedProgram"
            else "wrap it in a module that registers its parameters"
        )
        raise ModelError(f"Expected a model that is a torch.nn.Module, got {kind}; {remedy}.")
    if next(model.parameters(), None) is None:
        frozen = isinstance(model, torch.jit.ScriptModule)
        remedy = "; pass it as it was before torch.jit.freeze" if frozen else ""
        raise ModelError(f"Expected a model with parameters, got one without{remedy}.")


def check_unhooked(name: str, parameter: Tensor) -> None:
    """Refuse a parameter whose gradient a hook may change where no forward shows it.

    Raises:
        ModelError: Naming the parameter.
    """
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        raise ModelError(
            f"Expected parameters whose gradients are left as they are, got {name!r} with a hook "
            "on its gradient; remove the hook."
        )


@contextmanager
def wrap_forward_errors(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Tell in one line what went wrong in a forward of a model.

    Args:
        model: The model that is run inside.
        images: Its input.

    Raises:
        ModelError: From whatever the model raised, but for a lack of memory.
    """
    try:
        yield
    except (GradScoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model raises
        message = str(error).partition("\n")[0].rstrip(".")
        raise ModelError(
            f"Expected a model that takes {images.dtype} {list(images.shape)} on "
            f"{images.device}, got {type(error).__name__} from it: {message}. "
            f"{_remedy(model, images)}"
        ) from error


def _remedy(model: nn.Module, images: Tensor) -> str:
    first = next((x for x in model.parameters() if x.is_floating_point()), None)
    if first is not None and first.device != images.device:
        return f"Its parameters are on {first.device}: move one to the other."
    if first is not None and first.dtype != images.dtype:
        return f"Its parameters are {first.dtype}: convert one to the other."
    if images.ndim == 3:
        return "A lone image has a batch axis, too: images[None]."
    return (
        "The size of images is set by `preprocessing={'resize': S, 'crop': S}`, or by the model's "
        "own `preprocessing`."
    )


def check_eval_mode(model: nn.Module) -> None:
    """Refuse a model whose layers are random, mix samples, or are not ready to be scored.

    Raises:
        ModelError: Naming the first such layer, or what is no model that has parameters.
    """
    check_model(model)
    for name, module in model.named_modules():
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise ModelError(
                f"Expected the model itself, got it wrapped in {type(module).__name__}; "
                "pass its .module."
            )
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ModelError(
                f"Expected a model whose layers have their shapes, got lazy layer {name!r}; "
                "run the model once first."
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training or module.running_mean is None:
                remedy = "call model.eval() first"
                if module.running_mean is None:
                    remedy = "build it with track_running_stats=True"
                raise ModelError(
                    f"Expected batch norm with fixed statistics, got layer {name!r} "
                    f"which takes them from the batch; {remedy}."
                )
        elif module.training and _drop_rate(module) > 0:
            raise ModelError(
                f"Expected a model without active dropout, got layer {name!r} "
                f"({type(module).__name__}) in train mode; call model.eval() first."
            )


def _drop_rate(module: nn.Module) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    rates = (getattr(module, name, 0.0) for name in ("drop_prob", "dropout", "p"))
    return max((rate for rate in rates if isinstance(rate, float)), default=0.0)
