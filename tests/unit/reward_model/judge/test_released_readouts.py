"""Released judges through VideoJudgeReward: their answers become scores, their letters preferences."""

import math

import pytest
import torch

from reward_model.judge.model import VideoJudge
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge

pytestmark = pytest.mark.filterwarnings("ignore:.*never on level words")


def released(tmp_path, name, answers=()):
    judge = build_judge()
    judge.model.save_pretrained(tmp_path / name)
    judge.tokenizer.save_pretrained(tmp_path / name)
    reward = VideoJudgeReward.from_pretrained(tmp_path, subfolder=name, device="cpu")
    assert isinstance(reward.judge, VideoJudge)
    reward.judge.configure(min_pixels=1024, max_pixels=1024, frame_policy={"mode": "all", "max_frames": 4})
    if answers:
        reward.judge.generate = lambda requests, **_: [[[answer]] for _, answer in zip(requests, answers, strict=True)]
    return reward


def clips(num):
    return torch.rand(num, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_three_scores_of_a_hundred_become_qualities_and_their_mean_is_overall(tmp_path):
    good = '<think>x</think><answer>{"spatial": 40, "temporal": 20, "consistency": 90}</answer>'
    reward = released(tmp_path, "vqinsight-aigcvideo", (good, "<answer>40</answer>"))
    out = reward(clips(2), "a dog", fps=8.0, readout="reason")
    found = {name: values[0].item() for name, values in out.scores.items()}
    expected = {"visual_quality": 0.4, "motion_quality": 0.2, "text_alignment": 0.9, "overall": 0.5}
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    assert out.rewards[1].isnan() and "not a number for each of spatial" in out.reasons["overall"][1]


def test_one_number_for_natural_video_needs_no_prompt(tmp_path):
    reward = released(tmp_path, "vqinsight-naturalvideo", ("<think>x</think><answer>75</answer>",))
    out = reward(clips(1), fps=8.0, readout="reason")
    assert out.rewards.tolist() == [0.75] and out.overall_from == [("visual_quality",)]


def test_the_comparator_reads_the_letter_behind_the_answers_beginning(tmp_path):
    reward = released(tmp_path, "vqinsight-comp")
    plain = reward.judge.next_token_logits
    lift = torch.zeros(reward.judge.model.lm_head.weight.shape[0])
    lift[list(reward.judge.preference_ids)] = torch.tensor([50.0, 50.0, 0.0])
    asked = []

    def lifted(requests, **options):
        asked.extend(request.branches[0] for request in requests)
        return [logits + lift for logits in plain(requests, **options)]

    reward.judge.next_token_logits = lifted
    found = reward.compare(clips(1), clips(1).flip(1), fps=8.0)
    assert found.valid.all() and math.isclose(found.p_tie.item(), 0.0, abs_tol=1e-6)
    assert len(asked) == 2 and all(branch.endswith("<answer>Video") for branch in asked)
    with pytest.raises(ValueError, match="trained to compare, not to score"):
        reward(clips(1), "a dog", fps=8.0, readout="reason")


def test_a_score_head_answers_videoaligns_call_by_its_own_constants(tmp_path):
    from reward_model.judge.modules.score_head import HeadConfig, ScoreHead
    from reward_model.media.video_io import write_video

    reward = VideoJudgeReward(build_judge())
    tokens = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
    reward.judge.tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    reward.judge.model.resize_token_embeddings(len(reward.judge.tokenizer), mean_resizing=False)
    settings = HeadConfig(
        template="Look. <|VQ_reward|> <|MQ_reward|> {text_prompt} <|TA_reward|>",
        tokens=tokens,
        dimensions=("visual_quality", "motion_quality", "text_alignment"),
        mean=(1.0, 2.0, 3.0),
        std=(1.0, 2.0, 4.0),
    )
    reward.judge.head = ScoreHead(torch.ones(1, 64), settings, reward.judge.tokenizer)
    write_video(tmp_path / "a.mp4", clips(1)[0], 8.0)
    (tmp_path / "b.mp4").write_text("no video")
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    (raw, missing), (norm, _) = (reward.reward(paths, ["a dog"] * 2, use_norm=use) for use in (False, True))
    assert all(math.isnan(value) for value in missing.values())
    for key, mean, std in (("VQ", 1.0, 1.0), ("MQ", 2.0, 2.0), ("TA", 3.0, 4.0)):
        assert norm[key] == pytest.approx((raw[key] - mean) / std, abs=1e-5)
    assert raw["Overall"] == pytest.approx(raw["VQ"] + raw["MQ"] + raw["TA"])
