"""The report of a run: every figure stands where it belongs, on the files of a run made by hand."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from generator_loop.tracking.report import write_report

DASH = "\u2013"


def change(mean: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    """Return a change with its bounds."""
    return {"mean": mean, "low": low, "high": high}


def round_record(number: int, **changes: Any) -> dict[str, Any]:
    """Return the figures of a round, each of which differs from round to round."""
    return {
        "round": number,
        "reward_initial_judge": 0.5 + 0.1 * number,
        "reward_current_judge": 0.4 + 0.1 * number,
        "reward_audit": None,
        "oracle": {"overall": 0.3 + 0.1 * number, "motion_quality": 0.2},
        "judge_oracle_srcc": 0.8 - 0.1 * number,
        "anchor_accuracy": 0.9,
        "judge_kept": {0: None, 1: True, 2: False, 3: True}[number],
        "kl": 0.01 * number,
        "flow_loss": 0.25 - 0.05 * number,
        "diversity": 1.0 + 0.2 * number,
        "seconds": 30.0,
    } | changes


def summary(**changes: Any) -> dict[str, Any]:
    """Return the summary of three rounds and the measurement before them."""
    return {
        "rounds": [round_record(number) for number in range(4)],
        "before": {"oracle": {"overall": 0.31}, "rewards": {"initial": {"reward": 0.51, "overall": 0.61}}},
        "after": {"oracle": {"overall": 0.62}, "rewards": {"initial": {"reward": 0.81, "overall": 0.71}}},
        "difference": {
            "overall": change(0.31, 0.2, 0.4),
            "reward_initial_judge": change(0.3, -0.1, 0.5),
        },
        "pair_accuracy": {
            "before": {"current": 0.75, "initial": 0.7, "num_pairs": 12},
            "after": {"current": 0.8, "num_pairs": 13},
        },
        "num_prompts": 9,
        "seeds": [0, 1],
        "valid_fraction": 0.97,
        "alarms": [],
        "config": {
            "objective": {"name": "nft<1>"},
            "loop": {"num_iterations": 7},
            "sampling": {"num_prompts": 3, "group_size": 4},
            "evaluation": {"num_round_prompts": 5},
            "generator": {"width": 64, "height": 48},
        },
        "commit": "0123456789abcdef",
    } | changes


def page(folder: Path, content: dict[str, Any], log: tuple[dict[str, Any], ...] = ()) -> str:
    """Write a run's files, with two held-out clips on both sides, and return the report."""
    (folder / "summary.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text("run:\n  name: a<b\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    for number, side in ((0, "before"), (content["rounds"][-1]["round"], "after")):
        samples = folder / "samples" / f"round-{number:03d}"
        samples.mkdir(parents=True)
        clips = []
        for name, prompt in (("0.mp4", "a <red> ring"), ("1.mp4", "a dog")):
            (samples / name).write_bytes(f"{side} {name}".encode())
            scores = {"oracle/overall": 0.25 + number, "initial/reward": None, "oracle/motion_quality": 0.111}
            clips.append({"file": name, "prompt": prompt, "scores": scores})
        (samples / "samples.json").write_text(json.dumps(clips if side == "before" else clips[::-1]))
    return write_report(folder).read_text(encoding="utf-8")


def tiles(text: str) -> dict[str, tuple[str, str, str]]:
    """Return label -> sign, value and note of each tile."""
    pattern = (
        r'<div class="tile"><span class="soft">(.*?)</span><b class="(.*?)">(.*?)</b><span class="soft">(.*?)</span>'
    )
    return {label: (sign, value, note) for label, sign, value, note in re.findall(pattern, text)}


def table(text: str, first_head: str) -> list[list[str]]:
    """Return head and lines of the table whose first column is so named."""
    (found,) = [one for one in re.findall(r"<table>.*?</table>", text) if f"<thead><tr><th>{first_head}</th>" in one]
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in re.findall(r"<tr>.*?</tr>", found)]


def chart(text: str, title: str) -> str:
    """Return the drawing of that title."""
    (drawn,) = [one for one in re.findall(r"<figure>.*?</figure>", text, re.S) if title in one]
    return drawn


def test_the_head_counts_rounds_iterations_clips_prompts_and_minutes(tmp_path: Path) -> None:
    text = page(tmp_path, summary())
    assert (
        "objective nft&lt;1&gt;, 3 rounds of 7 iterations, 3 x 4 clips each, 9 held-out prompts x 2 seeds, 2.0 minutes, "
        "code 0123456789<"
    ) in text
    assert "<title>Joint run: nft&lt;1&gt;</title>" in text and "name: a&lt;b" in text


def test_a_run_without_a_commit_names_none(tmp_path: Path) -> None:
    assert "2.0 minutes<" in page(tmp_path, summary(commit=None))


def test_tiles_show_the_change_from_the_first_to_the_last_round_and_its_sign(tmp_path: Path) -> None:
    assert tiles(page(tmp_path, summary())) == {
        "oracle, overall": ("good", "0.310 \u2192 0.620", "+0.310 [+0.200, +0.400], all 9 held-out prompts"),
        "judge as it was": ("", "0.510 \u2192 0.810", "+0.300 [-0.100, +0.500], all 9 held-out prompts"),
        "judge refreshes kept": ("", "2 of 3", "by held-out anchor accuracy"),
        "rank agreement of judge and oracle": (
            "bad",
            "0.800 \u2192 0.500",
            "the first 5 of 9 held-out prompts",
        ),
        "diversity": ("good", "1.000 \u2192 1.600", "the first 5 of 9 held-out prompts"),
        "flow loss on clean clips": ("good", "0.250 \u2192 0.100", "fixed clips"),
        "clips with a valid score": ("", "97.0%", "at the end, all 9 held-out prompts"),
        "alarms in training": ("", "0", ""),
    }


@pytest.mark.parametrize(
    ("low", "high", "sign"),
    [(0.001, 0.2, "good"), (0.0, 0.2, ""), (-0.2, 0.0, ""), (-0.2, -0.001, "bad"), (None, None, ""), (-0.2, None, "")],
)
def test_a_tile_is_coloured_only_where_the_interval_leaves_zero(
    tmp_path: Path, low: float | None, high: float | None, sign: str
) -> None:
    text = page(tmp_path, summary(difference={"overall": change(0.1, low, high)}))
    assert tiles(text)["oracle, overall"][0] == sign
    assert "judge as it was" not in tiles(text)


def test_a_change_that_was_not_measured_has_no_tile(tmp_path: Path) -> None:
    text = page(tmp_path, summary(difference={"overall": change(None, None, None)}))
    assert "oracle, overall" not in tiles(text)
    assert table(text, "")[1:] == [["overall", DASH, DASH, DASH]]


def test_without_an_oracle_the_judges_overall_score_and_the_audit_stand_there(tmp_path: Path) -> None:
    sides = {
        side: {"oracle": None, "rewards": {"initial": {"reward": 0.5, "overall": overall}, "audit": {"reward": audit}}}
        for side, overall, audit in (("before", 0.6, 0.2), ("after", 0.7, 0.1))
    }
    rounds = [round_record(n, oracle=None, judge_oracle_srcc=None, diversity=None, flow_loss=None) for n in range(4)]
    changes = {"overall": change(0.1, 0.05, 0.2), "reward_audit": change(-0.1, -0.2, -0.05)}
    accuracy = {"before": None, "after": None}
    text = page(tmp_path, summary(**sides, rounds=rounds, difference=changes, pair_accuracy=accuracy))
    shown = tiles(text)
    assert shown["judge, overall"][:2] == ("good", "0.600 \u2192 0.700")
    assert shown["audit judge"][:2] == ("bad", "0.200 \u2192 0.100")
    assert shown["diversity"] == ("", "not measured", "one clip of each prompt")
    assert "rank agreement of judge and oracle" not in shown and "flow loss on clean clips" not in shown
    assert "right order of two clips" not in text and "The judge on the generator" not in text
    assert "The oracle&#x27;s dimensions" not in text
    assert table(text, "round")[1][1] == DASH


@pytest.mark.parametrize(("valid", "sign"), [(1.0, ""), (0.95, ""), (0.949, "bad")])
def test_missing_scores_are_marked_below_the_share_that_the_verdict_names(
    tmp_path: Path, valid: float, sign: str
) -> None:
    text = page(tmp_path, summary(valid_fraction=valid))
    assert tiles(text)["clips with a valid score"][:2] == (sign, f"{valid:.1%}")
    assert ("have no score at the end" in text) == (valid < 1)


@pytest.mark.parametrize("num", [1, 40, 41])
def test_alarms_are_counted_and_the_first_forty_are_listed(tmp_path: Path, num: int) -> None:
    text = page(tmp_path, summary(alarms=[f"alarm <{n}>" for n in range(num)]))
    assert tiles(text)["alarms in training"] == ("bad", str(num), "listed below")
    assert text.count("<li>alarm &lt;") == min(num, 40) and ("and 1 more" in text) == (num == 41)
    assert "None was raised" not in text


def test_a_run_without_alarms_says_so(tmp_path: Path) -> None:
    assert "None was raised." in page(tmp_path, summary())


def test_each_clip_stands_beside_itself_with_its_scores(tmp_path: Path) -> None:
    text = page(tmp_path, summary())
    cards = re.findall(
        r'<div class="clip" style="--shape: 64 / 48"><p>(.*?)</p><div class="pair">(.*?)</div></div>', text
    )
    assert [prompt for prompt, _ in cards] == ["a &lt;red&gt; ring", "a dog"]
    for name, (_, pair) in zip(("0.mp4", "1.mp4"), cards, strict=True):
        shown = re.findall(r"base64,(.*?)\"></video><span><b>(.*?)</b></span>(.*?)(?=</div>|$)", pair)
        assert [(base64.b64decode(video).decode(), side) for video, side, _ in shown] == [
            (f"before {name}", "before"),
            (f"after {name}", "after"),
        ]
        assert [scores for _, _, scores in shown] == [
            f'<span class="soft">oracle {value}</span><span class="soft">judge {DASH}</span>'
            for value in ("0.250", "3.250")
        ]


def test_the_verdict_marks_each_reason(tmp_path: Path) -> None:
    text = page(tmp_path, summary())
    (said,) = re.findall(r'<section class="verdict (.*?)"><p class="(.*?)">(.*?)</p><ul>(.*?)</ul>', text)
    assert said[:2] == ("bad", "bad") and "has a price" in said[2]
    marked = {
        words: (sign, mark) for sign, mark, words in re.findall(r'<li><b class="(.*?)">(.*?)</b> (.*?)</li>', said[3])
    }
    by_mark = [
        next(value for words, value in marked.items() if part in words) for part in ("overall", "as it was", "rank")
    ]
    assert by_mark == [("good", "+"), ("soft", "="), ("bad", "\u2212")]


def test_tables_hold_every_round_and_change(tmp_path: Path) -> None:
    text = page(tmp_path, summary())
    assert table(text, "") == [
        ["", "after - before", "low", "high"],
        ["overall", "+0.310", "+0.200", "+0.400"],
        ["reward initial judge", "+0.300", "-0.100", "+0.500"],
    ]
    assert table(text, "right order of two clips of a prompt") == [
        ["right order of two clips of a prompt", "pairs", "current", "initial"],
        ["before", "12", "0.750", "0.700"],
        ["after", "13", "0.800", DASH],
    ]
    head, *lines = table(text, "round")
    assert head[:3] == ["round", "oracle", "reward initial judge"] and head[-2:] == ["judge kept", "seconds"]
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert [line[1:4] for line in lines[::3]] == [["0.300", "0.500", "0.400"], ["0.600", "0.800", "0.700"]]
    assert [line[-2] for line in lines] == ["", "yes", "rolled back", "yes"] and lines[0][-1] == "30"


def test_charts_draw_a_point_for_each_round_of_each_known_measure(tmp_path: Path) -> None:
    text = page(tmp_path, summary())
    reward = chart(text, "Reward against oracle")
    assert reward.count("<circle") == 3 * 4 and "audit judge" not in reward
    assert all(name in reward for name in ("oracle", "judge as it was", "judge as it is (re-anchored)"))
    assert chart(text, "The oracle&#x27;s dimensions").count("<circle") == 2 * 4
    agreement = chart(text, "How good is the judge?")
    assert "rank agreement of judge and oracle" in agreement and "accuracy on labelled anchors" in agreement
    assert all(name in chart(text, "Distance from the start") for name in ("kl", "flow_loss", "diversity"))
    assert "Training reward" not in text


def test_training_charts_show_iterations_alone(tmp_path: Path) -> None:
    steps = tuple(
        {"kind": "iteration", "step": n, "reward": n, "score_overall": n, "update_loss": n, "motion": n}
        for n in range(3)
    )
    text = page(tmp_path, summary(), ({"kind": "round", "step": 0, "reward": 50.0}, *steps))
    assert "overall" in chart(text, "Scores of the training clips") and "50" not in chart(text, "Training reward")
    assert "motion" in chart(text, "What the clips look like") and "edges" not in chart(
        text, "What the clips look like"
    )
    assert "update_loss" in chart(text, "Loss")
