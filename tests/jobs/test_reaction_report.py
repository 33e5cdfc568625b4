"""What the page of `evaluate --store` shows, worked out again from the tables alone; and what its pictures hide."""

from __future__ import annotations

import base64
import json
import re
from html import unescape

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_grid import failed, settled, video
from made_rows import row
from odd_videos import write_clip

from cluster.storage import Folder, stat
from jobs.reaction_report import FLOORS, _picture
from mma.descriptors import MMA26
from mma.store import schema as s
from mma.store.reader import SeenFace, middle_faces
from mma.store.writer import StoreWriter, settle_spec
from rnn.reactions import REACTIONS

BEST_AND_WORST = 4


@pytest.fixture(scope="module")
def evaluated(run_job, reactions, tmp_path_factory):
    """The test split with three odd videos among it: (page, metrics, test rows with predictions and labels)."""
    folder = tmp_path_factory.mktemp("report")
    truth = pd.read_parquet(reactions.corpus / "truth.parquet")
    gone, faceless, cut = truth[truth["split"] == "Test"]["video_id"].head(3)
    store = folder / "store"
    store.mkdir()
    (store / "_spec.json").write_bytes((reactions.corpus / "store/_spec.json").read_bytes())
    rows = pa.concat_tables([pq.read_table(file) for file in (reactions.corpus / "store").glob("*.parquet")])
    rows = rows.filter(pa.compute.invert(pa.compute.is_in(rows["video_id"], pa.array([gone, faceless, cut]))))
    times_s = np.arange(12) / 10
    odd = [
        settled(failed(gone)),
        settled(video(faceless, times_s, faces=np.zeros(12, bool))),
        settled(video(cut, times_s, np.linspace(0, 0.5, 12), duration_s=2.5, source_fps=10.0), failed(cut, 1)),
    ]
    pq.write_table(pa.concat_tables([rows, *(each.cast(rows.schema) for each in odd)]), store / "part-0.parquet")
    words = ("--model", reactions.out, "--store", store)
    ran = run_job("predict", *words, "--out", folder / "p")
    assert ran.code == 0, ran.told
    ran = run_job("evaluate", *words, "--labels", reactions.corpus / "truth.parquet", "--out", folder / "e")
    assert ran.code == 0, ran.told
    both = pd.read_parquet(folder / "p/predictions.parquet").merge(truth, on="video_id", suffixes=("", "_label"))
    metrics = json.loads((folder / "e/metrics.json").read_text())
    return (folder / "e/report.html").read_text(), metrics, both[both["split"] == "Test"].reset_index(drop=True)


def sections(page: str) -> dict[str, list[list[str]]]:
    """The page's tables by the heading above them: rows of cells, without their markup."""
    found: dict[str, list[list[str]]] = {}
    for part in page.split("<h2>")[1:]:
        title, body = part.split("</h2>", 1)
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.S)
        cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", each, re.S) for each in rows]
        found[title] = [
            [unescape(re.sub(r"<[^>]+>", "", cell)).strip().replace("−", "-") for cell in each] for each in cells
        ]
    return found


def sides(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return rows[list(REACTIONS)].to_numpy(), rows[[f"{name}_label" for name in REACTIONS]].to_numpy()


def mean_r(rows: pd.DataFrame) -> float:
    values, labels = sides(rows)
    return float(np.mean([np.corrcoef(values[:, k], labels[:, k])[0, 1] for k in range(len(REACTIONS))]))


def test_scores_by_reaction_stand_beside_ceiling_and_floor(evaluated, reactions):
    page, metrics, test = evaluated
    values, labels = sides(test)
    ceiling = json.loads((reactions.corpus / "ceiling.json").read_text())["test"]["display"]
    _, *rows = sections(page)["By reaction"]
    assert [each[0] for each in rows] == list(REACTIONS)
    for k, each in enumerate(rows):
        r, of_ceiling, ridge, ccc, off, n = (float(each[place]) for place in (1, 4, 5, 6, 7, 8))
        x, y = values[:, k], labels[:, k]
        assert r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=2e-3)
        assert ccc == pytest.approx(
            2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2), abs=2e-3
        )
        assert off == pytest.approx(np.abs(x - y).mean(), abs=2e-3)
        assert of_ceiling == pytest.approx(ceiling[REACTIONS[k]], abs=1e-3)
        assert ridge == pytest.approx(
            metrics["floors"]["ridge_statistics"]["by_reaction"][REACTIONS[k]]["pearson"], abs=1e-3
        )
        assert n == len(test)
    floors = dict(each[:2] for each in sections(page)["Floors"])
    assert {FLOORS[name]: f"{each['mean_pearson']:.3f}" for name, each in metrics["floors"].items()} == floors
    assert metrics["ceiling"] == ceiling


def test_the_score_by_length_is_that_of_each_fifth(evaluated):
    page, _, test = evaluated
    _, *rows = sections(page)["By length of the video"]
    parts = np.array_split(np.argsort(test["steps"].to_numpy(), kind="stable"), 5)
    assert len(rows) == 5
    for (seconds, count, r, _), part in zip(rows, parts):
        own = test.iloc[part]
        assert seconds == f"{own['steps'].min() / 10:.1f} to {own['steps'].max() / 10:.1f}"
        assert int(count) == len(part)
        assert float(r) == pytest.approx(mean_r(own), abs=2e-3)


def test_what_could_not_be_read_is_counted_by_cause(evaluated):
    page, _, test = evaluated
    told = dict(sections(page)["What could be read"])
    assert told == {
        "failed": "1",
        "no_face": "1",
        "partial": "1",
        "ok": str(len(test) - 3),
        "cause: DamagedStream": "2",
    }
    assert "2 videos show no face or could not be read; they have the fall-back row, and are scored." in page
    # The partial one's lost end is time without a face: 12 of 25 steps.
    cut = test[test["status"] == "partial"].iloc[0]
    assert (cut["steps"], cut["steps_used"]) == (25, 25)
    assert cut["face_share"] == pytest.approx(12 / 25)


def test_the_worst_and_best_videos_are_shown_with_their_numbers(evaluated):
    page, _, test = evaluated
    values, labels = sides(test)
    off = np.abs(values - labels).mean(axis=1)
    off[test["status"].isin(["failed", "no_face"])] = np.nan
    order = np.argsort(off)[: int(np.isfinite(off).sum())]
    for title, expected in (("worst", order[::-1]), ("best", order)):
        part = page.split(f"<h2>The {title} videos</h2>")[1].split("<h2>")[0]
        shown = re.findall(r"<b>(.*?)</b> <span[^>]*>mean error ([\d.]+), ([\d.]+) s, face in (\d+) %", part)
        assert [each[0] for each in shown] == test["video_id"].iloc[expected[:BEST_AND_WORST]].tolist()
        assert part.count("valence, arousal and action units over time") == BEST_AND_WORST
        for (_, error, seconds, share), place in zip(shown, expected):
            assert float(error) == pytest.approx(off[place], abs=2e-3)
            assert float(seconds) == pytest.approx(test["steps"].iloc[place] / 10, abs=0.06)
            assert int(share) == round(100 * test["face_share"].iloc[place])
        rows = [each for each in sections(page)[f"The {title} videos"] if each[0] in REACTIONS]
        numbers = np.array([[float(cell) for cell in each[1:]] for each in rows]).reshape(-1, len(REACTIONS), 2)
        np.testing.assert_allclose(numbers[:, :, 0], values[expected[:BEST_AND_WORST]], atol=2e-3)
        np.testing.assert_allclose(numbers[:, :, 1], labels[expected[:BEST_AND_WORST]], atol=2e-3)


# --- pictures of people ---


def fine(picture: np.ndarray, rows: slice, columns: slice) -> float:
    """How much neighbours differ there: noise has much of it, coarse squares little."""
    part = picture[rows, columns].astype(float)
    return float(np.abs(np.diff(part, axis=1)).mean())


def noise(_number: int, width: int, height: int) -> np.ndarray:
    """Blocks of 4 pixels, so that no detector sees a face and JPEG keeps them."""
    blocks = np.random.default_rng(5).integers(0, 255, (height // 4, width // 4, 1), np.uint8)
    return np.repeat(np.repeat(np.repeat(blocks, 4, 0), 4, 1), 3, 2)


BOX = (96, 40, 40, 48)


@pytest.mark.parametrize(
    ("box", "faces", "changed", "whole"),
    [
        (BOX, 1, False, False),
        (BOX, 2, False, True),  # more faces than can be found again
        (BOX, 1, True, True),  # the file is another one than the store saw
        ((300, 40, 40, 48), 1, False, True),
        ((np.nan,) * 4, 1, False, True),
    ],
)
def test_a_face_is_blurred_where_the_store_saw_it_and_the_frame_where_that_says_too_little(
    tmp_path, box, faces, changed, whole
):
    """Whatever a detector sees now: here it sees none."""
    clip = write_clip(tmp_path / "a.mp4", frames=3, size_px=(160, 128), picture=noise)
    version = "another" if changed else stat(str(clip)).version
    seen = SeenFace(1, np.array(box, np.float32), faces, version)

    def shown(*, blur: bool) -> np.ndarray:
        source = _picture(str(clip), seen, blur=blur)
        return cv2.imdecode(np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)

    clear, hidden = shown(blur=False), shown(blur=True)
    assert clear.shape == hidden.shape == (128, 160, 3)
    face, beside = (slice(BOX[1], BOX[1] + BOX[3]), slice(BOX[0], BOX[0] + BOX[2])), (slice(0, 128), slice(0, 80))
    assert fine(hidden, *face) < 0.35 * fine(clear, *face)
    assert (fine(hidden, *beside) < 0.35 * fine(clear, *beside)) == whole


def test_the_frame_shown_is_the_one_with_the_face_nearest_the_middle(tmp_path):
    spec = s.make_spec(
        descriptors=MMA26, weights={"truth": "test"}, crop={}, detector={}, sampling={}, precision="float32"
    )
    folder = Folder(str(tmp_path / "s"))
    settle_spec(folder, spec)
    writer = StoreWriter(folder, MMA26, spec, "r")
    writer.add(settled(row("a", 0, None, count=4), row("a", 1, 2, count=4, face=False)))
    writer.add(settled(row("b", count=4, face=False)))
    writer.add(settled(row("c", count=5)))
    writer.commit()
    found = middle_faces([folder], ["a", "b", "c", "nobody"])
    assert {name: each.frame_index for name, each in found.items()} == {"a": 3, "c": 2}
    assert found["a"].box.tolist() == [10, 20, 30, 40]
    assert found["a"].num_faces == 1
    assert found["a"].source_version == "1"
