"""Model card of a judge: its description, training data, agreement with labels, and loading code.

The card is made from the judge's folder and from given facts, so it can be made again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward_model.evaluation.stock import TESTED, stock_lines, why_not_stock
from reward_model.judge.checkpoints.format import BASE_FOLDER, SAME_FOLDER, JudgeConfig
from reward_model.judge.exchange.servers import LONGEST, ScoreChange, first_differences, trained_rate
from reward_model.judge.families import FAMILIES, family_of
from reward_model.records import CLIP_MEASURES

MEASURES = dict(zip(CLIP_MEASURES, ("frames a second", "frames", "pixels a frame"), strict=True))
"""Name in the trained range -> words."""

LIMITS = (
    'Scores have no absolute meaning: compare them within one judge and one setting, or use `normalize="z"`.',
    "A score on clips unlike those of training (content, frame rate, length, size) may be wrong without looking wrong.",
    "An optimised generator finds what a fixed judge overlooks: watch it with a second judge and with your own eyes.",
    "The spread of the level words is that of the rating, not the judge's certainty.",
)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts of a card that the judge's own folder lacks."""

    name: str
    """Title, and the hub id in the lines that load the judge."""
    license: str = ""
    """Licence id as hubs know it, e.g. "apache-2.0"; empty if not known."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Title -> rows of an evaluation, as `evaluation.tables.to_json` has them."""
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Training stages, oldest first: name -> {"stage": its recipe, "metrics": its results}."""
    notes: str = ""
    """A paragraph of the author's."""
    served: ScoreChange | None = None
    """Change of the scores under the positions of vLLM and SGLang, as `score_change` measures it."""


def write_card(folder: str | Path, facts: CardFacts) -> Path:
    """Write README.md into the folder of a saved or merged judge and return its path."""
    place = Path(folder)
    roles = sorted(path.name for path in (place / "adapters").glob("*") if path.is_dir())
    file = place / "README.md"
    config = JudgeConfig.load(place)
    lengths = server_lengths(config, place) if config.base == SAME_FOLDER else None
    file.write_text(model_card(config, roles, facts, lengths), encoding="utf-8")
    return file


def server_lengths(config: JudgeConfig, folder: Path) -> dict[tuple[int, int], float | None] | None:
    """Return the lengths of the shortest clips whose positions in vLLM and SGLang are others than a merged judge's.

    Args:
        config: of the judge.
        folder: of the checkpoint, whose config.json holds patch and merge sizes.

    Returns:
        See `first_differences`; None for a family whose rule on servers is unknown.
    """
    from transformers import AutoConfig

    family = family_of(
        AutoConfig.from_pretrained(folder, trust_remote_code=False),
        config.min_pixels,
        config.max_pixels,
        config.position_rule,
    )
    if family.server_rule not in family.position_rules:
        return None
    return first_differences(config, family)


def model_card(
    config: JudgeConfig,
    roles: Sequence[str],
    facts: CardFacts,
    lengths: Mapping[tuple[int, int], float | None] | None = None,
) -> str:
    """Return the card's Markdown, with the front matter that hubs read.

    Args:
        config: of the judge.
        roles: its adapters.
        facts: further facts.
        lengths: of a merged judge, as `server_lengths` returns them.

    Returns:
        Base, roles, the lines that load it and, of a merged judge, that score with stock transformers, its positions on servers, dimensions with their constants, training, agreement and limits.
    """
    parts = [
        _front_matter(config, roles, facts),
        f"# {facts.name}\n",
        _what(config, roles),
        *([f"{facts.notes}\n"] if facts.notes else []),
        _use(config, roles, facts),
        *([_stock(config, facts), _servers(config, facts, lengths)] if config.base == SAME_FOLDER else []),
        _dimensions(config),
        _training(config, facts),
        *([_agreement(facts)] if facts.tables else []),
        "## Limits\n\n" + "".join(f"- {sentence}\n" for sentence in LIMITS),
    ]
    return "\n".join(parts)


def read_tables(file: str | Path) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Read evaluation tables from JSON: one table, as `video-judge eval --json` prints it, or several by their titles.

    Args:
        file: the JSON file; everything but tables is ignored.

    Returns:
        Title -> rows; a single table is called by the file's name.

    Raises:
        ValueError: no table in the file.
    """
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    named = {Path(file).stem.replace("_", " "): content} if "rows" in content else content
    tables = {title: table["rows"] for title, table in named.items() if isinstance(table, dict) and "rows" in table}
    if not tables:
        raise ValueError(f"{file} holds no table with rows, as `video-judge eval --json` prints one")
    return tables


def base_of(config: JudgeConfig) -> tuple[str, str | None]:
    """Return hub id and revision of a judge's base; "" for one that was trained from scratch or is local."""
    if config.base in (BASE_FOLDER, SAME_FOLDER):
        return config.origin.get("base") or "", config.origin.get("revision")
    return ("", None) if Path(config.base).is_absolute() else (config.base, config.revision)


def _front_matter(config: JudgeConfig, roles: Sequence[str], facts: CardFacts) -> str:
    merged = config.base == SAME_FOLDER
    lines = ["---", f"library_name: {'transformers' if merged else 'video-judge'}"]
    if facts.license:
        lines.append(f"license: {facts.license}")
    if base := base_of(config)[0]:
        relation = "finetune" if merged or not roles else "adapter"
        lines += [f"base_model: {json.dumps(base)}", f"base_model_relation: {relation}"]
    lines += [
        "pipeline_tag: video-text-to-text",
        "tags: [video-quality-assessment, reward-model, text-to-video]",
        "---",
        "",
    ]
    return "\n".join(lines)


def _what(config: JudgeConfig, roles: Sequence[str]) -> str:
    base, revision = base_of(config)
    at = f" at {revision}" if revision else ""
    made = f"made from {base}{at}" if base else "with weights of its own"
    lines = [
        f"A video judge of the {FAMILIES[config.family].display_name} family, {made}. It scores, compares and explains clips."
    ]
    if role := config.origin.get("role"):
        lines.append(f"It is the role `{role}`, merged into the base: a stock checkpoint that is a judge as well.")
    if source := config.wording.get("source"):
        lines.append(f"Its reasoned questions are asked in {source}.")
    if roles:
        lines.append(f"Its roles are LoRA adapters: {', '.join(f'`{name}`' for name in roles)}.")
    return "\n".join([*lines, ""])


def _use(config: JudgeConfig, roles: Sequence[str], facts: CardFacts) -> str:
    wanted = "generated" if "generated" in roles or not roles else roles[0]
    role = f', role="{wanted}"' if roles and wanted != "generated" else ""
    lines = [
        "## Use",
        "",
        "```python",
        "from reward_model import VideoJudgeReward",
        "",
        f'judge = VideoJudgeReward.from_pretrained("{facts.name}"{role})',
        'out = judge(["clip.mp4"], prompts=["what the clip should show"])',
        "out.rewards  # [1], in [0, 1]; NaN with a reason in out.reasons where there is no score",
        "```",
    ]
    return "\n".join([*lines, ""])


def _stock(config: JudgeConfig, facts: CardFacts) -> str:
    """Return the section that scores with stock transformers, or that says why they cannot."""
    version = ".".join(str(part) for part in TESTED)
    if reason := why_not_stock(config):
        loading = f'`AutoModelForImageTextToText.from_pretrained("{facts.name}")` loads it as a stock checkpoint, but'
        return f"## Stock transformers\n\n{loading} its level scores need the lines above: {reason}.\n"
    lines = [
        "## Stock transformers",
        "",
        f"These lines give the same scores without `reward_model`, from transformers {version} (with torchvision); of a clip without",
        "a prompt, overall is the mean of the other dimensions.",
        "",
        "```python",
        *stock_lines(config, facts.name),
        "```",
        "",
        "transformers 4.57 loads the same weights, head and rotary base, but has another rule for positions (text goes on after the",
        "largest position on any axis; Qwen2.5-VL's times count whole seconds), so the lines refuse it. Newer versions than "
        f"{version}",
        "were not tested: compare one score first.",
    ]
    return "\n".join([*lines, ""])


def _servers(config: JudgeConfig, facts: CardFacts, lengths: Mapping[tuple[int, int], float | None] | None) -> str:
    """Return the section on the positions of vLLM and SGLang."""
    family = FAMILIES[config.family]
    lines = ["## vLLM and SGLang", "", f"The scores of this judge belong to the positions `{config.position_rule}`."]
    if lengths is None:
        return "\n".join([*lines, "The positions of these servers were not compared with them.", ""])
    lines.append(f"These servers have `{family.server_rule}`; they were not run, their rule was compared.")
    rate = trained_rate(config)
    lines += ["", f"| height x width | positions are equal for clips at {rate:g} Hz of |", "|---|---|"]
    lines += [f"| {height} x {width} | {_limit(seconds, rate)} |" for (height, width), seconds in lengths.items()]
    if facts.served is not None:
        change = facts.served
        lines += [
            "",
            f"Where they differ, scores do: over {change.num_clips} clips of drifting noise of {change.seconds:g} s and {change.height} x "
            f"{change.width} pixels a server's rule changes them by {change.mean:.3f} in the mean and {change.most:.3f} at most.",
        ]
    elif any(lengths.values()):
        lines += ["", "Where they differ, scores do; by how much was not measured."]
    return "\n".join([*lines, ""])


def _limit(seconds: float | None, rate: float) -> str:
    if seconds is None:
        return f"every length up to {LONGEST:g} s"
    return "no length" if round(seconds * rate) == 1 else f"less than {seconds:.4g} s"


def _dimensions(config: JudgeConfig) -> str:
    lines = ["## Dimensions", "", "| dimension | mean | standard deviation |", "|---|---|---|"]
    for name in config.dimensions:
        constants = config.calibration.get(name)
        cells = f"{constants['mean']:.4f} | {constants['std']:.4f}" if constants else "- | -"
        lines.append(f"| {name} | {cells} |")
    lines += [
        "",
        "Mean and deviation are those of its scores on the clips that it was calibrated on; they make `z` scores.",
    ]
    return "\n".join([*lines, ""])


def _training(config: JudgeConfig, facts: CardFacts) -> str:
    lines = ["## Training", "", f"Trained on: {config.trained_on or 'not recorded'}."]
    known = [f"{_span(bounds)} {MEASURES[name]}" for name, bounds in config.trained_range.items()]
    lines.append(f"Range of its clips: {', '.join(known)}." if known else "The range of its clips is not recorded.")
    shown = ", ".join(f"{key} {value}" for key, value in config.frame_policy.items())
    lines.append(f"It sees frames by the policy {shown}, between {config.min_pixels} and {config.max_pixels} pixels.")
    if facts.stages:
        lines += ["", "| stage | trains | steps | held-out agreement |", "|---|---|---|---|"]
        lines += [_stage_line(name, entry) for name, entry in facts.stages.items()]
    elif config.lineage:
        lines += ["", f"Stages, oldest first: {', '.join(config.lineage)}."]
    return "\n".join([*lines, ""])


def _stage_line(name: str, entry: Mapping[str, Any]) -> str:
    stage, metrics = entry["stage"], entry["metrics"]
    agreement = [f"{key.replace('_', ' ')} {value:.3f}" for key, value in metrics.items() if _is_agreement(key, value)]
    role = f"role `{stage['role']}`" if stage.get("role") else "base"
    return f"| {name} | {role} | {metrics.get('step', '-')} | {', '.join(agreement) or '-'} |"


def _is_agreement(key: str, value: object) -> bool:
    return key.startswith(("srcc", "pair_accuracy", "accuracy")) and isinstance(value, float)


def _agreement(facts: CardFacts) -> str:
    lines = ["## Agreement with labels", ""]
    for title, rows in facts.tables.items():
        if not rows:
            continue
        header = list(rows[0])
        lines += [f"### {title[0].upper()}{title[1:]}", "", f"| {' | '.join(h.replace('_', ' ') for h in header)} |"]
        lines.append(f"|{'---|' * len(header)}")
        lines += [f"| {' | '.join(_cell(row[name]) for name in header)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _span(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
