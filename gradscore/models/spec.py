"""Model specs: ``family:name?keyword=value&...`` taken apart and written in one canonical way."""

import ast
from dataclasses import dataclass, field
from typing import Any

from gradscore.errors import ModelError


@dataclass(frozen=True)
class ModelSpec:
    """What a spec says; ``str`` gives its canonical text.

    Attributes:
        family: The part before the colon, or all of it.
        name: The part after the colon, or empty.
        arguments: Keyword arguments, as Python values.
    """

    family: str
    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "ModelSpec":
        """Return the parts of a spec.

        Values are read as Python literals where they are such (``1000``, ``0.5``, ``None``,
        ``(1, 2)``; ``true`` and ``false`` too), otherwise as text.

        >>> ModelSpec.parse("timm:mobilenetv2_100?pad_type=same&num_classes=10").arguments
        {'pad_type': 'same', 'num_classes': 10}

        Raises:
            ModelError: If an argument has no ``=`` or comes twice.
        """
        if not isinstance(text, str):
            raise ModelError(f"Expected a model spec such as timm:resnet18, got {text!r}.")
        head, _, query = text.strip().partition("?")
        family, _, name = head.partition(":")
        arguments: dict[str, Any] = {}
        for part in filter(None, query.split("&")):
            keyword, equals, value = part.partition("=")
            if not (equals and keyword.isidentifier()) or keyword in arguments:
                raise ModelError(
                    f"Expected ?keyword=value&... in the model spec {text!r}, got {part!r}."
                )
            arguments[keyword] = _literal(value)
        return cls(family, name, arguments)

    def __str__(self) -> str:
        """Return the canonical text: arguments sorted, values as Python writes them."""
        query = "&".join(f"{key}={value}" for key, value in sorted(self.arguments.items()))
        return (
            self.family + (f":{self.name}" if self.name else "") + (f"?{query}" if query else "")
        )


def _literal(value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
