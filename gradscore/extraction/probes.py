"""What computes the passes that methods read: perturbed logits, and confidences of the stages."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from gradscore.extraction.computing import Probe
from gradscore.extraction.network import Network
from gradscore.extraction.perturbation import odin_logits
from gradscore.extraction.stage_fit import StageFit, stage_confidences
from gradscore.run import PassInfo


def make_probes(
    network: Network, passes: Sequence[PassInfo], fits: Mapping[str, StageFit]
) -> list[Probe]:
    """Return what computes the ``odin`` and ``mahalanobis`` passes among ``passes``.

    Args:
        network: The classifier.
        passes: The passes wanted, of any kind.
        fits: Name of each ``mahalanobis`` pass to what it is computed with.
    """
    by_temperature = defaultdict(dict)
    for entry in passes:
        if entry.kind == "odin":
            by_temperature[entry.temperature][entry.name] = entry.details["epsilon"]
    probes = [_odin(network, t, epsilons) for t, epsilons in by_temperature.items()]
    stages = [entry.name for entry in passes if entry.kind == "mahalanobis"]
    return probes + [_stages(network, name, fits[name]) for name in stages]


def _odin(network: Network, temperature: float, epsilons: Mapping[str, float]) -> Probe:
    def probe(images: Tensor) -> dict[str, Tensor]:
        logits = odin_logits(network, images, temperature, list(epsilons.values()))
        return dict(zip(epsilons, logits, strict=True))

    return probe


def _stages(network: Network, name: str, fit: StageFit) -> Probe:
    gaussians = {stage: fitted.to(network.device) for stage, fitted in fit.gaussians.items()}

    def probe(images: Tensor) -> dict[str, Tensor]:
        magnitudes = (fit.magnitude,)
        return {name: stage_confidences(network, fit.stages, gaussians, images, magnitudes)[0]}

    return probe
