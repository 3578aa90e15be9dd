"""Merged roles as stock checkpoints, places that judges are read from, and weights that are refused."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.testing import assert_close

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.checkpoints.location import locate
from reward_model.judge.checkpoints.released import PARAPHRASE, RELEASED
from reward_model.judge.engine.readouts import read_levels
from reward_model.judge.exchange.merge import merge_role
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import score_request
from reward_model.language.styles import OWN, STYLES
from reward_model.media.frame_sampling import FramePolicy
from reward_model.records import DIMENSIONS
from reward_model.video_reward import VideoJudgeReward
from reward_model.weights import hub_is_away
from tests.tiny_judge import FAMILIES, build_judge, library_inputs, make_clip

SHA = "0123abcd" * 5


@pytest.fixture(params=FAMILIES)
def judge(request):
    """A judge with two roles whose weights are drawn, one of them in the vision tower and the merger as well."""
    judge = build_judge(request.param)
    judge.configure(calibration={"overall": {"mean": 0.4, "std": 0.2}}, lineage=("warm-up",), trained_on="noise")
    judge.add_role("generated", rank=4, alpha=12, targets=("text", "vision", "merger"))
    judge.add_role("natural", rank=2, alpha=2)
    generator = torch.Generator().manual_seed(0)
    for role in judge.roles:
        for parameter in judge._roles.parameters(role):
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return judge


@pytest.fixture
def question():
    return score_request(make_clip(4, 32, 48), "a dog", DIMENSIONS)


@torch.no_grad()
def logits_of(judge, question, role):
    with judge.use_role(role):
        return judge.next_token_logits([question])[0]


def test_a_merged_role_is_a_judge_with_the_levels_of_the_unmerged_one(judge, question, tmp_path):
    expected = logits_of(judge, question, "generated")
    again = VideoJudge.from_pretrained(merge_role(judge, "generated", tmp_path / "merged"), device="cpu")
    found = logits_of(again, question, None)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    left, right = (read_levels(x, judge.level_ids) for x in (found, expected))
    assert_close(left.quality, right.quality, atol=1e-5, rtol=0)
    assert (expected - logits_of(judge, question, None)).abs().max() > 0.1
    assert again.roles == () and again.config.base == "." and again.config.origin == {"role": "generated"}
    assert again.config.calibration == judge.config.calibration and again.config.lineage == ("warm-up",)
    frames = make_clip(4, 32, 48).frames[None]
    view = VideoJudgeReward.from_pretrained(tmp_path / "merged")
    given = VideoJudgeReward(judge, role="generated")(frames, "a dog", fps=8.0).level_probs["overall"]
    assert_close(view(frames, "a dog", fps=8.0).level_probs["overall"], given, atol=1e-5, rtol=0)


def test_an_adapter_of_the_merger_alone_is_merged_into_it_and_exported(question, tmp_path):
    from reward_model.evaluation.card import CardFacts
    from reward_model.evaluation.export import export_hub_folder

    for family in FAMILIES:
        judge = build_judge(family)
        judge.configure(base="base")  # exported with its own weights
        judge.add_role("generated", rank=2, alpha=4, targets=("merger",))
        for parameter in judge.role_parameters("generated"):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
        adapted, plain = logits_of(judge, question, "generated"), logits_of(judge, question, None)
        assert (adapted - plain).abs().max() > 1e-3
        merged = VideoJudge.from_pretrained(merge_role(judge, "generated", tmp_path / family), device="cpu")
        assert_close(logits_of(merged, question, None), adapted, atol=1e-5, rtol=1e-5)
        theirs, ours = merged.model.state_dict(), merge_role(judge, None, tmp_path / f"{family}-base")
        base = VideoJudge.from_pretrained(ours, device="cpu").model.state_dict()
        changed = [name for name in base if not torch.equal(base[name], theirs[name])]
        assert changed and all("merger" in name for name in changed)
        folder = export_hub_folder(judge, tmp_path / f"{family}-hub", CardFacts(name="mine", license="mit"))
        again = VideoJudge.from_pretrained(folder, device="cpu")
        assert torch.equal(logits_of(again, question, "generated"), adapted)


def test_merging_leaves_the_judge_as_it_was(judge, question, tmp_path):
    before = {role: logits_of(judge, question, role) for role in (None, *judge.roles)}
    merge_role(judge, "generated", tmp_path / "merged")
    assert all(torch.equal(logits_of(judge, question, role), value) for role, value in before.items())


def test_stock_transformers_loads_a_merged_role_and_says_the_same(judge, question, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    folder = merge_role(judge, "generated", tmp_path / "merged")
    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        for branch, expected in zip(question.branches, logits_of(judge, question, "generated"), strict=True):
            found = model(**library_inputs(judge, question, branch), use_cache=False).logits[0, -1]
            assert_close(found, expected, atol=2e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Good?"}]}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    clip = "<|vision_start|><|video_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\n{clip}Good?<|im_end|>\n<|im_start|>assistant\n"
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors", ".jinja"}
    assert "shared_prefix" not in (folder / "config.json").read_text()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen2_vl"])
@pytest.mark.parametrize("tied", [True, False])
def test_rotary_base_tied_head_and_special_tokens_are_named_for_transformers_4_as_well(family, tied, tmp_path):
    """4.57 reads the text config's own `rope_theta`, `rope_scaling` and `tie_word_embeddings`, and special tokens by their old name."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    judge = build_judge(family)
    config = judge.model.config
    config.tie_word_embeddings = tied
    if not tied:
        judge.model.lm_head.weight = torch.nn.Parameter(judge.model.lm_head.weight.detach() + 1)
    folder = merge_role(judge, None, tmp_path / "merged")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    rope = config.text_config.rope_parameters
    assert text["rope_theta"] == rope["rope_theta"] == 1e4 and text["tie_word_embeddings"] is tied
    assert text["rope_scaling"] == {key: value for key, value in rope.items() if key != "rope_theta"}
    again = AutoModelForImageTextToText.from_pretrained(folder)
    assert again.config.text_config.rope_parameters == rope and again.config.tie_word_embeddings is tied
    assert torch.equal(again.lm_head.weight, judge.model.lm_head.weight)
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    assert "<|video_pad|>" in tokens["additional_special_tokens"] and "extra_special_tokens" not in tokens
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert set(tokenizer.all_special_tokens) == set(judge.tokenizer.all_special_tokens)


def test_the_base_alone_is_written_for_no_role(judge, question, tmp_path):
    again = VideoJudge.from_pretrained(merge_role(judge, None, tmp_path / "base"), device="cpu")
    assert torch.equal(logits_of(again, question, None), logits_of(judge, question, None))
    assert again.config.origin == {}


def test_a_merged_judge_takes_a_role_again_and_comes_back_from_its_folder(judge, question, tmp_path):
    merged = VideoJudge.from_pretrained(merge_role(judge, "natural", tmp_path / "merged"), device="cpu")
    merged.add_role("refreshed", rank=2)
    for parameter in merged._roles.parameters("refreshed"):
        torch.nn.init.constant_(parameter, 0.05)
    merged.save_pretrained(tmp_path / "again")
    again = VideoJudge.from_pretrained(tmp_path / "again", device="cpu")
    assert again.config == merged.config and again.roles == ("refreshed",)
    for role in (None, "refreshed"):
        assert torch.equal(logits_of(again, question, role), logits_of(merged, question, role))


def test_a_merge_in_sixteen_bits_is_added_in_single_precision(tmp_path):
    judge = build_judge()
    judge.model.bfloat16()
    judge.add_role("generated", rank=4)
    layer = judge.model.model.language_model.layers[0].self_attn.q_proj
    for matrix in (layer.lora_A, layer.lora_B):
        torch.nn.init.normal_(matrix["generated"].weight, std=0.1)
    update = (
        layer.lora_B["generated"].weight.float() @ layer.lora_A["generated"].weight.float() * 2
    )  # alpha 32 / rank 16
    expected = (layer.base_layer.weight.float() + update * 4).bfloat16()  # rank 4
    merged = VideoJudge.from_pretrained(
        merge_role(judge, "generated", tmp_path / "m"), device="cpu", dtype=torch.bfloat16
    )
    assert torch.equal(merged.model.model.language_model.layers[0].self_attn.q_proj.weight, expected)


def test_a_base_of_the_hub_is_named_by_what_is_merged_from_it_and_a_local_one_is_not(judge, tmp_path):
    judge.configure(base="org/name", base_subfolder="sub", revision="abc")
    merge_role(judge, "natural", tmp_path / "hub")
    origin = {"base": "org/name", "base_subfolder": "sub", "revision": "abc", "role": "natural"}
    assert JudgeConfig.load(tmp_path / "hub").origin == origin
    judge.configure(base="/home/someone/model", base_subfolder="", revision=None)
    merge_role(judge, "natural", tmp_path / "local")
    assert JudgeConfig.load(tmp_path / "local").origin == {"role": "natural"}
    assert "someone" not in (tmp_path / "local" / "judge_config.json").read_text()


def test_a_merged_role_reasons_about_what_it_was_taught(judge, tmp_path):
    before = judge.config.reasoned
    judge.configure(reasoned={"": [("visual_quality",)], "natural": [("overall",)]})
    merge_role(judge, "natural", tmp_path / "merged")
    judge.configure(reasoned=before)
    assert JudgeConfig.load(tmp_path / "merged").reasoned == {"": [("overall",)]}


def test_unknown_roles_and_folders_with_files_are_refused(judge, tmp_path):
    with pytest.raises(ValueError, match="unknown role 'nobody', this judge has generated, natural"):
        merge_role(judge, "nobody", tmp_path / "merged")
    (tmp_path / "note.txt").touch()
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        merge_role(judge, "natural", tmp_path)


def test_an_adapter_that_is_more_than_plain_lora_is_not_merged(tmp_path):
    judge = build_judge()
    judge.add_role("generated", rank=2)
    next(layer for layer in judge.model.modules() if isinstance(layer, BaseTunerLayer)).lora_variant["generated"] = (
        object()
    )
    with pytest.raises(ValueError, match="role 'generated' has more than plain LoRA at .*q_proj and cannot be merged"):
        merge_role(judge, "generated", tmp_path / "merged")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_weights_in_a_pickle_are_refused_with_the_reason(name, tmp_path):
    judge = build_judge()
    judge.model.save_pretrained(tmp_path)
    judge.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}, a pickle, which can run code when read; convert it to safetensors"):
        VideoJudge.from_pretrained(tmp_path, device="cpu")


def hub(cache, monkeypatch, name):
    """Make a hub cache by hand, as it is after a download; return the folder of the snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for reference in ("main", "v1"):
        (repository / "refs" / reference).write_text(SHA)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return repository / "snapshots" / SHA


@pytest.mark.parametrize("given", [("org/name/deep/sub", ""), ("org/name", "deep/sub"), ("org/name/deep", "sub")])
def test_a_checkpoint_inside_a_repository_is_found_by_sub_folder_and_revision(given, question, tmp_path, monkeypatch):
    judge = build_judge()
    snapshot = hub(tmp_path, monkeypatch, "org/name")
    judge.model.save_pretrained(snapshot / "deep" / "sub")
    judge.tokenizer.save_pretrained(snapshot / "deep" / "sub")
    found = VideoJudge.from_pretrained(given[0], subfolder=given[1], revision="v1", device="cpu")
    config = found.config
    assert (config.base, config.base_subfolder, config.revision) == ("org/name", "deep/sub", SHA)
    found.add_role("generated", rank=2)
    found.save_pretrained(tmp_path / "saved")
    again = VideoJudge.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.config == config and again.roles == ("generated",)
    assert torch.equal(logits_of(again, question, None), logits_of(found, question, None))


def test_a_saved_judge_inside_a_repository_is_read_with_its_roles(tmp_path, monkeypatch):
    judge = build_judge()
    judge.add_role("generated", rank=2)
    snapshot, asked = hub(tmp_path, monkeypatch, "org/judges"), {}
    judge.save_pretrained(snapshot / "small")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *name, **rest: asked.update(rest) or str(snapshot))
    found = VideoJudge.from_pretrained("org/judges", subfolder="small", revision="v1", device="cpu")
    patterns = ["small/*.json", "small/*.safetensors", "small/*.jinja", "small/*.txt"]
    assert asked == {"revision": "v1", "allow_patterns": patterns, "local_files_only": hub_is_away()}
    assert found.roles == ("generated",) and found.config == judge.config


def test_a_folder_has_no_revision_and_a_missing_one_is_no_repository(tmp_path):
    with pytest.raises(ValueError, match="revision 'v1' is for hub repositories"):
        locate(tmp_path, revision="v1")
    assert locate(tmp_path).folder == tmp_path
    with pytest.raises(ValueError, match="/a/b' is neither a folder nor a hub id"):
        locate(tmp_path / "a" / "b")


def test_a_config_of_an_unknown_style_or_wording_is_refused():
    judge = build_judge()
    with pytest.raises(ValueError, match="prompt_style must be one of own, .*, got 'hers'"):
        judge.configure(prompt_style="hers")
    with pytest.raises(ValueError, match="wording replaces texts of other styles than 'own'"):
        judge.configure(prompt_style="own", wording={"question": "Good?"})


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_judge_is_known_by_its_folder_and_warns_that_it_knows_no_levels(name, tmp_path, monkeypatch):
    judge = build_judge()
    snapshot = hub(tmp_path, monkeypatch, "ByteDance/Q-Insight")
    judge.model.save_pretrained(snapshot / name)
    judge.tokenizer.save_pretrained(snapshot / name)
    with pytest.warns(UserWarning, match=f"{name} was trained on .* and never on level words"):
        found = VideoJudge.from_pretrained(f"ByteDance/Q-Insight/{name}", device="cpu")
    assert found.roles == () and found.config.position_rule == "mrope_two_fps_then_maximum"
    plain = STYLES[found.config.prompt_style]
    assert found.style == replace(plain, wording=replace(plain.wording, source=PARAPHRASE))
    assert found.config.prompt_style != OWN
    assert FramePolicy.from_dict(found.config.frame_policy).num_frames in (1, 8)
    found.configure(wording={"system": "Judge."})
    found.save_pretrained(tmp_path / "saved")
    with pytest.warns(UserWarning, match="never on level words"):
        again = VideoJudge.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.config == found.config and again.style == found.style


def test_a_stock_checkpoint_of_another_folder_or_family_is_asked_in_this_projects_way(tmp_path):
    for family, name in (("qwen2_5_vl", "checkpoint"), ("qwen3_vl", "vqinsight-comp")):
        judge = build_judge(family)
        judge.model.save_pretrained(tmp_path / name)
        judge.tokenizer.save_pretrained(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = VideoJudge.from_pretrained(tmp_path / name, device="cpu")
        assert found.config.prompt_style == OWN and "then_longer_side" in found.config.position_rule


def test_a_released_answer_is_written_and_read_in_its_own_form(tmp_path):
    """The random model's answer is replaced by one in the released form, token by token."""
    judge = build_judge()
    judge.configure(prompt_style="vq_insight_natural")
    answer = judge.tokenizer.encode("<think>x</think><answer>75</answer><|im_end|>")
    written = iter(answer)
    bias = torch.zeros(judge.model.lm_head.weight.shape[0])
    judge.model.lm_head.register_forward_hook(
        lambda *args: args[2] + bias.index_fill(0, torch.tensor(next(written)), 1e4)
    )
    request = judge.style.reason_request(make_clip(), None, ["visual_quality"])
    (text,) = judge.generate([request], max_new_tokens=100)[0][0]
    found = judge.style.parse_reason(text, ("visual_quality",))
    assert found.quality == {"visual_quality": 0.75, "overall": 0.75} and found.reasoning == "x"
