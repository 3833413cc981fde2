"""Per-sample gradient norms by ``torch.func.vmap`` over the whole model, as tests ask for them."""

from gradscore.engine import vmap_norms
from gradscore.network import check_images
from gradscore.reference import DEFAULT, loss_function
from gradscore.results import GradientNorms
from gradscore.selection import select_parameters


def per_sample_vmap(model, images, objective=DEFAULT, *, layers="all"):
    """Return what :func:`gradscore.reference.one_backward_a_sample` does, by vmap of grad."""
    check_images(images)
    selected = select_parameters(model, layers)
    (norms,) = vmap_norms(model, images, selected, loss_function(objective), (objective.p,))
    names = tuple(selected)
    return GradientNorms(names, norms, objective.p, dict.fromkeys(names, "vmap"))
