"""What must agree wherever rows are added to a run: compared field by field."""

from collections.abc import Iterable, Mapping
from typing import Any

from gradscore.errors import RunError

IDENTITY = (
    "model",
    "weights_sha256",
    "preprocessing",
    "precision",
    "stored",
    "classes",
    "features",
    "input_shape",
)
"""Fields of ``run.json`` in which every extraction into a run must agree."""
OF_PASS = ("kind", "target", "temperature", "p", "gradients", "parameters", "details")
"""Fields of a pass in which whoever records rows of it must agree."""
OF_SET = ("role", "rows", "manifest_sha256")
"""Fields of a set in which whoever records rows of it must agree."""
ADVICE = "give the same, or choose another run"


def require_equal(
    what: str, field: str, old: Any, new: Any, advice: str = ADVICE, other: str = "got"
) -> None:
    """Raise unless two values of a field agree.

    Args:
        what: What has the field, for the message.
        field: Its name.
        old: What is recorded.
        new: What is to agree with it.
        advice: What to do where it does not.
        other: What has the new value, in words.

    Raises:
        RunError: Naming the field and both values; of mappings only where they differ.
    """
    old, new = plain(old), plain(new)
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                field, old, new = f"{field}.{key}", old.get(key), new.get(key)
                break
    raise RunError(f"{what} has {field} {old!r}, {other} {new!r}; {advice}.")


def require_same(
    what: str, fields: Iterable[str], old: Any, new: Any, advice: str = ADVICE
) -> None:
    """Raise unless two objects agree in all of ``fields``.

    Args:
        what: What is described, for the message.
        fields: Names of attributes.
        old: What is recorded.
        new: What is to agree with it.
        advice: What to do where it does not.

    Raises:
        RunError: Naming the first field that differs, and both values.
    """
    for field in fields:
        require_equal(what, field, getattr(old, field), getattr(new, field), advice)


def plain(value: Any) -> Any:
    """Return ``value`` as JSON would give it back."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value
