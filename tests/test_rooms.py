"""Who may know whom: the rooms of DESIGN.md, read off the imports."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
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


def test_a_saved_model_names_all_packages_that_its_rooms_import():
    """MLflow builds a server's environment of them alone; what is missing there fails video by video."""
    from jobs.registry import OPTIONAL, REQUIRED, requirements

    files = [file for room in ("mma", "rnn") for file in (ROOT / room).rglob("*.py")]
    modules = set().union(*map(imported, files)) - set(sys.stdlib_module_names) - {"mma", "rnn"}
    packages = {each for module in modules for each in packages_distributions().get(module, [module])}
    assert {"torch", "onnxruntime"} < packages
    assert packages <= {*REQUIRED, *OPTIONAL} | {"transformers", "pillow"}  # --trunk hf:..., and label sets of images
    named = {trunk: {each.partition("==")[0] for each in requirements(trunk)} for trunk in ("tiny", "hf:some/model")}
    assert {*REQUIRED, "mlflow"} <= named["tiny"]
    assert named["hf:some/model"] - named["tiny"] == {"transformers"}


def test_files_stay_rooms_and_not_halls():
    long = {
        str(file.relative_to(ROOT)): lines
        for room in FORBIDDEN
        for file in (ROOT / room).rglob("*.py")
        if (lines := len(file.read_text().splitlines())) > 400
    }
    assert not long
