"""Each source of pairs: which clip it prefers, of which prompt, and that processes and restarts change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generator_loop.real_clips import FIRST_ID, RealClips
from generator_loop.records import Draw, Prompt, Rollout, Scored
from generator_loop.refresh import PAIR_SOURCES, pair_source_configs
from generator_loop.refresh.base import Candidate
from generator_loop.refresh.clean_beats_distorted import CleanBeatsDistorted, CleanBeatsDistortedConfig
from generator_loop.refresh.preferences import Preferences, PreferencesConfig
from generator_loop.refresh.real_beats_generated import RealBeatsGenerated, RealBeatsGeneratedConfig
from generator_loop.refresh.simulated_rater import (
    SimulatedRater,
    SimulatedRaterConfig,
    disagreement,
    sibling_margins,
)
from reward_model import write_video
from tests.plain_rollouts import PROMPTS, drawn, scored
from tests.unit.generator_loop.refresh.test_pairs import tools

FIRST, SECOND = PROMPTS


def candidate(place: int, prompt: Prompt, values: Sequence[float], rewards: Sequence[float] = ()) -> Candidate:
    """Return plain clips [G, 3, 3, 16, 16] of given brightness."""
    frames = torch.tensor(values).view(-1, 1, 1, 1, 1).expand(-1, 3, 3, 16, 16)
    return Candidate(place, prompt, frames, torch.tensor(list(rewards or values)))


def mean(video: Any) -> float:
    """Return a clip's brightness."""
    return round(float(video.frames.mean()), 4)


def quality(frames: Tensor, prompt: str) -> float:
    """Return an oracle's score: the brightness."""
    return float(frames.mean())


def test_every_source_is_registered_under_the_name_of_its_config() -> None:
    for name, config in pair_source_configs().items():
        given = {"path": "a.csv"} if name == "preferences" else {}
        assert config(**given).name == name and PAIR_SOURCES[name].config_class is config
        with pytest.raises(ValueError, match="weight must be > 0"):
            config(**given, weight=0.0)


# real beats generated


def test_a_rendered_clip_passes_through_the_autoencoder_and_beats_a_generated_clip_of_its_prompt() -> None:
    def render(prompts: Sequence[Prompt], draw: Draw) -> Tensor:
        assert list(prompts) == [FIRST, SECOND]
        return torch.tensor([0.9, 0.7]).view(-1, 1, 1, 1, 1).expand(-1, 3, 3, 4, 4)

    source = RealBeatsGenerated(RealBeatsGeneratedConfig())
    halved = tools(render=render, decode=lambda latents: (latents / 2).expand(-1, 3, 3, 4, 4))
    pairs = source.pairs([candidate(4, FIRST, [0.1, 0.1]), candidate(5, SECOND, [0.2, 0.2])], halved)
    assert [(place, mean(pair.first), mean(pair.second), pair.prompt) for place, pair in pairs] == [
        (4, 0.45, 0.1, FIRST.text),
        (5, 0.35, 0.2, SECOND.text),
    ]


def test_any_sibling_may_be_the_generated_one() -> None:
    render = lambda prompts, draw: torch.ones(len(prompts), 3, 3, 4, 4)  # noqa: E731
    many = [candidate(n, Prompt(n, "x"), [0.1, 0.2, 0.3]) for n in range(40)]
    pairs = RealBeatsGenerated(RealBeatsGeneratedConfig()).pairs(many, tools(render=render))
    assert {mean(pair.second) for _, pair in pairs} == {0.1, 0.2, 0.3}


def test_real_clips_of_a_file_beat_clips_that_are_drawn_for_their_captions(tmp_path: Path) -> None:
    for name, value in (("a", 0.25), ("b", 0.75)):
        write_video(tmp_path / f"{name}.mp4", torch.full((8, 3, 32, 48), value), fps=8.0)
    (tmp_path / "broken.mp4").write_bytes(b"none")
    (tmp_path / "clips.csv").write_text("video,prompt\na.mp4,a grey wall\nbroken.mp4,nothing\nb.mp4,a white wall\n")
    asked: list[str] = []

    def sample(prompts: Sequence[Prompt]) -> tuple[Rollout, Scored]:
        asked.extend(prompt.text for prompt in prompts)
        assert all(prompt.prompt_id >= FIRST_ID for prompt in prompts)
        samples = dataclasses.replace(drawn([0.4, 0.4, 0.4, 0.4]), prompts=tuple(prompts))
        return samples, scored([0.5, 0.5, 0.5, 0.5])

    source = RealBeatsGenerated(RealBeatsGeneratedConfig(path=str(tmp_path / "clips.csv")))
    pairs = source.pairs([candidate(0, FIRST, [0.9])], tools(sample))
    assert sorted(asked) == ["a grey wall", "a white wall"]
    for (_, pair), text in zip(pairs, asked, strict=True):
        assert pair.prompt == text and mean(pair.second) == 0.4
        assert mean(pair.first) == pytest.approx(0.25 if text == "a grey wall" else 0.75, abs=0.02)


def test_a_list_whose_captions_hold_a_bare_comma_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text('video,prompt\na.mp4,"a cat, sitting"\nb.mp4,a dog, running\n')
    with pytest.raises(ValueError, match=r"clips\.csv, line 3: 1 more cells than the header"):
        RealClips(tmp_path / "clips.csv")


def test_a_list_of_which_no_clip_can_be_read_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"none")
    write_video(tmp_path / "short.mp4", torch.full((4, 3, 32, 48), 0.5), fps=8.0)
    (tmp_path / "broken.csv").write_text("video,prompt\nbroken.mp4,x\ngone.mp4,y\n")
    with pytest.raises(ValueError, match="none of its 2 clips can be read"):
        RealBeatsGenerated(RealBeatsGeneratedConfig(path=str(tmp_path / "broken.csv")))
    (tmp_path / "short.csv").write_text("video,prompt\nbroken.mp4,x\nshort.mp4,y\n")
    RealBeatsGenerated(RealBeatsGeneratedConfig(path=str(tmp_path / "short.csv")))
    with pytest.raises(ValueError, match="none of its 2 clips can be read with 5 frames at 8 Hz"):
        RealClips(tmp_path / "short.csv").refuse_unusable(size=(5, 16, 16), fps=8.0)


def test_a_list_without_captions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("video,prompt\na.mp4,\n")
    with pytest.raises(ValueError, match=r"clips\.csv: entry 1 needs a video and a prompt"):
        RealClips(tmp_path / "clips.csv")


def test_a_real_clip_is_cut_to_the_middle_in_the_generators_rate_and_size(tmp_path: Path) -> None:
    frames = torch.zeros(24, 3, 32, 96)
    frames[..., 32:64] = torch.linspace(0.2, 0.8, 24).view(-1, 1, 1, 1)  # the middle brightens
    write_video(tmp_path / "a.mp4", frames, fps=24.0)
    (tmp_path / "clips.csv").write_text("video,prompt\na.mp4,x\n")
    clips = RealClips(tmp_path / "clips.csv")
    read = clips.read(tmp_path / "a.mp4", size=(5, 16, 16), fps=8.0)
    assert read is not None and read.shape == (5, 3, 16, 16)
    expected = [0.2 + 0.6 * index * 3 / 23 for index in range(5)]
    assert [float(frame[..., 6:10].mean()) for frame in read] == pytest.approx(expected, abs=0.03)
    assert clips.read(tmp_path / "a.mp4", size=(9, 16, 16), fps=8.0) is None  # one second holds eight


def test_a_choice_of_real_clips_depends_on_the_draw_alone(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("video,prompt\n" + "".join(f"{n}.mp4,{n}\n" for n in range(50)))
    clips = RealClips(tmp_path / "c.csv")
    first, again, other = (clips.choose(10, Draw(seed=0, step=step)) for step in (1, 1, 2))
    assert first == again != other and len({prompt.prompt_id for prompt, _ in first}) == 10
    assert len(clips.choose(99, Draw(seed=0, step=1))) == 50


# clean beats distorted


def test_a_clip_beats_its_own_damaged_copy() -> None:
    source = CleanBeatsDistorted(CleanBeatsDistortedConfig(defects=("darken",), min_severity=2.0, max_severity=2.0))
    ((place, pair),) = source.pairs([candidate(3, FIRST, [0.5, 0.5])], tools())
    assert place == 3 and mean(pair.first) == 0.5 and mean(pair.second) == pytest.approx(0.3)  # 40 % of the light away
    assert pair.source_id == "clean beats darken: prompt 7"


@pytest.mark.parametrize("defect", ["freeze", "stutter"])
def test_damage_that_changes_nothing_makes_no_pair(defect: str) -> None:
    source = CleanBeatsDistorted(CleanBeatsDistortedConfig(defects=(defect,)))
    assert source.pairs([candidate(0, FIRST, [0.5, 0.5])], tools()) == []  # nothing moves


def test_kinds_and_severities_of_damage_vary_between_prompts_within_their_range() -> None:
    source = CleanBeatsDistorted(
        CleanBeatsDistortedConfig(defects=("darken", "brighten"), min_severity=1.0, max_severity=3.0)
    )
    many = [candidate(n, Prompt(n, "x"), [0.5]) for n in range(60)]
    changes = [mean(pair.second) - 0.5 for _, pair in source.pairs(many, tools())]
    darker = [-change / 0.5 for change in changes if change < 0]
    assert 10 < len(darker) < 50 and min(darker) >= 0.2 - 1e-3 and max(darker) <= 0.6 + 1e-3
    assert max(darker) - min(darker) > 0.2
    assert [mean(pair.second) - 0.5 for _, pair in source.pairs(many, tools())] == changes


def test_an_unknown_kind_of_damage_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="defect must be one of"):
        CleanBeatsDistorted(CleanBeatsDistortedConfig(defects=("darken", "rust")))


@pytest.mark.parametrize(
    "settings", [{"min_severity": 0.0}, {"min_severity": 3.0, "max_severity": 2.0}, {"defects": ()}]
)
def test_damage_that_cannot_be_seen_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"severity must rise|at least one kind"):
        CleanBeatsDistortedConfig(**settings)


# preferences


def test_labelled_pairs_of_a_file_are_read_anew_at_each_refresh(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("path_A,path_B,prompt,Overall\na.mp4,b.mp4,x,A\nc.mp4,d.mp4,y,same\ne.mp4,f.mp4,z,\n")
    source = Preferences(PreferencesConfig(path=str(path)))
    pairs = source.pairs([], tools())
    assert [(place, pair.prompt, pair.preference["overall"]) for place, pair in pairs] == [(0, "x", 1.0), (1, "y", 0.5)]
    path.write_text(path.read_text() + "g.mp4,h.mp4,w,B\n")
    assert [pair.prompt for _, pair in source.pairs([], tools())] == ["x", "y", "w"]
    assert source.pairs([], tools(rank=1, num_ranks=2)) == []  # the first process reads for all


def test_a_file_of_pairs_that_breaks_during_a_run_costs_its_broken_lines_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pairs.jsonl"
    line = '{"path_A": "a.mp4", "path_B": "b.mp4", "prompt": "x", "Overall": "A"}\n'
    path.write_text(line)
    source = Preferences(PreferencesConfig(path=str(path)))
    path.write_text(line + line.replace('"A"', '"C"') + line[:30])
    assert len(source.pairs([], tools())) == 1
    assert "line 2: " in caplog.text and "line 3: " in caplog.text
    for content in (b"", b"\xff\xfe"):
        path.write_bytes(content)
        assert source.pairs([], tools()) == []
    path.unlink()
    assert source.pairs([], tools()) == [] and "goes without labelled pairs" in caplog.text


def test_a_file_of_pairs_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        Preferences(PreferencesConfig(path=str(tmp_path / "none.csv")))


# simulated rater


def rater(**settings: Any) -> SimulatedRater:
    """Return a rater who makes no error."""
    return SimulatedRater(SimulatedRaterConfig(**settings))


def test_the_rater_prefers_what_the_oracle_prefers() -> None:
    pairs = rater(num_labels=99).pairs([candidate(0, FIRST, [0.3, 0.9, 0.1])], tools(oracle=quality))
    assert sorted((mean(pair.first), mean(pair.second)) for _, pair in pairs) == [(0.3, 0.1), (0.9, 0.1), (0.9, 0.3)]


def test_the_rater_errs_at_the_stated_rate_whatever_the_processes() -> None:
    many = [candidate(n, Prompt(n, "x"), [n / 100, n / 100 + 0.004]) for n in range(99)]
    wrong = rater(num_labels=99, error_rate=0.2).pairs(many, tools(oracle=quality))
    share = sum(float(pair.first.frames.mean()) < float(pair.second.frames.mean()) for _, pair in wrong) / 99  # type: ignore[union-attr]
    assert 0.08 < share < 0.35  # five deviations of a binomial around .2


def test_one_judge_shows_its_hardest_pairs_first() -> None:
    asked = candidate(0, FIRST, [0.1, 0.2, 0.3], rewards=[0.0, 1.0, 1.1])
    ((_, pair),) = rater(num_labels=1).pairs([asked], tools(oracle=quality))
    assert (mean(pair.first), mean(pair.second)) == (0.3, 0.2)


def test_two_judges_show_the_pairs_on_which_they_disagree() -> None:
    one = candidate(0, FIRST, [0.1, 0.2, 0.3], rewards=[0.0, 1.0, 2.0])
    scores = {"current": one.rewards[None], "audit": torch.tensor([[0.0, 2.0, 1.0]])}
    ((_, pair),) = rater(num_labels=1).pairs([one], tools(oracle=quality, scores=lambda candidates: scores))
    assert (mean(pair.first), mean(pair.second)) == (0.3, 0.2)  # the siblings that they order differently


def test_disagreement_is_the_variance_of_margins_in_each_judges_own_unit() -> None:
    # root mean squares 5 / sqrt(2) and 50 / sqrt(2): scaled margins differ in sign for the second pair only
    values = disagreement({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([30.0, -40.0])})
    assert values.tolist() == pytest.approx([0.0, (4 * 2**0.5 / 5) ** 2])
    assert disagreement({"a": torch.tensor([0.5, -2.0, float("nan")])}).tolist() == pytest.approx(
        [-0.5 / (4.25 / 2) ** 0.5, -2.0 / (4.25 / 2) ** 0.5, -float("inf")]
    )
    assert sibling_margins(torch.tensor([1.0, 3.0, 6.0])).tolist() == [-2.0, -5.0, -3.0]


@pytest.mark.parametrize(("choose", "number"), [("disagreement", 1), ("random", 1), ("random", 2)])
def test_the_budget_is_that_of_all_processes_and_goes_to_the_best_offers(choose: str, number: int) -> None:
    easy, hard = (
        candidate(0, FIRST, [0.1, 0.9], rewards=[0.0, 5.0]),
        candidate(1, SECOND, [0.1, 0.2], rewards=[0.0, 0.1]),
    )
    ask, offers = rater(num_labels=number, choose=choose), list[Any]()
    for own in ([easy], [hard], []):
        ask.pairs(own, tools(oracle=quality, gather=lambda items: offers.extend(items) or items))
    everyone = tools(oracle=quality, gather=lambda items: list(offers))
    shares = [ask.pairs(own, everyone) for own in ([easy], [hard], [])]
    alone = ask.pairs([easy, hard], tools(oracle=quality))
    assert sorted(place for share in shares for place, _ in share) == [place for place, _ in alone]
    assert len(alone) == number and shares[2] == []
    if choose == "disagreement":
        assert [len(share) for share in shares] == [0, 1, 0]


@pytest.mark.parametrize("choose", ["disagreement", "random"])
def test_a_rater_without_candidates_has_nothing_to_label(choose: str) -> None:
    assert rater(choose=choose).pairs([], tools(oracle=quality)) == []


def test_a_judges_unit_is_that_of_all_processes() -> None:
    own, other = (candidate(0, FIRST, [0.1, 0.2, 0.3]), candidate(1, SECOND, [0.1, 0.2, 0.3]))
    scores = {0: [[0.0, 1.0, 3.0], [0.0, 1.1, 2.5]], 1: [[0.0, 9.0, 9.5], [0.0, 0.2, 0.1]]}

    def judged(candidates: Sequence[Candidate]) -> dict[str, Tensor]:
        return {name: torch.tensor([scores[one.place][n] for one in candidates]) for n, name in enumerate("ab")}

    offers: list[Any] = []
    for one in (own, other):
        rater().pairs([one], tools(oracle=quality, scores=judged, gather=lambda items: offers.extend(items) or items))
    split = {}
    for one in (own, other):
        split |= dict(rater().pairs([one], tools(oracle=quality, scores=judged, gather=lambda items: [*offers])))
    whole = dict(rater().pairs([own, other], tools(oracle=quality, scores=judged)))
    assert {n: pair.prompt for n, pair in split.items()} == {n: pair.prompt for n, pair in whole.items()}


def test_random_siblings_are_shown_where_the_config_says_so() -> None:
    many = [candidate(n, Prompt(n, "x"), [0.1, 0.2, 0.3], rewards=[0.0, 5.0, 5.01]) for n in range(40)]
    pairs = rater(num_labels=40, choose="random").pairs(many, tools(oracle=quality))
    assert len({(mean(pair.first), mean(pair.second)) for _, pair in pairs}) == 3


@pytest.mark.parametrize("settings", [{"num_labels": 0}, {"error_rate": 1.0}, {"error_rate": -0.1}])
def test_a_rater_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="num_labels must be >= 1 and error_rate"):
        SimulatedRaterConfig(**settings)
