"""What sets, scores and classes are called on the page."""

from gradscore.methods import ScoreSpec
from gradscore.run import RunInfo, SetInfo

ROLES = {"id": "ID", "ood": "OOD", "fit": "to fit to", None: "no role", "surrogate": "surrogate"}


def set_label(entry: SetInfo) -> str:
    """Return a set's name with its role."""
    return f"{entry.name} ({ROLES[entry.role]})"


def role_class(role: str | None) -> str:
    """Return the class that colours what belongs to a role."""
    return {"id": "id", "ood": "ood"}.get(role, "other")


def score_name(spec: ScoreSpec) -> str:
    """Return a method with the settings that are not its defaults."""
    usual = spec.definition.options
    given = [
        f"{name} {text}"
        for name, text in spec.settings().items()
        if getattr(spec, name) != usual.get(name)
    ]
    return f"{spec.method} ({', '.join(given)})" if given else spec.method


def class_label(about: RunInfo, number: int) -> str:
    """Return the name of a class, or its number where no name is known."""
    return f"class {number}" if about.class_names is None else about.class_names[number]
