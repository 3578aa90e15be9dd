"""Judge folders that were tampered with: each is refused in one sentence with file and key, and none scores."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.exchange.merge import merge_role
from reward_model.judge.families.tiny import build_tiny
from reward_model.judge.model import VideoJudge
from reward_model.judge.modules.score_head import HEAD_FILE, HeadConfig, ScoreHead
from reward_model.weights import digest
from tests.tiny_judge import FAMILIES

BASE, GENERATED = "base/model.safetensors", "adapters/generated/adapter_model.safetensors"
SETTINGS = "adapters/generated/adapter_config.json"
PREFIX = "base_model.model."


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request, tmp_path_factory):
    """Write a judge with two roles, a head and a motion projector."""
    size = {"hidden": 64, "layers": 2, "vision_hidden": 32, "vision_layers": 2, "patch_size": 8}
    model, tokenizer = build_tiny(request.param, **size)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|VQ_reward|>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    judge = VideoJudge(model, tokenizer, JudgeConfig.for_model(model.config, min_pixels=1024, max_pixels=40_000))
    for number, role in enumerate(("generated", "natural")):
        judge.add_role(role, rank=2, alpha=4)
        stream = torch.Generator().manual_seed(number)
        for parameter in judge.role_parameters(role):
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=stream)
    judge.add_motion({"name": "differences", "feature_size": 12})
    head = {"tokens": ("<|VQ_reward|>",), "dimensions": ("visual_quality",), "mean": (0.0,), "std": (1.0,)}
    config = HeadConfig(template="{text_prompt} <|VQ_reward|>", **head)
    judge.head = ScoreHead(torch.randn(1, 64), config, tokenizer)
    folder = tmp_path_factory.mktemp("judge") / request.param
    judge.save_pretrained(folder)
    return folder


def edit(name, change):
    """Return a tampering that changes the tensors of a file and keeps its metadata."""

    def tamper(folder):
        from reward_model.weights import tensor_notes

        file = folder / name
        notes, tensors = tensor_notes(file), load_file(file)
        save_file({key: value.contiguous() for key, value in change(tensors).items()}, file, metadata=notes)

    return tamper


def cut(name, part):
    """Return a tampering that keeps the first part of a file."""

    def tamper(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * part)])

    return tamper


def settings(name, **changes):
    """Return a tampering that changes entries of a JSON file; None removes one."""

    def tamper(folder):
        values = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return tamper


def without(text):
    return lambda tensors: {key: value for key, value in tensors.items() if text not in key}


def renamed(old, new):
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def half(tensors):
    return dict(list(sorted(tensors.items()))[::2])


def added(tensors):
    return {**tensors, "stray.weight": torch.zeros(2)}


def reshaped(tensors):
    first = sorted(tensors)[0]
    return {**tensors, first: torch.zeros(*(side + 1 for side in tensors[first].shape))}


def spoiled(tensors):
    first = sorted(tensors)[0]
    return {**tensors, first: torch.full_like(tensors[first], torch.nan)}


def other_role(folder):
    shutil.copy(folder / "adapters/natural/adapter_model.safetensors", folder / GENERATED)


def as_pickle(name, suffix):
    def tamper(folder):
        torch.save(load_file(folder / name), (folder / name).with_suffix(suffix))

    return tamper


def instead(name, suffix):
    def tamper(folder):
        as_pickle(name, suffix)(folder)
        (folder / name).unlink()

    return tamper


FILES = {
    **{name: lambda folder, name=name: (folder / name).unlink() for name in (BASE, "base/config.json")},
    **{name: lambda folder, name=name: (folder / name).unlink() for name in (GENERATED, SETTINGS)},
    **{name: lambda folder, name=name: (folder / name).unlink() for name in ("extra.safetensors",)},
    **{name: lambda folder, name=name: (folder / name).unlink() for name in ("tokenizer.json", "judge_config.json")},
}
"""Files without which a judge of any age is refused."""

WEIGHTS = {
    "base/model.safetensors": "lm_head.weight|model.language_model.embed_tokens.weight",
    GENERATED: PREFIX + "model.language_model.layers.0.mlp.down_proj.lora_A.weight",
    "extra.safetensors": "motion.inner.bias",
    HEAD_FILE: "weight",
}
"""Weight file -> its first key."""

TAMPERINGS = {f"no {name}": (name, tamper) for name, tamper in FILES.items()}
for weights, _key in WEIGHTS.items():
    TAMPERINGS[f"half a file {weights}"] = (weights, cut(weights, 0.5))
    TAMPERINGS[f"a cut end {weights}"] = (weights, cut(weights, 0.99))
    TAMPERINGS[f"nothing in {weights}"] = (weights, cut(weights, 0))
    TAMPERINGS[f"no first key {weights}"] = (
        f"{weights}.*missing",
        edit(weights, lambda t: dict(sorted(t.items())[1:])),
    )
    TAMPERINGS[f"a key more {weights}"] = (f"{weights}.*stray.weight is unexpected", edit(weights, added))
    TAMPERINGS[f"renamed {weights}"] = (f"{weights}.*missing.*unexpected", edit(weights, renamed("weight", "wait")))
    TAMPERINGS[f"other shape {weights}"] = (f"{weights}.*has the shape", edit(weights, reshaped))
for weights in (GENERATED, "extra.safetensors", HEAD_FILE):
    TAMPERINGS[f"NaN {weights}"] = (f"{weights}.*not finite", edit(weights, spoiled))
for weights in (BASE, GENERATED, "extra.safetensors"):
    TAMPERINGS[f"half the keys {weights}"] = (f"{weights}.*more are missing", edit(weights, half))
for weights in (BASE, GENERATED):
    for suffix in (".bin", ".pt", ".ckpt", ".pkl"):
        TAMPERINGS[f"{suffix} beside {weights}"] = (f"{suffix}, a pickle", as_pickle(weights, suffix))
    TAMPERINGS[f".bin instead of {weights}"] = (".bin, a pickle", instead(weights, ".bin"))
TAMPERINGS |= {
    "no vision tower": (f"{BASE}.*visual.*missing", edit(BASE, without("visual"))),
    "foreign prefix": (f"{GENERATED}.*missing.*unexpected", edit(GENERATED, renamed(PREFIX, "foreign."))),
    "no prefix": (f"{GENERATED}.*missing.*unexpected", edit(GENERATED, renamed(PREFIX, ""))),
    "narrowed targets": (f"{GENERATED}.*unexpected", settings(SETTINGS, target_modules=["q_proj"])),
    "other rank": (f"{GENERATED}.*has the shape", settings(SETTINGS, r=3)),
    "no rank": (f"{SETTINGS}: r is missing", settings(SETTINGS, r=None)),
    "no target": (SETTINGS, settings(SETTINGS, target_modules=["nowhere"])),
    "other method": (f"{SETTINGS}: peft_type must be 'LORA'", settings(SETTINGS, peft_type="IA3")),
    "cut settings": (f"{SETTINGS} is not valid JSON", cut(SETTINGS, 0.5)),
    "cut config": ("judge_config.json is not valid JSON", cut("judge_config.json", 0.5)),
    "no pixels": ("judge_config.json: min_pixels is missing", settings("judge_config.json", min_pixels=None)),
    "words for pixels": ("judge_config.json: min_pixels must be int", settings("judge_config.json", min_pixels="many")),
    "pixels reversed": ("judge_config.json: expected 1 <= min_pixels", settings("judge_config.json", max_pixels=2)),
    "unknown field": ("judge_config.json has unknown fields", settings("judge_config.json", colour="red")),
    "unknown family": ("judge_config.json: model type 'clip'", settings("judge_config.json", family="clip")),
    "other family": ("family is 'qwen2_vl'", settings("judge_config.json", family="qwen2_vl")),
    "frames": ("judge_config.json: .*frame_policy", settings("judge_config.json", frame_policy={"speed": 2})),
    "levels": ("judge_config.json: levels", settings("judge_config.json", levels=["bad", "good"])),
    "no motion": ("extra.safetensors is unexpected", settings("judge_config.json", motion={})),
    "cut base config": ("base/config.json is not valid JSON", cut("base/config.json", 0.5)),
    "code of the model": (
        "config.json names code of its own",
        settings("base/config.json", auto_map={"AutoModel": "x.Y"}),
    ),
    "cut tokenizer": ("tokenizer", cut("tokenizer.json", 0.5)),
}
"""Name -> (what the refusal must name, the tampering), refused whether or not the judge records checksums."""

RECORDED = {
    "another role's weights": (GENERATED, other_role),
    "no adapters": (GENERATED + "|" + SETTINGS, lambda folder: shutil.rmtree(folder / "adapters")),
    "no head": (HEAD_FILE, lambda folder: (folder / HEAD_FILE).unlink()),
    "no tokenizer settings": ("tokenizer_config.json", lambda folder: (folder / "tokenizer_config.json").unlink()),
    "a role more": (
        "adapters/mine",
        lambda folder: shutil.copytree(folder / "adapters/natural", folder / "adapters/mine"),
    ),
    "other alpha": (SETTINGS, settings(SETTINGS, lora_alpha=400)),
    "zeros": (GENERATED, edit(GENERATED, lambda tensors: {key: torch.zeros_like(t) for key, t in tensors.items()})),
    "other vocabulary": ("tokenizer.json", lambda folder: swap_words(folder / "tokenizer.json")),
}
"""As `TAMPERINGS`, for folders that record checksums: names and shapes are right."""


def swap_words(file):
    values = json.loads(file.read_text())
    words = values["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(values))


def copied(whole, tmp_path, *, recorded):
    folder = tmp_path / "judge"
    shutil.copytree(whole, folder)
    if not recorded:
        settings("judge_config.json", files=None, format=None)(folder)
    return folder


def refusal(folder):
    with pytest.raises(ValueError) as caught:
        VideoJudge.from_pretrained(folder, device="cpu")
    message = str(caught.value)
    assert "\n" not in message and message
    return message


def names(pattern, message):
    import re

    return re.search(pattern.replace("+", r"\+"), message)


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "older"])
def test_an_untouched_folder_loads_as_it_was_saved(whole, tmp_path, recorded):
    judge = VideoJudge.from_pretrained(copied(whole, tmp_path, recorded=recorded), device="cpu")
    assert judge.roles == ("generated", "natural") and judge.head is not None and judge.motion is not None
    saved = load_file(whole / GENERATED)
    weight = judge.model.model.language_model.layers[0].mlp.down_proj.lora_A["generated"].weight
    assert torch.equal(weight, saved[PREFIX + "model.language_model.layers.0.mlp.down_proj.lora_A.weight"])


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_tampered_folder_without_checksums_is_refused_with_file_and_key(whole, tmp_path, tampering):
    pattern, tamper = TAMPERINGS[tampering]
    folder = copied(whole, tmp_path, recorded=False)
    tamper(folder)
    assert names(pattern, message := refusal(folder)), message


@pytest.mark.parametrize("tampering", {**TAMPERINGS, **RECORDED})
def test_a_tampered_folder_with_checksums_is_refused_with_the_file(whole, tmp_path, tampering):
    pattern, tamper = {**TAMPERINGS, **RECORDED}[tampering]
    folder = copied(whole, tmp_path, recorded=True)
    tamper(folder)
    message = refusal(folder)
    assert str(folder) in message
    if tampering in RECORDED or pattern.partition(".*")[0] in WEIGHTS:
        assert names(pattern, message) or SETTINGS in message, message


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "older"])
def test_an_older_folder_loads_with_one_line_that_names_what_is_not_checked(whole, tmp_path, recorded):
    import warnings

    folder = copied(whole, tmp_path, recorded=recorded)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        VideoJudge.from_pretrained(folder, device="cpu")
    said = [str(one.message) for one in caught if "checksums" in str(one.message)]
    assert len(said) == (0 if recorded else 1)
    for line in said:
        assert str(folder) in line and "\n" not in line
        assert all(word in line for word in ("adapter", "vocabulary", "head"))


@pytest.mark.parametrize("files", [None, {}, [], "none", {"base/model.safetensors": 1}, {"../x": "0"}])
def test_a_folder_whose_checksums_were_taken_out_is_not_taken_for_an_older_one(whole, tmp_path, files):
    folder = copied(whole, tmp_path, recorded=True)
    settings("judge_config.json", files=files)(folder)
    assert names("judge_config.json", refusal(folder))


@pytest.mark.parametrize("name", ["../outside", "base/../../outside", "absolute"])
def test_a_checksum_of_a_file_outside_the_folder_is_refused_though_the_file_has_it(whole, tmp_path, name):
    folder, outside = copied(whole, tmp_path, recorded=True), tmp_path / "outside"
    outside.write_text("not of the judge")
    listed = str(outside) if name == "absolute" else name
    assert (folder / listed).samefile(outside)
    files = json.loads((folder / "judge_config.json").read_text())["files"]
    settings("judge_config.json", files={**files, listed: digest(outside)})(folder)
    assert names(f"judge_config.json names '{listed}', which is no path inside the folder", refusal(folder))


@pytest.mark.parametrize("version", [2, -1, "1", True, 1.0, []])
def test_a_format_that_this_version_does_not_know_is_refused(whole, tmp_path, version):
    folder = copied(whole, tmp_path, recorded=True)
    settings("judge_config.json", format=version)(folder)
    assert names("judge_config.json: format is", refusal(folder))


def test_a_folder_with_checksums_and_no_format_is_checked(whole, tmp_path):
    folder = copied(whole, tmp_path, recorded=True)
    settings("judge_config.json", format=None)(folder)
    assert VideoJudge.from_pretrained(folder, device="cpu").roles
    other_role(folder)
    assert names(GENERATED, refusal(folder))


def test_a_merged_judge_is_checked_too(whole, tmp_path):
    folder = merge_role(VideoJudge.from_pretrained(whole, device="cpu"), "generated", tmp_path / "merged")
    assert VideoJudge.from_pretrained(folder, device="cpu").head is not None
    (folder / HEAD_FILE).unlink()
    assert HEAD_FILE in refusal(folder)


def test_the_command_line_refuses_a_tampered_judge_with_exit_status_2(whole, tmp_path, capsys):
    from reward_model.cli import main

    folder = copied(whole, tmp_path, recorded=False)
    (folder / GENERATED).unlink()
    assert main(["score", str(tmp_path / "clip.mp4"), "--judge", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and GENERATED in captured.err


@pytest.mark.parametrize("place", ["base/config.json", "tokenizer_config.json", "config.json"])
def test_code_of_a_folder_is_not_run_even_with_yes_on_stdin(whole, tmp_path, place):
    folder, mark = copied(whole, tmp_path, recorded=False), tmp_path / "mark"
    code = f"from pathlib import Path\nPath({str(mark)!r}).write_text('run')\nclass Mine: pass\n"
    for where in (folder, folder / "base"):
        (where / "mine.py").write_text(code)
    names_of = ("AutoConfig", "AutoModelForImageTextToText", "AutoTokenizer", "AutoProcessor")
    values = json.loads((folder / place).read_text()) if (folder / place).is_file() else {}
    auto_map = {name: ["mine.Mine", "mine.Mine"] if name == "AutoTokenizer" else "mine.Mine" for name in names_of}
    (folder / place).write_text(json.dumps({**values, "model_type": "mine", "auto_map": auto_map}))
    program = "import sys; from reward_model.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", program, "score", "clip.mp4", "--judge", str(folder)]
    done = subprocess.run(arguments, input="y\ny\ny\n", capture_output=True, text=True, cwd=Path(__file__).parents[4])
    assert done.returncode == 2 and not mark.exists() and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "names code of its own" in done.stderr


def test_a_relative_base_starts_at_the_judges_folder_wherever_the_program_runs(whole, tmp_path, monkeypatch):
    folder = copied(whole, tmp_path, recorded=False)
    (folder / "base").rename(tmp_path / "elsewhere")
    settings("judge_config.json", base="../elsewhere")(folder)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert VideoJudge.from_pretrained(folder, device="cpu").roles == ("generated", "natural")
    settings("judge_config.json", base="elsewhere")(folder)
    monkeypatch.chdir(tmp_path)
    assert "base 'elsewhere' is neither a folder beside it nor a hub id" in refusal(folder)
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "owner" / "name")
    settings("judge_config.json", base="owner/name")(folder)
    assert "a folder of that name stands in the working directory" in refusal(folder)
