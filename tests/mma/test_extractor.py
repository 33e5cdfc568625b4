"""The extractor: a video's numbers are its own, whatever it travels with, and memory that runs out is survived."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest
import torch

from mma.checkpoint import weights_sha256
from mma.config import MMAConfig
from mma.extractor import DescriptorExtractor
from mma.network import random_mma

LENGTHS = (5, 0, 1, 11, 3, 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def network():
    return random_mma(MMAConfig(trunk="tiny"), 0)


@pytest.fixture(scope="module")
def videos() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (length, 112, 112, 3), dtype=np.uint8) for length in LENGTHS]


def _direct(network, video: np.ndarray) -> np.ndarray:
    """One frame at a time, without the extractor."""
    with torch.inference_mode():
        rows = [network.eval().descriptors(network.normalise(torch.tensor(frame[None]))) for frame in video]
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("micro_batch", [1, 4, 7, 64])
def test_every_packing_gives_the_frames_own_numbers(network, videos, micro_batch):
    results = DescriptorExtractor(network, device="cpu", micro_batch=micro_batch).extract(videos)
    assert [each.shape for each in results] == [(length, 26) for length in LENGTHS]
    for video, result in zip(videos, results, strict=True):
        assert result.dtype == np.float32
        if len(video):
            np.testing.assert_allclose(result, _direct(network, video), atol=1e-6, rtol=0)


def test_company_and_place_in_the_batch_do_not_matter(network, videos):
    extractor = DescriptorExtractor(network, device="cpu", micro_batch=8)
    alone = [extractor.extract([video])[0] for video in videos]
    for order in (range(6), reversed(range(6)), (3, 0, 3, 2)):
        order = list(order)
        for index, result in zip(order, extractor.extract([videos[index] for index in order]), strict=True):
            np.testing.assert_allclose(result, alone[index], atol=1e-6, rtol=0)


def test_a_video_in_chunks_gives_the_same_numbers(network, videos):
    extractor = DescriptorExtractor(network, device="cpu", micro_batch=4)
    chunks = np.split(videos[3], [2, 9])
    np.testing.assert_allclose(
        np.concatenate(extractor.extract(chunks)), extractor.extract([videos[3]])[0], atol=1e-6, rtol=0
    )


def test_resnets_keep_their_numbers_in_company(videos):
    extractor = DescriptorExtractor(random_mma(MMAConfig(trunk="resnet18"), 0), device="cpu", micro_batch=4)
    together = extractor.extract(videos[:4])
    for video, result in zip(videos[:3], together, strict=False):
        np.testing.assert_allclose(extractor.extract([video])[0], result, atol=1e-6, rtol=0)


def test_nothing_gives_nothing(network, videos):
    extractor = DescriptorExtractor(network, device="cpu")
    assert extractor.extract([]) == []
    assert [each.shape for each in extractor.extract([videos[1], videos[5]])] == [(0, 26), (0, 26)]


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_of_arrow_buffers_are_taken_as_they_are(network, videos):
    table = pa.table({"crops": pa.array([videos[0].tobytes()], pa.large_binary())})
    view = np.frombuffer(table["crops"][0].as_buffer(), np.uint8).reshape(videos[0].shape)
    assert not view.flags.writeable
    extractor = DescriptorExtractor(network, device="cpu", micro_batch=4)
    np.testing.assert_array_equal(extractor.extract([view])[0], extractor.extract([videos[0]])[0])


def test_results_of_one_call_outlive_the_next(network, videos):
    extractor = DescriptorExtractor(network, device="cpu", micro_batch=4)
    first = extractor.extract([videos[0]])[0]
    kept = first.copy()
    extractor.extract([videos[3]])
    np.testing.assert_array_equal(first, kept)
    first[0, 0] = 2  # and may be written to


def _fail_above(network, monkeypatch, limit: int) -> list[int]:
    """Lets the network run out of memory on batches of more than `limit` frames; returns the sizes it was given."""
    sizes: list[int] = []
    forward = network.forward

    def limited(x):
        sizes.append(len(x))
        if len(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return forward(x)

    monkeypatch.setattr(network, "forward", limited)
    return sizes


def test_memory_that_runs_out_halves_the_batch_for_good(network, videos, monkeypatch, caplog):
    expected = [_direct(network, video) if len(video) else np.empty((0, 26)) for video in videos]
    sizes = _fail_above(network, monkeypatch, 5)
    extractor = DescriptorExtractor(network, device="cpu", micro_batch=16)
    with caplog.at_level(logging.WARNING, logger="mma.extractor"):
        results = extractor.extract(videos)
        extractor.extract(videos)
    assert sizes == [16, 8] + [4] * 10  # 20 frames, twice
    assert extractor.micro_batch == 4
    assert [record.getMessage().count("micro_batch=") for record in caplog.records] == [1, 1]
    for result, truth in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, truth, atol=1e-6, rtol=0)


def test_memory_too_small_for_one_frame_is_an_error(network, videos, monkeypatch):
    _fail_above(network, monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        DescriptorExtractor(network, device="cpu", micro_batch=4).extract(videos)


def test_bfloat16_stays_near_float32(network, videos):
    exact = DescriptorExtractor(network, device="cpu").extract([videos[0]])[0]
    rounded = DescriptorExtractor(network, device="cpu", precision="bfloat16")
    result = rounded.extract([videos[0]])[0]
    assert rounded.spec()["precision"] == "bfloat16"
    assert result.dtype == np.float32
    assert 0 < np.abs(result - exact).max() < 0.02


def test_spec_says_what_the_numbers_depend_on(network):
    digest = weights_sha256(network)
    extractor = DescriptorExtractor(network, device="cpu")
    assert extractor.spec() == {
        "weights_sha256": digest,
        "descriptor_names": list(network.config.descriptors.names),
        "precision": "float32",
        "pixel_mean": [127.5] * 3,
        "pixel_std": [127.5] * 3,
    }


def test_torch_settings_are_left_as_they_were(network, videos):
    before = (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, torch.is_inference_mode_enabled())
    DescriptorExtractor(network, device="cpu").extract(videos[:1])
    after = (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, torch.is_inference_mode_enabled())
    assert after == before


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 112, 112, 3), np.float32), np.zeros((2, 3, 112, 112), np.uint8), np.zeros((112, 112, 3), np.uint8)],
    ids=["float", "channels-first", "one-frame"],
)
def test_other_arrays_are_refused_by_their_place(network, videos, wrong):
    with pytest.raises(ValueError, match=r"crops\[1\]"):
        DescriptorExtractor(network, device="cpu").extract([videos[0], wrong])


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"precision": "float16"}, {"micro_batch": 0}])
def test_nonsense_options_are_refused_by_name(network, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DescriptorExtractor(network, **{"device": "cpu", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_gpu_is_said(network):
    with pytest.raises(ValueError, match="device='cuda'"):
        DescriptorExtractor(network, device="cuda")


@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.03)])
@pytest.mark.parametrize("trunk", ["tiny", "resnet50"])
def test_gpu_and_cpu_agree(videos, trunk, precision, tolerance):
    config = MMAConfig(trunk=trunk)
    expected = DescriptorExtractor(random_mma(config, 0), device="cpu", micro_batch=8).extract(videos)
    extractor = DescriptorExtractor(random_mma(config, 0), device="cuda", micro_batch=4, precision=precision)
    for _ in range(2):  # the second time through staging memory that was used before
        for result, truth in zip(extractor.extract(videos), expected, strict=True):
            np.testing.assert_allclose(result, truth, atol=tolerance, rtol=0)


@needs_gpu
def test_company_does_not_matter_on_a_gpu(videos):
    extractor = DescriptorExtractor(random_mma(MMAConfig(trunk="resnet18"), 0), device="cuda", micro_batch=8)
    assert extractor.precision == "bfloat16"
    together = extractor.extract(videos)
    for video, result in zip(videos, together, strict=True):
        np.testing.assert_allclose(extractor.extract([video])[0], result, atol=1e-6, rtol=0)
