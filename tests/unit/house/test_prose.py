"""The words of code and pages: names in docstrings exist, class names occur once, banned phrases and long functions do not."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("reward_model", "generator_loop")
FOLDERS = (*PACKAGES, "scripts")
EXTERNAL = {
    *(
        "accelerate",
        "datasets",
        "decord",
        "diffusers",
        "einops",
        "fastapi",
        "huggingface_hub",
        "numpy",
        "omegaconf",
        "peft",
        "pip",
    ),
    *("pytest", "safetensors", "torch", "torchcodec", "torchmetrics", "torchrun", "transformers", "trl", "uvicorn"),
}
"""Libraries and programs: a dotted name that begins with one is not looked up."""

OTHERS = {
    *("BaseReward", "BaseScorer", "RewardBackend", "compute_score", "multi_score", "reward_funcs", "reward_kwargs"),
    *("_target_", "diffusion_model", "lora_down", "scorers", "self_attn"),
}
"""Names of other projects that docstrings may say and that occur nowhere in this one's code."""

BANNED = ("could not be had", "can be had", "cannot be had", "such of which", "so that what")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
TELLING = re.compile(r"[a-z0-9]_[a-z0-9]|[a-z][A-Z]|\w\.\w")
"""A name inside a longer text in backticks is looked up if it is more than a word: snake_case, CamelCase or dotted."""


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def files(*folders: str) -> list[Path]:
    """Return the Python files of folders, and the program at the top."""
    return [ROOT / "joint_train.py", *(path for name in folders for path in sorted((ROOT / name).rglob("*.py")))]


def shown(path: Path) -> str:
    """Return a path from the top of the repository."""
    return path.relative_to(ROOT).as_posix()


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring, those under fields and constants included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def members(body: list[ast.stmt]) -> set[str]:
    """Return the names that the statements of a module or class define; in a class also what methods set on `self`."""
    names: set[str] = set()
    for node in itertools.chain.from_iterable(ast.walk(statement) for statement in body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


class Vocabulary:
    """All names of the repository: modules and classes with their members, variables, arguments, keys and words."""

    def __init__(self) -> None:
        """Read every file once."""
        self.owners: dict[str, set[str]] = {}
        self.bases: dict[str, list[str]] = {}
        self.sections: dict[str, set[str]] = {}
        self.of_any_class: set[str] = set()
        self.names: set[str] = set()
        self.words: set[str] = set()
        self.pairs: set[tuple[str, str]] = set()
        for path in files(*FOLDERS):
            self._read(path)
        for path in [*(ROOT / "configs").rglob("*.yaml"), *ROOT.glob("*.toml"), ROOT / "Makefile"]:
            self.words |= set(re.findall(r"[A-Za-z_]\w*", path.read_text(encoding="utf-8")))
        self.files = {path.name for name in (*FOLDERS, "configs", "docs", "tests") for path in (ROOT / name).rglob("*")}
        self.files |= {path.name for path in ROOT.glob("*")}
        for name in self.bases:
            self.owners[name] = self._inherited(name)
        for field, schemas in self.sections.items():
            if "Any" in schemas:
                self.of_any_class.add(field)
            else:
                self.owners.setdefault(field, set()).update(*(self.owners.get(schema, set()) for schema in schemas))

    def _inherited(self, name: str) -> set[str]:
        """Return the members of a class and of its bases."""
        return self.owners.get(name, set()).union(*(self._inherited(base) for base in self.bases.get(name, ())))

    def _read(self, path: Path) -> None:
        tree = tree_of(path)
        module = path.parent.name if path.name == "__init__.py" else path.stem
        inside = {child.stem for child in path.parent.iterdir()} if path.name == "__init__.py" else set()
        self.owners.setdefault(module, set()).update(members(tree.body) | inside)
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self.owners.setdefault(node.name, set()).update(members(node.body))
                self.bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                schemas = {name.id for name in ast.walk(node.annotation) if isinstance(name, ast.Name)}
                self.sections.setdefault(node.target.id, set()).update(schemas)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
                self.words |= set(re.findall(r"[A-Za-z_]\w*", node.value))
                self.pairs |= set(re.findall(r"(?=\b([A-Za-z_]\w*)\.([A-Za-z_]\w*))", node.value))
            if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
                self.pairs.add((getattr(node.value, "id", getattr(node.value, "attr", "")), node.attr))
            for field in ("name", "id", "attr", "arg", "module", "asname"):
                self.names |= set(str(getattr(node, field, None) or "").split("."))

    def knows(self, name: str) -> bool:
        """Return whether a name is one of the repository's or of a library."""
        first, *rest = name.split(".")
        if not rest:
            if first.endswith("_") and first not in OTHERS:  # the beginning of several names
                return any(known.startswith(first) for known in self.names)
            return first in self.names | self.words | OTHERS | EXTERNAL
        if first in EXTERNAL | OTHERS:
            return True
        if rest[-1] in ("py", "yaml", "md"):
            return name in self.files
        if rest[-1] in ("json", "jsonl", "csv", "txt", "html", "safetensors", "mp4", "lock"):
            return True
        if rest[0] in self.owners.get(first, ()):
            return all(part in self.names for part in rest[1:])
        if first in self.owners and first not in self.of_any_class:
            return False
        return (first, rest[0]) in self.pairs and all(part in self.names for part in rest)


def names_in(text: str) -> list[str]:
    """Return the names that a text in backticks holds: all of a plain name or call, the telling ones of other texts."""
    plain = re.fullmatch(rf"({NAME.pattern})(?:\(.*\))?", text, re.DOTALL)
    if plain:
        return [plain.group(1)]
    spaced = re.sub(r"\S*/\S*|https?:\S*|(['\"]).*?\1", " ", text)
    return [name for name in NAME.findall(spaced) if TELLING.search(name)]


def paths_in(text: str) -> list[str]:
    """Return the files of this repository that a text names."""
    return re.findall(
        r"(?:reward_model|generator_loop|scripts|configs|docs|tests)/[\w./]*\.(?:py|yaml|md|json)\b", text
    )


def dangling(text: str, vocabulary: Vocabulary) -> list[str]:
    """Return the names in backticks and the paths of a docstring that exist nowhere; its sources are left out."""
    text = text.partition("Source:")[0]
    quoted = re.findall(r"`([^`]+)`", text)
    wrong = [name for part in quoted for name in names_in(part) if not vocabulary.knows(name)]
    return wrong + [path for path in paths_in(text) if not (ROOT / path).exists()]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """Return the names of the repository."""
    return Vocabulary()


def test_every_name_in_a_docstring_exists(vocabulary: Vocabulary) -> None:
    wrong = [
        f"{shown(path)}:{line} {name}"
        for path in files(*FOLDERS)
        for line, text in docstrings(tree_of(path))
        for name in dangling(text, vocabulary)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "`setup.read_config` loads it.",
        "`toy_vae.train_vae` trains it.",
        "`RewardOutput.no_such_field` holds it.",
        "`no_such_function` does it.",
        "`no_such_function(clips)` does it.",
        "See scripts/no_such_script.py.",
        "`accelerate launch train.py --no_such_option`",
    ],
)
def test_a_name_that_exists_nowhere_is_noticed(text: str, vocabulary: Vocabulary) -> None:
    assert dangling(text, vocabulary)


@pytest.mark.parametrize(
    "text",
    [
        "`VideoJudgeReward.from_pretrained` loads it.",
        "`torch.nn.Linear` is a library's.",
        "`judge.path` is a setting.",
        "`VideoJudge.add_role` is inherited.",
        "`video-judge score` is a command.",
        "`x + y` is a formula.",
        "See scripts/sample.py.",
    ],
)
def test_a_name_that_exists_is_accepted(text: str, vocabulary: Vocabulary) -> None:
    assert dangling(text, vocabulary) == []


def test_no_docstring_refers_to_a_design_that_is_not_in_the_repository() -> None:
    wrong = [
        shown(path) for path in files(*FOLDERS, "tests") if re.search(r"\bDESIGN\b", path.read_text(encoding="utf-8"))
    ]
    assert [name for name in wrong if name != shown(Path(__file__))] == []


def test_no_class_name_occurs_twice() -> None:
    places: dict[str, list[str]] = {}
    for path in files(*FOLDERS, "tests"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{shown(path)}:{node.lineno}")
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_docstring_begins_with_what() -> None:
    wrong = [
        f"{shown(path)}:{line} {text.split(chr(10))[0][:80]}"
        for path in files(*FOLDERS)
        for line, text in docstrings(tree_of(path))
        if re.match(r"\s*What\b", text) or re.search(r"(?<!/):\s+what\b", text)
    ]
    assert wrong == []


def test_no_text_holds_a_banned_phrase() -> None:
    pages = [*files(*FOLDERS, "configs"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/**/*.yaml")]
    wrong = []
    for path in pages:
        # Adjoining string literals and comment signs are joined, so that no phrase hides in a line break.
        text = re.sub(r"""["']\s+f?["']|\s+#|\s+""", " ", path.read_text(encoding="utf-8"))
        wrong += [f"{shown(path)}: {phrase}" for phrase in BANNED for _ in re.findall(phrase, " ".join(text.split()))]
    assert sorted(Counter(wrong).items()) == []


def test_functions_stay_short() -> None:
    functions = [node for path in files(*PACKAGES) for node in ast.walk(tree_of(path))]
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for node in functions
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
    )
    assert statistics.median(lengths) <= 8
    assert lengths[int(0.9 * len(lengths))] <= 28
    assert lengths[-1] <= 79
