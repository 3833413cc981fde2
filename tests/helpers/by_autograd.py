"""Per-sample gradients by autograd, one sample at a time."""

import torch


def sample_gradients(function, parameter, x, g, samples):
    """Return autograd's gradient of ``(function(x) * g).sum()`` for each sample's rows."""
    parameter = parameter.detach().requires_grad_()
    pairs = zip(x.chunk(samples), g.chunk(samples), strict=True)
    return torch.stack(
        [torch.autograd.grad((function(a, parameter) * b).sum(), parameter)[0] for a, b in pairs]
    )
