"""The crop geometry: points and boxes land where PAPER.md says, sharp, unmirrored and in RGB."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mma.faces import GEOMETRY, CropGeometry, align, similarity_transform, square_crop

TEMPLATE = np.array(GEOMETRY.template_px)


def placed(points, degrees, scale, shift):
    turn = np.radians(degrees)
    return scale * points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + shift


def least_squares_similarity(points):
    """An independent solution: the linear system in (a, b, tx, ty) of a similarity without reflection."""
    rows, right = [], []
    for (x, y), (u, v) in zip(points, TEMPLATE):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        right += [u, v]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


@pytest.mark.parametrize("degrees", [0, 31, -140, 180])
@pytest.mark.parametrize("scale", [0.3, 1.0, 9.0])
def test_a_turned_scaled_and_shifted_template_is_brought_back_exactly(degrees, scale):
    points = placed(TEMPLATE, degrees, scale, [400.0, -35.0])
    matrix = similarity_transform(points)
    assert matrix.dtype == np.float64
    assert matrix.shape == (2, 3)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], TEMPLATE, atol=1e-9)


def test_the_template_points_map_onto_themselves():
    np.testing.assert_allclose(similarity_transform(TEMPLATE), [[1, 0, 0], [0, 1, 0]], atol=1e-9)


def test_noisy_points_get_the_least_squares_solution():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = placed(TEMPLATE, rng.uniform(-180, 180), rng.uniform(0.2, 8), rng.uniform(0, 900, 2))
        points = points + rng.normal(0, 3, points.shape)
        np.testing.assert_allclose(similarity_transform(points), least_squares_similarity(points), atol=1e-8)


def test_a_mirrored_face_is_never_mirrored_back():
    mirrored = TEMPLATE * [-1, 1] + [112, 0]
    matrix = similarity_transform(mirrored)
    assert np.linalg.det(matrix[:, :2]) > 0
    # The mirror image of a frontal face in the template's order is far from any turned template.
    assert np.abs(mirrored @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE).max() > 5


@pytest.mark.parametrize("points", [np.full((5, 2), 7.0), np.full((5, 2), np.nan), np.zeros((4, 2))])
def test_points_that_define_no_crop_are_refused(points):
    with pytest.raises(ValueError, match="points"):
        similarity_transform(points)


def test_marks_on_a_large_turned_face_land_on_the_template_at_every_shrink():
    for scale in (0.6, 1.3, 2.3, 5.0):
        points = placed(TEMPLATE, 25, scale, [130 * scale, 60 * scale])
        size = int(260 * scale)
        yy, xx = np.mgrid[:size, :size]
        for k in (0, 1, 4):
            blob = np.exp(-((xx - points[k, 0]) ** 2 + (yy - points[k, 1]) ** 2) / (2 * (4 * scale) ** 2))
            frame = np.repeat((blob * 255).astype(np.uint8)[..., None], 3, axis=2)
            crop = align(frame, points)[..., 0].astype(float)
            v, u = np.mgrid[:112, :112]
            centre = np.array([(crop * u).sum(), (crop * v).sum()]) / crop.sum()
            np.testing.assert_allclose(centre, TEMPLATE[k], atol=0.1, err_msg=f"scale {scale}, point {k}")


@pytest.mark.parametrize("shrink", [2.1, 4.5, 11.0])
def test_a_large_face_is_made_small_without_aliasing(shrink):
    side = int(112 * shrink)
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (side, side // 2 + 1))[:, :side]
    crop = square_crop(np.repeat(stripes[..., None], 3, axis=2), [0, 0, side, side], box_scale=1.0)
    inner = crop[4:-4, 4:-4].astype(float)
    assert inner.std() < 6
    assert abs(inner.mean() - 127.5) < 3
    plain = cv2.warpAffine(stripes, np.array([[1 / shrink, 0, 0], [0, 1 / shrink, 0]]), (112, 112))
    assert plain[4:-4, 4:-4].astype(float).std() > 20  # what the halving is for


def test_a_crop_of_its_own_size_is_left_alone():
    frame = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    np.testing.assert_array_equal(square_crop(frame, [0, 0, 112, 112], box_scale=1.0), frame)
    np.testing.assert_array_equal(align(frame, TEMPLATE), frame)


def test_a_box_twice_the_size_is_averaged_pixel_by_pixel():
    frame = np.random.default_rng(2).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    crop = square_crop(frame, [10, 21, 224, 224], box_scale=1.0)
    wanted = frame[21:245, 10:234].reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))
    assert np.abs(crop - wanted).max() <= 1


def test_the_square_is_one_fifth_larger_than_the_longer_edge_and_black_beyond_the_frame():
    frame = np.full((200, 300, 3), 255, dtype=np.uint8)
    # Edges 60 x 100: side 120 around (30, 50), so x from -30 and y from -10: 1/4 and 1/12 of the crop are outside.
    crop = square_crop(frame, [0, 0, 60, 100])
    assert crop.shape == (112, 112, 3)
    assert crop.dtype == np.uint8
    assert (crop[11:, 30:] == 255).all()
    assert (crop[:, :26] == 0).all()
    assert (crop[:8] == 0).all()


@pytest.mark.parametrize(
    "box", [[-500, -500, 100, 100], [290, 190, 400, 400], [-5000, -5000, 9000, 9000], [10, 10, 1, 1]]
)
def test_a_box_anywhere_gives_a_crop(box):
    assert square_crop(np.full((200, 300, 3), 255, dtype=np.uint8), box).shape == (112, 112, 3)


def test_a_box_without_area_is_refused():
    with pytest.raises(ValueError, match="area"):
        square_crop(np.zeros((20, 20, 3), dtype=np.uint8), [3, 3, 0, 0])


def test_colours_stay_in_the_frames_order():
    frame = np.zeros((600, 600, 3), dtype=np.uint8)
    frame[...] = (200, 100, 50)
    for crop in (align(frame, TEMPLATE * 4), square_crop(frame, [100, 100, 300, 300])):
        np.testing.assert_array_equal(crop[56, 56], (200, 100, 50))


def test_the_geometry_survives_json_and_a_difference_shows():
    assert json.loads(json.dumps(GEOMETRY.spec())) == GEOMETRY.spec()
    assert GEOMETRY.spec()["size_px"] == 112
    assert GEOMETRY.spec()["colour_order"] == "RGB"
    assert CropGeometry(box_scale=1.3).spec() != GEOMETRY.spec() == CropGeometry().spec()


def test_importing_faces_loads_no_torch():
    code = "import sys, mma.faces; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
