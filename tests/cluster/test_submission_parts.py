"""What is sent to a cluster and what is not, and how a job's log and end come back; all without a cluster."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import AuthenticationError

from cluster import submission
from cluster.job_log import RESULT_MARK, JobLog, result_line
from cluster.package import (
    PACKAGES,
    REQUIREMENTS,
    ROOT,
    PackageError,
    pack_project,
    pinned_requirements,
    project_files,
    requirements,
    unmet,
)
from cluster.secrets import FROM_CLUSTER, SecretError, choose_variables, refuse_secret_words, secret_name, why_secret
from cluster.submission import JobServer, LostError, SubmissionError, end_code, server_url, token_header

PLANTED = "Zq7-planted-and-never-shown"

# --- packing ---


@pytest.fixture
def project(tmp_path) -> Path:
    """A checkout in small, in a git repository, with everything beside it that must stay at home."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["numpy>=1"]\n')
    (tmp_path / ".gitignore").write_text(".venv/\nlocal_*.py\n*.secret.py\n")
    stays = [
        ".env", ".aws/credentials", ".venv/lib/torch.py", "secrets.py", "notes.md", "data/clip.mp4", "tests/test_x.py",
        "jobs/.env", "jobs/.hidden.py", "jobs/keys.json", "jobs/labels.csv", "jobs/local_settings.py", "jobs/README.md",
        "mma/weights.safetensors", "mma/tokens.secret.py", "rnn/__pycache__/x.py", "cluster/manifests/aws.yaml",
        "jobs/templates/.page.html", "jobs/templates/credentials", ".git-credentials",
    ]  # fmt: skip
    goes = ["jobs/deep/er/job.py", "jobs/templates/page.html", "jobs/templates/card.md", "jobs/templates/space.yaml"]
    for name in (*stays, *goes):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(PLANTED if name in stays else "text")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "key.py").write_text(PLANTED)
    (tmp_path / "jobs" / "linked.py").symlink_to(outside / "key.py")
    (tmp_path / "jobs" / "linked_folder").symlink_to(outside)
    git(tmp_path, "init", "-q")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


GOES = sorted(
    [*(f"{package}/__init__.py" for package in PACKAGES), "jobs/deep/er/job.py", "jobs/templates/card.md",
     "jobs/templates/page.html", "jobs/templates/space.yaml", "pyproject.toml"]
)  # fmt: skip


def test_the_stated_list_goes_and_nothing_else(project):
    package = pack_project(project)
    assert sorted(package.files) == sorted([*GOES, REQUIREMENTS])
    archive = zipfile.ZipFile(io.BytesIO(package.data))
    assert sorted(archive.namelist()) == sorted(package.files)
    assert PLANTED not in "".join(archive.read(name).decode() for name in archive.namelist())
    assert archive.read(REQUIREMENTS) == b"numpy>=1\n"
    assert f"{len(GOES) + 1} files, {len(package.data) / 1e3:,.0f} kB" in package.told()


def test_an_ignored_file_goes_only_once_it_is_tracked(project):
    git(project, "add", "-f", "jobs/local_settings.py")
    assert "jobs/local_settings.py" in project_files(project)
    assert "mma/tokens.secret.py" not in project_files(project)


def test_equal_code_gives_equal_bytes(project):
    first = pack_project(project)
    os.utime(project / "jobs/deep/er/job.py", (1, 1))
    (project / "data/more.mp4").write_text("data")
    assert pack_project(project).data == first.data
    stamps = {each.date_time for each in zipfile.ZipFile(io.BytesIO(first.data)).infolist()}
    assert stamps == {(1980, 1, 1, 0, 0, 0)}
    (project / "jobs/deep/er/job.py").write_text("changed")
    assert pack_project(project).digest != first.digest


def test_an_installed_project_is_packed_where_git_would_ignore_it_all(project):
    """A wheel in the .venv of some repository: no pyproject.toml beside it, and its whole folder ignored."""
    installed = project / ".venv" / "site-packages"
    for package in PACKAGES:
        (installed / package).mkdir(parents=True)
        (installed / package / "__init__.py").write_text("")
    assert project_files(installed) == sorted(f"{package}/__init__.py" for package in PACKAGES)
    lines = requirements(installed)
    assert any(line.startswith("ray[") for line in lines)
    assert not any("extra ==" in line for line in lines)


def test_git_that_does_not_answer_is_no_licence(project, monkeypatch):
    monkeypatch.setenv("PATH", str(project))
    with pytest.raises(PackageError, match="git"):
        project_files(project)


def test_a_broken_repository_is_no_licence_either(project):
    (project / ".git" / "HEAD").write_text("garbage")
    with pytest.raises(PackageError, match="git does not say what it ignores"):
        project_files(project)


def test_a_folder_without_the_project_is_refused(tmp_path):
    with pytest.raises(PackageError, match="cluster is missing"):
        pack_project(tmp_path)


def test_the_package_runs_by_itself(tmp_path):
    """This project's own, unpacked and run with nothing else of it on the path."""
    zipfile.ZipFile(io.BytesIO(pack_project().data)).extractall(tmp_path)
    assert requirements(tmp_path) == requirements()
    script = (
        "import sys; sys.path = ['.'] + [p for p in sys.path if p]; sys.meta_path = [m for m in sys.meta_path if "
        "'editable' not in repr(m).lower()]; import jobs.cli, jobs.extract, mma, rnn; print(jobs.__file__)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()).resolve() == (tmp_path / "jobs" / "__init__.py").resolve()


def test_every_template_that_a_wheel_has_goes():
    settings = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())
    globs = settings["tool"]["setuptools"]["package-data"]
    wanted = {
        path.relative_to(ROOT).as_posix() for package, names in globs.items() for each in names
        for path in (ROOT / package).glob(each) if "manifests" not in path.parts
    }  # fmt: skip
    assert wanted
    assert wanted <= set(project_files())


def test_pins_are_what_is_installed_here_but_ray(monkeypatch):
    import importlib.metadata

    import numpy

    version = importlib.metadata.version
    build = {"torch": "2.13.0+cpu"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: build.get(name) or version(name))
    pins = pinned_requirements()
    assert f"numpy=={numpy.__version__}" in pins
    assert not [each for each in pins if each.startswith("ray")]
    assert "torch==2.13.0" in pins  # no index has the build +cpu
    assert len(pins) == len(requirements()) - 1
    assert "; " in next(each for each in pins if each.startswith("decord"))


def test_what_a_node_lacks_is_told_with_what_it_has():
    import numpy

    lines = ["numpy>=99", "no-such-package>=1", "pandas", 'decord>=0.6; sys_platform == "nowhere"']
    assert unmet(lines) == [f"numpy is {numpy.__version__} (needed: >=99)", "no-such-package is missing (needed: >=1)"]
    assert unmet(requirements()) == []


# --- variables and secrets ---


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "DB_PASSWORD",
     "MYSQL_PWD", "GITHUBTOKEN", "OPENAI_API_KEY", "client_secret", "MLFLOW_TRACKING_PASSWORD", "SENTRY_DSN", "API_KEY_2"],
)  # fmt: skip
def test_names_of_secrets(name):
    assert secret_name(name)
    with pytest.raises(SecretError) as told:
        choose_variables({name: PLANTED}, [name], send_secrets=False)
    assert f"--env {name}" in str(told.value)
    assert FROM_CLUSTER in str(told.value)
    assert PLANTED not in str(told.value)
    sent = choose_variables({name: PLANTED}, [name], send_secrets=True)
    assert (sent.values, sent.secret) == ({name: PLANTED}, (name,))
    assert PLANTED not in repr(sent)


@pytest.mark.parametrize(
    "name",
    ["AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "TOKENIZERS_PARALLELISM", "PWD", "KEYBOARD", "MONKEY", "OMP_NUM_THREADS",
     "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "AWS_WEB_IDENTITY_TOKEN_FILE", "MMA_MRNNET_SCRATCH"],
)  # fmt: skip
def test_names_of_no_secrets(name):
    assert not secret_name(name)
    assert choose_variables({name: "value"}, [name], send_secrets=False).values == {name: "value"}


@pytest.mark.parametrize(
    "value",
    ["http://user:pw@host/", "postgresql://token@db/mlflow", "https://b.s3.amazonaws.com/x?X-Amz-Signature=abc&b=1",
     "https://x/y?sig=abc", "AKIAIOSFODNN7EXAMPLE", "ghp_abcdefghijklmnopqrst", "hf_abcdefghijklmnop12345",
     "-----BEGIN RSA PRIVATE KEY-----\nMIIB", "Bearer abcdefghijkl", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig"],
)  # fmt: skip
def test_values_that_look_like_secrets_are_refused_under_any_name_and_in_any_option(value):
    assert why_secret(value, {})
    with pytest.raises(SecretError) as told:
        choose_variables({"AWS_ENDPOINT_URL": value}, [], send_secrets=False)
    assert str(told.value).startswith("AWS_ENDPOINT_URL holds" if "://" in value else "AWS_ENDPOINT_URL looks")
    assert value not in str(told.value)
    with pytest.raises(SecretError, match="--videos") as told:
        refuse_secret_words(["extract", "--store", "s3://bb/s", f"--videos={value}"], {})
    assert value not in str(told.value)


def test_the_value_of_a_secret_variable_is_known_wherever_it_stands():
    environment = {
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "HOME_KEY_PATH": "/home",
        "PIN_TOKEN": "1",
        "DIR_TOKEN": "/work/dir",
    }
    with pytest.raises(SecretError, match="NOTE holds the value of AWS_SECRET_ACCESS_KEY"):
        choose_variables(environment, [f"NOTE=see {PLANTED}"], send_secrets=False)
    with pytest.raises(SecretError, match="--out holds the value of AWS_SECRET_ACCESS_KEY"):
        refuse_secret_words(["synth", "--out", f"s3://bb/{PLANTED}"], environment)
    refuse_secret_words(["synth", "--out", "/work/dir/1", "--seed", "1"], environment)  # paths and short values


@pytest.mark.parametrize(
    "words",
    [["--videos", "s3://bb/clip?.mp4"], ["--labels", "synth=s3://bb/c"], ["--mma", "random:0:tiny"],
     ["--out", "s3://sk-learn/some-long-folder-of-data"], ["--fit.learning-rate", "3e-3"]],
)  # fmt: skip
def test_common_options_are_no_secrets(words):
    refuse_secret_words(["job", *words], {})


def test_what_says_where_things_are_goes_along_and_credentials_stay():
    environment = {
        "AWS_ENDPOINT_URL": "http://10.0.0.1:9000", "AWS_DEFAULT_REGION": "eu-central-1", "AWS_REGION": "",
        "MLFLOW_TRACKING_URI": "http://10.0.0.1:5000", "AWS_SECRET_ACCESS_KEY": PLANTED, "HOME": "/root", "COLOUR": "red",
    }  # fmt: skip
    sent = choose_variables(environment, ["COLOUR", "SHAPE=round=ish"], send_secrets=False)
    assert sent.values == {
        "AWS_ENDPOINT_URL": "http://10.0.0.1:9000", "AWS_DEFAULT_REGION": "eu-central-1",
        "MLFLOW_TRACKING_URI": "http://10.0.0.1:5000", "COLOUR": "red", "SHAPE": "round=ish",
    }  # fmt: skip
    assert sent.stay == ("AWS_SECRET_ACCESS_KEY",)
    assert choose_variables(environment, [], send_secrets=True).values.get("AWS_SECRET_ACCESS_KEY") is None


@pytest.mark.parametrize("wanted", ["NOT_SET", "two words=1", "=x", ""])
def test_env_needs_a_variable(wanted):
    with pytest.raises(ValueError, match="--env"):
        choose_variables({}, [wanted], send_secrets=False)


# --- the log ---


def test_a_log_in_any_pieces_gives_its_lines_and_the_result():
    text = "first\nsecond, " + result_line("m1", 3, {"job": "x", "n": [1]}) + "\nlast"
    for size in (1, 2, 7, 1000):
        shown: list[str] = []
        log = JobLog("m1", shown.append)
        for start in range(0, len(text), size):
            log.take(text[start : start + size])
        log.end()
        assert shown == ["first", "second, ", "", "last"]
        assert log.result == {"exit_code": 3, "summary": {"job": "x", "n": [1]}}


def test_a_stranger_s_line_does_not_pass_for_the_result():
    shown: list[str] = []
    log = JobLog("m1", shown.append)
    log.take(result_line("guessed", 0, {}) + f'{RESULT_MARK} {{"exit_code": 0}}\n{RESULT_MARK} m1 {{"exit_c\n')
    assert log.result is None
    assert len(shown) == 2
    log = JobLog("", shown.append)  # a job of others
    log.take(result_line("", 0, {}))
    assert log.result is None


# --- following, with a client that breaks ---


class Client:
    """A job server's client by script: each connection gives pieces of the log, then ends, breaks or falls silent."""

    def __init__(self, connections: list[tuple[list[str], str]], last: str = "SUCCEEDED", code: int | None = 0):
        self.connections, self.last, self.code = list(connections), last, code

    async def tail_job_logs(self, job_id):
        import asyncio

        pieces, end = self.connections.pop(0)
        for piece in pieces:
            yield piece
        if end == "break":
            raise RuntimeError("WebSocket connection closed unexpectedly")
        if end == "silent":
            await asyncio.sleep(60)

    def get_job_info(self, job_id):
        over = not self.connections
        return details(self.last if over else "RUNNING", code=self.code if over else None)


def details(status: str, *, code: int | None = None, **more) -> SimpleNamespace:
    fields = {"job_id": "1", "submission_id": "s", "metadata": None, "entrypoint": "python x", "message": None}
    return SimpleNamespace(
        **{**fields, "start_time": 1000, "end_time": None, "status": status, "driver_exit_code": code, **more}
    )


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(submission, "SILENCE_S", 0.2)
    monkeypatch.setattr(submission, "sleep", lambda seconds: None)


def followed(client: Client, **options):
    shown: list[str] = []
    log = JobLog("m", shown.append)
    state = JobServer("http://h:1", client=client).follow("s", log, **options)
    return state, log, shown


def test_a_broken_or_silent_connection_loses_nothing_and_repeats_nothing():
    result = result_line("m", 0, {"ok": True})
    connections = [
        (["a\nb"], "break"), (["a\nb\nc\n"], "silent"), ([], "break"), (["a\nb", "\nc\nd\n"], "end"),
        (["a\nb\nc\nd\n" + result], "end"),
    ]  # fmt: skip
    state, log, shown = followed(Client(connections))
    assert shown == ["a", "b", "c", "d"]
    assert (state.status, log.result) == ("SUCCEEDED", {"exit_code": 0, "summary": {"ok": True}})


def test_a_job_that_is_over_is_read_to_its_end():
    class Over(Client):
        def get_job_info(self, job_id):
            return details("SUCCEEDED", code=0)

    _, log, shown = followed(Over([(["a\n"], "silent"), (["a\nb\n" + result_line("m", 0, {})], "end")]))
    assert shown == ["a", "b"]
    assert log.result == {"exit_code": 0, "summary": {}}


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(submission, "REQUEST_TIMEOUT_S", (1.0, 1.0))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(LostError, match="no job server answers"):
        JobServer(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_out_of_reach_ends_the_following_after_a_while(monkeypatch):
    monkeypatch.setattr(submission, "PATIENCE_S", 0.0)
    with pytest.raises(LostError, match="out of reach: WebSocket"):
        followed(Client([([], "break")] * 50))


def test_following_can_be_limited():
    with pytest.raises(TimeoutError, match="s has not ended within 1 s"):
        followed(Client([(["a\n"], "silent")] * 50), limit_s=0.6)


@pytest.mark.parametrize(
    ("state", "result", "code"),
    [
        (("SUCCEEDED", 0), None, 0),
        (("FAILED", 3), {"exit_code": 1}, 3),
        (("FAILED", 143), None, 143),
        (("FAILED", -9), None, 137),
        (("FAILED", None), None, 1),
        (("STOPPED", None), {"exit_code": 130}, 130),
        (("STOPPED", None), None, 143),
    ],
)
def test_the_exit_code_is_the_job_s_own(state, result, code):
    assert end_code(submission._state(details(state[0], code=state[1])), result) == code


# --- the server's answers as lines ---


class Refusing:
    def __init__(self, error: Exception):
        self.error = error

    def submit_job(self, **_):
        raise self.error

    def get_job_info(self, _):
        raise self.error

    def list_jobs(self):
        raise self.error


def submit(client) -> None:
    package = SimpleNamespace(data=b"")
    JobServer("http://h:1", client=client).submit(
        package, submission_id="s-1", command=["x"], variables={}, pip=[], metadata={}
    )


def test_an_id_used_twice_is_one_line_and_not_the_server_s_traceback():
    traceback = "Request failed with status code 400: Traceback:\n File x\nValueError: Job with submission_id s-1 already exists."
    with pytest.raises(SubmissionError, match=r"^--submission-id s-1 is taken .*--follow s-1$"):
        submit(Refusing(RuntimeError(traceback)))


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (
            RuntimeError("failed with status code 500: Traceback:\n  File\nOSError: disk full.\n."),
            SubmissionError,
            "OSError: disk full",
        ),
        (AuthenticationError("Authentication required: Unauthorized"), SubmissionError, "RAY_AUTH_TOKEN"),
        (ConnectionError("Failed to connect"), LostError, "--address http://h:1"),
        (ValueError("Expecting value: line 1"), SubmissionError, "no job server"),
    ],
)
def test_what_the_client_raises_is_one_line(error, kind, told):
    with pytest.raises(kind) as caught:
        submit(Refusing(error))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_job_is_none_or_one_line():
    server = JobServer("http://h:1", client=Refusing(RuntimeError("status code 404: Job s does not exist.")))
    assert server.state("s") is None
    with pytest.raises(SubmissionError, match="--list"):
        server.known("s")


@pytest.mark.parametrize(
    ("address", "url"),
    [("http://h:8265", "http://h:8265"), ("https://h/", "https://h"), ("h:8265", "http://h:8265"), ("ray://h:10001", None),
     ("http://u:pw@h:1", None), ("http://h:1/?token=x", None), ("s3://b", None), ("auto?", None), ("", None)],
)  # fmt: skip
def test_addresses(address, url):
    if url:
        assert server_url(address) == url
        return
    with pytest.raises(SubmissionError, match="--address") as told:
        server_url(address)
    assert "pw" not in str(told.value)


def test_the_token_is_found_where_ray_looks(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_header() == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
    assert list(token_header().values()) == ["Bearer " + "a" * 64]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    assert list(token_header().values()) == ["Bearer " + "b" * 64]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token_header() == {}


def test_a_result_is_one_write_of_one_line():
    line = result_line("m", 0, {"text": "two\nlines"})
    assert line.count("\n") == 1
    assert json.loads(line.removeprefix(f"{RESULT_MARK} m "))["summary"] == {"text": "two\nlines"}
