"""The project as it is sent to a cluster: its own packages with their templates, nothing else, in one zip.

The list is stated here, not found: a virtual environment, data, notes with keys or a file that git ignores never match.
Equal code gives equal bytes, so that Ray takes a package once, however often it is submitted.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the packages: a checkout, `site-packages`, or what Ray unpacked on a node."""
PACKAGES = ("cluster", "jobs", "mma", "rnn")
BESIDE = ("pyproject.toml",)
"""Files beside the packages that go along, where they are there."""
TEMPLATES = "templates"
TEMPLATE_ENDINGS = (".html", ".md", ".yaml", ".json")
REQUIREMENTS = "_requirements.txt"
"""What the project needs, written into its package alone: an installed project has no pyproject.toml."""
DISTRIBUTION = "mma-mrnnet"

_EARLIEST = (1980, 1, 1, 0, 0, 0)
_GIT_SILENT = "git does not say what it ignores ({}), and that must not be sent: mend git"


class PackageError(Exception):
    """The project cannot be packed; one line with the mend."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """The project in a zip."""

    data: bytes = field(repr=False)
    files: tuple[str, ...]
    """Names inside, posix."""

    @property
    def digest(self) -> str:
        """Equal for equal code."""
        return hashlib.sha256(self.data).hexdigest()

    def told(self) -> str:
        """What a person reads before it is sent."""
        parts = ", ".join((*PACKAGES, *(name for name in BESIDE if name in self.files)))
        return f"{len(self.files)} files, {len(self.data) / 1e3:,.0f} kB ({parts})"


def pack_project(root: Path = ROOT) -> Package:
    """The project under `root` as a package. Raises PackageError as `project_files` and `requirements` do."""
    names = project_files(root)
    contents = {name: (root / name).read_bytes() for name in names}
    contents[REQUIREMENTS] = "".join(f"{line}\n" for line in requirements(root)).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, date_time=_EARLIEST)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return Package(data=buffer.getvalue(), files=tuple(sorted(contents)))


def project_files(root: Path = ROOT) -> list[str]:
    """Names of the files that are sent: Python files and templates of the four packages, and those of `BESIDE`.

    Hidden files, links and what git ignores are left out.

    Raises:
        PackageError: a package is missing, or git does not say what it ignores.
    """
    names = [name for name in BESIDE if (root / name).is_file() and not (root / name).is_symlink()]
    for package in PACKAGES:
        if not (root / package / "__init__.py").is_file():
            raise PackageError(
                f"{root / package} is missing: submit from a checkout, or from an installed {DISTRIBUTION}"
            )
        names.extend(_package_files(root, package))
    ignored = _git_ignored(root, names)
    return sorted(name for name in names if name not in ignored)


def _package_files(root: Path, package: str) -> list[str]:
    names = []
    for here, folders, files in os.walk(root / package):  # links to folders are not followed
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        endings = TEMPLATE_ENDINGS if Path(here).name == TEMPLATES else ()
        for name in files:
            path = Path(here) / name
            if name.endswith((".py", *endings)) and not name.startswith(".") and not path.is_symlink():
                names.append(path.relative_to(root).as_posix())
    return names


def _git_ignored(root: Path, names: Sequence[str]) -> set[str]:
    """Those of the names that git ignores; none where the project is installed or lies in no repository."""
    in_checkout = (root / "pyproject.toml").is_file()  # an installed one may lie in an ignored .venv of some repository
    if not in_checkout or not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return set()
    command = ["git", "-C", str(root), "check-ignore", "--stdin", "-z"]
    try:
        asked = subprocess.run(command, input="\0".join(names).encode(), capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(
            f"git does not say what it ignores ({error}), and that must not be sent: mend git"
        ) from error
    if asked.returncode > 1:  # 1: nothing is ignored
        words = " ".join(asked.stderr.decode(errors="replace").split())
        raise PackageError(_GIT_SILENT.format(words))
    return set(asked.stdout.decode().split("\0"))


def is_sent(root: Path = ROOT) -> bool:
    """Whether this project was sent here as a package: its folder then goes with the job."""
    return (root / REQUIREMENTS).is_file()


def requirements(root: Path = ROOT) -> list[str]:
    """What the project needs (PEP 508, a line each), as its package, its pyproject.toml or its installation says.

    Raises:
        PackageError: none of them is there to say it.
    """
    if is_sent(root):
        return (root / REQUIREMENTS).read_text().split("\n")[:-1]
    if (root / "pyproject.toml").is_file() and sys.version_info >= (3, 11):
        import tomllib

        return list(tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"])
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise PackageError(f"{DISTRIBUTION} is not installed here: pip install -e . (or make setup)") from error
    return [line for line in lines if not re.search(r";.*\bextra\s*==", line)]


def pinned_requirements(root: Path = ROOT) -> list[str]:
    """The requirements, each at the version that is installed here, for pip on the cluster.

    Ray itself is left out: a job runs under the cluster's. A build label (2.13.0+cpu) is cut, since package indices
    have no such builds; what this machine's platform does not need keeps its range.
    """
    from packaging.requirements import Requirement

    pinned = []
    for line in requirements(root):
        each = Requirement(line)
        if each.name.lower() == "ray":
            continue
        try:
            version = importlib.metadata.version(each.name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            pinned.append(line)
            continue
        extras = f"[{','.join(sorted(each.extras))}]" if each.extras else ""
        marker = f"; {each.marker}" if each.marker else ""
        pinned.append(f"{each.name}{extras}=={version}{marker}")
    return pinned


def unmet(lines: Sequence[str]) -> list[str]:
    """What this Python lacks of the requirements, each with what it has instead."""
    from packaging.requirements import Requirement

    lacking = []
    for line in lines:
        each = Requirement(line)
        if each.marker is not None and not each.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(f"{each.name} is missing (needed: {each.specifier or 'any'})")
            continue
        if not each.specifier.contains(version, prereleases=True):
            lacking.append(f"{each.name} is {version} (needed: {each.specifier})")
    return lacking
