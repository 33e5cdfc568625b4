"""Augmentation: what each change does to a crop, and that a sample's change is its own wherever it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_worlds import made_data, made_network, one_thread  # noqa: F401

from mma.training.augment import NO_AUGMENTATION, NUMBERS, AugmentOptions, augment
from mma.training.draw import keyed_uniforms
from mma.training.loop import Training
from mma.training.options import TrainingOptions

SIDE_PX = 40


def only(**changes: float) -> AugmentOptions:
    return AugmentOptions(**{**vars(NO_AUGMENTATION), **changes})


def crops_of(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As `normalise` gives them: channels last, in [-1, 1], with no symmetry."""
    pixels = torch.rand(count, SIDE_PX, SIDE_PX, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (2 * pixels - 1).permute(0, 3, 1, 2)


def uniforms_of(count: int, epoch: int = 0) -> np.ndarray:
    return keyed_uniforms(np.arange(count), NUMBERS, seed=3, epoch=epoch)


# --- whose numbers ---


def test_a_samples_numbers_do_not_depend_on_its_company_or_order():
    samples = np.array([5, 0, 99, 2**40, 7])
    together = keyed_uniforms(samples, NUMBERS, seed=1, epoch=2)
    backwards = keyed_uniforms(samples[::-1], NUMBERS, seed=1, epoch=2)
    np.testing.assert_array_equal(together, backwards[::-1])
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(keyed_uniforms([sample], NUMBERS, seed=1, epoch=2)[0], together[row])
    np.testing.assert_array_equal(keyed_uniforms(samples, 4, seed=1, epoch=2), together[:, :4])


def test_other_samples_epochs_and_seeds_have_other_numbers():
    keys = [(seed, epoch) for seed in range(6) for epoch in range(6)]
    drawn = [keyed_uniforms(np.arange(20), NUMBERS, seed=seed, epoch=epoch) for seed, epoch in keys]
    assert len(np.unique(np.concatenate(drawn))) == len(keys) * 20 * NUMBERS


def test_the_numbers_are_uniform_and_independent():
    """To 5 standard errors, between samples in a row, numbers of a sample, epochs in a row and seeds in a row."""
    count = 20_000
    drawn = {
        key: keyed_uniforms(np.arange(count), NUMBERS, seed=key[0], epoch=key[1]) for key in [(0, 0), (0, 1), (1, 0)]
    }
    for each in drawn.values():
        assert each.min() >= 0
        assert each.max() < 1
        counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in each.T])
        chi_squared = ((counts - count / 20) ** 2 / (count / 20)).sum(axis=1)
        assert chi_squared.max() < 19 + 5 * np.sqrt(2 * 19)
    here = drawn[0, 0]
    tables = [here, np.roll(here, 1, axis=0), np.roll(here, 2, axis=0), drawn[0, 1], drawn[1, 0]]
    scaled = np.hstack([(table - 0.5) * np.sqrt(12) for table in tables])
    correlation = scaled[:, :NUMBERS].T @ scaled / count
    correlation[:, :NUMBERS] -= np.diag(np.diag(correlation))
    assert np.abs(correlation).max() < 5 / np.sqrt(count)


def test_a_crop_is_changed_alike_whatever_its_company():
    crops, uniforms = crops_of(9, dtype=torch.float64), uniforms_of(9)
    whole = augment(crops, uniforms, AugmentOptions(erase=1.0))
    order = np.array([8, 3, 0, 5])
    torch.testing.assert_close(
        augment(crops[order], uniforms[order], AugmentOptions(erase=1.0)), whole[order], rtol=0, atol=1e-12
    )
    for row in range(9):
        alone = augment(crops[row : row + 1], uniforms[row : row + 1], AugmentOptions(erase=1.0))
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-12)


def test_training_sees_the_epochs_own_changes(monkeypatch):
    """The crops that reach the network are those of (seed, epoch, sample), in a batch of any order."""
    seen: list[torch.Tensor] = []
    data, options = made_data(), TrainingOptions(seed=4, batch_size=6, average=0.0, learning_rate=0.0)
    training = Training(made_network(), data, options)
    training.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    rows = data.of_split("train")[:6]
    for epoch, batch in ((0, rows), (0, rows[::-1].copy()), (1, rows)):
        training.progress.epochs_done = epoch
        training.step(batch)
    torch.testing.assert_close(seen[1], seen[0].flip(0), rtol=0, atol=1e-5)
    assert (seen[2] - seen[0]).abs().amax(dim=(1, 2, 3)).min() > 0.01
    plain = training.network.normalise(torch.from_numpy(data.faces[rows])).mean(dim=1, keepdim=True)
    expected = augment(plain, keyed_uniforms(rows, NUMBERS, seed=4, epoch=1), options.augment)
    torch.testing.assert_close(seen[2], expected, rtol=0, atol=1e-5)


def test_grey_crops_change_as_the_mean_of_three_channels_does():
    """`tiny` looks at that mean alone, and augments only it."""
    crops, uniforms = crops_of(12, dtype=torch.float64), uniforms_of(12)
    grey = augment(crops.mean(1, keepdim=True), uniforms, AugmentOptions())
    torch.testing.assert_close(
        grey, augment(crops, uniforms, AugmentOptions()).mean(1, keepdim=True), rtol=0, atol=1e-12
    )


# --- what a change does ---


def test_nothing_on_leaves_crops_as_they_are():
    crops = crops_of(4)
    assert torch.equal(augment(crops, uniforms_of(4), NO_AUGMENTATION), crops)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_a_flip_alone_is_a_mirror(dtype, within):
    """To rounding: 1e-4 is a hundredth of a grey level."""
    crops, uniforms = crops_of(40, dtype=dtype), uniforms_of(40)
    flipped = uniforms[:, 0] < 0.5
    assert 10 < flipped.sum() < 30
    changed = augment(crops, uniforms, only(flip=0.5))
    torch.testing.assert_close(changed[flipped], crops[flipped].flip(3), rtol=0, atol=within)
    torch.testing.assert_close(changed[~flipped], crops[~flipped], rtol=0, atol=within)


def test_a_turn_and_a_shift_go_as_far_as_stated():
    """A dot right of the centre: turned by the limit, and moved by the limit along each axis."""
    crops = torch.full((1, 3, 101, 101), -1.0)
    crops[:, :, 48:53, 88:93] = 1.0
    most = np.full((1, NUMBERS), 1 - 1e-9)

    def place(options: AugmentOptions) -> tuple[float, float]:
        weight = augment(crops, most, options)[0, 0].double() + 1
        axis = torch.arange(101, dtype=torch.float64) - 50
        return float((weight.sum(0) * axis).sum() / weight.sum()), float((weight.sum(1) * axis).sum() / weight.sum())

    x, y = place(only(turn_deg=20.0))
    assert abs(np.degrees(np.arctan2(y, x))) == pytest.approx(20, abs=0.3)
    assert np.hypot(x, y) == pytest.approx(40, abs=0.3)
    x, y = place(only(shift=0.05))
    assert (abs(x - 40), abs(y)) == pytest.approx((5.05, 5.05), abs=0.05)
    x, y = place(only(zoom=0.25))
    assert (x, y) == pytest.approx((40 / 1.25, 0), abs=0.3)


def test_contrast_brightness_and_tint_stay_within_what_is_stated():
    crops, uniforms = crops_of(200, dtype=torch.float64), uniforms_of(200)
    gain = augment(crops, uniforms, only(contrast=0.3)) / crops
    assert 0.7 <= gain.min() < 0.72
    assert 1.28 < gain.max() <= 1.3
    offset = augment(crops, uniforms, only(brightness=0.1)) - crops
    torch.testing.assert_close(offset, offset[:, :1, :1, :1].expand_as(offset), rtol=0, atol=1e-12)
    assert 0.19 < offset.abs().max() <= 0.2
    tint = (augment(crops, uniforms, only(tint=0.05)) - crops)[:, :, 0, 0]
    assert 0.095 < tint.abs().max() <= 0.1
    assert np.abs(np.corrcoef(tint.numpy().T) - np.eye(3)).max() < 0.3


def test_erasing_blanks_one_rectangle_of_at_most_the_stated_sides():
    crops, uniforms = crops_of(400), uniforms_of(400)
    blank = (augment(crops, uniforms, only(erase=0.5, erase_side=0.36)) != crops).any(dim=1)
    rows, columns = blank.any(dim=2), blank.any(dim=1)
    assert torch.equal(blank, rows[:, :, None] & columns[:, None, :])
    for axis in (rows, columns):
        assert axis.sum(dim=1).max() == 14  # 0.36 of 40 px is 14.4
        starts = (axis[:, 1:] & ~axis[:, :-1]).sum(dim=1) + axis[:, 0]
        assert starts.max() == 1
    assert torch.equal(blank.any(dim=2).any(dim=1) & torch.from_numpy(uniforms[:, 10] >= 0.5), torch.zeros(400).bool())
    assert 120 < blank.any(dim=2).any(dim=1).sum() < 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_shape_type_and_memory_format_are_kept(count, dtype):
    """Also of no crop at all: the share of a worker in a batch of fewer samples than workers."""
    crops = crops_of(count, dtype=dtype)
    before = crops.clone()
    strong = AugmentOptions(flip=1, turn_deg=180, zoom=0.9, shift=0.5, contrast=2, brightness=1, erase=1, erase_side=1)
    for options in (AugmentOptions(), strong, NO_AUGMENTATION):
        changed = augment(crops, uniforms_of(count), options)
        assert changed.shape == crops.shape
        assert changed.dtype == dtype
        assert changed.is_contiguous(memory_format=torch.channels_last)
        assert changed.isfinite().all()
    assert torch.equal(crops, before)


@pytest.mark.parametrize(
    "wrong", [{"flip": 1.1}, {"erase_side": -0.1}, {"zoom": 0.95}, {"turn_deg": -1.0}, {"tint": float("nan")}]
)
def test_changes_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"--augment.{name.replace('_', '-')} "):
        AugmentOptions(**wrong)
