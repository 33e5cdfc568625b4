"""What must not travel in the open, told by its name or its look, and which variables go along with a job.

Ray shows a job's command and its variables to whoever may ask for its details, and writes them into its logs (RAY.md).
So a secret comes to a job from the cluster itself: a role, a Kubernetes Secret, the environment of `ray start`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.uri import display

PASSED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION", "MLFLOW_TRACKING_URI")
"""Variables that go along unasked where they are set: they say where things are, and hold no secret."""
STAYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "MLFLOW_TRACKING_PASSWORD")
"""Variables that jobs here would use and that stay here: told, so that nobody wonders."""
FROM_CLUSTER = (
    "secrets come from the cluster: a role of its machines, a Kubernetes Secret, or the environment of ray start; "
    "--send-secrets sends them all the same"
)
READERS = (
    "everybody with the cluster's token can read them in the job's details (ray job list, the job server's API), and "
    "everybody with its disks in Ray's logs (runtime_env_agent.log)"
)
MIN_KNOWN_CHARS = 8
"""A shorter value of a secret variable is not looked for elsewhere: it may stand there by chance."""

_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|TOKENS?(?![A-Z])|_PWD$"
    r"|(?:^|_)(?:KEY|PASS|PAT|DSN|AUTH|COOKIE|SIGNATURE|BEARER|PRIVATE)(?:_|\d|$)",
    re.IGNORECASE,
)
_POINTS_ELSEWHERE = re.compile(r"_(?:FILE|PATH|DIR|MODE|SOCK)$", re.IGNORECASE)
_VALUE = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\."  # a JSON web token
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[\w-]{16,}"
    r"|\b(?:hf_|sk-)(?=[\w-]*\d)[\w-]{20,}"
    r"|\b[Bb]earer\s+[\w.~+/=-]{8,}"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


class SecretError(Exception):
    """Something secret was to be sent in the open; one line that names it, never its value, and the mend."""


def secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret. One that names a file of it does not."""
    return bool(_NAME.search(name)) and not _POINTS_ELSEWHERE.search(name)


def known_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The secret values of an environment, with the variable that holds each; paths and short values are none."""
    return {
        value: name
        for name, value in environment.items()
        if secret_name(name) and len(value) >= MIN_KNOWN_CHARS and not value.startswith(("/", "~"))
    }


def why_secret(text: str, known: Mapping[str, str]) -> str | None:
    """What makes a text a secret, in words that do not give it away; None if nothing does."""
    for value, name in known.items():
        if value in text:
            return f"holds the value of {name}"
    for url in _URL.findall(text):
        if display(url).count("***") > url.count("***"):
            return "holds a URL with user info or a signature"
    return "looks like a key" if _VALUE.search(text) else None


@dataclass(frozen=True, kw_only=True)
class Sent:
    """The variables that go along with a job."""

    values: dict[str, str] = field(repr=False)
    """By name."""
    secret: tuple[str, ...] = ()
    """Names of those that are secret and were allowed."""
    stay: tuple[str, ...] = ()
    """Names of secret variables that are set here and do not go along."""


def choose_variables(environment: Mapping[str, str], wanted: Sequence[str], *, send_secrets: bool) -> Sent:
    """The variables of `PASSED` that are set, and those wanted.

    Args:
        environment: where values come from.
        wanted: `NAME`, or `NAME=VALUE`.
        send_secrets: secret ones go too.

    Raises:
        SecretError: a variable holds a secret and `send_secrets` is off.
        ValueError: a wanted variable is not set, or has no proper name.
    """
    values = {name: environment[name] for name in PASSED if environment.get(name)}
    for each in wanted:
        name, given, value = each.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("--env: give NAME or NAME=VALUE, with the name of an environment variable")
        if not given and name not in environment:
            raise ValueError(f"--env {name}: this variable is not set here; set it, or give {name}=VALUE")
        values[name] = value if given else environment[name]
    known = known_secrets(environment)
    secret = []
    for name, value in values.items():
        why = "has the name of a secret" if secret_name(name) else why_secret(value, known)
        if why is None:
            continue
        if not send_secrets:
            asked = name in {each.partition("=")[0] for each in wanted}
            raise SecretError(f"{'--env ' if asked else ''}{name} {why} and is not sent: {FROM_CLUSTER}")
        secret.append(name)
    stay = tuple(name for name in STAYS if environment.get(name) and name not in values)
    return Sent(values=values, secret=tuple(secret), stay=stay)


def refuse_secret_words(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """SecretError where a word of a job's command holds a secret: its details and its log show the command."""
    known = known_secrets(environment)
    option = ""
    for word in words:
        option = word.partition("=")[0] if word.startswith("--") else option
        if why := why_secret(word, known):
            raise SecretError(f"{option or 'the command'} {why}, and a job's details show its command: {FROM_CLUSTER}")
