"""The detectors on a real clip (where it is there), on made pictures, and their settings."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mma.faces import FaceFollower, FaceOptions, make_detector

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "assets"
CLIP = ASSETS / "real_face_472frames.mp4"
WEIGHTS = ASSETS / "face_detection_yunet_2023mar.onnx"
needs_clip = pytest.mark.skipif(not CLIP.exists(), reason=f"the real clip {CLIP.name} is not here")
needs_yunet = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"YuNet's weights {WEIGHTS.name} are not here")


def frames_of_clip(stride=1):
    av = pytest.importorskip("av")
    with av.open(str(CLIP)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % stride == 0:
                yield number, frame.time, frame.to_ndarray(format="rgb24")


def followed(options, stride):
    follower = FaceFollower(options)
    results = [result for each in frames_of_clip(stride) for result in follower.push(*each)]
    return results + follower.finish()


@needs_clip
@needs_yunet
def test_yunet_finds_the_face_in_all_472_frames_with_points_in_the_papers_order():
    results = followed(FaceOptions(detector="yunet", detector_weights=str(WEIGHTS)), stride=1)
    assert len(results) == 472
    assert all(result.found and result.num_faces == 1 for result in results)
    points = np.array([result.points for result in results]).reshape(-1, 5, 2)
    assert (points[:, 0, 0] < points[:, 1, 0]).all()
    assert (points[:, 3, 0] < points[:, 4, 0]).all()
    assert (points[:, :2, 1].mean(1) < points[:, 2, 1]).all()
    assert (points[:, 2, 1] < points[:, 3:, 1].mean(1)).all()
    assert all(0.8 < result.score <= 1 for result in results)


@needs_clip
@needs_yunet
@pytest.mark.parametrize(("size", "count"), [((320, 180), 1), ((321, 251), 1), ((640, 480), 4), ((128, 96), 1)])
def test_yunet_finds_what_opencv_finds_with_it(size, count):
    """The same faces, to a hundredth of a pixel, in pictures of sizes that are no multiples of 32 and with several."""
    cv2 = pytest.importorskip("cv2")
    theirs = cv2.FaceDetectorYN.create(str(WEIGHTS), "", size, 0.6, 0.3, 5000)
    ours = make_detector(
        FaceOptions(detector="yunet", detector_weights=str(WEIGHTS), detect_size_px=10_000, min_face_px=1)
    )
    for _, _, frame in frames_of_clip(40):
        picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        if count > 1:
            quarter = cv2.resize(frame, (size[0] // 2, size[1] // 2), interpolation=cv2.INTER_AREA)
            picture = np.tile(quarter, (2, 2, 1))
        found = ours(picture)
        expected = theirs.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
        assert len(found) == len(expected) == count
        found.sort(key=lambda face: tuple(face.box.round()))  # equal scores may come in any order
        for face, row in zip(found, sorted(expected, key=lambda row: tuple(row[:4].round())), strict=True):
            np.testing.assert_allclose(np.concatenate([face.box, face.points]), row[:14], atol=0.01)
            assert face.score == pytest.approx(row[14], abs=1e-5)


@needs_clip
def test_haar_finds_the_face_in_every_frame_and_its_box_is_steady():
    results = followed(FaceOptions(), stride=8)
    assert len(results) == 59
    assert all(result.found for result in results)
    assert all(np.isnan(result.points).all() and result.score > 0 for result in results)
    boxes = np.array([result.box for result in results])
    moves = np.hypot(*np.diff(boxes[:, :2] + boxes[:, 2:] / 2, axis=0).T) / boxes[1:, 2]
    assert moves.mean() < 0.06


@needs_clip
@needs_yunet
def test_boxes_do_not_depend_on_the_size_of_the_video():
    cv2 = pytest.importorskip("cv2")
    _, _, frame = next(frames_of_clip())
    large = cv2.resize(frame, None, fx=2.5, fy=2.5)
    for options in (FaceOptions(), FaceOptions(detector="yunet", detector_weights=str(WEIGHTS))):
        detect = make_detector(options)
        (small_face,), (large_face,) = detect(frame), detect(large)
        np.testing.assert_allclose(large_face.box / 2.5, small_face.box, atol=0.03 * small_face.box[2])
        np.testing.assert_allclose(large_face.points / 2.5, small_face.points, atol=0.03 * small_face.box[2])


@needs_clip
@needs_yunet
def test_small_faces_and_low_scores_are_dropped_on_demand():
    _, _, frame = next(frames_of_clip())
    for options in (FaceOptions(), FaceOptions(detector="yunet", detector_weights=str(WEIGHTS))):
        (found,) = make_detector(options)(frame)
        larger = dataclasses.replace(options, min_face_px=int(found.box[2:].max()) + 20)
        surer = dataclasses.replace(options, min_score=found.score + 0.01)
        assert make_detector(larger)(frame) == [] == make_detector(surer)(frame)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (23, 23), (31, 33), (500, 3), (90, 160)])
def test_frames_of_any_size_are_looked_at(size):
    frame = np.zeros((*size, 3), dtype=np.uint8)
    assert make_detector(FaceOptions())(frame) == []
    if WEIGHTS.exists():
        assert make_detector(FaceOptions(detector="yunet", detector_weights=str(WEIGHTS)))(frame) == []


def test_none_takes_the_centred_square_as_the_face():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (112, 150, 3), dtype=np.uint8)
    follower = FaceFollower(FaceOptions(detector="none"))
    (result,) = follower.push(0, 0.0, frame) + follower.finish()
    assert result.found
    assert result.num_faces == 1
    assert np.isnan(result.score)
    assert np.isnan(result.points).all()
    np.testing.assert_array_equal(result.box, [19, 0, 112, 112])
    np.testing.assert_array_equal(result.crop, frame[:, 19:131])


def test_yunet_without_weights_says_in_one_line_where_they_are_had():
    with pytest.raises(ValueError, match=r"face_detection_yunet_2023mar\.onnx of the OpenCV model zoo") as refused:
        FaceOptions(detector="yunet")
    assert "\n" not in str(refused.value)
    assert "--detector-weights" in str(refused.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx.*OpenCV model zoo") as refused:
        make_detector(FaceOptions(detector="yunet", detector_weights="nowhere.onnx"))
    assert "\n" not in str(refused.value)


def test_weights_that_are_no_network_are_named(tmp_path):
    path = tmp_path / "garbage.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"garbage\.onnx: onnxruntime cannot read it") as refused:
        make_detector(FaceOptions(detector="yunet", detector_weights=str(path)))
    assert "\n" not in str(refused.value)


@needs_yunet
def test_another_network_than_yunet_is_refused(tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(WEIGHTS.read_bytes().replace(b"bbox_8", b"bbox_9"))
    with pytest.raises(ValueError, match=r"other\.onnx: this is not face_detection_yunet_2023mar\.onnx"):
        make_detector(FaceOptions(detector="yunet", detector_weights=str(path)))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("detector", "mtcnn"),
        ("detect_every", 0),
        ("detect_size_px", 8),
        ("lost_s", 0),
        ("smooth_s", -1),
        ("min_face_px", 0),
    ],
)
def test_nonsense_is_refused_with_the_option_named(option, value):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')}"):
        FaceOptions(**{option: value})


def test_the_spec_holds_resolved_settings_and_the_weights_by_content(tmp_path):
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"bytes")
    spec = FaceOptions(detector="yunet", detector_weights=str(path)).spec()
    assert json.loads(json.dumps(spec)) == spec
    assert spec["weights_sha256"] == hashlib.sha256(b"bytes").hexdigest()
    assert "detector_weights" not in spec
    assert spec["detect_size_px"] == 320
    assert spec["crop"]["size_px"] == 112
    haar = FaceOptions().spec()
    assert haar["smooth_s"] == 0.06
    assert haar["weights_sha256"] is None
    assert FaceOptions(smooth_s=0.06, detect_size_px=240).spec() == haar != FaceOptions(detect_every=2).spec()
    assert json.loads(json.dumps(dataclasses.asdict(FaceOptions())))["detector"] == "haar"
