"""CORPUS.md's gates 1 and 5 on the real corpus: clips drawn by `synth`, encoded, decoded, and their faces found.

Gate 1 (pixel floor): ridge on 28 x 28 grey crops, each standardised, is scored on subjects it never saw, against the
noisy frame labels with the unknown ones left out; every subject is held out once (five folds, penalty and thresholds
chosen on one other fold), which is steadier than the corpus's own split with its 15 test subjects (there the action
units' F1 over always-positive varied by .08 from seed to seed). Action units with at least 5 % positives count.

Gate 5 (detectors): through the follower with its own settings; a face counts as found where its box lies on the drawn
one. The gate names no share of the steps that must stay under 5 % of the side: 98 % here.

The short look is noisy (F1 over always-positive: sd about .04 between seeds at 270 frames) and catches gross marks
alone; the longer one, at about 1,800 frames of 60 subjects, is the measure.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.storage import Folder
from jobs.synth import clip_name, draw_clip
from mma.descriptors import MMA26
from mma.drawing import sample_scene
from mma.faces import FaceFollower, FaceOptions, make_detector
from mma.video.readers import open_video
from rnn import made

YUNET = Path(
    os.environ.get("MMA_YUNET") or Path(__file__).parents[3] / "shared" / "assets" / "face_detection_yunet_2023mar.onnx"
)
AUS, EXPRESSIONS = MMA26.action_units, MMA26.expressions
CROP_PX, FOLDS = 28, 5


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one detector gives of a corpus."""

    pixels: list[np.ndarray] = field(default_factory=list)
    """(784,) a frame with a face, standardised."""
    aus: list[list[float]] = field(default_factory=list)
    """The annotators' occurrences, NaN where unknown."""
    expressions: list[int] = field(default_factory=list)
    """Index of the annotators' expression, -1 where unknown."""
    subjects: list[str] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    """Of all frames."""
    moved: list[float] = field(default_factory=list)
    """How far the box's centre moves from a frame to the next, over its side."""


def see_corpus(folder: Path, detectors: list[str], options: made.CorpusOptions, *, every: int) -> dict[str, Sample]:
    """Draws the corpus and looks at all its frames; every `every`-th one is kept for ridge."""
    cv2.setNumThreads(1)
    faces = {name: FaceOptions(detector=name, detector_weights=str(YUNET)) for name in detectors}
    detect = {name: make_detector(each) for name, each in faces.items()}
    samples = {name: Sample() for name in detectors}
    for clip in made.plan_corpus(options):
        draw_clip(Folder(str(folder)), clip)
        scene = sample_scene(np.random.default_rng([clip.seed, 7]), contrast=clip.subject.contrast)
        labels = made.frame_table(clip, made.play(clip, made.frame_times(clip))).to_pydict()
        reader = open_video(folder / clip_name(clip))
        followers = {name: FaceFollower(faces[name], detect[name]) for name in detectors}
        seen = {name: [] for name in detectors}
        for index, frame in reader.frames(range(len(reader.times_s))):
            for name, follower in followers.items():
                seen[name] += follower.push(index, float(reader.times_s[index]), frame.copy())
        for name, follower in followers.items():
            _take(samples[name], [*seen[name], *follower.finish()], scene, labels, clip.subject.subject, every)
    return samples


def _take(sample: Sample, faces, scene, labels, subject: str, every: int) -> None:
    middle = np.array([scene.eyes_x_px, scene.eyes_y_px + 0.5 * scene.unit_px])
    before = None
    for face in faces:
        centre = face.box[:2] + face.box[2:] / 2
        hit = bool(face.found and np.abs(centre - middle).max() < 1.2 * scene.unit_px)
        sample.found.append(hit)
        if hit and before is not None:
            sample.moved.append(float(np.linalg.norm(centre - before) / face.box[2]))
        before = centre if hit else None
        if hit and face.frame_index % every == 0:
            grey = cv2.cvtColor(face.crop, cv2.COLOR_RGB2GRAY)
            small = cv2.resize(grey, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA).astype(float).ravel()
            sample.pixels.append((small - small.mean()) / (small.std() + 1e-6))
            row = [labels[au][face.frame_index] for au in AUS]
            sample.aus.append([np.nan if value is None else value for value in row])
            named = labels["expression"][face.frame_index]
            sample.expressions.append(-1 if named is None else EXPRESSIONS.index(named))
            sample.subjects.append(subject)


def f1(truth: np.ndarray, said: np.ndarray) -> float:
    return 2 * int((truth & said).sum()) / max(int(truth.sum() + said.sum()), 1)


def ridge_floor(sample: Sample) -> tuple[float, float, float]:
    """Mean AU F1 of ridge and of always-positive, and ridge's expression macro F1, on subjects held out."""
    x, aus, named = np.array(sample.pixels), np.array(sample.aus), np.array(sample.expressions)
    known, positive, told = ~np.isnan(aus), aus > 0.5, named >= 0
    counted = [k for k in range(len(AUS)) if positive[known[:, k], k].mean() >= 0.05]
    assert len(counted) >= 6, "too few action units occur to speak of a mean"
    people, who = np.unique(sample.subjects, return_inverse=True)
    fold = (np.random.default_rng(0).permutation(len(people)) % FOLDS)[who]
    au_said, class_said = np.zeros(aus.shape, bool), np.zeros(len(x), int)
    for k in range(FOLDS):
        test, val = fold == k, fold == (k + 1) % FOLDS
        best_f1, best_macro = -1.0, -1.0
        for score in _ridge_scores(x, aus, named, ~test & ~val):
            cuts = [_best_cut(positive[v, i], score[v, i]) for i in counted for v in [val & known[:, i]]]
            mean_f1 = float(np.mean([reached for reached, _ in cuts]))
            if mean_f1 > best_f1:
                best_f1 = mean_f1
                for i, (_, cut) in zip(counted, cuts, strict=True):
                    au_said[test, i] = score[test, i] >= cut
            classes = score[:, len(AUS) :].argmax(1)
            if (macro := _macro_f1(named[val & told], classes[val & told])) > best_macro:
                best_macro, class_said[test] = macro, classes[test]
    ours = np.mean([f1(positive[known[:, i], i], au_said[known[:, i], i]) for i in counted])
    always = np.mean([f1(positive[known[:, i], i], np.ones(known[:, i].sum(), bool)) for i in counted])
    return float(ours), float(always), _macro_f1(named[told], class_said[told])


def _ridge_scores(x: np.ndarray, aus: np.ndarray, named: np.ndarray, train: np.ndarray):
    """Scores (N, 17 + 7) of ridge for a range of penalties; unknown labels pull nowhere."""
    mean = x[train].mean(0)
    left, values, directions = np.linalg.svd(x[train] - mean, full_matrices=False)
    classes = np.where(named[:, None] >= 0, np.eye(len(EXPRESSIONS))[named], np.nan)
    targets = np.hstack([aus, classes])[train]
    level = np.nanmean(targets, axis=0)
    towards = left.T @ np.where(np.isnan(targets), 0.0, targets - level)
    for penalty in 10.0 ** np.arange(1.5, 6, 0.5):
        weights = directions.T @ (towards * (values / (values**2 + penalty))[:, None])
        yield (x - mean) @ weights + level


def _best_cut(truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    return max((f1(truth, score >= cut), cut) for cut in np.quantile(score, np.linspace(0, 0.98, 50)))


def _macro_f1(truth: np.ndarray, said: np.ndarray) -> float:
    return float(np.mean([f1(truth == k, said == k) for k in range(len(EXPRESSIONS))]))


def check_floor(sample: Sample) -> None:
    ours, always, macro = ridge_floor(sample)
    assert ours < always + 0.10, f"ridge's AU F1 {ours:.3f}, always-positive {always:.3f}"
    assert macro < 0.30, f"ridge's expression macro F1 {macro:.3f}"


def check_found(sample: Sample) -> None:
    assert np.mean(sample.found) >= 0.98, f"found in {np.mean(sample.found):.2%} of {len(sample.found)} frames"


def check_still(sample: Sample) -> None:
    reach = np.quantile(sample.moved, 0.98)
    assert reach < 0.05, f"98 % of {len(sample.moved)} steps stay under {reach:.1%} of the side"


# ---- a short look, in every run of the tests --------------------------------------------------------------------------


def known_detectors() -> list[str]:
    return ["haar", "yunet"] if YUNET.is_file() else ["haar"]


def of(samples: dict[str, Sample], detector: str) -> Sample:
    if detector not in samples:
        pytest.skip(f"{YUNET.name} is not here: it is no part of the project")
    return samples[detector]


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> dict[str, Sample]:
    """90 clips of 60 subjects, 3 frames each: 270 frames, all kept for ridge. With this seed ridge's AU F1 lay .02 under
    (haar) and .01 over always-positive (yunet), its expression macro F1 at .11 and .14; all faces were found."""
    options = made.CorpusOptions(videos=90, seed=5, seconds=(1.0, 1.0), fps=3.0)
    return see_corpus(tmp_path_factory.mktemp("short"), known_detectors(), options, every=1)


@pytest.mark.parametrize("detector", ["haar", "yunet"])
def test_ridge_on_pixels_stays_at_the_floor(short, detector: str) -> None:
    check_floor(of(short, detector))


@pytest.mark.parametrize("detector", ["haar", "yunet"])
def test_faces_of_all_subjects_are_found(short, detector: str) -> None:
    check_found(of(short, detector))


def test_boxes_hold_still_from_frame_to_frame(tmp_path) -> None:
    options = made.CorpusOptions(videos=4, seed=5, seconds=(1.5, 1.5))
    for sample in see_corpus(tmp_path, known_detectors(), options, every=3).values():
        check_still(sample)


# ---- a longer one -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [21, 22])
def test_gates_hold_on_a_larger_corpus(tmp_path, seed: int) -> None:
    """180 clips of 60 subjects at 12 frames a second, about 5,400 frames, a third of them for ridge."""
    options = made.CorpusOptions(videos=180, seed=seed, seconds=(2.0, 3.0))
    for sample in see_corpus(tmp_path, known_detectors(), options, every=3).values():
        check_floor(sample)
        check_found(sample)
        check_still(sample)
