"""The words that settings take, for the library and the command line alike; it imports nothing."""

TARGETS = ("uniform", "one-hot")
"""What the loss compares the softmax with, where a gradient is scored."""

RECORDED_TARGETS = (*TARGETS, "all-ones")
"""What gradient norms can be recorded for: the scored targets, and the confounding label of Lee &
AlRegib, "Gradients as a Measure of Uncertainty in Neural Networks", ICIP 2020."""

METHODS = (
    *("gradnorm", "u", "v", "kl"),
    *("msp", "max_logit", "energy", "odin"),
    *("mahalanobis", "mahalanobis_stages", "lee_alregib"),
)
"""Names of the methods, in the order of their table in :mod:`gradscore.methods`."""

ABLATIONS = ("layers", "p", "temperature", "target", "decomposition", "kl")
"""Names of the paper's ablations, in the order of their table in :mod:`gradscore.ablation`."""
