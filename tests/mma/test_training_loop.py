"""The loop: which epoch is kept, when it ends, what stops it, and that its options reach what they steer."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_worlds import SETS, made_batches, made_data, made_network, one_thread  # noqa: F401

from mma.losses import LossOptions, action_unit_loss
from mma.training.augment import NO_AUGMENTATION
from mma.training.loop import Training
from mma.training.options import TrainingOptions

LAST_WEIGHTS = {"average": 0.0, "augment": NO_AUGMENTATION}


class Scripted(Training):
    """A training whose epochs move one weight's mean by 1 and get the next of given scores, without a batch."""

    scores: tuple[float, ...] = ()

    def train_epoch(self) -> dict[str, float]:
        with torch.no_grad():
            self.network.heads["expressions"].bias -= 1
            self.average.heads["expressions"].bias += 1
        self.progress.steps_done += 1
        return {"total": 0.0}

    def evaluate(self, rows, network=None):
        if not len(rows):
            return None
        told = {"abaw_score": self.scores[self.progress.epochs_done]}
        return SimpleNamespace(scores=lambda _: told, action_units=SimpleNamespace(best_thresholds=dict))


def scripted(*scores: float, patience: int | None = None) -> Scripted:
    splits = {"train": 6, "val": 3} if scores else {"train": 6}
    training = Scripted(made_network(), made_data(splits), TrainingOptions(epochs=6, patience=patience))
    training.scores = scores
    return training


def kept_epoch(training: Training) -> int:
    """The epoch after which the kept weights were taken, by the weight whose mean each moved by 1."""
    return round(float(training.best_network().heads["expressions"].bias[0])) - 1


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "best"),
    [
        ((0.1, 0.5, 0.3, 0.4, 0.2, 0.1), None, 6, 1),
        ((0.1, 0.5, 0.3, 0.4, 0.2, 0.1), 2, 4, 1),
        ((0.1, 0.5, 0.3, 0.6, 0.2, 0.1), 2, 6, 3),
        ((0.1, 0.5, 0.3, 0.6, 0.2, 0.1), 1, 3, 1),
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 3, 4, 0),
        ((-0.2, -0.1, 0.0, 0.1, 0.2, 0.3), 1, 6, 5),
    ],
)
def test_the_best_epoch_is_kept_and_patience_ends_the_run(scores, patience, epochs, best):
    training = scripted(*scores, patience=patience)
    assert len(list(training.epochs())) == epochs
    assert training.finished
    assert (training.progress.best_epoch, training.progress.best_score) == (best, scores[best])
    assert kept_epoch(training) == best


def test_without_validation_the_last_mean_is_kept_and_patience_waits():
    training = scripted(patience=1)
    assert len(list(training.epochs())) == 6
    assert training.progress.best_score is None
    assert kept_epoch(training) == 5


def test_the_running_mean_is_what_is_scored_and_kept():
    """Decay of the first step: min(average, 2 / 11); of the second 3 / 12."""
    data = made_data({"train": 12})
    training = Training(made_network(), data, TrainingOptions(epochs=1, batch_size=6, average=0.2))
    start = training.network.heads["expressions"].weight.detach().clone()
    seen = []
    for batch in made_batches(data, 6, 1) * 2:
        training.step(batch)
        seen.append(training.network.heads["expressions"].weight.detach().clone())
    first = 2 / 11 * start + 9 / 11 * seen[0]
    expected = 0.2 * first + 0.8 * seen[1]
    torch.testing.assert_close(training.average.heads["expressions"].weight, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, seen[1], atol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_mean_holds_the_buffers_too(decay):
    data = made_data({"train": 6})
    training = Training(made_network("resnet18"), data, TrainingOptions(batch_size=4, average=decay))
    training.step(made_batches(data, 4, 1)[0])
    own, mean = training.network.trunk.bn1, training.average.trunk.bn1
    assert int(mean.num_batches_tracked) == 1
    share = 1.0 if decay == 0 else 9 / 11
    torch.testing.assert_close(mean.running_mean, share * own.running_mean, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_ends_the_training_before_a_weight_moves():
    data = made_data()
    training = Training(made_network(), data, TrainingOptions(**LAST_WEIGHTS))
    with torch.no_grad():
        training.network.heads["expressions"].weight[0, 0] = math.nan
    before = training.network.heads["action_units"].weight.clone()
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        next(training.epochs())
    assert torch.equal(training.network.heads["action_units"].weight, before)


@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_a_gradient_that_is_not_finite_ends_it_too(clip_norm):
    """Clipping alone would turn every weight into NaN, and the last step's would be kept."""
    data = made_data({"train": 6})
    training = Training(made_network(), data, TrainingOptions(clip_norm=clip_norm, **LAST_WEIGHTS))
    training.network.heads["expressions"].bias.register_hook(lambda gradient: gradient * math.inf)
    before = training.network.heads["action_units"].weight.clone()
    with pytest.raises(FloatingPointError, match=r"the gradient's norm is (inf|nan) at step 0"):
        training.train_epoch()
    assert torch.equal(training.network.heads["action_units"].weight, before)


class Restored(Training):
    """Constant predictions in the first epoch, and the weights that made the labels in the second."""

    def train_epoch(self) -> dict[str, float]:
        for name, parameter in self.average.heads["valence_arousal"].named_parameters():
            right = self.network.heads["valence_arousal"].get_parameter(name)
            parameter.copy_(right if self.progress.epochs_done else torch.zeros_like(right))
        return {"total": 0.0}


def test_constant_predictions_score_zero_and_do_not_block_the_best():
    data = made_data({"train": 4, "val": 20}, sets=("affect",))
    training = Restored(made_network(), data, TrainingOptions(epochs=2))
    pixels = training.network.normalise(torch.from_numpy(data.faces))
    with torch.inference_mode():
        data.labels.valence_arousal[:] = training.network.eval()(pixels).valence_arousal.numpy()
    first, second = training.epochs()
    assert (first["val_valence_ccc"], first["val_arousal_ccc"], first["val_abaw_score"]) == (0, 0, 0)
    assert second["val_valence_ccc"] == pytest.approx(1, abs=1e-5)
    assert training.progress.best_epoch == 1
    assert all(math.isfinite(value) for entry in (first, second) for value in entry.values())


def test_the_learning_rate_rises_and_falls_over_all_steps():
    """Epochs of 17, 18, 17 and 15 samples by rounding, in 6, 6, 6 and 5 steps: the schedule ends with the last one."""
    options = TrainingOptions(epochs=4, batch_size=3, epoch_samples=17, warmup=0.25, learning_rate=0.1)
    training = Training(
        made_network(), made_data({"train": 30}), options, shares={"affect": 3, "classes": 2, "units": 2}
    )
    steps = [len(training._batches(epoch)) for epoch in range(4)]
    assert training.total_steps == sum(steps)
    rates = [training.learning_rate(step) for step in range(sum(steps))]
    warm = round(0.25 * sum(steps))
    assert rates[:warm] == pytest.approx([0.1 * (step + 1) / warm for step in range(warm)])
    assert all(one >= other for one, other in zip(rates[warm:], rates[warm + 1 :]))
    assert rates[warm] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.002
    for group in training.optimiser.param_groups:
        assert group["lr"] == 0.1
    training.step(made_batches(training.data, 3, 1)[0])
    assert training.optimiser.param_groups[0]["lr"] == pytest.approx(rates[0])


def test_a_step_does_not_draw_the_epoch_again(monkeypatch):
    """The order of millions of samples takes longer than a step."""
    drawn = []
    whole = Training._batches
    monkeypatch.setattr(Training, "_batches", lambda self, epoch: (drawn.append(epoch), whole(self, epoch))[1])
    options = TrainingOptions(epochs=2, batch_size=4, **LAST_WEIGHTS)
    list(Training(made_network(), made_data({"train": 12}), options).epochs())
    assert drawn == [0, 1]


def test_decay_spares_biases_and_norms():
    training = Training(made_network("resnet18"), made_data(), TrainingOptions(weight_decay=0.3))
    decay = {id(each): group["weight_decay"] for group in training.optimiser.param_groups for each in group["params"]}
    for name, parameter in training.network.named_parameters():
        spared = name.endswith("bias") or ".bn" in name or "downsample.1" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.3), name


def test_balance_draws_rare_classes_more_often():
    data = made_data({"train": 300})
    rare = data.members["train"]["classes"]
    data.labels.expression[rare] = 0
    data.labels.expression[rare[:5]] = 3
    even, balanced = (
        np.concatenate(Training(made_network(), data, TrainingOptions(balance=power))._batches(0))
        for power in (0.0, 1.0)
    )
    assert np.isin(even, rare[:5]).sum() == 5
    assert np.isin(balanced, rare[:5]).sum() == pytest.approx(50, abs=20)
    assert np.isin(balanced, rare).sum() == 100  # the sets' shares are kept


def test_pos_weights_reach_the_loss():
    data = made_data({"train": 30}, sets=("units",))
    batch = data.of_split("train")
    losses = {}
    for weight in (1.0, 4.0):
        loss = LossOptions(matching="off", action_unit_pos_weight={"AU12": weight} if weight > 1 else {})
        training = Training(made_network(), data, TrainingOptions(loss=loss, **LAST_WEIGHTS))
        losses[weight] = training.step(batch)["action_units"]
    network = made_network()
    with torch.no_grad():
        outputs = network(network.normalise(torch.from_numpy(data.faces[batch])))
    label, known = (torch.from_numpy(each[batch]) for each in data.labels[3:])
    index = training.descriptors.action_units.index("AU12")
    weights = torch.ones(label.shape[1])
    weights[index] = 4.0
    expected = {1.0: None, 4.0: weights}
    for weight, vector in expected.items():
        wanted = float(action_unit_loss(outputs.action_unit_logits, label, known, vector))
        assert losses[weight] == pytest.approx(wanted, abs=1e-5)
    assert losses[4.0] > losses[1.0] + 1e-3


def test_an_unknown_action_unit_in_the_weights_is_refused():
    options = TrainingOptions(loss=LossOptions(action_unit_pos_weight={"AU99": 2.0}))
    with pytest.raises(ValueError, match="AU99"):
        Training(made_network(), made_data(), options).train_epoch()


def test_trainings_without_samples_are_refused():
    with pytest.raises(ValueError, match="no sample of the split train"):
        Training(made_network(), made_data({"val": 9}), TrainingOptions())
    with pytest.raises(ValueError, match="leave nothing to train on"):
        Training(made_network(), made_data(), TrainingOptions(), shares=dict.fromkeys(SETS, 0.0))
    with pytest.raises(ValueError, match="epoch-samples 2 is under the 3 sets"):
        Training(made_network(), made_data(), TrainingOptions(epoch_samples=2))


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"patience": 0}, {"learning_rate": math.nan}, {"balance": -1.0}, {"average": 1.0}, {"seed": -1}],
)
def test_options_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} "):
        TrainingOptions(**wrong)
