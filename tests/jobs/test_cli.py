"""The command line: one JSON object on stdout, one line for wrong input, help for all options, files of options."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from jobs.cli import JOBS, main, parse_options
from jobs.outcome import InputError


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
