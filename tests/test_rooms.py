"""Who may know whom: the rooms of DESIGN.md, read off the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "mma": {"ray", "jobs", "rnn", "cluster"},
    "rnn": {"ray", "jobs", "cluster"},
    "cluster": {"mma", "rnn", "jobs"},
    "jobs": set(),
}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_the_rooms_it_may_know(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): imported(file) & FORBIDDEN[room] for file in files}
    assert not {file: names for file, names in wrong.items() if names}


def test_the_decode_child_never_loads_torch_or_ray():
    script = "import sys, mma.video.child; print(sorted({'torch', 'ray', 'pyarrow'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"


def test_the_driver_of_extract_needs_no_torch_for_a_checkpoint_of_ours(tmp_path):
    from jobs.models import load_weights

    (tmp_path / "mma.safetensors").write_bytes(load_weights("random:0:tiny").data)
    script = (
        "import sys, jobs.extraction, jobs.models; jobs.models.load_weights(sys.argv[1]); "
        "print(sorted({'torch', 'mlflow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "mma.safetensors")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"


def test_files_stay_rooms_and_not_halls():
    long = {
        str(file.relative_to(ROOT)): lines
        for room in FORBIDDEN
        for file in (ROOT / room).rglob("*.py")
        if (lines := len(file.read_text().splitlines())) > 400
    }
    assert not long
