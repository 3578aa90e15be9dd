"""The layers of the code: a file imports only from floors below its own, or within its own room without a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FLOORS = {
    "reward_model": (
        ("config", "dimensions", "files", "terminal", "weights"),
        ("records",),
        ("language", "media", "rewards"),
        ("judge", "toy_world"),
        ("datasets", "evaluation", "scoring"),
        ("video_reward",),
        ("hosts", "serving", "training"),
        ("commands",),
        ("cli",),
    ),
    "reward_model.judge": (
        ("attention", "modules"),
        ("families",),
        ("checkpoints", "engine"),
        ("parts",),
        ("model",),
        ("exchange",),
    ),
    "reward_model.training": (
        ("fit", "selection"),
        ("processes", "tasks"),
        ("methods",),
        ("recipe",),
        ("measure", "start"),
        ("finish",),
        ("stages",),
        ("dry_run",),
    ),
    "generator_loop": (
        ("processes",),
        ("config", "records", "tracking"),
        ("adapters", "flow", "guards", "real_clips", "rewards"),
        ("objectives", "refresh", "sampling"),
        ("evaluation", "optim", "pretrain"),
        ("run",),
        ("loop",),
        ("__main__",),
    ),
}
"""Package -> its rooms (files and folders), from the ground floor up."""
PACKAGES = ("reward_model", "generator_loop")
PUBLIC = {"VideoJudgeReward", "read_video", "write_video", "srcc", "bootstrap_interval", "moving_shapes", "oracle"}
PUBLIC |= {"VideoJudgeClient", "load_config", "pair_accuracy", "pairs_within_groups", "read_manifest"}
PUBLIC |= {"distort", "read_pairs", "read_records"}
VOCABULARY = ("reward_model.config", "reward_model.files", "reward_model.records", "reward_model.terminal")
VOCABULARY += ("reward_model.weights",)
HEAVY = {"transformers", "diffusers", "peft", "av", "trl", "accelerate", "datasets", "decord", "torchcodec"}
TORCHLESS = {
    "reward_model.__init__",
    "reward_model.config",
    "reward_model.dimensions",
    "reward_model.files",
    "reward_model.records",
    "reward_model.scoring.json_records",
    "reward_model.cli",
}
TORCHLESS |= {"generator_loop.__init__", "generator_loop.config", "generator_loop.records"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield each module's dotted name and its syntax tree."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def targets(node: ast.AST) -> list[str]:
    """Return the dotted names that an import statement may mean; no relative imports exist."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield every import of a module, wherever it stands."""
    for node in ast.walk(tree):
        yield from targets(node)


def executed(tree: ast.Module, *, in_functions: bool) -> Iterator[str]:
    """Yield the imports that can run, so not those for the type checker alone; in functions only where asked for."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not in_functions:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending.extend(node.orelse)
            continue
        yield from targets(node)
        pending.extend(ast.iter_child_nodes(node))


def room(name: str, package: str | None = None) -> str:
    """Return the room of a module: the folder or file right under its package, the top-level one unless named."""
    return name.split(".")[1 if package is None else package.count(".") + 1]


def torchless(name: str) -> bool:
    """Return whether a module must load in an instant: the vocabulary, and the command line up to its arguments."""
    return name in TORCHLESS or name.startswith("reward_model.commands.")


def floor(package: str, name: str) -> int:
    """Return the floor of a room, 0 at the ground."""
    levels = [level for level, rooms in enumerate(FLOORS[package]) if name in rooms]
    assert levels, f"{package}/{name} has no floor yet; give it one in tests/unit/house/test_floors.py"
    return levels[0]


@pytest.mark.parametrize("package", FLOORS)
def test_files_import_only_from_floors_below(package: str) -> None:
    wrong = []
    for name, tree in modules():
        if not name.startswith(f"{package}.") or room(name, package) == "__init__":
            continue
        own = floor(package, room(name, package))
        for target in imports(tree):
            if not target.startswith(f"{package}.") or room(target, package) == room(name, package):
                continue
            if floor(package, room(target, package)) >= own:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_no_room_imports_itself_in_a_circle() -> None:
    trees = dict(modules())
    known = set(trees)

    def neighbours(name: str) -> set[str]:
        found = set()
        for target in imports(trees[name]):
            found |= {target, target.rpartition(".")[0]} & known
        return found - {name}

    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle of imports: {' -> '.join((*path, name))}"
        if name not in done:
            for other in sorted(neighbours(name)):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(known):
        visit(name, ())


def test_the_judge_knows_neither_the_generator_nor_its_libraries() -> None:
    wrong = []
    for name, tree in modules():
        if not name.startswith("reward_model."):
            continue
        banned = {"generator_loop", "diffusers"} | (set() if room(name) == "training" else {"trl", "accelerate"})
        wrong += [f"{name} imports {target}" for target in imports(tree) if target.split(".")[0] in banned]
    assert wrong == []


def test_the_generator_loop_uses_public_names_and_the_vocabulary_of_the_judge_only() -> None:
    wrong = []
    for name, tree in modules():
        if not name.startswith("generator_loop."):
            continue
        training = ("reward_model.training",) if room(name) == "refresh" else ()
        for target in executed(tree, in_functions=True):
            package, _, member = target.partition(".")
            if package == "reward_model" and member not in PUBLIC and not target.startswith((*VOCABULARY, *training)):
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_heavy_libraries_are_imported_inside_functions() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in executed(tree, in_functions=False)
        if target.split(".")[0] in HEAVY or (target.split(".")[0] in ("torch", "numpy") and torchless(name))
    ]
    assert wrong == []
