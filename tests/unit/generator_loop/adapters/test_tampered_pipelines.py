"""Pipelines and LoRA folders that were tampered with: each is refused in one sentence with file and key."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from generator_loop.adapters import GENERATORS
from generator_loop.adapters.lora import LORA_FILE
from generator_loop.config import GeneratorConfig
from reward_model.weights import tensor_notes
from tests.tiny_ltx import build_ltx
from tests.tiny_wan import build_wan

BUILD = {"wan": (build_wan, 16), "ltx": (build_ltx, 32)}
MODELS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture(scope="module", params=BUILD)
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / request.param
    BUILD[request.param][0]().save_pretrained(folder)
    return folder


def opened(folder, family):
    size = BUILD[family][1]
    clip = dict(num_frames=5, height=size, width=size, fps=8.0, lora_rank=2, lora_alpha=4, max_sequence_length=8)
    return GENERATORS[family].from_pretrained(GeneratorConfig(family=family, path=str(folder), **clip))


def refusal(folder, family):
    with pytest.raises(ValueError) as caught:
        opened(folder, family)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(file, change):
    notes = tensor_notes(file)
    save_file({key: value.contiguous() for key, value in change(load_file(file)).items()}, file, metadata=notes)


def reshaped(tensors):
    first = sorted(tensors)[0]
    return {**tensors, first: torch.zeros(*(side + 1 for side in tensors[first].shape))}


CHANGES = {
    "a key less": (lambda t: dict(sorted(t.items())[1:]), "is missing"),
    "half the keys": (lambda t: dict(sorted(t.items())[::2]), "more are missing"),
    "a key more": (lambda t: {**t, "stray": torch.zeros(2)}, "stray is unexpected"),
    "a foreign prefix": (lambda t: {f"foreign.{key}": value for key, value in t.items()}, "missing.*unexpected"),
    "another shape": (reshaped, "has the shape"),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_of_a_pipeline_are_refused_with_file_and_key(whole, tmp_path, model, change):
    folder = shutil.copytree(whole, tmp_path / "copy")
    rewrite(folder / model / MODELS[model], CHANGES[change][0])
    assert re.search(f"{model}/{MODELS[model]}.*{CHANGES[change][1]}", refusal(folder, whole.name))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("part", [0, 0.5, 0.99, None])
def test_a_cut_or_missing_weight_file_of_a_pipeline_is_refused_by_name(whole, tmp_path, model, part):
    folder = shutil.copytree(whole, tmp_path / "copy")
    file = folder / model / MODELS[model]
    content = file.read_bytes()
    file.unlink()
    if part is not None:
        file.write_bytes(content[: int(len(content) * part)])
    wanted = "is missing" if part is None else "is no whole safetensors file"
    assert f"{file} {wanted}" in refusal(folder, whole.name)


@pytest.mark.parametrize(
    "name",
    [
        *("model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json"),
        *("scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
    ],
)
def test_a_missing_or_cut_settings_file_of_a_pipeline_is_refused(whole, tmp_path, name):
    folder = shutil.copytree(whole, tmp_path / "copy")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert str(folder) in refusal(folder, whole.name)
    (folder / name).unlink()
    assert str(folder) in refusal(folder, whole.name)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pkl"])
def test_a_pickle_beside_or_instead_of_safetensors_is_refused_by_name(whole, tmp_path, model, suffix):
    folder = shutil.copytree(whole, tmp_path / "copy")
    file = folder / model / MODELS[model]
    torch.save(load_file(file), file.with_suffix(suffix))
    assert f"{file.with_suffix(suffix).name}, a pickle" in refusal(folder, whole.name)
    file.unlink()
    assert f"{file.with_suffix(suffix).name}, a pickle" in refusal(folder, whole.name)


def test_code_of_a_pipeline_is_never_run(whole, tmp_path):
    folder, mark = shutil.copytree(whole, tmp_path / "copy"), tmp_path / "mark"
    code = f"from pathlib import Path\nPath({str(mark)!r}).write_text('run')\nclass Mine: pass\n"
    for place in (folder, folder / "transformer", folder / "text_encoder"):
        (place / "mine.py").write_text(code)
    index = json.loads((folder / "model_index.json").read_text())
    for changes in (
        {"transformer": ["mine", "Mine"]},
        {"_class_name": ["mine", "Mine"]},
        {"_class_name": "OtherPipeline"},
    ):
        (folder / "model_index.json").write_text(json.dumps({**index, **changes}))
        assert "model_index.json" in refusal(folder, whole.name)
    (folder / "model_index.json").write_text(json.dumps(index))
    for place in ("transformer", "text_encoder"):
        file = folder / place / "config.json"
        content = file.read_text()
        file.write_text(json.dumps({**json.loads(content), "auto_map": {"AutoModel": "mine.Mine"}}))
        assert f"{file} names code of its own" in refusal(folder, whole.name)
        file.write_text(content)
    assert not mark.exists()
    assert opened(folder, whole.name).trainable_parameters()


@pytest.fixture
def saved(whole, tmp_path):
    generator = opened(whole, whole.name)
    generator.save(tmp_path / "lora")
    generator.load(tmp_path / "lora")
    return generator, tmp_path / "lora"


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_lora_is_refused_with_file_and_key(saved, change):
    generator, folder = saved
    rewrite(folder / LORA_FILE, CHANGES[change][0])
    with pytest.raises(ValueError, match=f"{LORA_FILE}.*{CHANGES[change][1]}"):
        generator.load(folder)


@pytest.mark.parametrize("part", [0, 0.5, 0.99, None])
def test_a_cut_or_missing_lora_is_refused_by_name(saved, part):
    generator, folder = saved
    content = (folder / LORA_FILE).read_bytes()
    (folder / LORA_FILE).unlink()
    if part is not None:
        (folder / LORA_FILE).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=LORA_FILE):
        generator.load(folder)


def test_a_lora_with_numbers_that_are_not_finite_or_a_pickle_beside_it_is_refused(saved):
    generator, folder = saved
    content = (folder / LORA_FILE).read_bytes()
    rewrite(folder / LORA_FILE, lambda t: {key: torch.full_like(value, torch.inf) for key, value in t.items()})
    with pytest.raises(ValueError, match=f"{LORA_FILE}: .* not finite"):
        generator.load(folder)
    (folder / LORA_FILE).write_bytes(content)
    (folder / "pytorch_lora_weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="pytorch_lora_weights.bin, a pickle"):
        generator.load(folder)


def test_each_weight_of_a_text_encoder_is_missed(whole, tmp_path):
    file = MODELS["text_encoder"]
    for key in load_file(whole / "text_encoder" / file):
        folder = shutil.copytree(whole, tmp_path / key)
        rewrite(folder / "text_encoder" / file, lambda t, key=key: {name: v for name, v in t.items() if name != key})
        assert f"text_encoder/{file}" in refusal(folder, whole.name), key
