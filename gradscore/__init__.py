"""Gradient-norm out-of-distribution scores for any PyTorch classifier.

The names below are imported on first use, so that ``import gradscore`` loads no torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Decision": "gradscore.detector",
    "Detector": "gradscore.detector",
    "DetectorError": "gradscore.errors",
    "GradNorm": "gradscore.scorer",
    "GradScoreError": "gradscore.errors",
    "GradientNorms": "gradscore.results",
    "InvalidArgument": "gradscore.errors",
    "Metrics": "gradscore.evaluation",
    "Run": "gradscore.recorded",
    "Verification": "gradscore.verification",
    "Choice": "gradscore.choosing",
    "choose": "gradscore.choosing",
    "create_model": "gradscore.models",
    "evaluate": "gradscore.evaluation",
    "extract": "gradscore.recorded",
    "gradient_norms": "gradscore.engine",
    "head_score": "gradscore.closed_form",
    "last_layer_score": "gradscore.closed_form",
    "register_method": "gradscore.methods.custom",
    "register_rule": "gradscore.rules",
    "report": "gradscore.reporting",
    "verify": "gradscore.verification",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gradscore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
