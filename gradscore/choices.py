"""The words that settings take, for the library and the command line alike; it imports nothing."""

TARGETS = ("uniform", "one-hot")
"""What the loss compares the softmax with, where a gradient is scored."""

RECORDED_TARGETS = (*TARGETS, "all-ones")
"""What gradient norms can be recorded for: the scored targets, and the confounding label of Lee &
AlRegib, "Gradients as a Measure of Uncertainty in Neural Networks", ICIP 2020."""

METHODS = (
    *("gradnorm", "u", "v", "kl"),
    *("msp", "max_logit", "energy", "gen", "odin"),
    *("react", "ash", "scale", "knn", "nnguide", "fdbd", "vim"),
    *("laplace_energy", "laplace_energy_blocks"),
    *("mahalanobis", "mahalanobis_stages", "lee_alregib"),
)
"""Names of the methods, in the order of their table in :mod:`gradscore.methods`."""

ABLATIONS = ("layers", "p", "temperature", "target", "decomposition", "kl")
"""Names of the paper's ablations, in the order of their table in :mod:`gradscore.ablation`."""

RECORDED_METHODS = ("odin", "mahalanobis", "surrogates")
"""What an extraction records beside its sets: methods' forwards in passes of their own, and sets
of changed ID images for the choice of a score."""

AUTO = "auto"
DEVICES = (AUTO, "cpu", "cuda")
"""Where an extraction computes; ``auto``: on CUDA where it is there."""

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
"""How a forward computes; ``tf32``: in float32, with products rounded as CUDA does by default."""

GRADIENTS = ("rules", "reference", "vmap")
"""What computes the norms that an extraction records; the results agree."""

KEPT_TYPES = ("float32", "float16")
"""What the kept input of a module is stored in."""

ON_ERROR = ("fail", "skip")
"""What an extraction does at an image that cannot be read."""

GUARANTEES = ("pac", "marginal")
"""What a threshold promises: with a confidence, or on average."""

INPUTS = ("normalized", "uint8")
"""What an exported detector takes: preprocessed images, or their pixels before normalisation."""

STORED = ("all", "features", "features-float16")
"""What a run keeps of the last layer: its input and the logits; or its input alone, from which its
weights give the logits when they are read; or that in half precision."""

EXECUTORS = ("local", "ray")
"""Who computes an extraction: this process, or the workers of a Ray cluster."""

BACKENDS = ("auto", "torch", "numba", "triton")
"""What computes the closed form; ``auto``: the fastest there is."""

METRICS = ("auroc", "fpr95", "aupr_in", "aupr_out")
"""Figures that say how well a score tells ID from OOD."""

ROW_ENDINGS = (".csv", ".parquet", ".json", ".md", ".tex")
"""Of files with rows of figures."""

SCORE_ENDINGS = (".csv", ".parquet")
"""Of files with scores, a row an image."""

PREDICTION_ENDINGS = (".csv", ".parquet", ".jsonl")
"""Of files with a detector's decisions, a row an image."""

REPORT_ENDINGS = (".html",)
"""Endings of the files that reports are written to."""

FIGURE_ENDINGS = (".png", ".pdf", ".svg")
"""Of drawn figures."""
