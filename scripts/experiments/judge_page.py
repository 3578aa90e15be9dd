"""Page of a judge's arms, made from its JSON alone: findings, every start that was tried, baselines, arms.

python scripts/experiments/run_judge_arms.py --from-json      makes docs/toy_vq_insight.md and docs/toy_vqathinker.md again
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_model.evaluation import metrics

MEASURES = {
    "right": "",
    "scores": "",
    "scores:nearness": ", nearness",
    "unseen": ", unseen defects",
    "unseen:nearness": ", unseen defects, nearness",
}
"""Measure of a run's answers (key of the answers, and `:nearness` where it is not their rank correlation) -> its name in the
table."""

ALPHA = 0.05
"""Chance of one or more wrong findings on a page."""

DRAWS = "epochs"
"""How judge training draws listed clips, as the JSON of a run since then says."""

FORMER_DRAWS = "These runs are older than judge training's epochs: the few clips of the start were drawn with replacement, others than now."

AGAINST = {"start": "the start", "whole": "the whole recipe"}

Entry = Mapping[str, Any]
"""One arm's measure: its runs against the start and against the whole recipe."""


def write_page(recipe: str, docs: Path) -> str:
    """Write docs/<recipe>.md from docs/<recipe>.json and return it."""
    content = json.loads((docs / f"{recipe}.json").read_text(encoding="utf-8"))
    page = page_of(recipe, content)
    (docs / f"{recipe}.md").write_text(page, encoding="utf-8")
    return page


def page_of(recipe: str, content: Mapping[str, Any]) -> str:
    """Return the page of a recipe's JSON."""
    protocol, entries = content["protocol"], content["entries"]
    starts, baselines = content.get("starts", []), content.get("baselines", {})
    corrected = corrected_p_values(entries)
    lines = [
        f"# GRPO after supervision, one factor at a time: {recipe}",
        "",
        "## Findings",
        "",
        *(f"- {sentence}" for sentence in findings(content, corrected)),
        "",
        "## Protocol",
        "",
        *_protocol(protocol, len(corrected)),
        "",
        "## Every start that was tried",
        "",
        *(_starts(starts) if starts else ["Not collected yet: `python scripts/experiments/judge_starts.py`."]),
        "",
        "## Baselines on the same clips",
        "",
        *(_baselines(content) if baselines else ["Not measured yet: `python scripts/experiments/judge_starts.py`."]),
        "",
        "## Arms",
        "",
        "| arm | role | start | after GRPO | from the start | Holm's p | by seed | from the whole recipe | Holm's p |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(entry, corrected) for entry in entries),
        "",
    ]
    return "\n".join(lines)


def corrected_p_values(entries: Sequence[Entry]) -> dict[tuple[str, str, str, str], float]:
    """Return (arm, role, measure, side) -> p value over seeds after Holm's correction for all differences of the page."""
    plain = {
        (*_key(entry), side): metrics.t_interval(entry[side]["by_seed"]).p_value for entry, side in _sides(entries)
    }
    return dict(zip(plain, metrics.holm(list(plain.values())).tolist(), strict=True))


def verdict(compared: Mapping[str, Any], p_value: float) -> str:
    """Return `better`, `worse` or `not shown`: over seeds after the correction, and by prompt and seed with the same sign."""
    if p_value < ALPHA and compared["low"] > 0:
        return "better"
    return "worse" if p_value < ALPHA and compared["high"] < 0 else "not shown"


def findings(content: Mapping[str, Any], corrected: Mapping[tuple[str, str, str, str], float]) -> list[str]:
    """Return plain sentences on the intervals, the baselines, the parse rate and the starts."""
    sentences = []
    for side, name in AGAINST.items():
        by_verdict: dict[str, list[str]] = {"better": [], "worse": [], "not shown": []}
        for entry, against in _sides(content["entries"]):
            if against == side:
                by_verdict[verdict(entry[side], corrected[*_key(entry), side])].append(_named(entry))
        for said, named in by_verdict.items():
            text = f"Not shown to differ from {name}" if said == "not shown" else f"Shown to be {said} than {name}"
            if named or said == "better":
                sentences.append(f"{text}: {'; '.join(named) or 'nothing'}.")
    intervals = [metrics.t_interval(entry[side]["by_seed"]) for entry, side in _sides(content["entries"])]
    alone = sum(one.low > 0 or one.high < 0 for one in intervals)
    sentences.append(f"Each by itself, {alone} of the {len(intervals)} intervals over seeds leave out 0.")
    sentences += _on_baselines(content) + _on_parse_rates(content)
    return sentences + (_on_starts(content["starts"]) if content.get("starts") else [])


def _on_baselines(content: Mapping[str, Any]) -> list[str]:
    sentences = []
    for measure, entry, figures in _measured(content):
        name, (start, after) = f"{_title(measure)}", (entry["start"][side] for side in ("first", "last"))
        shown = figures["level"]
        text = f"{name}: {start:.3f} at the start, {after:.3f} after GRPO; the level readout of the base judge, without any"
        text += f" training here, has {shown:.3f}"
        if "nearness" in measure:
            constant = figures["constant"]
            text += f", and a constant, the median of the labels, {constant:.3f}"
            if after <= constant + 0.005:
                text += ": after GRPO the judge is about as near as a constant, or less"
            elif start <= constant + 0.005:
                text += ": the start is about as near as a constant, or less"
        sentences.append(f"{text}.")
    return sentences


def _on_parse_rates(content: Mapping[str, Any]) -> list[str]:
    if content["parse_rates"] is not None:
        return []
    return [
        "The share of answers that could be read was not kept for these runs, and their answers are gone. An unread answer "
        "counts as 0.5, so a part of each gain, of unknown size, may be answers that became readable rather than better."
    ]


def _on_starts(starts: Sequence[Mapping[str, Any]]) -> list[str]:
    last, earlier = starts[-1], starts[:-1]
    same = [
        figures
        for start in earlier
        for figures in start["figures"][-1:]
        if figures["num_clips"] == last["figures"][-1]["num_clips"]
    ]
    null = [figures for figures in same if _ranks(figures)["low"] <= 0 <= _ranks(figures)["high"]]
    said = " and ".join(f"{_ranks(one)['start']:.3f} to {_ranks(one)['after']:.3f}" for one in null)
    text = f"The present start is the {_ordinal(len(starts))} that was tried. It was chosen after "
    text += f"{len(null)} other{'s' if len(null) != 1 else ''}, measured on the same {last['figures'][-1]['num_clips']} clips,"
    text += f" had shown no gain in ranks ({said}). The correction for the number of differences does not cover this choice: "
    text += "these figures suggest an effect from this start and do not confirm one. A new start would need new clips."
    return [
        text,
        "All arms go on from one run of the start, so nothing here says how far another run of it would differ.",
    ]


def _protocol(protocol: Mapping[str, Any], num: int) -> list[str]:
    seeds = protocol["seeds"]
    return [
        f"{protocol['num_clips']} held-out clips rated by the oracle. Scorer: rank correlation of the reasoned answers; that of generated",
        "clips rates visual quality, motion quality and text alignment, of which this is the mean, the natural one overall",
        "quality. Nearness is 1 - |quality - label|, which the reward `absolute` pays: it can rise while ranks do not, where an",
        f"unsure judge learns to hedge. Both also on {protocol['num_unseen']} clips with kinds of damage that no training shows.",
        f"Comparator: accuracy on {protocol['num_pairs']} pairs at least 0.1 apart. Start is the judge after supervision. Differences are",
        "from the start, and from the whole recipe with the same seeds: below 0 where what the arm leaves out or changes helps.",
        f"Intervals are 95 %, Student's t over {len(seeds)} seeds, each by itself; they hold clips and start fixed. `Holm's p` is corrected",
        f"for all {num} differences of this page. A difference counts as shown where it is below {ALPHA} and the interval by",
        "prompt and by seed (`low` and `high` in the JSON) leaves out 0 too.",
        f"`python scripts/experiments/run_judge_arms.py --arms {' '.join(protocol['arms'])} --seeds {' '.join(map(str, seeds))}` makes",
        "this page, `--from-json` writes it again from the JSON, and `judge_starts.py` renews starts and baselines. The rules are in",
        "[protocol.md](protocol.md).",
        *([] if protocol.get("draws") == DRAWS else [FORMER_DRAWS]),
    ]


def _starts(starts: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "In order, from the history of the recipe, with the whole recipe's figures as they were published: start to after GRPO,",
        "with the percentile interval of that time, which is too narrow. A start without figures was replaced unmeasured.",
        "",
        "| start | since | base | written answers | supervised steps | measured | seeds | held-out clips | measure | figures |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, start in enumerate(starts, 1):
        cells = [str(number), start["from"], start["base"], _answers(start), str(start["supervised_steps"])]
        if not start["figures"]:
            lines.append(f"| {' | '.join([*cells, 'none', '', '', '', ''])} |")
        for figures in start["figures"]:
            for measure, one in figures["measures"].items():
                own = [figures["date"], str(one["seeds"]), str(figures["num_clips"]), _title(measure)]
                change = f"{one['after'] - one['start']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
                own.append(f"{one['start']:.3f} to {one['after']:.3f}, {change}")
                lines.append(f"| {' | '.join([*cells, *own])} |")
    return lines


def _answers(start: Mapping[str, Any]) -> str:
    if not start["answers"]:
        return "none: adapters of the base go on"
    return " + ".join("endless" if num is None else str(num) for num in start["answers"])


def _baselines(content: Mapping[str, Any]) -> list[str]:
    lines = [
        "Level readout: of the base judge, before any training of this recipe. Constant: the median of these labels, the best that",
        "any constant can do; for pairs, always the first. Ranks of a constant are undefined. Start and after are the whole recipe's.",
        "",
        "| measure | level readout | constant | random | start | after GRPO |",
        "|---|---|---|---|---|---|",
    ]
    for measure, entry, figures in _measured(content):
        cells = ["-" if figures[name] is None else f"{figures[name]:.3f}" for name in ("level", "constant", "random")]
        cells += [f"{entry['start'][side]:.3f}" for side in ("first", "last")]
        lines.append(f"| {_title(measure)} | {' | '.join(cells)} |")
    rates = content["parse_rates"]
    if rates is None:
        return [*lines, "| answers that could be read | all | all | all | not kept | not kept |"]
    for measure, rate in rates.items():
        cells = ["all", "all", "all", f"{rate['start']:.3f}", f"{rate['after']:.3f}"]
        lines.append(f"| {_title(measure)}, answers that could be read | {' | '.join(cells)} |")
    return lines


def _line(entry: Entry, corrected: Mapping[tuple[str, str, str, str], float]) -> str:
    own = entry["start"]
    cells = [entry["arm"], f"{entry['role']}{MEASURES[entry['part']]}", f"{own['first']:.3f}", f"{own['last']:.3f}"]
    cells += [_interval(own), f"{corrected[*_key(entry), 'start']:.3f}"]
    cells.append(", ".join(f"{one:+.3f}" for one in own["by_seed"]))
    cells += (
        ["", ""] if entry["whole"] is None else [_interval(entry["whole"]), f"{corrected[*_key(entry), 'whole']:.3f}"]
    )
    return f"| {' | '.join(cells)} |"


def _interval(compared: Mapping[str, Any]) -> str:
    interval = metrics.t_interval(compared["by_seed"])
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _measured(content: Mapping[str, Any]) -> Iterator[tuple[str, Entry, Mapping[str, Any]]]:
    """Yield measure, entry of the whole recipe and baselines, for each measure that has baselines."""
    whole = content["entries"][0]["arm"]
    for entry in content["entries"]:
        measure = f"{entry['role']}/{entry['part']}"
        if entry["arm"] == whole and measure in content.get("baselines", {}):
            yield measure, entry, content["baselines"][measure]


def _sides(entries: Sequence[Entry]) -> Iterator[tuple[Entry, str]]:
    """Yield each entry with each side that it is set against."""
    for entry in entries:
        yield from ((entry, side) for side in AGAINST if entry[side] is not None)


def _key(entry: Entry) -> tuple[str, str, str]:
    return entry["arm"], entry["role"], entry["part"]


def _named(entry: Entry) -> str:
    return f"{entry['arm']} ({entry['role']}{MEASURES[entry['part']]})"


def _title(measure: str) -> str:
    role, part = measure.split("/")
    return f"{role}{MEASURES[part]}"


def _ranks(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the figures of the scorer's ranks."""
    return next(one for measure, one in figures["measures"].items() if measure.endswith("/scores"))


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
