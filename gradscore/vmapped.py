"""Per-sample gradient norms by ``torch.func.vmap`` over the whole model, to compare with."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradscore.capture import requiring_grad
from gradscore.errors import ModelError, memory_ended
from gradscore.network import check_eval_mode, check_images, preserve_state, without_caches
from gradscore.norms import vector_norm
from gradscore.objective import Objective
from gradscore.outputs import logits_of
from gradscore.reference import DEFAULT, Loss, loss_function, no_norms
from gradscore.results import GradientNorms
from gradscore.selection import select_parameters


def per_sample_vmap(
    model: nn.Module,
    images: Tensor,
    objective: Objective = DEFAULT,
    *,
    layers: str | Sequence[str] = "all",
) -> GradientNorms:
    """Return per-sample gradient norms by ``torch.func.vmap`` of ``grad`` over the parameters.

    It holds ``[batch, parameters]`` at once. Arguments and result are those of
    :func:`gradscore.reference.one_backward_a_sample`.

    Raises:
        InvalidArgument: If ``layers`` means no parameter.
        ModelError: If the model is in train mode, returns no logits, or cannot be vmapped.
    """
    check_images(images)
    selected = select_parameters(model, layers)
    (norms,) = vmap_norms(model, images, selected, loss_function(objective), (objective.p,))
    names = tuple(selected)
    return GradientNorms(names, norms, objective.p, dict.fromkeys(names, "vmap"))


def vmap_norms(
    model: nn.Module,
    images: Tensor,
    selected: Mapping[str, Tensor],
    loss: Loss,
    orders: Sequence[float],
) -> Tensor:
    """Return norms ``[len(orders), batch, K]``, by vmap of grad over all samples at once.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        selected: The parameters asked for, by their names in the model.
        loss: From one sample's logits to its loss.
        orders: Orders of the norm.

    Raises:
        ModelError: If the model is in train mode, returns no logits, or cannot be vmapped.
    """
    if not len(images):
        return no_norms(images, orders, selected)

    def loss_of(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss(logits_of(functional_call(model, parameters, (image[None],)), 1))

    check_eval_mode(model)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        requiring_grad(model, {}),
        without_caches(model, images),
        preserve_state(model),
    ):
        try:
            gradients = vmap(grad(loss_of), in_dims=(None, 0))(dict(selected), images)
        except RuntimeError as error:
            if memory_ended(error):
                raise
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"Expected a model that torch.func.vmap can run, got: {reason}"
            ) from error
    magnitudes = [gradient.abs().flatten(1) for gradient in gradients.values()]
    return torch.stack(
        [torch.stack([vector_norm(x, p) for x in magnitudes], dim=1) for p in orders]
    )
