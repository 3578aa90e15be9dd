"""The report of a training run: one self-contained HTML file with its videos, curves, tables and settings.

The files in the folder of the training run are all that it is made from, so it can be made again at any time.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from generator_loop.tracking.charts import line_chart
from generator_loop.tracking.metric_log import read_log
from generator_loop.tracking.verdict import MIN_VALID, figure_moved, round_prompts, verdict
from reward_model.files import write_text

_REWARDS = {
    "reward_initial_judge": "judge as it was",
    "reward_current_judge": "judge as it is (re-anchored)",
    "reward_audit": "audit judge",
}
_PIXELS = ("motion", "edges", "saturation", "brightness", "group_spread")
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5d6b7a; --line: #d9e0e7; --card: #ffffff; --ground: #f4f6f9;
  --good: #00805a; --bad: #b8391f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #9aa8b6; --line: #323d49; --card: #1b232c;
  --ground: #12181f; --good: #3ecf9a; --bad: #ff8a6b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 12px; } .soft { color: var(--soft); }
.tiles, .clips, .charts { display: grid; gap: 14px; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); margin-top: 24px; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.clips { grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); }
.tile, .clip, figure, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; margin: 0; }
.tile b { display: block; font-size: 25px; font-variant-numeric: tabular-nums; } .good { color: var(--good); }
.bad { color: var(--bad); } .pair { display: flex; gap: 12px; } .pair div { flex: 1; min-width: 0; }
video { width: 100%; aspect-ratio: var(--shape, 1); border-radius: 6px; background: #000; image-rendering: pixelated; }
.clip p { margin: 0 0 10px; font-weight: 600; overflow-wrap: anywhere; } .pair span { display: block; font-size: 13px; }
figcaption { font-weight: 600; margin-bottom: 6px; } svg { width: 100%; height: auto; } .grid { stroke: var(--line); }
svg text { fill: var(--soft); font-size: 12px; } .legend { font-size: 13px; display: flex; flex-wrap: wrap; gap: 4px 16px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.verdict { background: var(--card); border: 1px solid var(--line); border-left: 6px solid currentColor; border-radius: 10px;
  padding: 4px 18px; margin-top: 20px; } .verdict p { font-size: 18px; font-weight: 600; } .verdict li { color: var(--ink); }
.verdict ul { list-style: none; padding: 0; } .scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; margin: 10px 0 0; font-size: 13px; } summary { cursor: pointer; font-weight: 600; }
"""


def write_report(output: str | Path) -> Path:
    """Write `report.html` into a run's folder from its summary, metric log, samples and config, and return its path."""
    output = Path(output)
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    records = read_log(output / "metrics.jsonl")
    config_text = (output / "config.yaml").read_text(encoding="utf-8")
    body = [
        _header(summary),
        _verdict(summary),
        _tiles(summary),
        _section("Before and after", _clips(output, summary), "Held-out prompts, the same noise on both sides."),
        _section(
            "Does the judge's reward mean anything?",
            _curves(summary),
            f"{_CURVES_NOTE} By round, of {round_prompts(summary)}.",
        ),
        _section("Change on the held-out prompts", _difference_table(summary), _of_all(summary, "95 % intervals")),
        _section(
            "The judge on the generator's clips",
            _pair_table(summary["pair_accuracy"]),
            _of_all(summary, "The oracle decides"),
        ),
        _section("Rounds", _round_table(summary["rounds"]), f"Means over {round_prompts(summary)}."),
        _section("Training", _training(records), "Per iteration; the lower charts show what no reward sees."),
        _section("Alarms", _alarms(summary["alarms"])),
        f'<h2>Settings</h2><div class="scroll"><details><summary>config.yaml</summary><pre>{html.escape(config_text)}'
        "</pre></details></div>",
    ]
    title = html.escape(f"Joint run: {summary['config']['objective']['name']}")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body><main>{"".join(body)}'
        "</main></body></html>\n"
    )
    path = output / "report.html"
    write_text(path, page)
    return path


_CURVES_NOTE = (
    "The reward is useful while the measures that it cannot influence rise with it: the oracle, which only measures, and "
    "the audit judge, which never learns."
)


def _section(title: str, content: str, note: str = "") -> str:
    if not content:
        return ""
    said = f'<p class="soft">{html.escape(note)}</p>' if note else ""
    return f"<h2>{html.escape(title)}</h2>{said}{content}"


def _header(summary: Mapping[str, Any]) -> str:
    config, rounds = summary["config"], summary["rounds"]
    minutes = sum(record["seconds"] for record in rounds) / 60
    facts = [
        f"objective {config['objective']['name']}",
        f"{len(rounds) - 1} rounds of {config['loop']['num_iterations']} iterations",
        f"{config['sampling']['num_prompts']} x {config['sampling']['group_size']} clips each",
        f"{summary['num_prompts']} held-out prompts x {len(summary['seeds'])} seeds",
        f"{minutes:.1f} minutes",
        f"code {summary['commit'][:10]}" if summary["commit"] else "",
    ]
    line = html.escape(", ".join(fact for fact in facts if fact))
    return f'<h1>The generator and its judge, round by round</h1><div class="soft">{line}</div>'


def _of_all(summary: Mapping[str, Any], said: str) -> str:
    return f"{said}; all {summary['num_prompts']} held-out prompts."


def _verdict(summary: Mapping[str, Any]) -> str:
    """Return the conclusion in large type, and its reasons, worse ones marked as clearly as better ones."""
    conclusion, *reasons = verdict(summary)
    signs = {"better": "good", "worse": "bad", "same": "soft", "unknown": "soft"}
    marks = {"better": "+", "worse": "\u2212", "same": "=", "unknown": "?"}
    items = "".join(
        f'<li><b class="{signs[reason.sign]}">{marks[reason.sign]}</b> {html.escape(reason.text)}</li>'
        for reason in reasons
    )
    said = f'<p class="{signs[conclusion.sign]}">{html.escape(conclusion.text)}</p>'
    return f'<section class="verdict {signs[conclusion.sign]}">{said}<ul>{items}</ul></section>'


def _tiles(summary: Mapping[str, Any]) -> str:
    first, last, change = summary["rounds"][0], summary["rounds"][-1], summary["difference"]
    tiles = []
    for name, label, place in (
        ("overall", "oracle, overall" if summary["before"]["oracle"] else "judge, overall", "oracle"),
        ("reward_initial_judge", "judge as it was", "initial"),
        ("reward_audit", "audit judge", "audit"),
    ):
        difference = change.get(name)
        if difference and difference["mean"] is not None:
            before, after = (_mean(summary[side], place) for side in ("before", "after"))
            sign = "good" if (difference["low"] or 0) > 0 else "bad" if (difference["high"] or 0) < 0 else ""
            note = f"{_interval(difference)}, all {summary['num_prompts']} held-out prompts"
            tiles.append(_tile(f"{_number(before)} \u2192 {_number(after)}", label, note, sign))
    kept = [record["judge_kept"] for record in summary["rounds"] if record["judge_kept"] is not None]
    tiles.append(_tile(f"{sum(kept)} of {len(kept)}", "judge refreshes kept", "by held-out anchor accuracy"))
    tiles += _moved_tiles(first, last, round_prompts(summary))
    valid = summary["valid_fraction"]
    note = f"at the end, all {summary['num_prompts']} held-out prompts"
    tiles.append(_tile(f"{valid:.1%}", "clips with a valid score", note, "bad" if valid < MIN_VALID else ""))
    alarms = len(summary["alarms"])
    tiles.append(_tile(str(alarms), "alarms in training", "listed below" if alarms else "", "bad" if alarms else ""))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _moved_tiles(first: Mapping[str, Any], last: Mapping[str, Any], prompts: str) -> list[str]:
    """Return the tiles of figures that each round has, coloured by what their change means."""
    figures = (
        ("judge_oracle_srcc", "rank agreement of judge and oracle", prompts, False),
        ("diversity", "diversity", prompts, True),
        ("flow_loss", "flow loss on clean clips", "fixed clips", True),
    )
    tiles = []
    for name, label, where, relative in figures:
        moved = figure_moved(label, first, last, name, where, relative=relative, falls=name == "flow_loss")
        if moved is not None:
            sign = {"better": "good", "worse": "bad"}.get(moved.sign, "")
            tiles.append(_tile(f"{_number(first[name])} \u2192 {_number(last[name])}", label, where, sign))
        elif name == "diversity":
            tiles.append(_tile("not measured", label, "one clip of each prompt"))
    return tiles


def _tile(value: str, label: str, note: str, sign: str = "") -> str:
    return (
        f'<div class="tile"><span class="soft">{html.escape(label)}</span><b class="{sign}">{html.escape(value)}</b>'
        f'<span class="soft">{html.escape(note)}</span></div>'
    )


def _mean(side: Mapping[str, Any], place: str) -> float | None:
    if place == "oracle" and side["oracle"]:
        return side["oracle"]["overall"]
    rewards = side["rewards"]["initial" if place == "oracle" else place]
    return rewards.get("overall") if place == "oracle" else rewards["reward"]


def _clips(output: Path, summary: Mapping[str, Any]) -> str:
    first, last = (output / "samples" / f"round-{summary['rounds'][end]['round']:03d}" for end in (0, -1))
    config = summary["config"]["generator"]
    shape = f"{config['width']} / {config['height']}"
    cards = []
    after = {clip["file"]: clip for clip in json.loads((last / "samples.json").read_text(encoding="utf-8"))}
    for clip in json.loads((first / "samples.json").read_text(encoding="utf-8")):
        sides = [("before", first, clip), ("after", last, after[clip["file"]])]
        pair = "".join(
            f"<div>{_video(folder / side['file'])}<span><b>{name}</b></span>{_scores(side['scores'])}</div>"
            for name, folder, side in sides
        )
        prompt = html.escape(clip["prompt"])
        cards.append(f'<div class="clip" style="--shape: {shape}"><p>{prompt}</p><div class="pair">{pair}</div></div>')
    return f'<div class="clips">{"".join(cards)}</div>'


def _video(path: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<video autoplay loop muted playsinline controls src="data:video/mp4;base64,{encoded}"></video>'


def _scores(scores: Mapping[str, float | None]) -> str:
    named = {"oracle/overall": "oracle", "initial/reward": "judge", "audit/reward": "audit"}
    labelled = [f"{label} {_number(scores[name])}" for name, label in named.items() if name in scores]
    return "".join(f'<span class="soft">{text}</span>' for text in labelled)


def _curves(summary: Mapping[str, Any]) -> str:
    rounds = summary["rounds"]
    against = {label: [(r["round"], r[name]) for r in rounds] for name, label in _REWARDS.items()}
    if rounds[0]["oracle"]:
        oracle = {name: [(r["round"], r["oracle"][name]) for r in rounds] for name in rounds[0]["oracle"]}
        against = {"oracle": oracle["overall"], **against}
    else:
        oracle = {}
    agreement = {
        "rank agreement of judge and oracle": [(r["round"], r["judge_oracle_srcc"]) for r in rounds],
        "accuracy on labelled anchors": [(r["round"], r["anchor_accuracy"]) for r in rounds],
    }
    guards = {name: [(r["round"], r[name]) for r in rounds] for name in ("kl", "flow_loss", "diversity")}
    charts = [
        line_chart(against, x_label="round", title="Reward against oracle"),
        line_chart(oracle, x_label="round", title="The oracle's dimensions"),
        line_chart(agreement, x_label="round", title="How good is the judge?"),
        line_chart(guards, x_label="round", title="Distance from the start"),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _training(records: Sequence[Mapping[str, Any]]) -> str:
    steps = [record for record in records if record["kind"] == "iteration"]
    if not steps:
        return ""
    scores = [name for name in steps[0] if name.startswith("score_")]
    charts = [
        line_chart(_series(steps, ("reward",)), x_label="iteration", title="Training reward", marks=False),
        line_chart(_series(steps, scores), x_label="iteration", title="Scores of the training clips", marks=False),
        line_chart(_series(steps, ("update_loss",)), x_label="iteration", title="Loss", marks=False),
        line_chart(_series(steps, _PIXELS), x_label="iteration", title="What the clips look like", marks=False),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _series(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[tuple[float, float | None]]]:
    return {name.removeprefix("score_"): [(record["step"], record.get(name)) for record in records] for name in names}


def _difference_table(summary: Mapping[str, Any]) -> str:
    lines = [
        [name.replace("_", " "), *(_signed(change[end]) for end in ("mean", "low", "high"))]
        for name, change in summary["difference"].items()
    ]
    return _table(["", "after - before", "low", "high"], lines)


def _pair_table(accuracy: Mapping[str, Mapping[str, float] | None]) -> str:
    """Return how well each judge orders two clips of one prompt, beside random scores; nothing without an oracle."""
    ends = [(name, shares) for name, shares in accuracy.items() if shares is not None]
    if not ends:
        return ""
    judges = [name for name in ends[0][1] if name != "num_pairs"]
    lines = [[name, str(end["num_pairs"]), *(_number(end.get(judge)) for judge in judges)] for name, end in ends]
    return _table(["right order of two clips of a prompt", "pairs", *judges], lines)


def _round_table(rounds: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in rounds[0] if name not in ("round", "oracle", "judge_kept", "is_good", "seconds")]
    head = ["round", "oracle", *(name.replace("_", " ") for name in names), "judge kept", "seconds"]
    lines = []
    for record in rounds:
        oracle = record["oracle"]["overall"] if record["oracle"] else None
        kept = {None: "", True: "yes", False: "rolled back"}[record["judge_kept"]]
        numbers = [_number(record[name]) for name in names]
        number = str(record["round"]) + ("" if record.get("is_good", True) else ", returned from")
        lines.append([number, _number(oracle), *numbers, kept, f"{record['seconds']:.0f}"])
    return _table(head, lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _alarms(alarms: Sequence[str]) -> str:
    if not alarms:
        return '<p class="soft">None was raised.</p>'
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in alarms[:40])
    more = f"<li>and {len(alarms) - 40} more</li>" if len(alarms) > 40 else ""
    return f'<div class="scroll"><ul>{items}{more}</ul></div>'


def _interval(change: Mapping[str, float | None]) -> str:
    return f"{_signed(change['mean'])} [{_signed(change['low'])}, {_signed(change['high'])}]"


def _number(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:+.3f}"
