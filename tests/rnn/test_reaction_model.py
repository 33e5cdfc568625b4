"""A model as one file, and its predictions for videos of every kind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from made_grid import failed, settled, video
from reaction_worlds import made_videos

from mma.checkpoint import dump_mma
from mma.config import MMAConfig
from mma.network import random_mma
from rnn.grid import GridVideos, to_grid
from rnn.model import METADATA_KEY, ReactionModel, fit_calibration, load_model
from rnn.network import NetworkConfig, random_rnn
from rnn.reactions import REACTIONS
from rnn.sequences import Normaliser, SequenceOptions, fit_normaliser
from rnn.training.data import SAMPLE_SCHEMA, SplitVideos
from rnn.training.final import TrainedSeed, finished_model
from rnn.training.loop import ReactionTraining, predict
from rnn.training.options import FitOptions

NAMES = ("valence", "arousal")


def grid_of(*chunks) -> GridVideos:
    return to_grid(pa.concat_tables(chunks), NAMES, 0.1)


def made_model(readout: str = "routed-dense", steps: int = 6, seeds=(0, 1)) -> ReactionModel:
    rng = np.random.default_rng(0)
    grid = grid_of(*(settled(video(f"t{k}", np.arange(steps) / 10, rng.normal(size=steps))) for k in range(5)))
    config = NetworkConfig(readout=readout, units=4, dense_width=3)
    outputs = rng.random((40, 7))
    return ReactionModel(
        networks=tuple(random_rnn(2, steps, config, seed=seed).eval() for seed in seeds),
        seeds=tuple(seeds),
        calibrations=tuple(fit_calibration(outputs, outputs.astype(np.float32) * 0.5 + 0.1) for _ in seeds),
        sequence=SequenceOptions(),
        normaliser=fit_normaliser(grid, SequenceOptions(), None),
        step_s=0.1,
        fallback=tuple(0.01 * k for k in range(7)),
        spec={"weights": {"truth": "test"}},
        record={"run_id": "r"},
    )


def odd_videos() -> GridVideos:
    rng = np.random.default_rng(1)
    return grid_of(
        settled(video("plain", np.arange(5) / 10, rng.normal(size=5))),
        settled(video("long", np.arange(40) / 10, rng.normal(size=40))),
        settled(video("single", [0.0], [0.3])),
        settled(video("faceless", np.arange(4) / 10, faces=[False] * 4)),
        settled(failed("broken")),
        settled(video("hidden", np.arange(10) / 10, rng.normal(size=10), faces=[True] * 4 + [False] * 6)),
    )


@pytest.mark.parametrize(("readout", "long"), [("routed-dense", "resampled"), ("masked-statistics", "ok")])
def test_every_video_gets_a_finite_row_and_a_status_that_says_how(readout, long):
    model = made_model(readout)
    found = model.predict(odd_videos())
    status = dict(zip(found.video_ids, found.status))
    assert status == {
        **{"plain": "ok", "long": long, "single": "ok"},
        **{"faceless": "no_face", "broken": "failed", "hidden": "partial"},
    }
    assert np.isfinite(found.values).all()
    assert found.values.shape == (6, 7)
    rows = {name: found.values[k] for k, name in enumerate(found.video_ids)}
    for name in ("faceless", "broken"):
        np.testing.assert_allclose(rows[name], model.fallback)
    for name in ("plain", "long", "single", "hidden"):
        assert np.abs(rows[name] - model.fallback).max() > 0.01
    used = dict(zip(found.video_ids, found.steps_used.tolist()))
    most = 6 if readout == "routed-dense" else 40
    assert used == {"plain": 5, "long": min(40, most), "single": 1, "faceless": 0, "broken": 0, "hidden": min(10, most)}
    assert dict(zip(found.video_ids, found.face_share))["hidden"] == pytest.approx(0.4)
    varies = {name: bool(each.max() > 1e-12) for name, each in zip(found.video_ids, found.spread)}
    assert varies == {name: name not in ("faceless", "broken") for name in status}


@pytest.mark.parametrize(("lengths", "status"), [("even", "resampled"), ("cut", "ok"), ("repeat", "ok")])
def test_only_what_is_sampled_is_called_so(lengths, status):
    model = made_model()
    config = NetworkConfig(units=4, dense_width=3, lengths=lengths)
    found = model.with_networks((random_rnn(2, 6, config, seed=0).eval(),) * 2).predict(odd_videos())
    assert dict(zip(found.video_ids, found.status))["long"] == status


def test_a_file_gives_the_same_predictions_to_the_bit():
    model = made_model("masked-statistics")
    again = load_model(model.dump(), name="m")
    grid = odd_videos()
    np.testing.assert_array_equal(model.predict(grid).by_seed, again.predict(grid).by_seed)
    assert again.sha256() == model.sha256()
    assert (again.seeds, again.step_s, again.fallback, again.record) == (
        *(model.seeds, model.step_s, model.fallback),
        model.record,
    )
    assert again.sequence == model.sequence
    assert again.networks[0].config == model.networks[0].config


def test_what_is_no_model_is_refused_in_one_line():
    good = made_model().dump()
    other = dump_mma(random_mma(MMAConfig(trunk="tiny"), 0), {})
    wrong = good.replace(REACTIONS[0].encode(), b"Affection")  # as long, so that the file is whole
    assert len(wrong) == len(good)
    for content, words in [
        (b"\x80\x04pickle", "m is a PyTorch pickle"),
        (b"PK\x03\x04zip", "m is a PyTorch pickle"),
        (other, "m holds no masked RNN"),
        (good[:100], "m is not a safetensors file"),
        (good[:-50], "m has unreadable metadata or weights"),
        (wrong, r"m: its reactions are \['Affection', .*not Adoration"),
        (edited(good, lambda told: told.pop("fallback")), r"m has unreadable .*'fallback'"),
        (edited(good, lambda told: told["calibrations"].pop()), "m: it has 1 calibrations of 2 seeds"),
        (edited(good, lambda told: told["normaliser"]["mean"].pop()), "m: its normaliser is not of the descriptors"),
        (edited(good, lambda told: told["network"]["config"].update(units=5)), "m holds recurrent.layers.weight_ih_l0"),
        (edited(good, lambda told: told.update(format_version=9)), "m: it is of format 9, newer than 1"),
        (b"", "m is not a safetensors file"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            load_model(content, name="m")
        assert "\n" not in str(caught.value)


def edited(content: bytes, change: Callable[[dict], object]) -> bytes:
    """The file of a model with something else in its metadata."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    told = json.loads(header["__metadata__"][METADATA_KEY])
    change(told)
    header["__metadata__"][METADATA_KEY] = json.dumps(told)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize("normalise", ["corpus", "video", "subject"])
def test_videos_of_which_none_has_a_face_get_the_fall_back_row(normalise):
    model = dataclasses.replace(made_model(), sequence=SequenceOptions(normalise=normalise))
    grid = grid_of(settled(failed("broken")), settled(video("faceless", [0, 0.1], faces=[False] * 2)))
    found = model.predict(grid, np.array([0, 0]))
    assert found.status == ["failed", "no_face"]
    np.testing.assert_allclose(found.values, [model.fallback] * 2)


def test_a_video_whose_time_stamps_are_broken_is_one_that_failed():
    found = made_model().predict(grid_of(settled(video("a", [0, 0.1])), settled(video("b", [0, 0.1, 1e7]))))
    assert (found.status, found.steps.tolist()) == (["ok", "failed"], [2, 0])
    assert np.isfinite(found.values).all()


def test_another_step_and_missing_descriptors_are_refused():
    model, grid = made_model(), odd_videos()
    with pytest.raises(ValueError, match=r"a grid of 0\.2 s does not fit a model of 0\.1 s"):
        model.predict(GridVideos(**{**vars(grid), "step_s": 0.2}))
    with pytest.raises(ValueError, match="lacks the descriptors valence"):
        model.predict(GridVideos(**{**vars(grid), "names": ("x", "arousal")}))


def test_calibration_keeps_r_and_its_slopes_are_positive():
    rng = np.random.default_rng(2)
    labels = rng.random((50, 7)).astype(np.float32)
    outputs = 0.2 * labels + rng.normal(0, 0.05, labels.shape) + 0.4
    outputs[:, 1] = 1 - outputs[:, 1]  # falls as the label rises
    outputs[:, 2] = 0.5  # never varies
    labels[:, 3] = np.nan
    fitted = fit_calibration(outputs, labels)
    assert min(fitted.slope) > 0
    mapped = fitted(outputs)
    for column in (0, 1, 4, 5, 6):
        before, after = (np.corrcoef(each[:, column], labels[:, column])[0, 1] for each in (outputs, mapped))
        assert after == pytest.approx(before, abs=1e-9)
    assert np.abs(mapped[:, 0] - labels[:, 0]).mean() < np.abs(outputs[:, 0] - labels[:, 0]).mean()
    assert mapped[:, 2] == pytest.approx(labels[:, 2].mean(), abs=1e-3)
    assert (fitted.slope[3], fitted.offset[3]) == (1.0, 0.0)


# --- trainings on hard ground: a number always, a checkpoint always ---


@pytest.mark.parametrize(
    "case",
    ["no labels", "constant labels", "one video", "no validation", "validation unlabelled", "one validation video"],
)
def test_a_training_that_cannot_learn_still_ends_with_numbers_and_weights(case):
    train, val = made_videos(20), made_videos(10, 3)
    if case == "no labels":
        train.labels[:] = np.nan
    elif case == "constant labels":
        train.labels[:] = 0.5
        val.labels[:] = 0.5
    elif case == "one video":
        train = made_videos(1, unknown=0.0)
    elif case == "one validation video":
        val = made_videos(1, 3, unknown=0.0)
    elif case == "validation unlabelled":
        val.labels[:] = np.nan
    network = random_rnn(5, 14, NetworkConfig(units=4, dense_width=3), seed=0)
    training = ReactionTraining(network, train, None if case == "no validation" else val, FitOptions(epochs=2), seed=0)
    for entry in training.epochs():
        training.state()  # JSON without NaN, or it raises
        assert all(np.isfinite(each) for each in entry.values() if isinstance(each, float))
    # Where validation can score nothing, the last weights are kept: a 0 in each epoch would choose the first ones.
    scored = case in ("no labels", "one video")
    assert training.progress.best_epoch in ((0, 1) if scored else (1,))
    assert (training.progress.best_score is None) != scored
    assert set(training.best) == set(network.state_dict())
    best = training.best_network()
    assert all(torch.isfinite(each).all() for each in best.state_dict().values())


def test_a_seed_ends_when_its_score_has_not_risen_for_its_patience():
    network = random_rnn(5, 14, NetworkConfig(units=4, dense_width=3), seed=0)
    options = FitOptions(epochs=30, patience=3, learning_rate=0.0)  # what never learns scores what it scored first
    training = ReactionTraining(network, made_videos(20), made_videos(10, 3), options, seed=0)
    assert len(list(training.epochs())) < 30
    assert training.finished
    assert training.progress.epochs_done - 1 - training.progress.best_epoch == 3


@pytest.mark.parametrize("calibrate", [True, False])
def test_the_fall_back_row_is_the_mean_of_the_mapped_training_predictions(calibrate):
    splits = {"train": made_split(30, 1), "val": made_split(20, 2), "test": made_split(5, 3)}
    trained = []
    for seed in (0, 1):
        network = random_rnn(5, 14, NetworkConfig(units=4, dense_width=3), seed=seed).eval()
        outputs = {name: predict(network, each.sequences) for name, each in splits.items()}
        trained.append(TrainedSeed(seed=seed, network=network, outputs=outputs, best_epoch=0, epochs=1))
    names = splits["train"].sequences.names
    model = finished_model(
        trained, splits, sequence=SequenceOptions(descriptors=names), step_s=0.1, spec={}, calibrate=calibrate,
        record={}, normaliser=Normaliser(names=names, mean=(0,) * 5, scale=(1,) * 5, low=(0,) * 5, high=(0,) * 5),
    )  # fmt: skip
    raw = [each.outputs["train"].mean(axis=0) for each in trained]
    labels = splits["val"].labels
    if calibrate:
        mapped = [fit_calibration(each.outputs["val"], labels)(each.outputs["train"]).mean(axis=0) for each in trained]
        np.testing.assert_allclose(model.fallback, np.mean(mapped, axis=0), atol=1e-12)
        assert np.abs(np.mean(mapped, axis=0) - np.mean(raw, axis=0)).max() > 0.01
        assert model.record["calibrated_on"] == "val"
    else:
        np.testing.assert_allclose(model.fallback, np.mean(raw, axis=0), atol=1e-12)
        assert model.record["calibrated_on"] is None


def made_split(count: int, seed: int) -> SplitVideos:
    videos = made_videos(count, seed)
    columns = {name: videos.labels[:, k] for k, name in enumerate(REACTIONS)}
    ids = [f"{seed}-{k}" for k in range(count)]
    rows = [
        {"video_id": each, **{name: float(column[k]) for name, column in columns.items()}} for k, each in enumerate(ids)
    ]
    everything = np.arange(count)
    samples = pa.Table.from_pylist(rows, SAMPLE_SCHEMA)
    return SplitVideos(samples=samples, videos=everything, seen=everything, sequences=videos.sequences)
