"""The model card beside a trained LoRA: what it belongs to, how it is loaded, what it changed.

It is made from the run's summary alone, so that it can be made again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_model.files import write_text

PIPELINES = {
    "wan": "WanPipeline",
    "ltx": "LTXPipeline",
    "cogvideox": "CogVideoXPipeline",
    "hunyuan_video": "HunyuanVideoPipeline",
    "mochi": "MochiPipeline",
}
"""Generator family -> the pipeline of diffusers that loads the LoRA."""


def write_model_card(output: str | Path) -> Path:
    """Write `README.md` into the folder of the run's last generator, from its summary, and return its path."""
    output = Path(output)
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    folder = output / summary["generator_checkpoint"]
    further = tuple(sorted(path.parent.name for path in folder.glob("*/*.safetensors")))
    write_text(folder / "README.md", model_card(summary, further=further))
    return folder / "README.md"


def model_card(summary: Mapping[str, Any], *, further: Sequence[str] = ()) -> str:
    """Return the card's Markdown, with the front matter that hubs read.

    Args:
        summary: content of `summary.json`.
        further: transformers of the pipeline beside the first, whose LoRA has a folder of its name inside.

    Returns:
        Base and revision, the lines that load it, the change on held-out prompts with its interval, and how it was trained.
    """
    config = summary["config"]
    generator, objective = config["generator"], config["objective"]
    base, revision = _public(generator["path"]), generator["revision"]
    pinned = f', revision="{revision}"' if revision else ""
    pipeline = PIPELINES[generator["family"]]
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: diffusers",
        "tags: [lora, text-to-video, rlhf]",
        "---",
        "",
        "# LoRA trained against a video judge",
        "",
        f"For {base}{f' at {revision}' if revision else ''}; rank {generator['lora_rank']}, alpha {generator['lora_alpha']}, which",
        "stands in the file. Suggested scale: 1.0, at which it was trained and measured; less mixes in the base.",
        "",
        "```python",
        f"from diffusers import {pipeline}",
        "",
        f'pipe = {pipeline}.from_pretrained("{base}"{pinned})',
        'pipe.load_lora_weights("path/to/this/folder")',
        *(f'pipe.load_lora_weights("path/to/this/folder/{name}", load_into_{name}=True)' for name in further),
        "```",
        "",
        "## What it changed",
        "",
        f"{summary['num_prompts']} held-out prompts x {len(summary['seeds'])} seeds, the same noise before and after; 95 % intervals",
        "by bootstrap over prompts.",
        "",
        "| | before | after | change |",
        "|---|---|---|---|",
        *_rows(summary),
        "",
        "## How it was trained",
        "",
        f"Objective {objective['name']}, {config['loop']['num_rounds']} rounds of {config['loop']['num_iterations']} iterations,",
        f"{generator['num_frames']} frames of {generator['height']} x {generator['width']} at {generator['fps']:g} Hz, judge",
        f"{_public(config['judge']['path'])} ({'refreshed on the way' if config['refresh']['every'] else 'fixed'}), seed "
        f"{config['run']['seed']}, commit {summary['commit'] or 'unknown'}.",
    ]
    if summary["alarms"]:
        lines += ["", "The run's monitors warned:", "", *(f"- {sentence}" for sentence in summary["alarms"])]
    return "\n".join([*lines, ""])


def _public(path: str) -> str:
    """Return a model's path as others may read it: of a folder on this machine its name alone."""
    return Path(path).name if Path(path).is_absolute() else path


def _rows(summary: Mapping[str, Any]) -> list[str]:
    before, after = (_levels(summary[side]) for side in ("before", "after"))
    rows = []
    for name, change in summary["difference"].items():
        ends = [f"{side[name]:.3f}" if side.get(name) is not None else "" for side in (before, after)]
        if change["mean"] is not None:
            interval = f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            rows.append(f"| {name.replace('_', ' ')} | {ends[0]} | {ends[1]} | {interval} |")
    return rows


def _levels(side: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the oracle's levels, or the first judge's, by the names that the differences have."""
    rewards = side["rewards"]
    found = dict(side["oracle"] or rewards["initial"])
    found["reward_initial_judge"] = rewards["initial"]["reward"]
    if "audit" in rewards:
        found["reward_audit"] = rewards["audit"]["reward"]
    return found
