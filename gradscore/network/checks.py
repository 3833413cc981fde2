"""What is refused before or when a model is run, and what shows that it keeps tensors.

A tensor that a forward uses and that came from outside, neither registered nor made in it, may be
a constant, or what an earlier forward made of weights and kept. The gradient of the weights is
then zero for autograd as well, though the logits do depend on them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradscore.copies import SavedContainer, is_tensor_table
from gradscore.errors import GradScoreError, InvalidArgument, ModelError, reason_of
from gradscore.network.facts import ONE_AT_A_TIME, listing_of, passed_checks
from gradscore.network.forwards import dry_run
from gradscore.outputs import logits_of


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
        hint = (
            "pass its .module()"
            if kind == "ExportedProgram"
            else "wrap it in a module that registers its parameters"
        )
        raise ModelError(f"Expected a model that is a torch.nn.Module, got {kind}; {hint}.")
    if next(model.parameters(), None) is None:
        frozen = isinstance(model, torch.jit.ScriptModule)
        hint = "; pass it as it was before torch.jit.freeze" if frozen else ""
        raise ModelError(f"Expected a model with parameters, got one without{hint}.")


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
        message = reason_of(error).rstrip(".")
        raise ModelError(
            f"Expected a model that takes {images.dtype} {list(images.shape)} on "
            f"{images.device}, got {type(error).__name__} from it: {message}. "
            f"{_hint(model, images)}"
        ) from error


def _hint(model: nn.Module, images: Tensor) -> str:
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
    passed = passed_checks(model)
    if check_eval_mode in passed:
        return
    check_model(model)
    # Anew in each call: a state does not show all flags, such as those that a forward turns.
    for name, module in listing_of(model).modules.items():
        _check_layer(name, module)
    passed.add(check_eval_mode)


def _check_layer(name: str, module: nn.Module) -> None:
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
            hint = "call model.eval() first"
            if module.running_mean is None:
                hint = "build it with track_running_stats=True"
            raise ModelError(
                f"Expected batch norm with fixed statistics, got layer {name!r} "
                f"which takes them from the batch; {hint}."
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


@contextmanager
def without_caches(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Empty, for a while, the dictionaries of tensors that a model fills when they are asked for.

    A forward without a graph may have filled them, of the caller or in an evaluation before: the
    weights that they were made of would seem to be unused. So it is with what autocast has cast.

    Args:
        model: The model that is run inside.
        images: Its input, of which one shows whether it gives the same logits without them.
    """
    with ONE_AT_A_TIME:
        kept = (around[name] for around, name in listing_of(model).kept)
        tables = [SavedContainer(value) for value in kept if is_tensor_table(value)]
        if tables and not _same_without(model, images[:1], [table.part for table in tables]):
            tables = []
        for table in tables:
            table.part.clear()
        try:
            with _casting_anew():
                yield
        finally:
            for table in tables:
                table.restore()


def _same_without(model: nn.Module, image: Tensor, tables: list[dict[Any, Tensor]]) -> bool:
    """Say whether the model fills the tables anew if they are empty, with the same output."""
    with dry_run(model, image) as own:
        expected = logits_of(model(own), len(own))
    with dry_run(model, image) as own:
        for table in tables:
            table.clear()
        try:
            got = logits_of(model(own), len(own))
        except Exception:  # they are not made on demand
            return False
        return all(tables) and torch.allclose(got, expected)


def kept_tensors_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the floating tensors that a model keeps outside of its parameters and buffers.

    Args:
        model: The model; left as it is.
        images: Its input, shape ``[batch, ...]``; one of them is run.
    """
    with (
        without_caches(model, images),
        dry_run(model, images[:1]) as own,
        _Origins(model, own) as origins,
    ):
        try:
            model(own)
        except Exception:  # it takes another number of images
            with wrap_forward_errors(model, images):
                model(images.clone())
    return origins.found


@contextmanager
def _casting_anew() -> Iterator[None]:
    """Let autocast not use what it has cast before."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Origins(TorchDispatchMode):
    """Tell tensors by the memory that they are in.

    Attributes:
        found: Those whose memory was neither the model's, nor the input's, nor made inside.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self._made: list[Tensor] = []
        self._known: set[int] = set()
        for tensor in (*model.parameters(), *model.buffers(), images):
            self._note(tensor)

    def _note(self, tensor: Tensor) -> None:
        self._made.append(tensor)  # kept, so that its memory is not given to another
        self._known.add(_memory(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call and note where its tensors are from."""
        kwargs = kwargs or {}
        # What was written out as numbers in the forward is lifted into a tensor.
        if not func.name().startswith("aten::lift"):
            for tensor in tree_leaves((args, kwargs)):
                if _is_value(tensor) and _memory(tensor) not in self._known:
                    self.found.append(tensor)
                    self._note(tensor)
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result


def _is_value(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and quantised tensors have another kind
        return id(tensor)
