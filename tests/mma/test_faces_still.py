"""The crop of a still image: the detector's, the set's own, or as given; and what counts as an image at all."""

import io

import cv2
import numpy as np
import pytest
from drawn_faces import empty_picture, encoded, face_picture

from mma.faces import FaceFollower, FaceOptions, align, make_detector, square_crop
from mma.faces.still import ImageError, crop_still, decode_image

HAAR = FaceOptions()
TEMPLATE = np.array([38.3, 51.7, 73.5, 51.5, 56.0, 71.7, 41.5, 92.4, 70.7, 92.2], np.float32)


@pytest.fixture(scope="module")
def detector():
    return make_detector(HAAR)


def two_faces() -> np.ndarray:
    """A large face on the left, a smaller one on the right."""
    face = face_picture(1)
    small = cv2.resize(face, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    picture = np.zeros((face.shape[0], face.shape[1] + small.shape[1], 3), np.uint8)
    picture[:, : face.shape[1]] = face
    picture[: small.shape[0], face.shape[1] :] = small
    return picture


def test_a_detected_face_is_cut_as_extract_cuts_it(detector):
    picture = face_picture()
    still = crop_still(picture, detector, HAAR)
    follower = FaceFollower(HAAR)
    (frame,) = follower.push(0, 0.0, picture) + follower.finish()
    assert still.how == "detected"
    np.testing.assert_array_equal(still.crop, frame.crop)
    np.testing.assert_array_equal(still.box, frame.box)
    assert still.score == frame.score


def test_without_a_box_the_largest_face_is_taken_and_with_one_the_face_it_names(detector):
    picture = two_faces()
    options = FaceOptions(detect_size_px=480)
    detector = make_detector(options)
    found = sorted(detector(picture), key=lambda each: each.box[0])
    assert len(found) == 2
    large, small = found
    np.testing.assert_array_equal(crop_still(picture, detector, options).box, large.box)
    near = small.box + np.array([5, -4, 9, 6], np.float32)
    np.testing.assert_array_equal(crop_still(picture, detector, options, box=near).box, small.box)
    centre = small.box[:2] + small.box[2:] / 2
    points = ((TEMPLATE.reshape(5, 2) - 56) / 3 + centre).reshape(-1)
    np.testing.assert_array_equal(crop_still(picture, detector, options, points=points).box, small.box)


def test_a_face_beside_the_sets_box_is_another_persons(detector):
    picture = face_picture()
    still = crop_still(picture, detector, HAAR, box=np.array([2, 2, 30, 30], np.float32))
    assert still.how == "box"
    np.testing.assert_array_equal(still.crop, square_crop(picture, [2, 2, 30, 30]))


def test_where_no_face_is_found_the_sets_points_cut_then_its_box_then_nothing(detector):
    picture = empty_picture()
    box, points = np.array([20, 10, 60, 80], np.float32), TEMPLATE + 30
    still = crop_still(picture, detector, HAAR, box=box, points=points)
    assert still.how == "points"
    np.testing.assert_array_equal(still.crop, align(picture, points.reshape(5, 2)))
    for useless in (np.zeros(10, np.float32), np.full(10, np.nan, np.float32)):
        still = crop_still(picture, detector, HAAR, box=box, points=useless)
        assert still.how == "box"
        np.testing.assert_array_equal(still.crop, square_crop(picture, box))
    for useless in (None, np.zeros(4), np.full(4, np.nan), np.array([-500.0, 0, 50, 50])):
        still = crop_still(picture, detector, HAAR, box=useless)
        assert (still.how, still.crop) == (None, None)


def test_a_given_crop_is_only_brought_to_size():
    def detector(_):
        raise AssertionError("a given crop was searched for faces")

    exact = face_picture()[100:212, 100:212]
    still = crop_still(exact, detector, HAAR, given=True, box=np.array([1.0, 2, 3, 4]))
    assert still.how == "given"
    np.testing.assert_array_equal(still.crop, exact)
    wide = face_picture()[:100, :150]
    np.testing.assert_array_equal(
        crop_still(wide, detector, HAAR, given=True).crop, square_crop(wide, [25, 0, 100, 100], box_scale=1)
    )
    none = FaceOptions(detector="none")
    same = crop_still(wide, make_detector(none), none)
    assert same.how == "detected"
    np.testing.assert_array_equal(same.crop, crop_still(wide, detector, HAAR, given=True).crop)


def test_images_come_as_rgb_in_eight_bits_whatever_they_were():
    picture = np.ascontiguousarray(face_picture()[50:170, 60:180])
    np.testing.assert_array_equal(decode_image(encoded(picture)), picture)
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    deep = cv2.imencode(".png", bgr.astype(np.uint16) * 256)[1].tobytes()
    np.testing.assert_array_equal(decode_image(deep), picture)
    clear = cv2.imencode(".png", np.dstack([bgr, np.full(bgr.shape[:2], 9, np.uint8)]))[1].tobytes()
    np.testing.assert_array_equal(decode_image(clear), picture)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(decode_image(cv2.imencode(".bmp", grey)[1].tobytes()), np.dstack([grey] * 3))
    for suffix in (".jpg", ".webp", ".tif"):
        read = decode_image(encoded(picture, suffix))
        assert read.shape == picture.shape
        assert np.abs(read.astype(int) - picture).mean() < 4


def test_a_turned_photograph_is_set_upright():
    from PIL import Image

    picture = face_picture()
    tag = Image.Exif()
    tag[0x0112] = 6  # the stored picture is to be turned clockwise by 90 degrees
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(picture)).save(buffer, "JPEG", quality=95, exif=tag)
    read = decode_image(buffer.getvalue())
    assert read.shape == picture.shape
    assert np.abs(read.astype(int) - picture).mean() < 4


def test_what_is_no_whole_image_is_refused_with_its_cause(monkeypatch):
    png, jpg = encoded(face_picture()), encoded(face_picture(), ".jpg")
    for data, error_type in {
        b"": "NotAnImage",
        b"<html>gone</html>": "NotAnImage",
        b"#EXTM3U\nhttp://example.com/x.jpg\n": "NotAnImage",
        b"P6 2 2 255 " + bytes(12): "NotAnImage",  # whole, but no format that photographs come in
        png[: len(png) // 2]: "DamagedImage",
        jpg[: len(jpg) // 2]: "DamagedImage",
    }.items():
        with pytest.raises(ImageError) as caught:
            decode_image(data)
        assert caught.value.error_type == error_type, data[:20]
    monkeypatch.setattr("mma.faces.still.MAX_PIXELS", 10_000)
    with pytest.raises(ImageError, match="TooLarge"):
        decode_image(png)
