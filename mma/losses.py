"""The losses of stage 1: what an MMA network is trained on when each sample carries labels for some of the tasks.

PAPER.md, "Stage 1": CCC, cross-entropy and binary cross-entropy over what is labelled [kin], distribution matching
[ours] and soft co-annotation [kin] through the prior w(i, e). All are of the whole batch they are given, in float32
(float64 where the network is in float64), also under autocast: no product of matrices is taken, so nothing is rounded
to bf16 or TF32. A task that no sample labels gives zero, connected to the graph: zero gradients, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch.nn import functional

from mma.descriptors import DescriptorSet
from mma.network import MMAOutputs
from mma.prior import prior_matrix

Matching = Literal["off", "to-au", "to-expression", "both"]

WITHOUT_UNITS = ("neutral", "other")
"""The expressions of which the prior says nothing: their share of a sample takes no part in the matching."""
PROBABILITY_FLOOR = 1e-6
"""Probabilities are held in [floor, 1 - floor] before their logarithm is taken."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The terms of the stage-1 loss and their weights."""

    valence_arousal_weight: float = 1.0
    """Times 1 - the mean CCC of valence and arousal. 0 turns the term off, and so for the others."""
    expression_weight: float = 1.0
    """Times the cross-entropy of labelled expressions."""
    action_unit_weight: float = 1.0
    """Times the binary cross-entropy of labelled action units."""
    matching_weight: float = 1.0
    """Times the distribution matching between the expression head and the action unit head."""
    soft_co_annotation_weight: float = 1.0
    """Times the cross-entropy with the expressions that action unit labels imply, where that is switched on."""
    matching: Matching = "both"
    """Which head learns from the other's output through the prior: `off`, `to-au`, `to-expression` or `both`."""
    soft_co_annotation: bool = False
    """Whether samples with action unit labels and no expression get a soft expression target from the prior."""
    soft_co_annotation_temperature: float = 0.1
    """Of the softmax over the expressions' scores, each in [0, 1]; lower is sharper. At 1 no target exceeds .29."""
    action_unit_pos_weight: Mapping[str, float] = field(default_factory=dict)
    """Action unit -> weight of its positive cells in the cross-entropy, for rare ones; those not named have 1."""

    def __post_init__(self) -> None:
        for name in ("valence_arousal", "expression", "action_unit", "matching", "soft_co_annotation"):
            weight = getattr(self, f"{name}_weight")
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name}_weight={weight} is not a weight: give 0 or more")
        if self.matching not in ("off", "to-au", "to-expression", "both"):
            raise ValueError(f"matching={self.matching!r} is not known: choose off, to-au, to-expression or both")
        temperature = self.soft_co_annotation_temperature
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"soft_co_annotation_temperature={temperature} must be above 0: the default is 0.1")
        for unit, weight in self.action_unit_pos_weight.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"action_unit_pos_weight of {unit} is {weight}: give a number above 0, 1 for none")


class FrameLabels(NamedTuple):
    """What is known of N frames, in the orders of a `DescriptorSet`. What an unknown cell holds is never looked at."""

    valence_arousal: torch.Tensor
    """float32 (N, 2) in [-1, 1]."""
    valence_arousal_known: torch.Tensor
    """bool (N, 2)."""
    expression: torch.Tensor
    """int64 (N,), the index in `expressions`, -1 unknown; or soft targets, float32 (N, num_expressions), each row
    summing to 1, or all zero where unknown."""
    action_units: torch.Tensor
    """float32 (N, num_action_units), 0 or 1 (or a probability)."""
    action_units_known: torch.Tensor
    """bool (N, num_action_units)."""


def stage1_loss(
    outputs: MMAOutputs,
    labels: FrameLabels,
    options: LossOptions,
    descriptor_set: DescriptorSet,
    prior: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The weighted sum of the terms, to go backward from, and each term before its weight, detached, by name.

    `prior` (num_expressions, num_action_units) stands in for Du's table where given. The names are
    `valence_arousal`, `expressions`, `action_units`, `matching` and `soft_co_annotation`; what is off is not there.
    Raises ValueError where the outputs are not of the descriptor set.
    """
    widths = tuple(head.shape[1] for head in outputs)
    expected = tuple(len(names) for names in descriptor_set.families.values())
    if widths != expected:
        raise ValueError(f"the heads give {widths} numbers a frame, the set {descriptor_set.name} has {expected}")
    logits = outputs.expression_logits
    if prior is None:
        prior = torch.from_numpy(prior_matrix(descriptor_set))
    prior = prior.to(logits.device)

    terms = {
        "valence_arousal": ccc_loss(outputs.valence_arousal, labels.valence_arousal, labels.valence_arousal_known),
        "expressions": expression_loss(logits, labels.expression),
        "action_units": action_unit_loss(
            outputs.action_unit_logits,
            labels.action_units,
            labels.action_units_known,
            pos_weight_vector(options.action_unit_pos_weight, descriptor_set),
        ),
    }
    weights = {
        "valence_arousal": options.valence_arousal_weight,
        "expressions": options.expression_weight,
        "action_units": options.action_unit_weight,
        "matching": options.matching_weight,
        "soft_co_annotation": options.soft_co_annotation_weight,
    }
    if options.matching != "off":
        terms["matching"] = matching_loss(outputs, labels, descriptor_set, prior, options.matching)
    if options.soft_co_annotation:
        targets = soft_expression_targets(
            labels.action_units,
            labels.action_units_known,
            descriptor_set,
            prior,
            options.soft_co_annotation_temperature,
        )
        _, labelled = expression_targets(labels.expression, len(descriptor_set.expressions))
        terms["soft_co_annotation"] = expression_loss(logits, targets.masked_fill(labelled[:, None], 0.0))
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return total, {name: term.detach() for name, term in terms.items()}


def ccc_loss(prediction: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """1 - the mean over columns of CCC = 2 s_xy / (s_x^2 + s_y^2 + (mean_x - mean_y)^2), population moments.

    float (N, K), float (N, K), bool (N, K) with N >= 1 -> scalar. A column without labels leaves the mean. One whose
    labels are all equal (one sample, say) has CCC 0 and no gradient, as the formula gives it.
    """
    x = _precise(prediction)
    y = _where_known(known, target.to(x.dtype))
    count = known.sum(dim=0).clamp(min=1)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return _where_known(known, values).sum(dim=0) / count

    mean_x, mean_y = mean(x), mean(y)
    lowest = y.masked_fill(~known, math.inf).amin(dim=0)
    highest = y.masked_fill(~known, -math.inf).amax(dim=0)
    # Equal labels less their mean leave a rounding error, which predictions close to them would turn into any CCC.
    deviation_x, deviation_y = x - mean_x, (y - mean_y).masked_fill(lowest >= highest, 0.0)
    numerator = 2 * mean(deviation_x * deviation_y)
    denominator = mean(deviation_x.square()) + mean(deviation_y.square()) + (mean_x - mean_y).square()
    ccc = numerator / torch.where(denominator > 0, denominator, 1.0)
    return _mean_of_known(1 - ccc, known.any(dim=0))


def expression_targets(expression: torch.Tensor, num_expressions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`FrameLabels.expression` in either form -> target distributions (N, num_expressions), and bool (N,): given."""
    if expression.is_floating_point():
        return expression, expression.sum(dim=1) > 0
    known = expression >= 0
    targets = functional.one_hot(expression.clamp(min=0), num_expressions)
    return targets.float().masked_fill(~known[:, None], 0.0), known


def expression_loss(logits: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, the mean over the samples that carry a target.

    float (N, num_expressions); classes or soft targets as in `FrameLabels.expression` -> scalar.
    """
    logits = _precise(logits)
    targets, known = expression_targets(expression, logits.shape[1])
    return _mean_of_known(-(targets.to(logits.dtype) * functional.log_softmax(logits, dim=1)).sum(dim=1), known)


def action_unit_loss(
    logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy, the mean over the known cells; `pos_weight` (num_action_units,) times the positive part.

    float (N, num_action_units), float (same), bool (same) -> scalar.
    """
    logits = _precise(logits)
    target = _where_known(known, target.to(logits.dtype))
    if pos_weight is not None:
        pos_weight = pos_weight.to(logits)
    cells = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction="none")
    return _mean_of_known(cells, known)


def pos_weight_vector(by_name: Mapping[str, float], descriptor_set: DescriptorSet) -> torch.Tensor | None:
    """Weights by action unit in the set's order, float32 (num_action_units,); None where none is given.

    Raises ValueError for a name that the set lacks.
    """
    unknown = set(by_name) - set(descriptor_set.action_units)
    if unknown:
        raise ValueError(f"action_unit_pos_weight names {sorted(unknown)}, which the set {descriptor_set.name} lacks")
    if not by_name:
        return None
    return torch.tensor([by_name.get(unit, 1.0) for unit in descriptor_set.action_units])


def matching_loss(
    outputs: MMAOutputs,
    labels: FrameLabels,
    descriptor_set: DescriptorSet,
    prior: torch.Tensor,
    matching: Matching = "both",
) -> torch.Tensor:
    """Distribution matching between the action units' p_i and q_i = sum_e p(e) w(i, e), which the expressions imply.

    PAPER.md, "Stage 1" [ours]: `to-au` is CE(p_i; target q_i), `to-expression` CE(q_i; target p_i), each target held
    constant and with labels in it where there are any. Mean over all samples and over the action units that the prior
    (num_expressions, num_action_units) names, each sample times the share of its expressions other than neutral and
    other, held constant too (a labelled sample's share is its label's: of a face labelled "other" nothing is implied).
    """
    p_expression = torch.softmax(_precise(outputs.expression_logits), dim=1)
    p_unit = torch.sigmoid(_precise(outputs.action_unit_logits))
    prior = prior.to(p_unit)

    def implied(distribution: torch.Tensor) -> torch.Tensor:
        return (distribution[:, :, None] * prior).sum(dim=1)

    label, labelled = expression_targets(labels.expression, len(descriptor_set.expressions))
    believed = torch.where(labelled[:, None], label.to(p_unit.dtype), p_expression.detach())
    believed_unit = torch.where(labels.action_units_known, labels.action_units.to(p_unit.dtype), p_unit.detach())
    with_units = [name not in WITHOUT_UNITS for name in descriptor_set.expressions]
    share = believed[:, torch.tensor(with_units, device=believed.device)].sum(dim=1)
    cells = torch.zeros_like(p_unit)
    if matching in ("to-au", "both"):
        cells = cells + _cross_entropy(p_unit, implied(believed))
    if matching in ("to-expression", "both"):
        cells = cells + _cross_entropy(implied(p_expression), believed_unit)
    return (cells[:, prior.any(dim=0)].mean(dim=1) * share).mean()


def soft_expression_targets(
    action_units: torch.Tensor,
    known: torch.Tensor,
    descriptor_set: DescriptorSet,
    prior: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Soft co-annotation: the expressions that action unit labels imply, (N, num_expressions) as soft targets.

    PAPER.md, "Stage 1" [kin]: softmax over e of (sum_i w(i, e) y_i / sum_i w(i, e)) / temperature over the known
    action units; neutral's score is 1 - max_i y_i; an expression without a row and without that rule (other) gets 0.
    A sample where for some expression under half of its weight (within this set) is known gets no target: a zero row.
    """
    y = _where_known(known, _precise(action_units))
    prior = prior.to(y)
    known_weight = (known[:, None, :] * prior).sum(dim=2)
    full_weight = prior.sum(dim=1)
    score = (y[:, None, :] * prior).sum(dim=2) / torch.where(known_weight > 0, known_weight, 1.0)
    score = score.masked_fill(full_weight == 0, -math.inf)
    if "neutral" in descriptor_set.expressions:
        neutral = torch.tensor([name == "neutral" for name in descriptor_set.expressions], device=y.device)
        score = torch.where(neutral, 1 - y.amax(dim=1, keepdim=True), score)
    covered = (known_weight >= full_weight / 2).all(dim=1) & known.any(dim=1)
    return torch.softmax(score / temperature, dim=1).masked_fill(~covered[:, None], 0.0)


def _cross_entropy(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of each cell; both sides are clamped alike, so that the gradient is zero where they are equal."""
    probability = probability.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    target = target.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -(target * torch.log(probability) + (1 - target) * torch.log1p(-probability))


def _mean_of_known(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Zero, connected to the graph, where nothing is known."""
    return _where_known(known, values).sum() / known.sum().clamp(min=1)


def _where_known(known: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(~known, 0.0)


def _precise(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()
