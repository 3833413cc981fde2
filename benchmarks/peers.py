"""Other ways to the L1 gradient norm of each sample, as their users would call them.

Each maker takes a model in eval mode, the names of the parameters asked for and a batch, and
returns a function without arguments. What a library cannot do raises here or in the first call.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Run = Callable[[], object]


def losses(logits: Tensor) -> Tensor:
    """Return each sample's loss to the uniform target, up to a constant."""
    return -torch.log_softmax(logits, dim=1).mean(dim=1)


def require_only(model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Let only the named parameters require a gradient, and return them."""
    chosen = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def ordinary(model: nn.Module, names: Sequence[str], images: Tensor) -> Run:
    """One batched forward and backward with the gradients of the batch: no norms, the measure."""
    parameters = require_only(model, names)
    return lambda: torch.autograd.grad(losses(model(images)).sum(), parameters)


def batch_1_loop(model: nn.Module, names: Sequence[str], images: Tensor) -> Run:
    """One forward and backward a sample."""
    parameters = require_only(model, names)

    def run() -> Tensor:
        norms = []
        for image in images.split(1):
            gradients = torch.autograd.grad(losses(model(image)).sum(), parameters)
            norms.append(sum(gradient.abs().sum() for gradient in gradients))
        return torch.stack(norms)

    return run


def vmap_grad(chunk: int) -> Callable[[nn.Module, Sequence[str], Tensor], Run]:
    """``torch.func.vmap`` of ``grad``, ``chunk`` samples at a time."""

    def make(model: nn.Module, names: Sequence[str], images: Tensor) -> Run:
        require_only(model, ())
        chosen = {name: model.get_parameter(name) for name in names}

        def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
            return losses(functional_call(model, parameters, (image[None],))).sum()

        def run() -> Tensor:
            parts = []
            for part in images.split(chunk):
                gradients = vmap(grad(loss), in_dims=(None, 0))(chosen, part)
                parts.append(sum(g.flatten(1).abs().sum(dim=1) for g in gradients.values()))
            return torch.cat(parts)

        return run

    return make


def pytorch_ood(model: nn.Module, names: Sequence[str], images: Tensor) -> Run:
    """GradNorm of pytorch-ood, with its own chunks of 32."""
    from pytorch_ood.detector import GradNorm

    require_only(model, names)
    detector = GradNorm(model, param_filter=set(names).__contains__)
    return lambda: detector.predict(images)


def opacus(model: nn.Module, names: Sequence[str], images: Tensor) -> Run:
    """Per-sample gradients by Opacus' hooks; it refuses batch norm, which is left out."""
    from opacus import GradSampleModule

    copied = copy.deepcopy(model)
    require_only(copied, names)
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)
    hooked = GradSampleModule(copied, loss_reduction="sum", strict=False)
    # It captures nothing in eval mode.
    hooked.train()
    for module in hooked.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            module.eval()
    parameters = [parameter for parameter in hooked.parameters() if parameter.requires_grad]

    def run() -> Tensor:
        losses(hooked(images)).sum().backward()
        norms = sum(p.grad_sample.flatten(1).abs().sum(dim=1) for p in parameters)
        hooked.zero_grad(set_to_none=True)
        return norms

    return run


def backpack(model: nn.Module, names: Sequence[str], images: Tensor) -> Run:
    """Per-sample gradients by BackPACK's BatchGrad, the model converted for it."""
    from backpack import backpack as computing
    from backpack import extend
    from backpack.extensions import BatchGrad

    copied = copy.deepcopy(model)
    require_only(copied, names)
    extended = extend(copied, use_converter=True).eval()
    parameters = [parameter for parameter in extended.parameters() if parameter.requires_grad]

    def run() -> Tensor:
        with computing(BatchGrad()):
            losses(extended(images)).sum().backward()
        norms = sum(p.grad_batch.flatten(1).abs().sum(dim=1) for p in parameters)
        for parameter in parameters:
            del parameter.grad_batch
            parameter.grad = None
        return norms

    return run


PEERS = {
    "batch-1 loop": batch_1_loop,
    "vmap(grad), all at once": vmap_grad(1 << 30),
    "vmap(grad), chunk 4": vmap_grad(4),
    "vmap(grad), chunk 1": vmap_grad(1),
    "pytorch-ood": pytorch_ood,
    "opacus": opacus,
    "backpack": backpack,
}
