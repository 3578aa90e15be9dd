"""Pipelines and LoRA folders that were tampered with: each is refused in one sentence with file and key."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from generator_loop.adapters import GENERATORS
from generator_loop.adapters.folders import save_pipeline
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


@pytest.fixture(scope="module")
def sealed(whole, tmp_path_factory):
    """Write a pipeline folder as pretraining does."""
    from diffusers import DiffusionPipeline

    folder = tmp_path_factory.mktemp("sealed") / whole.name
    save_pipeline(DiffusionPipeline.from_pretrained(whole), folder)
    return folder


def noise(tensors):
    return {key: value + 0.01 if value.is_floating_point() else value for key, value in tensors.items()}


def change(name, **settings):
    return lambda folder: (folder / name).write_text(
        json.dumps({**json.loads((folder / name).read_text()), **settings})
    )


def swap_words(folder):
    file = folder / "tokenizer/tokenizer.json"
    values = json.loads(file.read_text())
    words = values["model"]["vocab"]
    if isinstance(words, dict):
        first, second = list(words)[-2:]
        words[first], words[second] = words[second], words[first]
    else:
        words[-1], words[-2] = words[-2], words[-1]
    file.write_text(json.dumps(values))


def add_tokens(folder):
    (folder / "tokenizer/added_tokens.json").write_text("{}")


SAME_SHAPES = {
    **{
        f"other weights {model}": (
            f"{model}/{file} is not the file that was saved",
            lambda folder, model=model, file=file: rewrite(folder / model / file, noise),
        )
        for model, file in MODELS.items()
    },
    "a vocabulary permuted": ("tokenizer/tokenizer.json is not the file", swap_words),
    "another schedule": ("scheduler_config.json is not the file", change("scheduler/scheduler_config.json", shift=9.0)),
    "another setting": ("transformer/config.json is not the file", change("transformer/config.json", eps=0.5)),
    "a file more": ("tokenizer/added_tokens.json was not saved", add_tokens),
    "weights more": (
        "model.fp16.safetensors was not saved",
        lambda f: shutil.copy(f / "text_encoder/model.safetensors", f / "text_encoder/model.fp16.safetensors"),
    ),
    "no checksums": ("checksums.json is missing", lambda folder: (folder / "checksums.json").unlink()),
    "cut checksums": (
        "checksums.json is not valid JSON",
        lambda folder: (folder / "checksums.json").write_text('{"model_'),
    ),
    "empty checksums": ("was not saved", lambda folder: (folder / "checksums.json").write_text("{}")),
    "numbers as checksums": (
        "checksums.json: expected a checksum",
        lambda folder: (folder / "checksums.json").write_text('{"model_index.json": 3}'),
    ),
    "a path outside": (
        "checksums.json names '../x'",
        lambda folder: (folder / "checksums.json").write_text('{"../x": "0"}'),
    ),
    "no scheduler": ("scheduler_config.json is missing", lambda f: (f / "scheduler/scheduler_config.json").unlink()),
}
"""Tamperings that only checksums can show: names and shapes are right."""


@pytest.mark.parametrize("tampering", SAME_SHAPES)
def test_a_folder_of_ours_with_a_file_of_the_same_shape_is_refused_by_name(sealed, tmp_path, tampering):
    pattern, tamper = SAME_SHAPES[tampering]
    folder = shutil.copytree(sealed, tmp_path / "copy")
    tamper(folder)
    assert re.search(pattern, message := refusal(folder, sealed.name)), message


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_of_a_folder_of_ours_are_refused_with_the_key_too(sealed, tmp_path, model, change):
    folder = shutil.copytree(sealed, tmp_path / "copy")
    rewrite(folder / model / MODELS[model], CHANGES[change][0])
    assert re.search(f"{model}/{MODELS[model]}.*{CHANGES[change][1]}", refusal(folder, sealed.name))


def test_an_untouched_folder_of_ours_loads_here_and_in_stock_diffusers_and_may_hold_a_page(sealed, tmp_path):
    from diffusers import DiffusionPipeline

    folder = shutil.copytree(sealed, tmp_path / "copy")
    (folder / "README.md").write_text("a page")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "note.json").write_text("{}")
    assert opened(folder, sealed.name).trainable_parameters()
    assert DiffusionPipeline.from_pretrained(folder).transformer is not None


def test_a_lora_of_the_same_shape_is_refused_and_nothing_is_loaded(saved):
    generator, folder = saved
    before = {name: value.clone() for name, value in generator.weights("policy").items()}
    rewrite(folder / LORA_FILE, noise)
    with pytest.raises(ValueError, match=f"{LORA_FILE} is not the file that was saved"):
        generator.load(folder)
    assert all(torch.equal(before[name], value) for name, value in generator.weights("policy").items())


@pytest.mark.parametrize("content", [None, "{}", '{"x.json": "0"}', "[]", "{"])
def test_a_lora_whose_checksums_were_taken_out_is_not_taken_for_an_older_one(saved, content):
    generator, folder = saved
    (folder / "checksums.json").unlink()
    if content is not None:
        (folder / "checksums.json").write_text(content)
    with pytest.raises(ValueError, match="checksums.json|x.json"):
        generator.load(folder)


def test_an_older_lora_is_loaded_with_one_line_that_names_what_is_not_checked(saved):
    generator, folder = saved
    notes = {key: value for key, value in tensor_notes(folder / LORA_FILE).items() if key != "_checksums"}
    save_file(load_file(folder / LORA_FILE), folder / LORA_FILE, metadata=notes)
    (folder / "checksums.json").unlink()
    with pytest.warns(UserWarning, match="has no checksums.json: other weights of the same shapes") as told:
        generator.load(folder)
    assert len(told) == 1 and "\n" not in str(told[0].message)


def test_stock_diffusers_loads_a_saved_lora_as_it_is(saved, whole, caplog):
    from diffusers import DiffusionPipeline

    generator, folder = saved
    weights = {name: torch.randn_like(value) for name, value in generator.weights("policy").items()}
    generator.set_weights("policy", weights)
    generator.save(folder)
    pipeline = DiffusionPipeline.from_pretrained(whole)
    pipeline.load_lora_weights(folder)
    got = {
        name.replace(".default_0", ""): value
        for name, value in pipeline.transformer.named_parameters()
        if ".lora_" in name
    }
    assert got.keys() == weights.keys()
    assert all(torch.equal(got[name], value) for name, value in weights.items())
    generator.load(folder)
    assert "checksums" not in caplog.text
