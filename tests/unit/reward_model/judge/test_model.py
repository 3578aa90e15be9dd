"""VideoJudge: roles, the saved form, generation, and what it refuses."""

import dataclasses
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.engine.decoding import END_TOKENS, VISION_TOKENS, token_ids
from reward_model.judge.engine.readouts import read_levels
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import compare_request, describe_request, score_request
from reward_model.records import DIMENSIONS, Clip
from tests.tiny_judge import FAMILIES, build_judge, library_inputs, make_clip

ROOT = Path(__file__).parents[4]


@pytest.fixture(params=FAMILIES)
def judge(request):
    return build_judge(request.param)


@pytest.fixture
def requests():
    clips = [make_clip(4, 32, 32, seed=0), make_clip(6, 48, 32, 3.0, seed=1)]
    return [score_request(clip, "a dog", DIMENSIONS) for clip in clips]


def randomise(judge, role):
    generator = torch.Generator().manual_seed(zlib.crc32(role.encode()))
    for parameter in judge._roles.parameters(role):
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)


def logits_of(judge, requests, role=None):
    with judge.use_role(role), torch.no_grad():
        return torch.cat(judge.next_token_logits(requests))


def test_level_scores_are_deterministic_and_do_not_depend_on_the_batch(judge):
    clips = [make_clip(4, 32, 32, seed=i) for i in range(8)]
    requests = [score_request(clip, f"dog {i}", DIMENSIONS) for i, clip in enumerate(clips)]
    together = read_levels(logits_of(judge, requests), judge.level_ids).quality
    assert torch.equal(together, read_levels(logits_of(judge, requests), judge.level_ids).quality)
    alone = torch.cat([read_levels(logits_of(judge, [r]), judge.level_ids).quality for r in requests])
    assert_close(together, alone, atol=1e-5, rtol=0)
    assert together.std() > 1e-3


def test_pixels_have_a_gradient_in_every_frame_and_agree_with_central_differences(judge):
    judge = judge.double()
    clip = make_clip(4, 32, 32)
    frames = clip.frames.double().requires_grad_()

    def quality(pixels):
        request = score_request(Clip(pixels, clip.plan), "a dog", ("overall",))
        return read_levels(
            judge.next_token_logits([request], quantise=False)[0].double(), judge.level_ids
        ).quality.sum()

    (gradient,) = torch.autograd.grad(quality(frames), frames)
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
    direction = gradient / gradient.norm()
    with torch.no_grad():
        slope = (quality(frames + 1e-2 * direction) - quality(frames - 1e-2 * direction)) / 2e-2
    # logits are rounded to fp32, hence the wide step
    assert_close((gradient * direction).sum(), slope, rtol=1e-3, atol=1e-6)


def test_roles_change_what_is_said_and_leave_the_base_alone(judge, requests):
    base = logits_of(judge, requests)
    judge.add_role("natural", rank=4, alpha=8)
    judge.add_role("generated", rank=4, alpha=8, targets=("text", "vision"))
    assert judge.roles == ("natural", "generated")
    assert torch.equal(logits_of(judge, requests, "natural"), base)
    randomise(judge, "natural")
    randomise(judge, "generated")
    natural, generated = (logits_of(judge, requests, name) for name in judge.roles)
    assert (natural - base).abs().max() > 1e-2
    assert (generated - natural).abs().max() > 1e-2
    assert torch.equal(logits_of(judge, requests), base)


def test_a_copied_role_starts_equal_and_then_goes_its_own_way(judge, requests):
    judge.add_role("first", rank=4, alpha=12)
    randomise(judge, "first")
    first = logits_of(judge, requests, "first")
    judge.add_role("second", copy_from="first")
    assert torch.equal(logits_of(judge, requests, "second"), first)
    for parameter in judge._roles.parameters("second"):
        parameter.data.mul_(2)
    assert torch.equal(logits_of(judge, requests, "first"), first)
    assert not torch.equal(logits_of(judge, requests, "second"), first)


def test_switching_roles_leaves_requires_grad_as_it_was_and_nests(judge, requests):
    judge.requires_grad_(False)
    judge.add_role("a", rank=4)
    judge.add_role("b", rank=4)
    randomise(judge, "a")
    randomise(judge, "b")
    judge.train_only("a")
    flags = {name: p.requires_grad for name, p in judge.named_parameters()}
    assert any(flags.values())
    a, b = (logits_of(judge, requests, role) for role in "ab")
    assert not torch.equal(a, b)
    with judge.use_role("a"):
        assert flags == {name: p.requires_grad for name, p in judge.named_parameters()}
        assert torch.equal(logits_of(judge, requests, "b"), b)
        with torch.no_grad():
            assert torch.equal(torch.cat(judge.next_token_logits(requests)), a)
        with judge.use_role(None):
            assert flags == {name: p.requires_grad for name, p in judge.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in judge.named_parameters()}


def test_a_role_is_left_also_when_the_work_inside_fails(judge, requests):
    judge.add_role("a", rank=4)
    randomise(judge, "a")
    base = logits_of(judge, requests)
    with pytest.raises(RuntimeError, match="inside"), judge.use_role("a"):
        raise RuntimeError("inside")
    with torch.no_grad():
        assert torch.equal(torch.cat(judge.next_token_logits(requests)), base)


def test_only_the_chosen_weights_are_trained(judge, requests):
    judge.add_role("a", rank=4)
    chosen = judge.train_only("a")
    with judge.use_role("a"):
        sum(x.sum() for x in judge.next_token_logits(requests)).backward()
    assert chosen and all(p.grad is not None for p in chosen)
    assert {id(p) for p in judge.parameters() if p.grad is not None} == {id(p) for p in chosen}
    base = judge.train_only(None)
    assert not {id(p) for p in base} & {id(p) for p in chosen}
    assert len(base) + len(chosen) == len(list(judge.parameters()))


@pytest.mark.parametrize("trained", [True, False])
def test_a_new_role_leaves_the_bases_requires_grad_as_it_was(judge, trained):
    judge.requires_grad_(trained)
    judge.add_role("a", rank=4)
    base = {name: p.requires_grad for name, p in judge.named_parameters() if "lora" not in name}
    assert set(base.values()) == {trained}
    judge.add_role("b", copy_from="a")
    assert all(p.requires_grad is trained for name, p in judge.named_parameters() if "lora" not in name)


def test_a_role_named_like_a_module_owns_its_own_weights_only(judge):
    judge.add_role("a", rank=4)
    judge.add_role("layers", rank=4)
    assert len(judge.train_only("layers")) == len(judge.train_only("a"))


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "taken"])
def test_malformed_and_taken_role_names_are_refused(judge, name):
    judge.add_role("taken", rank=4)
    with pytest.raises(ValueError, match="a new role needs a new name"):
        judge.add_role(name)


def test_unknown_roles_are_refused_by_name(judge):
    with pytest.raises(ValueError, match="unknown role 'nobody', this judge has none"), judge.use_role("nobody"):
        pass
    with pytest.raises(ValueError, match="unknown role 'nobody'"):
        judge.add_role("a", copy_from="nobody")


def test_a_saved_judge_comes_back_exactly(judge, requests, tmp_path):
    judge.add_role("natural", rank=4, alpha=12)
    judge.add_role("generated", rank=2, alpha=2, targets=("text", "vision"))
    judge.add_role("merging", rank=2, alpha=2, targets=("merger",))
    randomise(judge, "merging")
    randomise(judge, "natural")
    randomise(judge, "generated")
    judge.configure(
        calibration={"overall": {"mean": 0.4, "std": 0.2}},
        lineage=("warm-up", "score"),
        trained_on="moving shapes",
        frame_policy={"mode": "all", "max_frames": 9},
    )
    judge.save_pretrained(tmp_path)
    again = VideoJudge.from_pretrained(tmp_path, device="cpu")
    assert again.config == judge.config
    assert set(again.roles) == set(judge.roles)
    assert not again.training
    for role in (None, *judge.roles):
        assert torch.equal(logits_of(again, requests, role), logits_of(judge, requests, role))


def test_a_saved_judge_holds_no_pickle_and_a_base_that_stock_transformers_loads(judge, tmp_path):
    from transformers import AutoModelForImageTextToText

    judge.add_role("natural", rank=4)
    randomise(judge, "natural")
    expected = {key: value.clone() for key, value in build_judge(judge.config.family).model.state_dict().items()}
    judge.save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".jinja"}
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert expected.keys() == stock.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in stock.state_dict().items())


def test_a_saved_adapter_is_one_that_stock_peft_loads(judge, requests, tmp_path):
    from peft import PeftModel

    judge.add_role("natural", rank=4, alpha=12)
    randomise(judge, "natural")
    judge.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapters" / "natural" / "adapter_model.safetensors", "pt") as file:
        assert all(key.startswith("base_model.model.") for key in file.keys())
    plain = build_judge(judge.config.family)
    plain.model = PeftModel.from_pretrained(plain.model, tmp_path / "adapters" / "natural").base_model.model
    assert_close(torch.cat(plain.next_token_logits(requests)), logits_of(judge, requests, "natural"))


def test_a_stock_checkpoint_folder_is_an_untrained_judge(judge, requests, tmp_path):
    judge.model.save_pretrained(tmp_path)
    judge.tokenizer.save_pretrained(tmp_path)
    stock = VideoJudge.from_pretrained(tmp_path, device="cpu")
    assert stock.config.base == str(tmp_path)
    assert stock.config.lineage == () and stock.roles == ()
    stock.configure(min_pixels=judge.config.min_pixels, max_pixels=judge.config.max_pixels)
    assert torch.equal(logits_of(stock, requests), logits_of(judge, requests))
    adapted = tmp_path / "adapted"
    stock.add_role("generated", rank=4)
    randomise(stock, "generated")
    stock.save_pretrained(adapted)
    assert not (adapted / "base").exists()
    again = VideoJudge.from_pretrained(adapted, device="cpu")
    assert torch.equal(logits_of(again, requests, "generated"), logits_of(stock, requests, "generated"))


def test_a_hub_checkpoint_is_recorded_with_the_commit_that_was_loaded(judge, tmp_path, monkeypatch):
    cached = tmp_path / "models--org--name"
    snapshot = cached / "snapshots" / ("0123abcd" * 5)
    judge.model.save_pretrained(snapshot)
    judge.tokenizer.save_pretrained(snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    stock = VideoJudge.from_pretrained("org/name", device="cpu")
    assert (stock.config.base, stock.config.revision) == ("org/name", snapshot.name)


def test_sixteen_bit_weights_are_read_in_single_precision_on_cpu(tmp_path, requests):
    judge = build_judge()
    judge.model.bfloat16()
    judge.save_pretrained(tmp_path)
    assert VideoJudge.from_pretrained(tmp_path, device="cpu").model.dtype == torch.float32
    kept = VideoJudge.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert kept.model.dtype == torch.bfloat16
    assert logits_of(kept, requests).dtype == torch.float32


def test_a_judge_of_other_prompts_or_unknown_fields_is_refused(tmp_path):
    judge = build_judge()
    judge.save_pretrained(tmp_path)
    file = tmp_path / "judge_config.json"
    text = file.read_text()
    file.write_text(text.replace('"prompts_version": "2"', '"prompts_version": "0"'))
    with pytest.raises(ValueError, match="prompts_version is '0', this version speaks '2'"):
        VideoJudge.from_pretrained(tmp_path)
    file.write_text(text.replace('"trained_on"', '"trained_no"'))
    with pytest.raises(ValueError, match=r"unknown fields \['trained_no'\]"):
        VideoJudge.from_pretrained(tmp_path)


def test_another_position_rule_or_attention_is_refused(tmp_path):
    judge = build_judge()
    with pytest.raises(ValueError, match="position rule 'maximum_of_all_axes' is not the family's"):
        VideoJudge(judge.model, judge.tokenizer, dataclasses.replace(judge.config, position_rule="maximum_of_all_axes"))
    with pytest.raises(ValueError, match="attn_implementation must be 'sdpa' or 'eager'"):
        VideoJudge.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


def test_a_tokenizer_that_splits_an_answer_word_is_refused():
    from transformers import Qwen2Tokenizer

    judge = build_judge()
    with pytest.raises(ValueError, match="splits the answer ' bad' into"):
        VideoJudge(judge.model, Qwen2Tokenizer(vocab={c: i for i, c in enumerate("\u0120bad")}), judge.config)


def test_eager_attention_gives_the_same_logits(judge, requests):
    sdpa = logits_of(judge, requests)
    judge.model.set_attn_implementation("eager")
    assert_close(logits_of(judge, requests), sdpa, atol=1e-5, rtol=0)


def test_the_pixel_cap_holds_inside_its_context_only(judge):
    clip = make_clip(4, 96, 96)
    before = judge.family.size(4, 96, 96)
    with judge.pixel_cap(2000):
        assert judge.family.size(4, 96, 96) < before
        judge.next_token_logits([describe_request(clip)])
    with judge.pixel_cap(None):
        assert judge.family.size(4, 96, 96) == before
    assert judge.family.size(4, 96, 96) == before


def test_greedy_answers_equal_those_of_whole_forwards(judge, requests):
    requests = [*requests, compare_request(*(r.clips[0] for r in requests), None)]
    suppressed, ends = (token_ids(judge.tokenizer, tokens) for tokens in (VISION_TOKENS, END_TOKENS))
    texts = judge.generate(requests, max_new_tokens=6)
    for request, branches in zip(requests, texts, strict=True):
        for branch, samples in zip(request.branches, branches, strict=True):
            inputs, written = library_inputs(judge, request, branch), []
            for _ in range(6):
                logits = judge.model(**inputs, use_cache=False).logits[0, -1]
                logits[suppressed] = -torch.inf
                if int(logits.argmax()) in ends:
                    break
                written.append(int(logits.argmax()))
                for key, value in (("input_ids", written[-1]), ("attention_mask", 1), ("mm_token_type_ids", 0)):
                    inputs[key] = torch.cat([inputs[key], inputs[key].new_tensor([[value]])], dim=1)
            assert samples == [judge.tokenizer.decode(written)]


def test_samples_differ_follow_the_seed_and_do_not_depend_on_the_batch(judge, requests):
    settings = {"max_new_tokens": 5, "temperature": 1.0, "num_samples": 3, "seed": 1}
    texts = judge.generate(requests, **settings)
    assert len(set(texts[0][0])) > 1
    assert texts == judge.generate(requests, **settings)
    assert texts[1] == judge.generate(requests[1:], **settings)[0]
    assert texts != judge.generate(requests, **{**settings, "seed": 2})
    with pytest.raises(ValueError, match="2 samples need a temperature > 0"):
        judge.generate(requests, max_new_tokens=1, num_samples=2)


def test_samples_follow_the_models_own_distribution():
    judge = build_judge()
    request = score_request(make_clip(), None, ("visual_quality",))
    probs = (logits_of(judge, [request])[0] / 0.5).softmax(-1)
    probs[token_ids(judge.tokenizer, VISION_TOKENS)] = 0
    drawn = judge.generate([request], max_new_tokens=1, temperature=0.5, num_samples=2000)[0][0]
    likeliest = int(probs.argmax())
    share = drawn.count(judge.tokenizer.decode([likeliest])) / 2000
    # three standard errors of a share of 2000
    assert abs(share - float(probs[likeliest] / probs.sum())) < 3 * (0.25 / 2000) ** 0.5


def test_vision_tokens_never_come_and_the_end_token_stops(judge, requests):
    suppressed, ends = (token_ids(judge.tokenizer, tokens) for tokens in (VISION_TOKENS, END_TOKENS))
    bias = torch.zeros(judge.model.lm_head.weight.shape[0])
    bias[suppressed] = 100.0
    handle = judge.model.lm_head.register_forward_hook(lambda *args: args[2] + bias)
    text = judge.generate(requests[:1], max_new_tokens=3)[0][0][0]
    assert not any(token in text for token in VISION_TOKENS)
    bias[ends[0]] = 99.0
    assert judge.generate(requests[:1], max_new_tokens=3)[0][0] == [""]
    handle.remove()


def test_config_survives_its_file(tmp_path):
    config = JudgeConfig.for_model(build_judge("qwen3_vl").model.config, base="org/name", revision="abc")
    config.save(tmp_path)
    assert JudgeConfig.load(tmp_path) == config
    assert (config.min_pixels, config.max_pixels) == (128 * 32 * 32, 768 * 32 * 32)


def test_peft_is_not_imported_where_no_adapter_is_used():
    program = (
        "import sys; from tests.tiny_judge import *; from reward_model.language import requests;"
        "build_judge().next_token_logits([requests.describe_request(make_clip())]);"
        "sys.exit('peft' in sys.modules or 'torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120).returncode == 0


def test_a_saved_judge_is_loaded_by_its_hub_id(judge, tmp_path, monkeypatch):
    """A hub cache made by hand stands for a repository that was downloaded before."""
    judge.add_role("generated", rank=2, alpha=4)
    repository = tmp_path / "models--someone--judge"
    snapshot = repository / "snapshots" / ("0" * 40)
    judge.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = VideoJudge.from_pretrained("someone/judge")
    assert found.roles == ("generated",) and found.config == judge.config
    request = score_request(make_clip(), "a red ball", ("overall",))
    assert_close(found.next_token_logits([request])[0], judge.next_token_logits([request])[0])


@pytest.mark.parametrize("name", ["no/such-judge", "not/a/hub/id"])
def test_a_repository_that_the_hub_does_not_give_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} is no folder, and is unavailable from the hub"):
        VideoJudge.from_pretrained(name)
