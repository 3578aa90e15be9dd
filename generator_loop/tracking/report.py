"""The report of a run: one HTML file with its videos, curves, tables and settings, which needs nothing else.

It is made from what lies in the run's folder alone, so that it can be made again at any time.
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
.charts { grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); }
.clips { grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); }
.tile, .clip, figure, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; margin: 0; }
.tile b { display: block; font-size: 25px; font-variant-numeric: tabular-nums; } .good { color: var(--good); }
.bad { color: var(--bad); } .pair { display: flex; gap: 12px; } .pair div { flex: 1; min-width: 0; }
video { width: 100%; aspect-ratio: var(--shape, 1); border-radius: 6px; background: #000; image-rendering: pixelated; }
.clip p { margin: 0 0 10px; font-weight: 600; overflow-wrap: anywhere; } .pair span { display: block; font-size: 13px; }
figcaption { font-weight: 600; margin-bottom: 6px; } svg { width: 100%; height: auto; } .grid { stroke: var(--line); }
svg text { fill: var(--soft); font-size: 12px; } .legend { font-size: 13px; display: flex; flex-wrap: wrap; gap: 4px 16px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; margin: 10px 0 0; font-size: 13px; } summary { cursor: pointer; font-weight: 600; }
"""


def write_report(output: str | Path) -> Path:
    """Write `report.html` into a run's folder from its summary, metric log, samples and config, and return its path."""
    output = Path(output)
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    rows = read_log(output / "metrics.jsonl")
    config_text = (output / "config.yaml").read_text(encoding="utf-8")
    body = [
        _header(summary),
        _tiles(summary),
        _section("Before and after", _clips(output, summary), "Held-out prompts, the same noise on both sides."),
        _section("Does the judge's reward mean anything?", _curves(summary), _CURVES_NOTE),
        _section("Change on the held-out prompts", _difference_table(summary), "95 % bootstrap interval by prompt."),
        _section("The judge on the generator's clips", _pair_table(summary["pair_accuracy"]), "The oracle decides."),
        _section("Rounds", _round_table(summary["rounds"])),
        _section("Training", _training(rows), "Per iteration; the lower charts show what no reward sees."),
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


def _tiles(summary: Mapping[str, Any]) -> str:
    first, last, change = summary["rounds"][0], summary["rounds"][-1], summary["difference"]
    tiles = []
    for name, label, place in (
        ("overall", "oracle, overall" if summary["before"]["oracle"] else "judge, overall", "oracle"),
        ("reward_initial_judge", "judge as it was", "initial"),
        ("reward_audit", "audit judge", "audit"),
    ):
        found = change.get(name)
        if found and found["mean"] is not None:
            before, after = (_level(summary[side], place) for side in ("before", "after"))
            sign = "good" if (found["low"] or 0) > 0 else "bad" if (found["high"] or 0) < 0 else ""
            tiles.append(_tile(f"{_number(before)} \u2192 {_number(after)}", label, _interval(found), sign))
    kept = [record["judge_kept"] for record in summary["rounds"] if record["judge_kept"] is not None]
    tiles.append(_tile(f"{sum(kept)} of {len(kept)}", "judge refreshes kept", "by held-out anchor accuracy"))
    tiles.append(_tile(_number(last["diversity"]), "diversity", f"{_number(first['diversity'])} before"))
    if last["flow_loss"] is not None:
        tiles.append(
            _tile(_number(last["flow_loss"]), "flow loss on clean clips", f"{_number(first['flow_loss'])} before")
        )
    tiles.append(_tile(f"{summary['valid_fraction']:.1%}", "clips with a valid score", ""))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(value: str, label: str, note: str, sign: str = "") -> str:
    return (
        f'<div class="tile"><span class="soft">{html.escape(label)}</span><b class="{sign}">{html.escape(value)}</b>'
        f'<span class="soft">{html.escape(note)}</span></div>'
    )


def _level(side: Mapping[str, Any], place: str) -> float | None:
    if place == "oracle" and side["oracle"]:
        return side["oracle"]["overall"]
    rewards = side["rewards"]["initial" if place == "oracle" else place]
    return rewards.get("overall") if place == "oracle" else rewards["reward"]


def _clips(output: Path, summary: Mapping[str, Any]) -> str:
    first, last = (output / "samples" / f"round-{summary['rounds'][end]['round']:03d}" for end in (0, -1))
    config = summary["config"]["generator"]
    shape = f"{config['width']} / {config['height']}"
    cards = []
    after = {row["file"]: row for row in json.loads((last / "samples.json").read_text(encoding="utf-8"))}
    for row in json.loads((first / "samples.json").read_text(encoding="utf-8")):
        sides = [("before", first, row), ("after", last, after[row["file"]])]
        pair = "".join(
            f"<div>{_video(folder / side['file'])}<span><b>{name}</b></span>{_scores(side['scores'])}</div>"
            for name, folder, side in sides
        )
        prompt = html.escape(row["prompt"])
        cards.append(f'<div class="clip" style="--shape: {shape}"><p>{prompt}</p><div class="pair">{pair}</div></div>')
    return f'<div class="clips">{"".join(cards)}</div>'


def _video(path: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<video autoplay loop muted playsinline controls src="data:video/mp4;base64,{encoded}"></video>'


def _scores(scores: Mapping[str, float | None]) -> str:
    named = {"oracle/overall": "oracle", "initial/reward": "judge", "audit/reward": "audit"}
    found = [f"{label} {_number(scores[name])}" for name, label in named.items() if name in scores]
    return "".join(f'<span class="soft">{text}</span>' for text in found)


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


def _training(rows: Sequence[Mapping[str, Any]]) -> str:
    steps = [row for row in rows if row["kind"] == "iteration"]
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


def _series(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[tuple[float, float | None]]]:
    return {name.removeprefix("score_"): [(row["step"], row.get(name)) for row in rows] for name in names}


def _difference_table(summary: Mapping[str, Any]) -> str:
    rows = [
        [name.replace("_", " "), _signed(found["mean"]), _signed(found["low"]), _signed(found["high"])]
        for name, found in summary["difference"].items()
    ]
    return _table(["", "after - before", "low", "high"], rows)


def _pair_table(found: Mapping[str, Mapping[str, float] | None]) -> str:
    """Return how well each judge orders two clips of one prompt, beside random scores; nothing without an oracle."""
    ends = [(name, row) for name, row in found.items() if row is not None]
    if not ends:
        return ""
    judges = [name for name in ends[0][1] if name != "num_pairs"]
    rows = [[name, str(row["num_pairs"]), *(_number(row.get(judge)) for judge in judges)] for name, row in ends]
    return _table(["right order of two clips of a prompt", "pairs", *judges], rows)


def _round_table(rounds: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in rounds[0] if name not in ("round", "oracle", "judge_kept", "seconds")]
    head = ["round", "oracle", *(name.replace("_", " ") for name in names), "judge kept", "seconds"]
    rows = []
    for record in rounds:
        oracle = record["oracle"]["overall"] if record["oracle"] else None
        kept = {None: "", True: "yes", False: "rolled back"}[record["judge_kept"]]
        numbers = [_number(record[name]) for name in names]
        rows.append([str(record["round"]), _number(oracle), *numbers, kept, f"{record['seconds']:.0f}"])
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _alarms(alarms: Sequence[str]) -> str:
    if not alarms:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in alarms[:40])
    more = f"<li>and {len(alarms) - 40} more</li>" if len(alarms) > 40 else ""
    return f'<div class="scroll"><ul>{items}{more}</ul></div>'


def _interval(found: Mapping[str, float | None]) -> str:
    return f"{_signed(found['mean'])} [{_signed(found['low'])}, {_signed(found['high'])}]"


def _number(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:+.3f}"
