"""The import rule: data_pipelines and lightning_jepa meet in types and protocols, and arrows run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SEAMS = {"types", "protocols"}
SHARED = SEAMS | {"layers"}
MODULES = {"configurator", "perception", "world_model", "cost", "memory", "actor"}
ABOVE = {"agent": SHARED | MODULES, "stages": SHARED | MODULES | {"agent"}, "evaluation": SHARED | MODULES | {"agent"}}


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where an arrow goes"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def allowed(room: str) -> set[str] | None:
    """The rooms of lightning_jepa that one of its rooms may import; None for entry points, which may import all."""
    if room in SHARED:
        return SEAMS
    if room in MODULES:
        return SHARED | {room}
    return ABOVE[room] | {room} if room in ABOVE else None


def wrong_arrows(root: Path) -> Iterator[str]:
    for path in sorted((root / "data_pipelines").rglob("*.py")):
        for name in imports(path):
            package, _, rest = name.partition(".")
            if package == "lightning_jepa" and rest.split(".")[0] not in SEAMS:
                yield f"{path.relative_to(root)} imports {name}"
    for path in sorted((root / "lightning_jepa").rglob("*.py")):
        room = path.relative_to(root / "lightning_jepa").parts[0].removesuffix(".py")
        rooms = allowed(room)
        for name in imports(path):
            package, _, rest = name.partition(".")
            foreign = package == "lightning_jepa" and rooms is not None and rest.split(".")[0] not in rooms
            if package == "data_pipelines" or foreign:
                yield f"{path.relative_to(root)} imports {name}"


def test_arrows_run_one_way() -> None:
    assert list(wrong_arrows(REPOSITORY)) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data_pipelines/stream.py", "from lightning_jepa.agent import Agent"),
        ("data_pipelines/stream.py", "from lightning_jepa import build"),
        ("lightning_jepa/train.py", "def f():\n    import data_pipelines.stream"),
        ("lightning_jepa/cost/goal.py", "from lightning_jepa.perception.conv import Conv"),
        ("lightning_jepa/agent.py", "from lightning_jepa.stages.jepa_pretraining import JEPAPretraining"),
        ("lightning_jepa/protocols.py", "import lightning_jepa.agent"),
        ("lightning_jepa/stages/a.py", "from lightning_jepa.tracking import Tracker"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(list(wrong_arrows(tmp_path))) == 1


def test_entry_points_answer_before_heavy_imports() -> None:
    """--help needs none of them, so it answers at once."""
    code = (
        "import sys, lightning_jepa.train, lightning_jepa.evaluate, lightning_jepa.pipeline;"
        "print([name for name in ('torch', 'lightning', 'mlflow', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert found.stdout.strip() == "[]"
