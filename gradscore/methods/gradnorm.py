"""GradNorm and its two factors (Huang, Geng & Li, NeurIPS 2021, Eqs. 5 to 9).

The last layer has a closed form in the recorded features and logits. Every other choice of
parameters combines recorded norms, one column a parameter tensor, or runs the part of the network
behind a kept module again.
"""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from gradscore.closed_form import last_layer_score
from gradscore.errors import InvalidArgument, ModelError, NotRecorded
from gradscore.methods.base import Method, Plan, RecordedRun, ScoreSpec
from gradscore.methods.block import Block
from gradscore.norms import combine_norms
from gradscore.run import extract_command
from gradscore.selection import select

if TYPE_CHECKING:
    from gradscore.extraction.replay import Replay

REPLAYED_ROWS = 64
"""Rows of kept activations read at once: those of one image can take megabytes."""


def _plan_gradnorm(spec: ScoreSpec, run: RecordedRun) -> Plan:
    """Plan the closed form, or recorded norms, or the part of the network that is run again."""
    if spec.layers == "last" and run.info.head.closed_form:
        return Plan(
            partial(_closed_form, spec),
            fields=("features", "logits"),
            feature_orders=(spec.p,),
            deviations=(spec.objective,),
        )
    try:
        name, columns = norm_columns(spec, run)
    except NotRecorded:
        # All that extraction needs: a run that holds what is asked is read without it.
        from gradscore.extraction.replay import Replay, kept_pass

        kept = kept_pass(run, _parameters(spec, run))
        if kept is None:
            raise
        return Plan(
            partial(_replayed, spec),
            passes=(kept.name,),
            fit=lambda: Replay(run, kept.details["module"], spec.layers),
            rows=REPLAYED_ROWS,
        )
    return Plan(partial(_recorded, spec, name, columns), passes=(name,))


def _closed_form(spec: ScoreSpec, state: None, block: Block) -> Tensor:
    if block.device is not None:
        rows = (values.to(block.device) for values in (block.features, block.logits))
        how = asdict(spec.objective)
        return last_layer_score(*rows, **how, backend="triton").double().cpu()
    u, v = block.feature_norm(spec.p), block.deviation_norm(spec.objective)
    classes = block.logits.shape[1] if spec.target == "uniform" else 1
    return _signed(spec, u * v / (classes * spec.temperature))


def _recorded(spec: ScoreSpec, name: str, columns: list[int], state: None, block: Block) -> Tensor:
    chosen = block.recorded(name)[:, columns]
    return _signed(spec, combine_norms(chosen.double().unbind(dim=1), spec.p))


def _replayed(spec: ScoreSpec, replay: "Replay", block: Block) -> Tensor:
    norms = replay.norms(block.recorded(replay.name), spec.objective)
    return _signed(spec, combine_norms(norms.double().unbind(dim=1), spec.p))


def _signed(spec: ScoreSpec, norm: Tensor) -> Tensor:
    """Return the score: with a one-hot target ID inputs have the smaller gradient."""
    return norm if spec.target == "uniform" else -norm


def _plan_u(spec: ScoreSpec, run: RecordedRun) -> Plan:
    require_closed_form(run)

    def score(state: None, block: Block) -> Tensor:
        return block.feature_norm(spec.p)

    return Plan(score, fields=("features",), feature_orders=(spec.p,))


def _plan_v(spec: ScoreSpec, run: RecordedRun) -> Plan:
    require_closed_form(run)

    def score(state: None, block: Block) -> Tensor:
        return block.deviation_norm(spec.objective)

    return Plan(score, fields=("logits",), deviations=(spec.objective,))


def require_closed_form(run: RecordedRun) -> None:
    """Raise unless the last layer is linear at one position.

    The message names no method: it is the same for all.

    Raises:
        ModelError: If U and V do not describe this model's last layer.
    """
    if not run.info.head.closed_form:
        raise ModelError(
            "Expected logits that are W x + b at one position, as scores of the last layer need "
            f"them, but {run.info.model} has no such last layer: {run.info.head.reason}"
        )


def _parameters(spec: ScoreSpec, run: RecordedRun) -> tuple[str, ...]:
    return select(tuple(run.info.parameters), run.info.groups, spec.layers)


def norm_columns(spec: ScoreSpec, run: RecordedRun) -> tuple[str, list[int]]:
    """Return the recorded norms that combine to a score.

    Args:
        spec: A score of ``gradnorm``.
        run: The run's store.

    Returns:
        The name of a pass, and the places of the chosen parameter tensors among its columns.

    Raises:
        InvalidArgument: If ``layers`` names no parameter.
        NotRecorded: If no pass holds them; the message holds the command that records them.
    """
    chosen = _parameters(spec, run)
    recorded = run.find_norms(spec.objective, chosen, spec.layers)
    place = {name: k for k, name in enumerate(recorded.parameters)}
    return recorded.name, [place[name] for name in chosen]


def recorded_groups(run: RecordedRun) -> list[str]:
    """Return the groups whose norms the run holds for p = 1, T = 1 and the uniform target.

    Returns:
        The run's groups in their order, then ``all`` and ``last``, as in the paper's Table 2.

    Raises:
        NotRecorded: If there is none beside ``last``.
    """
    inner = [group for group in run.info.groups if group not in ("all", "last")]
    recorded = []
    for group in [*inner, "all"]:
        try:
            norm_columns(ScoreSpec("gradnorm", layers=group), run)
        except (NotRecorded, InvalidArgument):
            continue
        recorded.append(group)
    if not recorded:
        raise NotRecorded(
            "The run holds no gradient norms of inner layers; record them with "
            f"{extract_command(run, '--layers', 'all')}."
        )
    return [*recorded, "last"]


GRADNORM = Method(
    "gradnorm",
    "L_p norm of the gradient of KL(uniform || softmax(f/T)), Eq. 5; one-hot: minus the norm.",
    plan=_plan_gradnorm,
    options={"layers": "last", "p": 1.0, "temperature": 1.0, "target": "uniform"},
)

U = Method(
    "u",
    "U = |x|_p, the feature factor of Eq. 9.",
    plan=_plan_u,
    options={"p": 1.0},
)

V = Method(
    "v",
    "V = |1 - C softmax(f/T)|_p, the output factor of Eq. 9.",
    plan=_plan_v,
    options={"p": 1.0, "temperature": 1.0},
)
