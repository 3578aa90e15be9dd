"""No load of a library's class may run code that a folder or repository brings along."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OWN = {"VideoJudge", "VideoJudgeReward", "family"}
"""Classes of the project, whose `from_pretrained` has no such argument."""


def calls():
    """Yield the file, the line, the receiver and the keywords of every library load in the code."""
    for folder in ("reward_model", "generator_loop", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                receiver = ast.unparse(node.func.value)
                if node.func.attr == "from_pretrained" and receiver not in OWN:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", {word.arg: word.value for word in node.keywords}


def test_every_load_refuses_remote_code() -> None:
    found = list(calls())
    assert len(found) >= 8
    wrong = []
    for place, words in found:
        value = words.get("trust_remote_code")
        if not isinstance(value, ast.Constant) or value.value is not False:
            wrong.append(place)
    assert wrong == []


def test_no_pickle_is_read_but_one_that_a_user_names() -> None:
    """`torch.load` stands where a user names a public .pyth himself, and there takes plain tensors only."""
    places = {}
    for folder in ("reward_model", "generator_loop"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "torch.load",
                    "pickle.load",
                    "pickle.loads",
                ):
                    places[str(path.relative_to(ROOT))] = ast.unparse(node)
    assert set(places) == {"reward_model/media/slowfast.py"}
    assert all("weights_only=True" in call for call in places.values())
