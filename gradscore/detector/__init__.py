"""From a score to a decision: a threshold with a promise, and the file that holds it."""

from gradscore.detector.decision import Decision
from gradscore.detector.detector import Detector

__all__ = ["Decision", "Detector"]
