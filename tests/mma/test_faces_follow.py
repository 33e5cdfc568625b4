"""One person is followed, in order, in bounded memory, whatever else is in the picture."""

import weakref

import numpy as np
import pytest

from mma.faces import Detection, FaceFollower, FaceOptions, FrameFace

FPS = 25.0
WIDTH, HEIGHT = 64, 36  # smaller than where the faces lie, for speed: crops beyond the frame are black


def frame_of(number: int) -> np.ndarray:
    """A small frame that carries its number, for a detector that knows where the faces of each frame are."""
    frame = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    frame[0, 0] = (number % 256, number // 256, 0)
    return frame


def number_of(frame: np.ndarray) -> int:
    return int(frame[0, 0, 0]) + 256 * int(frame[0, 0, 1])


def face(x, y, side, score=1.0, points=None) -> Detection:
    """A face by its centre."""
    box = np.array([x - side / 2, y - side / 2, side, side], dtype=np.float32)
    more = {} if points is None else {"points": np.asarray(points, dtype=np.float32)}
    return Detection(box=box, score=score, **more)


def follow(faces_at, count, times=None, **settings) -> list[FrameFace]:
    """faces_at(frame number) -> detections; all frames of a made video through a follower."""
    options = FaceOptions(**{"smooth_s": 0.0, **settings})
    follower = FaceFollower(options, detector=lambda frame: faces_at(number_of(frame)))
    results = []
    for number in range(count):
        results += follower.push(number * 2, number / FPS if times is None else times[number], frame_of(number))
    results += follower.finish()
    assert [result.frame_index for result in results] == [2 * number for number in range(count)]
    return results


def centres(results) -> np.ndarray:
    return np.array([result.box[:2] + result.box[2:] / 2 for result in results])


@pytest.mark.parametrize("k", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 150])
def test_every_frame_comes_out_once_in_order_with_its_face(k, count):
    results = follow(lambda n: [face(200 + n, 150, 80)], count, detect_every=k)
    assert len(results) == count
    assert all(result.found and result.crop.shape == (112, 112, 3) for result in results)
    np.testing.assert_allclose(centres(results)[:, 0], 200 + np.arange(count), atol=1e-3)
    assert [result.time_s for result in results] == [number / FPS for number in range(count)]


def test_an_empty_video_gives_nothing():
    assert FaceFollower(FaceOptions(), detector=lambda frame: []).finish() == []


def test_detection_runs_on_every_kth_frame_and_the_last_and_on_no_other():
    looked_at = []

    def look(number):
        looked_at.append(number)
        return [face(100, 100, 60)]

    follow(look, 12, detect_every=5)
    assert looked_at == [0, 5, 10, 11]
    looked_at.clear()
    follow(look, 11, detect_every=5)
    assert looked_at == [0, 5, 10]


def test_boxes_points_and_scores_between_detections_are_linear_in_time():
    # Uneven time stamps: frames 1 and 2 lie at a tenth and a half of the way from 0 to 1 s.
    faces = {
        0: face(100, 100, 50, score=0.5, points=np.arange(10.0)),
        3: face(120, 110, 60, score=0.9, points=np.arange(10.0) + 20),
    }
    results = follow(lambda n: [faces[n]], 4, times=[0.0, 0.1, 0.5, 1.0], detect_every=3)
    np.testing.assert_allclose(results[1].box, [76.5, 75.5, 51, 51], atol=1e-4)
    np.testing.assert_allclose(results[2].box, [82.5, 77.5, 55, 55], atol=1e-4)
    np.testing.assert_allclose(results[1].points, np.arange(10.0) + 2, atol=1e-4)
    np.testing.assert_allclose([result.score for result in results], [0.5, 0.54, 0.7, 0.9])
    assert results[3].box.dtype == results[1].points.dtype == np.float32


def test_between_a_hit_and_a_miss_the_nearer_one_counts():
    results = follow(lambda n: [face(100, 100, 50)] if n in (0, 8) else [], 13, detect_every=4)
    # Detected on 0 (hit), 4 (miss), 8 (hit), 12 (miss); frames 2, 6 and 10 are equally near: the earlier counts.
    found = [result.found for result in results]
    assert found == [True] * 3 + [False] * 4 + [True] * 4 + [False] * 2
    assert [result.num_faces for result in results] == [int(each) for each in found]
    missing = results[4]
    assert np.isnan(missing.box).all()
    assert np.isnan(missing.points).all()
    assert np.isnan(missing.score)
    assert missing.crop is None
    assert missing.box.shape == (4,)
    assert missing.points.shape == (10,)


def test_time_stamps_that_stand_still_do_no_harm():
    results = follow(lambda n: [face(100 + n, 100, 50)], 7, times=[0.0] * 7, detect_every=3)
    np.testing.assert_allclose(centres(results)[:, 0], 100 + np.arange(7), atol=1e-4)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("order", [1, -1])
def test_the_larger_face_is_followed_through_a_crossing(k, order):
    # The larger walks right, the smaller left; they meet at frame 100, long after the choice.
    def faces_at(n):
        return [face(120 + 2 * n, 180, 100), face(520 - 2 * n, 170, 70)][::order]

    results = follow(faces_at, 200, detect_every=k)
    np.testing.assert_allclose(centres(results)[:, 0], 120 + 2 * np.arange(200), atol=0.5)
    assert {result.num_faces for result in results} == {2}


def test_the_person_is_found_again_behind_another_who_hid_them():
    def faces_at(n):
        subject, other = face(120 + 2 * n, 180, 100), face(520 - 2 * n, 170, 80)
        return [other] if 92 <= n <= 108 else [subject, other]  # hidden behind the other for .7 s

    results = follow(faces_at, 200)
    found = np.array([result.found for result in results])
    assert found[:92].all()
    assert found[109:].all()
    np.testing.assert_allclose(centres(results)[109:, 0], 120 + 2 * np.arange(109, 200), atol=0.5)


def test_two_equally_large_faces_that_pass_each_other_fast_are_told_apart_by_their_motion():
    # From frame 80 to 81 each lands nearer to where the other was.
    def faces_at(n):
        return [face(300 + 12 * (n - 80), 180, 101), face(306 - 12 * (n - 80), 180, 100)]

    results = follow(faces_at, 120)
    np.testing.assert_allclose(centres(results)[:, 0], 300 + 12.0 * (np.arange(120) - 80), atol=0.5)


def test_a_small_false_positive_inside_the_missed_face_is_not_taken_for_the_person():
    results = follow(lambda n: [face(300, 180, 45 if 90 <= n < 93 else 100)], 150)
    assert [result.found for result in results] == [True] * 90 + [False] * 3 + [True] * 57


def test_a_single_miss_loses_nobody_however_rarely_the_detector_looks():
    def faces_at(n):
        return ([] if n == 150 else [face(150, 180, 120)]) + [face(480, 180, 80)]

    results = follow(faces_at, 301, detect_every=50)
    assert [result.found for result in results] == [True] * 126 + [False] * 50 + [True] * 125
    found = [result for result in results if result.found]
    np.testing.assert_allclose(centres(found), [[150, 180]] * 251, atol=0.5)


def test_brief_false_positives_do_not_steal_the_person():
    def faces_at(n):
        false = [face(500, 80, 160)] if n in (10, 11, 90, 91, 92) else []
        return false + ([] if n == 91 else [face(200, 200, 90)])  # the detector blinks while it errs

    results = follow(faces_at, 150)
    assert [result.frame_index // 2 for result in results if not result.found] == [91]
    np.testing.assert_allclose(np.delete(centres(results), 91, axis=0), [[200, 200]] * 149, atol=0.5)
    assert [results[n].num_faces for n in (9, 10, 90, 91, 93)] == [1, 2, 2, 1, 1]


def test_the_steady_face_is_chosen_over_a_larger_one_that_only_passes():
    def faces_at(n):
        passing = [face(100 + 20 * n, 100, 200)] if n < 12 else []  # the larger sum of areas
        return passing + [face(450, 250, 80)]

    np.testing.assert_allclose(centres(follow(faces_at, 100)), [[450, 250]] * 100, atol=0.5)


def test_who_is_lost_for_longer_than_the_limit_is_replaced_from_the_loss_on():
    def faces_at(n):
        return ([face(150, 180, 120)] if n < 80 else []) + [face(480, 180, 80)]

    results = follow(faces_at, 200)
    np.testing.assert_allclose(centres(results), [[150, 180]] * 80 + [[480, 180]] * 120, atol=0.5)


def test_who_is_missing_for_less_than_the_limit_is_waited_for():
    def faces_at(n):
        return ([] if 80 <= n < 103 else [face(150, 180, 120)]) + [face(480, 180, 80)]

    results = follow(faces_at, 200)
    assert [result.found for result in results] == [True] * 80 + [False] * 23 + [True] * 97
    np.testing.assert_allclose(centres(results)[103:], [[150, 180]] * 97, atol=0.5)


def test_a_face_after_a_long_empty_stretch_is_taken_up():
    results = follow(lambda n: [face(150, 180, 120)] if n < 20 or n >= 170 else [], 200)
    assert [result.found for result in results] == [True] * 20 + [False] * 150 + [True] * 30


def test_a_video_without_faces_says_so_on_every_frame():
    results = follow(lambda n: [], 150, detect_every=4)
    assert not any(result.found or result.num_faces for result in results)
    assert len(results) == 150


def test_a_crowd_of_ten_is_counted_and_its_largest_face_followed():
    crowd = [face(40 + 60 * i, 60 + 25 * (i % 3), 40 if i != 6 else 58) for i in range(10)]
    results = follow(lambda n: crowd[n % 10 :] + crowd[: n % 10], 100)
    np.testing.assert_allclose(centres(results), [[400, 60]] * 100, atol=0.5)
    assert {result.num_faces for result in results} == {10}


def test_smoothing_calms_a_jittering_box_and_knows_no_other_person():
    rng = np.random.default_rng(0)
    jitter = rng.normal(0, 2, (200, 2))

    def faces_at(n):
        where = (150, 180, 100) if n < 100 else (480, 150, 100)
        return [face(where[0] + jitter[n, 0], where[1] + jitter[n, 1], where[2])]

    raw, smooth = (centres(follow(faces_at, 200, smooth_s=seconds)) for seconds in (0.0, 0.06))
    steps_raw, steps_smooth = (np.abs(np.diff(each[5:95], axis=0)).mean() for each in (raw, smooth))
    assert steps_smooth < 0.7 * steps_raw
    np.testing.assert_array_equal(smooth[100], raw[100])  # the next person starts unsmoothed
    np.testing.assert_allclose(smooth[101], raw[100] + (raw[101] - raw[100]) * (1 - np.exp(-0.04 / 0.06)), atol=1e-3)


@pytest.mark.parametrize("k", [1, 6])
def test_no_more_than_k_frames_are_held(k):
    num_alive = 0

    def one_less():
        nonlocal num_alive
        num_alive -= 1

    # Nobody can be decided: two people, the chosen one gone, so crops wait as long as they ever do.
    def detect(frame):
        n = number_of(frame)
        return [face(480, 180, 80)] + ([face(150, 180, 120)] if n < 70 else [])

    follower = FaceFollower(FaceOptions(detect_every=k, lost_s=1e9), detector=detect)
    most_frames, most_waiting, came_out = 0, 0, 0
    for number in range(400):
        frame = frame_of(number)
        num_alive += 1
        weakref.finalize(frame, one_less)
        came_out += len(follower.push(number, number / FPS, frame))
        del frame
        most_frames = max(most_frames, num_alive)
        most_waiting = max(most_waiting, number + 1 - came_out)
    assert most_frames <= k
    assert most_waiting <= 4 * 64 + k
    assert came_out + len(follower.finish()) == 400


def test_a_wrong_array_and_a_frame_after_the_end_are_refused():
    follower = FaceFollower(FaceOptions(detector="none"))
    with pytest.raises(ValueError, match="uint8"):
        follower.push(0, 0.0, np.zeros((10, 10, 3), dtype=np.float32))
    follower.finish()
    with pytest.raises(ValueError, match="another"):
        follower.push(0, 0.0, np.zeros((10, 10, 3), dtype=np.uint8))
