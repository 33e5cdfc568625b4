"""The bench: counts before speeds, gates that fail the run, rows that say why they were skipped, table and JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cluster.storage import Folder
from jobs import bench, bench_bare, bench_engine, bench_extract, bench_gpu, bench_train
from jobs.bench_baton import OurLoop, batches_of
from jobs.bench_inputs import SMALL, Bench, clip_paths, read_sequences, sequence_files, write_store, yunet_file
from jobs.bench_process import SideError, run_side
from jobs.bench_table import (
    CountsDifferError,
    Figure,
    Result,
    Row,
    SkippedError,
    Turn,
    gated,
    markdown,
    ratio_figure,
    steady_rate,
    take_turns,
)
from jobs.cli import main
from jobs.outcome import DONE, FAILED, InputError
from jobs.plan import PLAN_SCHEMA

TINY = replace(
    SMALL, drawn=1, clip_s=(2.0, 2.0), clips=4, fast_clips=4, decode_clips=2, rerun_rows=20, plan_rows=50,
    engine_videos=64, memory_clips=1, train_videos=40, train_batches=2, predict_videos=12, crops=300, short_turns=1,
)  # fmt: skip
ALL_ROWS = (*bench_extract.ROWS, *bench_train.ROWS)


@pytest.fixture
def tiny(tmp_path) -> Bench:
    return Bench(folder=tmp_path, sizes=TINY)


def turn(rate: float, frames: int = 10, video: str = "a") -> Turn:
    return Turn(counts={"frames": frames}, videos={video: frames}, rate=rate)


def row(measure, row_id: str = "a") -> Row:
    return Row(id=row_id, measured="this", beside="that", measure=measure)


def run_with(monkeypatch, *rows: Row, **options):
    monkeypatch.setattr(bench_extract, "ROWS", rows)
    monkeypatch.setattr(bench_train, "ROWS", ())
    return bench.run(bench.Options(**options))


# --- turns and counts ---


def test_sides_take_turns_and_the_first_one_changes():
    ran = []
    sides = {name: lambda name=name: ran.append(name) or turn(1) for name in ("ours", "theirs", "others")}
    found = take_turns(sides, 3)
    assert ran == ["ours", "theirs", "others", "theirs", "others", "ours", "others", "ours", "theirs"]
    assert {name: len(turns) for name, turns in found.items()} == {"ours": 3, "theirs": 3, "others": 3}


def test_a_ratio_is_the_median_of_the_turns_own_ratios():
    # A machine that halves its speed between turns changes no ratio.
    ours, theirs = [turn(10), turn(5), turn(2)], [turn(5), turn(2.5), turn(2)]
    figure = ratio_figure(ours, theirs, name="ratio", of="frames/s", to_reach=1.5)
    assert (figure.value, figure.ours, figure.theirs, figure.good) == (2.0, 5, 2.5, True)


@pytest.mark.parametrize(
    ("theirs", "told"),
    [(turn(1, frames=9), "10 frames beside 9 frames"), (turn(1, video="b"), "'a': 10 frames beside None")],
)
def test_a_run_whose_counts_differ_has_no_speed(monkeypatch, theirs, told):
    def measure(_bench):
        found = take_turns({"ours": lambda: turn(5), "theirs": lambda: theirs}, 1)
        return [ratio_figure(found["ours"], found["theirs"], name="ratio", of="frames/s")]

    outcome = run_with(monkeypatch, row(measure))
    (found,) = outcome.summary["rows"]
    assert outcome.exit_code == FAILED
    assert found["state"] == "failed"
    assert told in found["why"]
    assert found["figures"] == []


def test_steady_speed_leaves_out_what_a_start_had_piled_up():
    backlog = [(10.0, 40)]
    assert steady_rate([*backlog, *((10.0 + k, 10) for k in range(1, 7))]) == pytest.approx(10)
    assert steady_rate([(5.0, 0)]) == 0


def test_a_store_with_a_video_twice_or_unread_has_no_count(tmp_path):
    videos = plan_table(["a", "b"])
    folder = Folder(str(tmp_path))
    write_store(folder, videos, np.array([3, 4]), file_videos=1)
    assert bench_extract.stored_videos(folder) == {"a": 3, "b": 4}
    folder.write("part-again.parquet", folder.read("part-bench-0000000.parquet"))
    with pytest.raises(CountsDifferError, match="3 first rows of 2 videos"):
        bench_extract.stored_videos(folder)


def test_one_count_that_is_not_what_was_asked_for_fails():
    bench_engine.demand((2, 3), (2, 3), "rows")
    with pytest.raises(CountsDifferError, match="2 rows, not 3"):
        bench_engine.demand(2, 3, "rows")


# --- the gate ---


def figure(value: float, **settings) -> Figure:
    return Figure(name="ratio", value=value, **settings)


@pytest.mark.parametrize(
    ("value", "at_most", "code"), [(0.68, False, DONE), (0.65, False, FAILED), (1.3, True, DONE), (1.4, True, FAILED)]
)
def test_the_small_version_fails_a_third_below_what_was_reached(monkeypatch, value, at_most, code):
    measured = figure(value, reached=1.0, at_most=at_most)
    assert run_with(monkeypatch, row(lambda _: [measured]), small=True).exit_code == code
    assert run_with(monkeypatch, row(lambda _: [measured])).exit_code == DONE


def test_a_figure_below_its_gate_is_still_told():
    result = gated(Result(row=row(None), state="done", figures=[figure(0.5, reached=1.0)]))
    assert result.state == "failed"
    assert result.why == "ratio 0.5 lies under 0.667"
    assert "ratio 0.5" in markdown([result], ABOUT)


def test_ids_name_one_row_each():
    ids = [each.id for each in ALL_ROWS]
    assert len(set(ids)) == len(ids)


# --- what is told ---

ABOUT = {"command": "mma-mrnnet bench", "machine": "2 cores", "versions": "Python 3"}


def test_table_and_json_tell_every_row(monkeypatch, tmp_path):
    def skipped(_bench):
        raise SkippedError("no GPU here")

    def broken(_bench):
        raise SideError("it ended with 1")

    rows = [
        row(lambda _: [figure(0.97, ours=970.0, theirs=1000.0, of="frames/s", to_reach=0.95)], "steady"),
        row(skipped, "gpu"),
        row(broken, "broken"),
    ]
    outcome = run_with(monkeypatch, *rows, out=str(tmp_path / "out"))
    told = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert told == json.loads(json.dumps(outcome.summary))
    assert {"job", "seconds", "command", "machine", "versions", "date", "turns", "small", "rows"} <= set(told)
    assert [each["state"] for each in told["rows"]] == ["done", "skipped", "failed"]
    assert told["rows"][0]["figures"][0]["good"] is True
    table = (tmp_path / "out" / "bench.md").read_text().splitlines()
    assert table[0].startswith("Measured by `mma-mrnnet bench` on ")
    assert table[2:4] == [
        "| row | measured | beside | ours | theirs | figure | to reach |",
        "|---|---|---|---|---|---|---|",
    ]
    assert table[4] == "| `steady` | this | that | 970 frames/s | 1,000 frames/s | ratio **0.97** | ≥ 0.95 |"
    assert table[5] == "| `gpu` | this | that | | | skipped: no GPU here | |"
    assert {line.count("|") for line in table[2:]} == {8}
    assert outcome.exit_code == FAILED


def test_rows_are_chosen_by_id_and_kind():
    ids = [each.id for each in bench.chosen_rows(bench.Options(rows=("loop", "rerun")))]
    assert ids == ["rerun", "loop"]
    assert {each.id for each in bench.chosen_rows(bench.Options(what="train"))} >= {"loop", "workers", "predict"}
    with pytest.raises(InputError, match="--rows loop: there is no such row"):
        bench.chosen_rows(bench.Options(what="extract", rows=("loop",)))


def test_the_kind_is_a_word_of_the_command(capfd):
    assert main(["bench", "train", "--rows", "steady"]) == 2
    assert "there is no such row; they are loop" in capfd.readouterr().err
    assert main(["bench", "sweep"]) == 2
    assert bench.told_command(bench.Options(what="train", rows=("loop", "padded"), small=True)) == (
        "mma-mrnnet bench train --rows loop padded --small"
    )


# --- sides, as small as they go ---


def test_a_side_that_fails_is_told_with_its_last_words(tmp_path):
    with pytest.raises(SideError, match=r"bench_gpu:training_speeds ended with 1: FileNotFoundError"):
        run_side("jobs.bench_gpu:training_speeds", tmp_path, sequences=str(tmp_path / "none"), number=1, turns=1)


def test_decoding_counts_the_frames_that_decord_counts(tiny):
    (found,) = bench_extract.decode_haar(tiny)
    assert found.value > 0


def test_without_its_weights_the_row_of_yunet_is_skipped(tiny):
    with pytest.raises(SkippedError, match="--detector-weights"):
        bench_extract.decode_yunet(tiny)


def test_the_script_and_the_bare_processes_read_the_same_videos(tiny):
    paths = clip_paths(tiny, 2)
    assert all((tiny.folder / "clips-2" / name).read_bytes() for name in ("00000.mp4", "00001.mp4"))
    script = bench_bare.data_loader(paths, "random:0:tiny", 0)
    bare = run_side(
        "jobs.bench_bare:bare_processes", tiny.folder, paths=paths, faces={"detector": "none"}, mma="random:0:tiny",
        processes=1,
    ).found  # fmt: skip
    assert script["videos"] == bare["videos"] == {"00000": 24, "00001": 24}
    assert sum(frames for _, frames in script["arrivals"]) == 48


def test_loops_start_from_equal_losses_and_pad_without_changing_them(tiny):
    for name in ("uniform", "short"):
        data = read_sequences(sequence_files(tiny)[name])
        batches = batches_of(len(data), 2, 0)
        assert sorted(batches[0]) == list(range(40))  # all of so few
        losses = [
            OurLoop(data).run(batches),
            bench_bare.BareLoop(data, padded=False).run(batches),
            bench_bare.BareLoop(data, padded=True).run(batches),
        ]
        assert len(losses[0]) == 2
        assert np.ptp([each[0] for each in losses]) < 1e-5


def test_a_made_store_and_model_are_those_that_predict_takes(tiny):
    bench_train.predict(tiny)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("row_id", [each.id for each in ALL_ROWS if not each.id.startswith("gpu")])
def test_every_row_counts_right_and_gives_its_figures(row_id, tmp_path):
    """As at full size, with next to nothing to do."""
    small = Bench(folder=tmp_path, sizes=TINY, detector_weights=yunet_file(None), short_turns=1)
    (measured,) = (each for each in ALL_ROWS if each.id == row_id)
    if row_id == "decode-yunet" and small.detector_weights is None:
        pytest.skip("YuNet's file is not here: set MMA_YUNET")
    figures = measured.measure(small)
    assert figures
    assert all(np.isfinite(each.value) for each in figures)


def test_gpu_rows_run_as_they_are_on_a_cpu(tiny):
    for pair in bench_gpu.descriptor_speeds(8, 1, mma="random:0:tiny", device="cpu", micro_batch=4, batches=(4,)):
        assert [count for count, _ in pair] == [8, 8]
    sequences = sequence_files(tiny)["uniform"]
    for pair in bench_gpu.training_speeds(sequences, 1, 1, device="cpu"):
        assert [count for count, _ in pair] == [40, 40]
    for pair in bench_gpu.frame_training_speeds(20, 1, mma="random:0:tiny", device="cpu", batch_size=8):
        assert [count for count, _ in pair] == [20, 20]


def test_what_a_gpu_takes_is_told_in_cores_and_hours_of_video():
    cores, hours = bench_gpu.feeding(6000.0, 200.0)
    assert (cores.value, hours.value, hours.unit) == (30.0, 4800.0, "h")  # 200 s of video a second


def test_gpu_rows_are_skipped_without_a_gpu(tiny):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for each in (*bench_gpu.GPU_EXTRACT_ROWS, *bench_gpu.GPU_TRAIN_ROWS):
        with pytest.raises(SkippedError, match="no GPU"):
            each.measure(tiny)


def plan_table(ids: list[str]):
    import pyarrow as pa

    columns = [ids, [f"/{each}.mp4" for each in ids], [1] * len(ids), ["1"] * len(ids)]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, PLAN_SCHEMA)], schema=PLAN_SCHEMA)
