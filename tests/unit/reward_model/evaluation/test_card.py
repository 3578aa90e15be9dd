"""Model cards and hub folders: what a card says, that its lines load, and what reaches the hub."""

import argparse
import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from reward_model.commands import export as command
from reward_model.evaluation import export, stock
from reward_model.evaluation.card import CardFacts, base_of, model_card, read_tables, write_card
from reward_model.evaluation.stock import why_not_stock
from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.exchange.merge import merge_role
from reward_model.judge.exchange.servers import score_change
from reward_model.judge.families.qwen2_5_vl import RELEASED_RULE
from reward_model.judge.model import VideoJudge
from reward_model.media.frame_sampling import FramePolicy, plan_frames
from reward_model.video_reward import TOY_JUDGE
from tests.tiny_judge import build_judge

ROW = {"dimension": "overall", "num_clips": 20, "coverage": 1.0, "srcc": 0.91234, "krcc": None}
STAGES = {
    "00-see": {"stage": {"name": "see", "role": None}, "metrics": {"step": 100, "loss": 1.0, "srcc_overall": 0.8125}},
    "01-compare": {"stage": {"name": "compare", "role": "comparator"}, "metrics": {"step": 50}},
}


class StubApi:
    """Notes what would be sent."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, folder_path, commit_message))
        return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")


@pytest.fixture(scope="module")
def judge():
    judge = build_judge()
    judge.configure(
        calibration={"overall": {"mean": 0.41526, "std": 0.25}},
        trained_on="noise",
        trained_range={"fps": [8.0, 8.0], "frames": [4, 9]},
        lineage=("see", "compare"),
    )
    judge.add_role("generated", rank=2)
    judge.add_role("comparator", rank=2)
    return judge


def run(*words, judge="toy", json=False):
    """Run the command as the program does, which adds the options of the judge itself."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([str(word) for word in words])
    args.judge, args.device, args.json = str(judge), None, json
    return command.run(args, None)


def test_a_card_names_roles_constants_range_stages_and_tables(judge):
    facts = CardFacts(
        name="me/judge", license="apache-2.0", tables={"level readout": [ROW]}, stages=STAGES, notes="By me."
    )
    card = model_card(judge.config, judge.roles, facts)
    for line in (
        "license: apache-2.0",
        "library_name: video-judge",
        "# me/judge",
        "Its roles are LoRA adapters: `generated`, `comparator`.",
        'judge = VideoJudgeReward.from_pretrained("me/judge")',
        "| overall | 0.4153 | 0.2500 |",
        "| text_alignment | - | - |",
        "Trained on: noise.",
        "Range of its clips: 8 frames a second, 4 to 9 frames.",
        "| 00-see | base | 100 | srcc overall 0.812 |",
        "| 01-compare | role `comparator` | 50 | - |",
        "### Level readout",
        "| dimension | num clips | coverage | srcc | krcc |",
        "| overall | 20 | 1.000 | 0.912 | - |",
        "By me.",
        "## Limits",
    ):
        assert line in card.splitlines(), line
    assert card.startswith("---\n") and "base_model" not in card


def test_the_front_matter_is_yaml_that_names_base_and_relation(judge):
    from omegaconf import OmegaConf

    judge_of = {"base": "Qwen/Qwen2.5-VL-7B-Instruct", "revision": "abc"}
    config = JudgeConfig.for_model(judge.model.config, **judge_of)
    for roles, relation in (((), "finetune"), (("generated",), "adapter")):
        front = model_card(config, roles, CardFacts(name="x")).split("---\n")[1]
        found = OmegaConf.to_container(OmegaConf.create(front))
        assert (found["base_model"], found["base_model_relation"]) == ("Qwen/Qwen2.5-VL-7B-Instruct", relation)
        assert "license" not in found and found["pipeline_tag"] == "video-text-to-text"
    assert "made from Qwen/Qwen2.5-VL-7B-Instruct at abc" in model_card(config, (), CardFacts(name="x"))


def test_what_is_not_known_is_not_made_up(judge):
    card = model_card(JudgeConfig.for_model(judge.model.config), (), CardFacts(name="x"))
    assert "Trained on: not recorded." in card and "The range of its clips is not recorded." in card
    assert "Agreement" not in card and "| stage |" not in card


def test_a_merged_judges_card_loads_it_by_stock_transformers_and_keeps_the_base(judge, tmp_path):
    merge_role(judge, "generated", tmp_path / "merged")
    card = write_card(tmp_path / "merged", CardFacts(name="me/merged")).read_text()
    assert "library_name: transformers" in card and "It is the role `generated`, merged into the base" in card
    assert 'AutoModelForImageTextToText.from_pretrained("me/merged", dtype=torch.float32)' in card
    for line in (
        'if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 23):',
        'levels = {" bad": 0.0, " poor": 0.25, " fair": 0.5, " good": 0.75, " excellent": 1.0}',
        "The scores of this judge belong to the positions `mrope_sampled_seconds_then_longer_side`.",
        "| height x width | positions are equal for clips at 8 Hz of |",
        "Where they differ, scores do; by how much was not measured.",
    ):
        assert line in card.splitlines(), line
    assert "Prompt: {prompt}\\nText alignment?<|im_end|>\\n<|im_start|>assistant\\nRating:" in card
    origin = {"base": "org/name", "revision": "abc"}
    config = JudgeConfig.for_model(judge.model.config, base=".", origin=origin, position_rule=RELEASED_RULE)
    assert base_of(config) == ("org/name", "abc")
    other = model_card(config, (), CardFacts(name="x"))
    assert "The positions of these servers were not compared with them." in other
    assert "trained with the positions `mrope_two_fps_then_maximum`, which stock transformers does not have" in other


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt_style": "q_insight"}, "asked in the style `q_insight`, which has no level words"),
        ({"motion": {"feature_size": 3}}, "shown features of a motion encoder"),
        ({"frame_policy": {"mode": "slowfast"}}, "shown slow and fast frames at two sizes"),
        ({"base": "org/name"}, "it is no merged checkpoint"),
    ],
)
def test_a_judge_that_stock_transformers_cannot_score_with_has_no_lines_but_the_reason(judge, changes, reason):
    config = JudgeConfig.for_model(judge.model.config, **{"base": ".", **changes})
    assert reason in why_not_stock(config)
    card = model_card(config, (), CardFacts(name="x"))
    assert "def score(" not in card and (config.base == "org/name" or reason in card)


def test_the_lines_choose_the_frames_of_the_policy():
    modes = [{"mode": "all", "max_frames": 9}, {"mode": "uniform", "num_frames": 5}]
    modes += [{"mode": "fps", "fps": rate, "min_frames": 3, "max_frames": 12} for rate in (1.0, 2.0, 3.3)]
    for mode in modes:
        policy = FramePolicy.from_dict(mode)
        for total, fps in itertools.product((1, 2, 5, 24, 47, 48, 240), (3.0, 8.0, 24.0)):
            count = eval(stock._count(mode), {"total": total, "fps": fps})
            assert count == len(plan_frames(total, fps, policy).indices), (mode, total, fps)


def test_an_exported_role_says_how_far_servers_change_its_scores(tmp_path, capsys):
    with pytest.warns(UserWarning, match="vLLM and SGLang have other positions than `mrope_seconds_then_longer_side`"):
        assert run(tmp_path / "merged", "--merge", "generated") == 0
    change = score_change(VideoJudge.from_pretrained(TOY_JUDGE, device="cpu"), "generated")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"changes them by {change.mean:.3f} in the mean and {change.most:.3f} at most" in card
    assert "| 224 x 224 | less than 0.625 s |" in card and "vLLM" not in command.EXAMPLES.split("\n\n")[0]


def test_a_role_that_is_not_the_default_is_named_where_it_is_loaded(judge):
    card = model_card(judge.config, ("comparator",), CardFacts(name="x"))
    assert 'VideoJudgeReward.from_pretrained("x", role="comparator")' in card


def test_an_exported_folder_is_the_judge_and_its_card(judge, tmp_path):
    export.export_hub_folder(judge, tmp_path / "hub", CardFacts(name="me/judge"))
    again = VideoJudge.from_pretrained(tmp_path / "hub", device="cpu")
    assert again.config == judge.config and set(again.roles) == set(judge.roles)
    assert (tmp_path / "hub" / "README.md").read_text().splitlines()[-1].startswith("- ")


def test_a_base_that_only_this_machine_has_is_refused_until_its_hub_id_is_given(tmp_path):
    stock = build_judge()
    stock.model.save_pretrained(tmp_path / "stock")
    stock.tokenizer.save_pretrained(tmp_path / "stock")
    judge = VideoJudge.from_pretrained(tmp_path / "stock", device="cpu")
    with pytest.raises(ValueError, match="is a folder of this machine; name its hub id with base_id, or merge a role"):
        export.export_hub_folder(judge, tmp_path / "hub", CardFacts(name="x"))
    assert not (tmp_path / "hub").exists()
    export.export_hub_folder(judge, tmp_path / "hub", CardFacts(name="x"), base_id="org/name", base_revision="abc")
    config = JudgeConfig.load(tmp_path / "hub")
    assert (config.base, config.revision) == ("org/name", "abc")
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "hub").glob("*.[jm][sd]*"))


def test_an_id_for_a_base_that_is_saved_along_is_refused(judge, tmp_path):
    with pytest.raises(ValueError, match="'org/name' would not be read; leave base_id out"):
        export.export_hub_folder(judge, tmp_path, CardFacts(name="x"), base_id="org/name")


def test_tables_are_read_from_one_table_or_from_several_by_title(tmp_path):
    one, many, none = (tmp_path / f"{name}.json" for name in ("held_out", "many", "none"))
    one.write_text(json.dumps({"rows": [ROW], "parse_rate": None}))
    many.write_text(json.dumps({"level": {"rows": [ROW]}, "attributes": {"shape": {"right": 1}}, "seed": 1}))
    none.write_text(json.dumps({"seed": 1}))
    assert read_tables(one) == {"held out": [ROW]}
    assert read_tables(many) == {"level": [ROW]}
    with pytest.raises(ValueError, match="none.json holds no table with rows"):
        read_tables(none)


def test_the_embedded_judge_has_a_card_from_its_provenance_and_the_tables_of_the_docs(tmp_path, capsys):
    words = ["--tables", "docs/toy_judge.json", "--license", "apache-2.0", "--name", "me/toy"]
    assert run(tmp_path / "toy", *words) == 0
    card = (tmp_path / "toy" / "README.md").read_text()
    stages = json.loads((TOY_JUDGE / "provenance.json").read_text())["stages"]
    assert all(f"| {name} | " in card for name in stages)
    for title in ("Level readout", "Named faults", "Comparator"):
        assert f"### {title}" in card
    assert capsys.readouterr().out == f"{tmp_path / 'toy'}\n"


def test_a_role_is_merged_in_the_named_precision_and_pushed_to_a_private_repository(
    judge, tmp_path, capsys, monkeypatch
):
    judge.save_pretrained(tmp_path / "judge")
    api, out = StubApi(), tmp_path / "out"
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    words = [
        "--merge",
        "generated",
        "--dtype",
        "bfloat16",
        "--push",
        "me/judge",
        "--private",
    ]
    assert run(out, *words, judge=tmp_path / "judge") == 0
    assert api.calls == [("create", "me/judge", True, True), ("upload", "me/judge", str(out), "Upload judge")]
    assert capsys.readouterr().out == f"{out}\nhttps://hub.example/me/judge/commit/1\n"
    assert VideoJudge.from_pretrained(out, device="cpu", dtype="auto").roles == ()
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert "# me/judge" in (out / "README.md").read_text()


def test_a_folder_without_a_card_is_not_pushed(tmp_path):
    api = StubApi()
    with pytest.raises(ValueError, match="has no README.md; export_hub_folder writes one"):
        export.push_to_hub(tmp_path, "me/judge", api=api)
    assert api.calls == []


def test_without_a_stub_the_hub_client_is_used(judge, tmp_path, monkeypatch):
    api = StubApi()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    (tmp_path / "README.md").touch()
    assert export.push_to_hub(tmp_path, "me/judge") == "https://hub.example/me/judge/commit/1"
    assert api.calls[0] == ("create", "me/judge", False, True)


def test_the_base_alone_is_exported_by_the_word_base(judge, tmp_path, capsys):
    judge.save_pretrained(tmp_path / "judge")
    run(tmp_path / "out", "--merge", "base", judge=tmp_path / "judge", json=True)
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "out")}
    found = VideoJudge.from_pretrained(tmp_path / "out", device="cpu")
    weight = judge.model.model.language_model.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(found.model.model.language_model.layers[0].self_attn.q_proj.weight, weight)


def test_stages_are_those_of_the_file_that_is_named_and_none_where_the_judge_has_none(judge, tmp_path):
    judge.save_pretrained(tmp_path / "judge")
    (tmp_path / "mine.json").write_text(json.dumps({"stages": STAGES}))
    run(tmp_path / "with", "--provenance", tmp_path / "mine.json", judge=tmp_path / "judge")
    run(tmp_path / "without", judge=tmp_path / "judge")
    assert "| 00-see | base | 100 |" in (tmp_path / "with" / "README.md").read_text()
    assert "Stages, oldest first: see, compare." in (tmp_path / "without" / "README.md").read_text()
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "x", "--provenance", tmp_path / "nothing.json", judge=tmp_path / "judge")
