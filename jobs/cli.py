"""The command line: `mma-mrnnet JOB --option value`, one typed, documented dataclass of options a job.

stdout holds one JSON object alone, the run's summary; everything for people goes to stderr. Ray and its workers
print to descriptor 1 whenever they like, so that descriptor is pointed at stderr before any job is imported and
the summary goes to a duplicate of the old one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import tyro
import yaml

from jobs.outcome import DONE, FAILED, WRONG_INPUT, InputError, JobFailedError, Outcome

JOBS = {
    "synth": "draw a made corpus: mp4 clips of faces, labels, truth and its known ceiling",
    "train-mma": "label sets -> face crops -> a trained multi-task network (stage 1)",
    "extract": "videos -> faces -> affect descriptors, into a feature store of Parquet files",
    "import-openface": "csv files of OpenFace 2 -> a feature store",
    "train": "a feature store and reaction labels -> a masked RNN (stage 2)",
    "tune": "a sweep of train's settings: many trials, their ranking, and the best one's model",
    "ablate": "one setting of train changed at a time: a table of what each is worth",
    "evaluate": "a trained network and labels -> its scores beside their floors, as a table and a page",
    "predict": "videos, or a feature store, and a masked RNN -> 7 reaction intensities a video",
    "export": "a feature store as one row a frame, csv or Parquet, for pandas and R",
    "forget": "take people's videos out of a feature store for good",
    "submit": "any job, run on a remote cluster",
    "doctor": "what of cluster, storage, tracking, decoders and GPUs works, and the mend for what does not",
    "bench": "speeds beside their limits, and beside what one would otherwise use",
}
"""The jobs by name, with what each is for; `jobs.<name>`, a hyphen as `_`, holds its `Options` and its `run`."""


def usage() -> str:
    """The page that `mma-mrnnet --help` shows."""
    width = max(map(len, JOBS))
    lines = [f"  {name:<{width}}  {purpose}" for name, purpose in JOBS.items()]
    return "\n".join(
        [
            "usage: mma-mrnnet JOB --option value ... [--config FILE.yaml]",
            "",
            "jobs:",
            *lines,
            "",
            "mma-mrnnet JOB --help shows a job's options; options on the command line win over those of the file.",
            "Exit codes: 0 done, 1 failed, 2 wrong arguments or input, 3 done with more failures than allowed.",
        ]
    )


def main(arguments: Sequence[str] | None = None, *, summary_stream: Any = None) -> int:
    """Run a job and end with its exit code; the entry point of the command `mma-mrnnet`.

    Args:
        arguments: the job's name and its options; None: those of the process.
        summary_stream: where the summary goes; None: stdout.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return DONE if words else WRONG_INPUT
    if words[0] not in JOBS:
        return _refuse(f"there is no job {words[0]!r}; the jobs are {', '.join(JOBS)}")
    with _stdout_for_summary() as stream:
        outcome, code = _run(words[0], words[1:], stream)
        if outcome is not None:
            (summary_stream or stream).write(json.dumps(outcome.summary, sort_keys=False, default=str) + "\n")
    return code


def job_module(job: str) -> Any:
    """The module of a job, which holds its `Options` and its `run`."""
    return importlib.import_module(f"jobs.{job.replace('-', '_')}")


def _run(job: str, arguments: list[str], help_stream: io.TextIOBase) -> tuple[Outcome | None, int]:
    try:
        module = job_module(job)
        takes_job = getattr(module.Options, "takes_job", False)  # submit: what stands behind -- is another job's
        end = arguments.index("--") if takes_job and "--" in arguments else len(arguments)
        options = parse_options(module.Options, job, arguments[:end], help_stream)
        if options is None:
            return None, DONE
        outcome = module.run(options, arguments[end + 1 :]) if takes_job else module.run(options)
        return outcome, outcome.exit_code
    except InputError as error:
        return None, _refuse(str(error))
    except JobFailedError as error:
        print(f"mma-mrnnet {job} failed: {error}", file=sys.stderr)
        return None, FAILED
    except KeyboardInterrupt:
        print(f"mma-mrnnet {job}: interrupted", file=sys.stderr)
        return None, 130
    except Exception:
        traceback.print_exc()
        print(f"mma-mrnnet {job} failed by a defect of its own (above); please report it", file=sys.stderr)
        return None, FAILED


def parse_options(options: type, job: str, arguments: list[str], help_stream: Any = None) -> Any:
    """Options of a job from its arguments and its `--config` file; None where help was asked for and shown.

    Raises:
        InputError: unknown, missing or wrong options, as one line.
    """
    words = _with_preset(options, with_config_file(options, arguments))
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return tyro.cli(options, args=words, prog=f"mma-mrnnet {job}")
    except ValueError as error:  # from a __post_init__: already one line with the mend
        raise InputError(" ".join(str(error).split())) from error
    except SystemExit as end:
        if not end.code:
            print(out.getvalue(), file=help_stream or sys.stdout)
            return None
        raise InputError(f"{_one_line(err.getvalue())} (mma-mrnnet {job} --help shows all options)") from end


def _one_line(box: str) -> str:
    """The message that tyro draws in a box, or under a title where it sees no terminal."""
    lines = [line.strip("│| ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    sections = " ".join("\n" if re.fullmatch("[─-]{3,}", line) else line for line in lines).split("\n")
    told = [" ".join(each.split()) for each in (sections if "╭" in box else sections[1:])]
    return "; ".join(each for each in told if each and not each.startswith(("For full helptext", "Argument helptext")))


def with_config_file(options: type, arguments: list[str]) -> list[str]:
    """The arguments with those of `--config FILE` put in front, less the ones given on the command line.

    Raises:
        InputError: the file cannot be read, or names an option that the job does not have.
    """
    arguments = [
        part for word in arguments for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    if "--config" not in arguments:
        return arguments
    place = arguments.index("--config")
    if place + 1 == len(arguments):
        raise InputError("--config needs the name of a YAML file")
    path, words = arguments[place + 1], arguments[:place] + arguments[place + 2 :]
    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise InputError(f"--config {path} must hold a mapping of option names to values")
    return _in_front(options, settings, f"--config {path}", words)


def _with_preset(options: type, words: list[str]) -> list[str]:
    """The words with the settings of `--preset` put in front, less the ones given; for options that have `presets`."""
    presets = getattr(options, "presets", None)
    if presets is None:
        return words
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--preset=") else [word])]
    place = words.index("--preset") + 1 if "--preset" in words else len(words)
    name = words[place] if place < len(words) else next(iter(presets))
    return _in_front(options, presets[name], f"--preset {name}", words) if name in presets else words


def _in_front(options: type, settings: Mapping[Any, Any], told: str, words: list[str]) -> list[str]:
    given = {word.split("=")[0] for word in words}
    front = [word for part in _flags(options, settings, told) if not given & set(part.names) for word in part.words]
    return front + words


def option_words(options: type, settings: Mapping[Any, Any], told: str) -> list[str]:
    """Settings as they stand in a file, as words of the command line. Raises InputError for an unknown name."""
    return [word for part in _flags(options, settings, told) for word in part.words]


class _Setting(NamedTuple):
    """An option from a file."""

    names: tuple[str, ...]
    """Flags that stand for it on the command line."""
    words: list[str]
    """What it is there."""


def _flags(options: Any, settings: Mapping[Any, Any], told: str, prefix: str = "") -> Iterator[_Setting]:
    """The settings of a file as flags; those of a dataclass inside the options stand under its name, or beside the
    others where it has none."""
    hints = get_type_hints(options, include_extras=True)
    inner, own = {}, {}
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if not dataclasses.is_dataclass(base):
            own[field.name] = kind
        elif base is kind:
            inner[field.name] = base
        else:  # annotated to have no name of its own
            nested = {each.name for each in dataclasses.fields(base)}
            yield from _flags(base, {k: v for k, v in settings.items() if _field(k) in nested}, told, prefix)
            settings = {k: v for k, v in settings.items() if _field(k) not in nested}
    for key, value in settings.items():
        name = _field(key)
        if name in inner and isinstance(value, Mapping):
            yield from _flags(inner[name], value, told, f"{prefix}{name.replace('_', '-')}.")
            continue
        if name not in own:
            raise InputError(f"{told} names the option {prefix + str(key)!r}, which this job does not have")
        if value is None:
            continue
        flag = f"--{prefix}{name.replace('_', '-')}"
        off = f"--{prefix}no-{name.replace('_', '-')}"
        if isinstance(value, bool):
            words = [flag if value else off]
        elif isinstance(value, list):
            each = [str(one) for one in value]
            appends = tyro.conf.UseAppendAction in getattr(own[name], "__metadata__", ())
            words = [word for one in each for word in (flag, one)] if appends else [flag, *each]
        elif isinstance(value, dict):
            words = [flag, *(str(word) for pair in value.items() for word in pair)]
        else:
            words = [flag, str(value)]
        yield _Setting((flag, off), words)


def _field(key: Any) -> str:
    return str(key).replace("-", "_")


@contextlib.contextmanager
def _stdout_for_summary() -> Any:
    """Point descriptor 1 at stderr while a job runs; yield a text stream on the old one."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    stream = os.fdopen(kept, "w", encoding="utf-8")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield stream
    finally:
        sys.stdout.flush()
        try:
            stream.flush()
        except BrokenPipeError:  # the reader has gone, as `head` does: the rest is for nobody
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, kept)
            os.close(nobody)
        os.dup2(kept, 1)
        stream.close()


def _refuse(message: str) -> int:
    print(f"mma-mrnnet: {message}", file=sys.stderr)
    return WRONG_INPUT
