"""The command line: one JSON object on stdout, one line for wrong input, help for all options, files of options."""

import dataclasses
import importlib
import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from jobs import demo, train, train_mma
from jobs.cli import JOBS, main, parse_options
from jobs.outcome import InputError
from mma.training.options import TrainingOptions
from rnn.network import NetworkConfig
from rnn.training.options import FitOptions


def command(*arguments: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, timeout=60, check=False, **settings
    )


@dataclass(frozen=True, kw_only=True)
class Example:
    """An example."""

    videos: str
    """Where they are."""
    fps: float | None = None
    """Frames a second."""
    labels: tuple[str, ...] = ()
    """Several."""
    dry_run: bool = False
    """Only say."""

    def __post_init__(self) -> None:
        if self.fps == 0:
            raise ValueError("--fps 0: give frames a second above 0")


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("videos: from-file\nfps: 5\nlabels: [a, b]\ndry-run: true\n")
    read = parse_options(Example, "x", ["--config", str(file), "--fps", "7", "--no-dry-run"])
    assert read == Example(videos="from-file", fps=7.0, labels=("a", "b"), dry_run=False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--vidoes", "x"], "--vidoes"),
        ([], "--videos"),
        (["--videos", "x", "--fps", "fast"], "--fps"),
        (["--videos", "x", "--fps", "0"], "--fps 0: give frames a second above 0"),
        (["--config", "no-such.yaml"], "no-such.yaml"),
        (["--videos", "x", "--config"], "--config needs"),
    ],
)
def test_wrong_options_are_one_line_that_names_them(arguments, told):
    with pytest.raises(InputError) as error:
        parse_options(Example, "x", arguments)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert "│" not in str(error.value)


def test_a_file_with_an_unknown_option_is_refused(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("vidoes: x\n")
    with pytest.raises(InputError, match="vidoes"):
        parse_options(Example, "x", ["--config", str(file)])


def test_stdout_holds_the_summary_alone(tmp_path):
    run = command("synth", "--out", str(tmp_path / "corpus"), "--videos", "4", "--no-video")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["job"] == "synth"
    assert "4 clips" in run.stderr


def test_unknown_jobs_and_none_are_wrong_arguments(capfd):
    assert main(["extrakt"]) == main([]) == 2
    assert "extract" in capfd.readouterr().err


def test_every_job_shows_its_options_on_stdout(capfd):
    assert main(["--help"]) == 0
    told = capfd.readouterr().out
    assert all(name in told for name in JOBS)
    assert main(["extract", "--help"]) == 0
    assert "--decode-timeout-s" in capfd.readouterr().out


def test_help_for_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "jobs", "synth", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def shown_options(kind: type, prefix: str = "") -> set[str]:
    """The flags of a job's options, those of dataclasses inside among them; `training` and `run` have none."""
    flags = set()
    for field in dataclasses.fields(kind):
        inner = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        if "Positional" in str(field.type):  # bench's: a word, shown by its choices
            continue
        if inner is not None:
            flags |= shown_options(inner, prefix if field.name in ("training", "run") else f"{prefix}{field.name}.")
        else:
            flags.add(f"--{prefix}{field.name.replace('_', '-')}")
    return flags


@pytest.mark.parametrize("job", JOBS)
def test_help_shows_every_option_of_a_job(job, capfd):
    assert main([job, "--help"]) == 0
    shown = capfd.readouterr().out
    options = shown_options(importlib.import_module(f"jobs.{job.replace('-', '_')}").Options)
    lacking = [flag for flag in options if f"{flag} " not in shown and f"{flag}," not in shown]
    assert not lacking
    assert job != "train-mma" or {"--batch-size", "--loss.matching-weight", "--augment.turn-deg"} <= options


SETTINGS = """
labels: [synth=a, rafdb=b]
out: m
batch_size: 16
epochs: 3
worker-cpus: 1.5
tracking: false
mix: [synth=2, rafdb=1]
loss:
  matching: to-au
  soft-co-annotation: true
  action_unit_pos_weight: {AU01: 2.5, AU26: 3}
augment:
  flip: 0
  turn_deg: 3.5
"""


def training_settings(tmp_path, text: str, *flags: str) -> train_mma.Options:
    (tmp_path / "options.yaml").write_text(text)
    return parse_options(train_mma.Options, "train-mma", ["--config", str(tmp_path / "options.yaml"), *flags])


def test_a_file_reaches_options_inside_options(tmp_path):
    read = training_settings(tmp_path, SETTINGS)
    assert (read.labels, read.mix) == (("synth=a", "rafdb=b"), ("synth=2", "rafdb=1"))
    assert (read.run.worker_cpus, read.run.tracking) == (1.5, False)
    assert (read.training.batch_size, read.training.epochs) == (16, 3)
    assert (read.training.loss.matching, read.training.loss.soft_co_annotation) == ("to-au", True)
    assert dict(read.training.loss.action_unit_pos_weight) == {"AU01": 2.5, "AU26": 3.0}
    assert (read.training.augment.flip, read.training.augment.turn_deg) == (0, 3.5)
    untouched = TrainingOptions()
    assert (read.training.seed, read.training.augment.zoom) == (untouched.seed, untouched.augment.zoom)


def test_flags_win_over_the_file_inside_options_too(tmp_path):
    flags = ["--labels", "disfa=c", "--batch-size=8", "--loss.no-soft-co-annotation", "--augment.turn-deg", "1"]
    read = training_settings(tmp_path, SETTINGS, *flags, "--tracking")
    assert read.labels == ("disfa=c",)
    assert (read.training.batch_size, read.training.epochs, read.run.tracking) == (8, 3, True)
    assert (read.training.loss.soft_co_annotation, read.training.augment.turn_deg) == (False, 1)


def test_a_flag_written_with_underscores_wins_too(tmp_path):
    read = training_settings(tmp_path, SETTINGS, "--batch_size", "8", "--loss.no_soft_co_annotation")
    assert (read.training.batch_size, read.training.loss.soft_co_annotation) == (8, False)


def test_a_preset_sets_what_neither_flags_nor_the_file_do(tmp_path):
    (tmp_path / "options.yaml").write_text("network: {units: 96}\nfit: {epochs: 7}")
    words = ["--store", "s", "--labels", "l", "--out", "o"]
    plain = parse_options(train.Options, "train", words)
    assert (plain.preset, plain.network.readout, plain.fit.optimiser) == ("recommended", "masked-statistics", "adamw")
    paper = parse_options(train.Options, "train", [*words, "--preset=paper"])
    assert (paper.network, paper.fit) == (NetworkConfig(), FitOptions())
    # PAPER.md, "Stage 2", number by number.
    assert vars(paper.network) == {
        **{"cell": "gru", "layers": 1, "bidirectional": False, "units": 128, "readout": "routed-dense"},
        **{"lengths": "true", "dense_width": 32, "batch_norm": True, "activation": "relu", "dropout": 0.0},
    }
    told = ("loss", "batch_size", "optimiser", "learning_rate", "schedule", "weight_decay")
    assert [getattr(paper.fit, name) for name in told] == ["pearson", 128, "adam", 1e-4, "constant", 0.0]
    mixed = [*words, "--config", str(tmp_path / "options.yaml"), "--fit.optimiser", "sgd"]
    read = parse_options(train.Options, "train", mixed)
    assert (read.network.units, read.fit.epochs, read.fit.optimiser) == (96, 7, "sgd")
    assert read.network.readout == "masked-statistics"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("loss: {matchign: off}", "'loss.matchign'"),
        ("augment: {turn: 3}", "'augment.turn'"),
        ("training: {epochs: 3}", "'training'"),
        ("loss: strong", "'loss'"),
        ("epochs: 0", "--epochs 0"),
        ("augment: {flip: 2}", "--augment.flip 2"),
        ("loss: {matching: sometimes}", "--loss.matching"),
        ("worker_cpus: many", "--worker-cpus"),
    ],
)
def test_a_file_s_mistakes_inside_options_are_named(tmp_path, text, told):
    with pytest.raises(InputError) as error:
        training_settings(tmp_path, f"labels: [synth=a]\nout: m\n{text}\n")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "m"], "--labels"),
        (["--labels", "synth=a"], "--out"),
        (["--labels", "synth=a", "--out", "m", "--num-workers", "0"], "--num-workers 0"),
        (["--labels", "synth=a", "--out", "m", "--worker-cpus", "0"], "--worker-cpus 0"),
        (["--labels", "synth=a", "--out", "m", "--val-fraction", "1"], "--val-fraction 1"),
        (["--labels", "synth=a", "--out", "m", "--descriptor-set", "mma27"], "--descriptor-set"),
    ],
)
def test_wrong_options_of_train_mma_are_one_line(capfd, arguments, told):
    assert main(["train-mma", *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.strip().splitlines())) == ("", 1), err
    assert told in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--videos", "{tmp}/none", "--store", "{tmp}/s", "--mma", "random:0:tiny"], "--videos"),
        (["--videos", "{tmp}", "--store", "{tmp}/s", "--mma", "random:0:tiny"], "no such file"),
        (["--videos", "{tmp}", "--store", "{tmp}/s"], "random:0"),
        (["--videos", "{tmp}", "--store", "{tmp}/s", "--mma", "{tmp}/none.safetensors"], "--mma"),
        (["--videos", "{tmp}", "--store", "gs://x/y", "--mma", "random:0:tiny"], "gs://"),
        (["--videos", "{tmp}", "--store", "{tmp}/s", "--mma", "random:0:huge"], "huge"),
        (
            ["--videos", "{tmp}", "--store", "{tmp}/s", "--mma", "random:0:tiny", "--detector", "yunet"],
            "--detector-weights",
        ),
        (
            [
                *("--videos", "{tmp}", "--store", "{tmp}/s", "--mma", "random:0:tiny", "--detector", "yunet"),
                *("--detector-weights", __file__),
            ],
            f"--detector-weights {__file__}: onnxruntime cannot read it",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, capfd, arguments, told):
    code = main(["extract", *(each.format(tmp=tmp_path) for each in arguments)])
    out, err = capfd.readouterr()
    assert code == 2, err
    assert told in err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "s").exists()


def test_the_demo_s_commands_are_commands(tmp_path):
    """`make demo` takes minutes; an option of it that was renamed is found here."""
    told = demo.commands(tmp_path)
    assert [words[0] for words in told] == ["synth", "train-mma", "extract", "export", "train", "evaluate", "predict"]
    for job, *arguments in told:
        options = importlib.import_module(f"jobs.{job.replace('-', '_')}").Options
        assert parse_options(options, job, arguments) is not None
