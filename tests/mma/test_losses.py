"""Stage 1's losses against worked examples in float64 NumPy, finite differences, and what PAPER.md says of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mma.descriptors import ABAW22, BASIC_EXPRESSIONS, MMA26, DescriptorSet
from mma.losses import (
    FrameLabels,
    LossOptions,
    action_unit_loss,
    ccc_loss,
    expression_loss,
    matching_loss,
    soft_expression_targets,
    stage1_loss,
)
from mma.network import MMAOutputs
from mma.prior import DU_PRIOR, prior_matrix

DOUBLE = torch.float64
FULL = LossOptions(soft_co_annotation=True, action_unit_pos_weight={"AU04": 3.0, "AU12": 0.5})


def made_outputs(num: int, descriptor_set=MMA26, seed=0, dtype=DOUBLE) -> MMAOutputs:
    """Random outputs of the three heads that gradients can be asked of."""
    generator = torch.Generator().manual_seed(seed)
    widths = [len(names) for names in descriptor_set.families.values()]
    va, expressions, units = (torch.randn(num, w, generator=generator, dtype=DOUBLE).to(dtype) for w in widths)
    return MMAOutputs(*(each.requires_grad_() for each in (torch.tanh(va), 2 * expressions, 2 * units)))


def made_labels(num: int, descriptor_set=MMA26, seed=1) -> FrameLabels:
    """Random labels, about half of the cells of each family known."""
    rng = np.random.default_rng(seed)
    units = (num, len(descriptor_set.action_units))
    expression = rng.integers(0, len(descriptor_set.expressions), num)
    return FrameLabels(
        valence_arousal=torch.tensor(rng.uniform(-1, 1, (num, 2)), dtype=torch.float32),
        valence_arousal_known=torch.tensor(rng.random((num, 2)) < 0.6),
        expression=torch.tensor(np.where(rng.random(num) < 0.5, expression, -1)),
        action_units=torch.tensor(rng.integers(0, 2, units), dtype=torch.float32),
        action_units_known=torch.tensor(rng.random(units) < np.where(rng.random((num, 1)) < 0.5, 0.2, 0.9)),
    )


def nothing_known(num: int, descriptor_set=MMA26) -> FrameLabels:
    """Labels as an importer may leave them: NaN where unknown."""
    units = (num, len(descriptor_set.action_units))
    return FrameLabels(
        torch.full((num, 2), math.nan),
        torch.zeros(num, 2, dtype=torch.bool),
        torch.full((num,), -1),
        torch.full(units, math.nan),
        torch.zeros(units, dtype=torch.bool),
    )


def arrays(values) -> list[np.ndarray]:
    return [each.detach().numpy().astype(np.float64) for each in values]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def worked_ccc(outputs, labels):
    x, y, known = arrays([outputs[0], labels[0], labels[1]])
    scores = []
    for k in range(2):
        a, b = x[known[:, k] == 1, k], y[known[:, k] == 1, k]
        scores.append(2 * np.cov(a, b, ddof=0)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2))
    return 1 - np.mean(scores)


def worked_expressions(outputs, labels):
    logits, expression = arrays([outputs[1], labels.expression])
    return np.mean([-np.log(softmax(z)[int(e)]) for z, e in zip(logits, expression) if e >= 0])


def worked_units(outputs, labels, pos_weight):
    p, y, known = arrays([torch.sigmoid(outputs[2]), labels.action_units, labels.action_units_known])
    cells = []
    for n in range(len(p)):
        for i, unit in enumerate(MMA26.action_units):
            if known[n, i]:
                cells.append(-pos_weight.get(unit, 1) * y[n, i] * np.log(p[n, i]) - (1 - y[n, i]) * np.log(1 - p[n, i]))
    return np.mean(cells)


def worked_targets(outputs, labels):
    """Of each sample: what is held constant, {expression: share} and {unit: probability}, labels in it; by name."""
    expressions, units = softmax(arrays([outputs[1]])[0]), sigmoid(arrays([outputs[2]])[0])
    held = []
    for n, e in enumerate(labels.expression.tolist()):
        believed = dict(zip(MMA26.expressions, np.eye(7)[e] if e >= 0 else expressions[n]))
        given = zip(MMA26.action_units, units[n], labels.action_units[n], labels.action_units_known[n])
        held.append((believed, {unit: float(y) if known else p for unit, p, y, known in given}))
    return held


def worked_matching(outputs, held, matching):
    expressions, units = softmax(arrays([outputs[1]])[0]), sigmoid(arrays([outputs[2]])[0])
    named = [unit for unit in MMA26.action_units if any(unit in row for row in DU_PRIOR.values())]
    assert len(named) == 16
    assert "AU14" not in named

    def implied(shares, unit):
        return sum(share * DU_PRIOR.get(name, {}).get(unit, 0) for name, share in shares.items())

    def cross_entropy(p, target):
        p, target = np.clip([p, target], 1e-6, 1 - 1e-6)
        return -target * np.log(p) - (1 - target) * np.log(1 - p)

    per_sample = []
    for n, (believed, believed_units) in enumerate(held):
        p = dict(zip(MMA26.action_units, units[n]))
        mine = dict(zip(MMA26.expressions, expressions[n]))
        to_au = np.mean([cross_entropy(p[unit], implied(believed, unit)) for unit in named])
        to_expression = np.mean([cross_entropy(implied(mine, unit), believed_units[unit]) for unit in named])
        term = {"to-au": to_au, "to-expression": to_expression, "both": to_au + to_expression}[matching]
        per_sample.append(term * (1 - believed["neutral"]))
    return np.mean(per_sample)


def worked_soft_targets(labels):
    targets = []
    for y, known in zip(labels.action_units.numpy(), labels.action_units_known.numpy()):
        seen = {unit: float(v) for unit, v, k in zip(MMA26.action_units, y, known) if k}
        scores, covered = {"neutral": 1 - max(seen.values(), default=0)}, bool(seen)
        for name, row in DU_PRIOR.items():
            weight = sum(w for unit, w in row.items() if unit in seen)
            covered &= weight >= sum(row.values()) / 2
            scores[name] = sum(w * seen[unit] for unit, w in row.items() if unit in seen) / max(weight, 1e-9)
        targets.append(softmax(np.array([scores[name] for name in MMA26.expressions]) / 0.1) if covered else None)
    return targets


@pytest.mark.parametrize("matching", ["to-au", "to-expression", "both"])
def test_every_term_equals_its_worked_example(matching):
    outputs, labels = made_outputs(40), made_labels(40)
    total, terms = stage1_loss(outputs, labels, replace(FULL, matching=matching), MMA26)
    logits = arrays([outputs[1]])[0]
    implied = [
        -(target * np.log(softmax(z))).sum()
        for z, e, target in zip(logits, labels.expression, worked_soft_targets(labels))
        if e < 0 and target is not None
    ]
    assert 2 < len(implied) < 20
    expected = {
        "valence_arousal": worked_ccc(outputs, labels),
        "expressions": worked_expressions(outputs, labels),
        "action_units": worked_units(outputs, labels, FULL.action_unit_pos_weight),
        "matching": worked_matching(outputs, worked_targets(outputs, labels), matching),
        "soft_co_annotation": np.mean(implied),
    }
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, abs=1e-6)
    assert total.item() == pytest.approx(sum(expected.values()), abs=1e-6)
    assert total.dtype == DOUBLE


@pytest.mark.parametrize("matching", ["to-au", "to-expression", "both"])
def test_matching_follows_finite_differences_with_its_targets_held(matching):
    outputs, labels = made_outputs(5, seed=3), made_labels(5, seed=4)
    loss = matching_loss(outputs, labels, MMA26, torch.from_numpy(prior_matrix(MMA26)), matching)
    gradients = torch.autograd.grad(loss, outputs[1:], allow_unused=matching != "both")
    held = worked_targets(outputs, labels)
    for head, gradient in zip((1, 2), gradients):
        if gradient is None:
            assert head == {"to-au": 1, "to-expression": 2}[matching]
            continue
        for cell in np.ndindex(*outputs[head].shape):
            moved = []
            for step in (1e-5, -1e-5):
                values = [each.detach().clone() for each in outputs]
                values[head][cell] += step
                moved.append(worked_matching(MMAOutputs(*values), held, matching))
            # The prior is held in float32, the worked example's in float64: that much they differ.
            assert gradient[cell].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, abs=3e-8)


def test_the_supervised_losses_follow_finite_differences():
    outputs, labels = (
        made_outputs(6, seed=5),
        made_labels(6, seed=6)._replace(expression=torch.tensor([0, -1, 3, 6, -1, 2])),
    )
    soft = torch.softmax(torch.randn(6, 7, dtype=DOUBLE), dim=1)
    soft[2] = 0
    pos_weight = torch.linspace(0.5, 4, 17, dtype=DOUBLE)
    assert torch.autograd.gradcheck(lambda x: ccc_loss(x, labels[0], labels[1]), outputs[0])
    assert torch.autograd.gradcheck(lambda x: expression_loss(x, labels.expression), outputs[1])
    assert torch.autograd.gradcheck(lambda x: expression_loss(x, soft), outputs[1])
    assert torch.autograd.gradcheck(lambda x: action_unit_loss(x, labels[3], labels[4], pos_weight), outputs[2])


@pytest.mark.parametrize("matching", ["to-au", "to-expression", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_heads_that_agree_are_not_moved_by_matching(matching, dtype):
    prior = torch.from_numpy(prior_matrix(MMA26)).to(dtype)
    expressions = made_outputs(30, dtype=dtype, seed=7).expression_logits
    agreed = torch.softmax(expressions.detach(), dim=1) @ prior
    units = torch.logit(agreed, eps=1e-6).requires_grad_()
    outputs = MMAOutputs(torch.zeros(30, 2, dtype=dtype), expressions, units)
    loss = matching_loss(outputs, nothing_known(30), MMA26, prior, matching)
    tolerance = 1e-14 if dtype == DOUBLE else 1e-6
    for gradient in torch.autograd.grad(loss, (expressions, units), allow_unused=matching != "both"):
        assert gradient is None or gradient.abs().max() < tolerance
    # And such heads do learn once they disagree.
    apart = outputs._replace(action_unit_logits=(units + 0.5).detach().requires_grad_())
    loss = matching_loss(apart, nothing_known(30), MMA26, prior, matching)
    learner = apart.expression_logits if matching == "to-expression" else apart.action_unit_logits
    assert torch.autograd.grad(loss, learner)[0].abs().max() > 1e-4


def test_matching_brings_two_heads_together_and_not_to_the_ends():
    """PAPER.md: with gradient into the own target, .55 and .50 went to .99."""
    toy = DescriptorSet(name="toy", expressions=("neutral", "happiness"), action_units=("AU12",))
    prior = torch.from_numpy(prior_matrix(toy))
    expressions = torch.tensor([[0.0, math.log(0.55 / 0.45)]], requires_grad=True)
    units = torch.zeros(1, 1, requires_grad=True)
    optimiser = torch.optim.SGD([expressions, units], lr=0.5)
    for _ in range(300):
        optimiser.zero_grad()
        matching_loss(MMAOutputs(torch.zeros(1, 2), expressions, units), nothing_known(1, toy), toy, prior).backward()
        optimiser.step()
    happiness, au12 = torch.softmax(expressions, 1)[0, 1].item(), torch.sigmoid(units).item()
    assert happiness == pytest.approx(au12, abs=1e-3)
    assert 0.5 <= au12 <= 0.55


def test_saturated_heads_give_finite_gradients():
    outputs = made_outputs(8, dtype=torch.float32)
    outputs = MMAOutputs(*((each.detach() * 1000).requires_grad_() for each in outputs))
    total, terms = stage1_loss(outputs, made_labels(8), FULL, MMA26)
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(each).all() for each in torch.autograd.grad(total, outputs))


def test_a_face_labelled_other_implies_no_action_unit():
    outputs = made_outputs(1, ABAW22)
    other = nothing_known(1, ABAW22)._replace(expression=torch.tensor([ABAW22.expressions.index("other")]))
    prior = torch.from_numpy(prior_matrix(ABAW22))
    assert matching_loss(outputs, other, ABAW22, prior).item() == 0
    assert matching_loss(outputs, nothing_known(1, ABAW22), ABAW22, prior).item() > 0


def test_a_task_without_labels_gives_zero_and_zero_gradients():
    outputs = made_outputs(4)
    total, terms = stage1_loss(outputs, nothing_known(4), replace(FULL, matching="off"), MMA26)
    assert total.item() == 0
    assert {float(term) for term in terms.values()} == {0.0}
    for gradient in torch.autograd.grad(total, outputs):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("absent", ["valence_arousal", "expressions", "action_units"])
def test_an_absent_task_leaves_the_other_terms_and_its_own_head_alone(absent):
    outputs, labels, nothing = made_outputs(12), made_labels(12), nothing_known(12)
    fields = {
        "valence_arousal": ("valence_arousal", "valence_arousal_known"),
        "expressions": ("expression",),
        "action_units": ("action_units", "action_units_known"),
    }[absent]
    supervised = LossOptions(matching="off")
    partly = labels._replace(**{name: getattr(nothing, name) for name in fields})
    total, terms = stage1_loss(outputs, partly, supervised, MMA26)
    _, whole = stage1_loss(outputs, labels, supervised, MMA26)
    assert terms == {**whole, absent: 0.0}
    gradients = dict(zip(MMA26.families, torch.autograd.grad(total, outputs)))
    assert {name: bool(each.any()) for name, each in gradients.items()} == {
        name: name != absent for name in MMA26.families
    }


def test_what_an_unknown_cell_holds_changes_nothing():
    outputs, labels, nothing = made_outputs(20), made_labels(20), nothing_known(20)
    holes = labels._replace(
        valence_arousal=torch.where(labels.valence_arousal_known, labels.valence_arousal, nothing.valence_arousal),
        action_units=torch.where(labels.action_units_known, labels.action_units, nothing.action_units),
    )
    first, second = (stage1_loss(outputs, each, FULL, MMA26)[0] for each in (labels, holes))
    assert torch.equal(first, second)
    for a, b in zip(torch.autograd.grad(first, outputs), torch.autograd.grad(second, outputs)):
        assert torch.equal(a, b)


def test_valence_alone_is_scored_where_arousal_is_unknown():
    x, y = torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.7]]), torch.tensor([[0.1, -5.0], [0.5, -5.0], [0.3, -5.0]])
    known = torch.tensor([[True, False]] * 3)
    assert ccc_loss(x, y, known).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num", [1, 3, 7])
def test_equal_labels_give_ccc_zero_without_gradient(num):
    """Also where the predictions equal them: 0 / 0 in the formula."""
    for offset in (0.0, 1e-8, 0.3):
        x = torch.full((num, 2), 0.1 + offset).requires_grad_()
        loss = ccc_loss(x, torch.full((num, 2), 0.1), torch.ones(num, 2, dtype=torch.bool))
        assert loss.item() == 1
        assert not torch.autograd.grad(loss, x)[0].any()


@pytest.mark.parametrize("options", [FULL, replace(FULL, matching="to-expression")])
@pytest.mark.parametrize("original", [MMA26, ABAW22])
def test_another_order_of_the_same_names_gives_the_same_loss(original, options):
    rng = np.random.default_rng(2)
    e, a = (rng.permutation(len(names)) for names in (original.expressions, original.action_units))
    shuffled = DescriptorSet(
        name="shuffled",
        expressions=tuple(original.expressions[k] for k in e),
        action_units=tuple(original.action_units[k] for k in a),
    )
    outputs, labels = made_outputs(30, original), made_labels(30, original)
    place = torch.tensor([*np.argsort(e), -1])
    total, terms = stage1_loss(outputs, labels, options, original)
    total2, terms2 = stage1_loss(
        outputs._replace(
            expression_logits=outputs.expression_logits[:, e], action_unit_logits=outputs.action_unit_logits[:, a]
        ),
        labels._replace(
            expression=place[labels.expression],
            action_units=labels.action_units[:, a],
            action_units_known=labels.action_units_known[:, a],
        ),
        options,
        shuffled,
    )
    assert {name: float(term) for name, term in terms2.items()} == pytest.approx(
        {name: float(term) for name, term in terms.items()}, abs=1e-6
    )
    assert total2.item() == pytest.approx(total.item(), abs=1e-6)
    assert terms["matching"] > 0
    assert terms["soft_co_annotation"] > 0


def test_a_smile_is_co_annotated_as_happiness_and_a_still_face_as_neutral():
    y = torch.zeros(3, 17)
    for unit in DU_PRIOR["happiness"]:
        y[:2, MMA26.action_units.index(unit)] = 1
    known = torch.ones(3, 17, dtype=torch.bool)
    # Without AU09, AU10 and AU17 most of disgust's weight is unknown: no target.
    for unit in ("AU09", "AU10", "AU17"):
        known[1, MMA26.action_units.index(unit)] = False
    targets = soft_expression_targets(y, known, MMA26, torch.from_numpy(prior_matrix(MMA26)), 0.1)
    assert MMA26.expressions[targets[0].argmax()] == "happiness"
    assert targets[0].max() > 0.9
    assert targets[0].sum().item() == pytest.approx(1)
    assert not targets[1].any()
    assert MMA26.expressions[targets[2].argmax()] == "neutral"
    at_one = soft_expression_targets(y, known, MMA26, torch.from_numpy(prior_matrix(MMA26)), 1.0)
    assert at_one[0].max() < 0.3


def test_nothing_implies_the_expression_other():
    labels = made_labels(30, ABAW22)
    known = torch.ones_like(labels.action_units_known)
    targets = soft_expression_targets(labels.action_units, known, ABAW22, torch.from_numpy(prior_matrix(ABAW22)), 0.1)
    assert not targets[:, ABAW22.expressions.index("other")].any()
    assert targets.sum(dim=1).numpy() == pytest.approx(np.ones(30))


def test_one_hot_soft_targets_equal_classes():
    outputs, labels = made_outputs(20), made_labels(20)
    soft = torch.eye(8)[labels.expression][:, :7]
    assert torch.equal(
        *(stage1_loss(outputs, labels._replace(expression=e), FULL, MMA26)[0] for e in (labels[2], soft))
    )


def test_autocast_rounds_nothing_and_half_precision_comes_out_as_float32():
    outputs, labels = made_outputs(20, dtype=torch.float32), made_labels(20)
    plain, _ = stage1_loss(outputs, labels, FULL, MMA26)
    with torch.autocast("cpu", torch.bfloat16):
        cast, terms = stage1_loss(outputs, labels, FULL, MMA26)
    assert torch.equal(plain, cast)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    halves = MMAOutputs(*(each.detach().bfloat16() for each in outputs))
    assert stage1_loss(halves, labels, FULL, MMA26)[0].dtype == torch.float32


def test_weights_multiply_their_terms():
    outputs, labels = made_outputs(20), made_labels(20)
    weights = {
        "valence_arousal": 0.5,
        "expression": 2.0,
        "action_unit": 0.0,
        "matching": 3.0,
        "soft_co_annotation": 0.25,
    }
    options = replace(FULL, **{f"{name}_weight": weight for name, weight in weights.items()})
    total, terms = stage1_loss(outputs, labels, options, MMA26)
    by_hand = sum(
        w * float(t)
        for w, t in zip(
            weights.values(),
            (terms[n] for n in ("valence_arousal", "expressions", "action_units", "matching", "soft_co_annotation")),
        )
    )
    assert total.item() == pytest.approx(by_hand)


def test_another_prior_stands_in_for_the_table():
    outputs, nothing = made_outputs(6), nothing_known(6)
    prior = torch.zeros(7, 17)
    prior[BASIC_EXPRESSIONS.index("happiness"), MMA26.action_units.index("AU14")] = 1
    loss, _ = stage1_loss(outputs, nothing, LossOptions(matching="to-au"), MMA26, prior)
    gradient = torch.autograd.grad(loss, outputs.action_unit_logits)[0]
    assert gradient.any(dim=0).nonzero().tolist() == [[MMA26.action_units.index("AU14")]]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"expression_weight": -1.0}, "expression_weight"),
        ({"matching_weight": math.nan}, "matching_weight"),
        ({"matching": "to-va"}, "to-expression"),
        ({"soft_co_annotation_temperature": 0.0}, "soft_co_annotation_temperature"),
        ({"action_unit_pos_weight": {"AU04": 0.0}}, "AU04"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_the_option(setting, told):
    with pytest.raises(ValueError, match=told):
        LossOptions(**setting)


def test_outputs_and_weights_of_another_set_are_refused():
    with pytest.raises(ValueError, match="abaw22"):
        stage1_loss(made_outputs(3), made_labels(3), LossOptions(), ABAW22)
    with pytest.raises(ValueError, match="AU99"):
        stage1_loss(made_outputs(3), made_labels(3), LossOptions(action_unit_pos_weight={"AU99": 2.0}), MMA26)
