"""The comparator's refresh: it learns new pairs beside labelled ones, by likelihood and by GRPO, in both orders."""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path

import pytest
import torch

from reward_model import write_video
from reward_model.records import DIMENSIONS, RatedClip, Video, VideoPair
from reward_model.training.methods import refresh_comparator as module
from reward_model.training.methods.refresh import NoReadablePairError, PairDraws, refresh_levels
from reward_model.training.methods.refresh_comparator import REFERENCE, labelled_pairs, refresh_comparator
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge
from tests.tiny_models import speak_choices


def rated(seed: int, quality: float, prompt: str = "a red circle") -> RatedClip:
    """Return a clip of noise whose brightness tells its quality."""
    frames = quality * torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return RatedClip(Video(frames=frames, fps=8.0), prompt, dict.fromkeys(DIMENSIONS, quality), str(seed))


def comparator():
    """Return a tiny judge with a comparator and another role."""
    judge = build_judge()
    speak_choices(judge)
    torch.manual_seed(0)  # of the adapters' weights
    judge.add_role("comparator", rank=8, alpha=16)
    judge.add_role("generated", rank=2)
    return judge


ANCHORS = [rated(0, 0.9), rated(1, 0.2), rated(2, 0.3, "a dog"), rated(3, 1.0, "a dog")]
NEW = VideoPair(rated(7, 0.1).video, rated(8, 0.9).video, "a cat", {"overall": 1.0}, "new")  # against brightness


def test_neighbours_of_one_prompt_are_labelled_pairs() -> None:
    pairs = labelled_pairs([*ANCHORS, rated(4, 0.5, "a cow")])
    assert [(pair.source_id, pair.preference["overall"]) for pair in pairs] == [("0|1", 1.0), ("2|3", 0.0)]


def right(judge) -> torch.Tensor:
    """Return by how much the comparator leads to the right winner of the new and of the labelled pairs [3]."""
    view = VideoJudgeReward(judge, role="comparator")
    told = [NEW, *labelled_pairs(ANCHORS)]
    outcome = view.compare([p.first for p in told], [p.second for p in told], [p.prompt for p in told])
    return outcome.margin.nan_to_num(0) * torch.tensor([2 * p.preference["overall"] - 1 for p in told])


def moved(judge, before: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the weights that have changed."""
    after = dict(judge.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_the_comparator_alone_learns_the_new_pair_and_the_labelled_ones_by_likelihood() -> None:
    judge = comparator()
    before = {name: p.clone() for name, p in judge.named_parameters()}
    settings = {"num_steps": 60, "learning_rate": 1e-2, "batch_size": 8}
    refresh_comparator(judge, role="comparator", pairs=[NEW], anchors=ANCHORS, method="sft", **settings)  # type: ignore[arg-type]
    names = moved(judge, before)
    assert names and all(".comparator." in name for name in names)
    assert bool((right(judge) > 0.5).all())


def test_grpo_asks_both_kinds_of_pairs_and_rewards_the_right_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[str, ...], str, float]] = []
    roles: list[tuple[str, str, tuple[str, ...]]] = []

    class Steps(module.GRPOSteps):
        def micro_batches(self, prompts, step, *, seed):
            with self.reference():
                roles.append((self.role, self.judge.role_in_use, self.judge.roles))
            for prompt in prompts:
                for word in prompt.choices:
                    answer = prompt.read(f" {word}", num_tokens=1, ended=False)
                    earned = self.rewards["compare"]([answer], [prompt.label], torch.zeros(1, dtype=torch.long)).values
                    asked.append(
                        (tuple(text for text in prompt.request.prefix if isinstance(text, str)), word, float(earned))
                    )
            yield from super().micro_batches(prompts, step, seed=seed)

    monkeypatch.setattr(module, "GRPOSteps", Steps)
    judge = comparator()
    before = {name: p.clone() for name, p in judge.named_parameters()}
    settings = {"num_steps": 4, "learning_rate": 1e-3, "batch_size": 4}
    metrics = refresh_comparator(judge, role="comparator", pairs=[NEW], anchors=ANCHORS, method="grpo", **settings)  # type: ignore[arg-type]
    assert set(roles) == {("comparator", REFERENCE, ("comparator", "generated", REFERENCE))}
    assert judge.roles == ("comparator", "generated")
    names = moved(judge, before)
    assert names and all(".comparator." in name for name in names) and all(math.isfinite(v) for v in metrics.values())
    new = [(word, earned) for texts, word, earned in asked if any("a cat" in text for text in texts)]
    assert len(new) == len(asked) // 2 == 4 * 2 * 3
    # the brighter clip loses every new pair: A where it stands second, B where it stands first, each in half of the turns
    assert sorted(word for word, earned in new if earned) == ["A"] * 4 + ["B"] * 4


def test_half_of_each_batch_is_new_by_chance_and_both_orders_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    never = VideoPair(NEW.first, NEW.second, "never", {"overall": 1.0}, "never")
    seen: list[list[VideoPair]] = []
    plain = module.pair_example

    def noted(pair: VideoPair, planner: object) -> object:
        seen[-1].append(pair)
        return plain(pair, planner)  # type: ignore[arg-type]

    losses = module.example_loss

    def begin(*given: object) -> object:
        seen.append([])
        return losses(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "pair_example", noted)
    monkeypatch.setattr(module, "example_loss", begin)
    seen.append([])
    refresh_comparator(
        comparator(),
        role="comparator",
        pairs=[never, NEW],
        chances=[0.0, 1.0],
        anchors=ANCHORS,
        num_steps=6,
        learning_rate=1e-4,
        batch_size=4,
        method="sft",
    )
    for batch in filter(None, seen):
        assert [pair.prompt == "a cat" for pair in batch] == [True, True, False, False]
    firsts = {pair.preference["overall"] for batch in seen for pair in batch if pair.prompt == "a cat"}
    assert firsts == {0.0, 1.0}


@pytest.mark.parametrize(("pairs", "anchors"), [([], ANCHORS), ([NEW], ANCHORS[:1])])
def test_without_new_or_labelled_pairs_there_is_a_reason(pairs: list[VideoPair], anchors: list[RatedClip]) -> None:
    with pytest.raises(ValueError, match="needs new and labelled pairs"):
        refresh_comparator(
            comparator(),
            role="comparator",
            pairs=pairs,
            anchors=anchors,
            num_steps=1,
            learning_rate=1e-3,
            batch_size=2,
            method="sft",
        )


def test_a_refresh_that_is_stopped_leaves_no_reference_behind() -> None:
    judge = comparator()

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        refresh_comparator(
            judge,
            role="comparator",
            pairs=[NEW],
            anchors=ANCHORS,
            num_steps=3,
            learning_rate=1e-3,
            batch_size=2,
            method="grpo",
            after_step=stop,
        )
    assert judge.roles == ("comparator", "generated")


def gone(folder: Path) -> VideoPair:
    """Return a pair of files of which the second holds no video."""
    write_video(folder / "a.mp4", torch.rand(8, 3, 32, 32), fps=8.0)
    (folder / "b.mp4").write_bytes(b"none")
    return VideoPair(folder / "a.mp4", folder / "b.mp4", "gone", {"overall": 1.0}, "a|b", place="pairs.csv, line 2")


@pytest.mark.parametrize("method", ["sft", "grpo", "levels"])
def test_a_pair_whose_video_is_gone_is_named_once_and_never_learned(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    judge, bad = comparator(), gone(tmp_path)
    settings = {"num_steps": 3, "learning_rate": 1e-3, "batch_size": 4, "anchors": ANCHORS, "role": "comparator"}
    train = partial(refresh_comparator, method=method) if method != "levels" else refresh_levels
    train(judge, pairs=[bad, NEW], chances=[100.0, 1.0], **settings)  # type: ignore[operator]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["pairs.csv, line 2"]
    with pytest.raises(NoReadablePairError, match="no pair has videos that can be read"):
        train(judge, pairs=[bad], **settings)  # type: ignore[operator]
    assert REFERENCE not in judge.roles


def test_pairs_in_memory_are_drawn_as_by_their_chances_alone() -> None:
    other = VideoPair(NEW.second, NEW.first, "b", {"overall": 0.0}, "other")
    drawn = PairDraws([NEW, other], [1.0, 3.0], lambda video: pytest.fail("memory is not read"))(99, random.Random(5))
    assert drawn == random.Random(5).choices([NEW, other], weights=[1.0, 3.0], k=99)
