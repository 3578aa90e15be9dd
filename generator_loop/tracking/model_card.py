"""The model card beside a trained generator: its base, how it is loaded, and the change it made.

The card is made from the summary of the training run alone and can be made again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_model.files import write_text


def write_model_card(output: str | Path, *, pipeline: str) -> Path:
    """Write `README.md` into the folder of the last generator of a training run.

    Args:
        output: folder of the training run, with its `summary.json`.
        pipeline: class of diffusers that loads the base and the LoRA.

    Returns:
        Path of the card.
    """
    output = Path(output)
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    folder = output / summary["generator_checkpoint"]
    further = tuple(sorted({path.parent.name for path in folder.glob("*/*.safetensors")}))
    whole = None
    if summary["config"]["generator"]["train"] == "full":
        whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    write_text(folder / "README.md", model_card(summary, pipeline=pipeline, further=further, whole=whole))
    return folder / "README.md"


def model_card(
    summary: Mapping[str, Any], *, pipeline: str, further: Sequence[str] = (), whole: str | None = None
) -> str:
    """Return the card's Markdown, with the front matter that hubs read.

    Args:
        summary: content of `summary.json`.
        pipeline: class of diffusers that loads the base and the LoRA.
        further: transformers of the pipeline beside the first, which have a folder of their name inside.
        whole: class of diffusers that loads the transformer where it was trained as a whole; None for a LoRA.

    Returns:
        Base and revision, the lines that load it, the change on held-out prompts with its interval, and how it was trained.
    """
    config = summary["config"]
    generator, objective = config["generator"], config["objective"]
    base, revision = _public(generator["path"]), generator["revision"]
    pinned = f', revision="{revision}"' if revision else ""
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: diffusers",
        f"tags: [{'lora' if whole is None else 'full-fine-tuning'}, text-to-video, rlhf]",
        "---",
        "",
        f"# {'LoRA' if whole is None else 'Transformer'} trained against a video judge",
        "",
        f"For {base}{f' at {revision}' if revision else ''}; {_kind(generator)}",
        "",
        "```python",
        *(
            _lora_lines(pipeline, base, pinned, further)
            if whole is None
            else _whole_lines(pipeline, base, pinned, further, whole)
        ),
        "```",
        "",
        "## What it changed",
        "",
        f"{summary['num_prompts']} held-out prompts x {len(summary['seeds'])} seeds, the same noise before and after; 95 % intervals",
        "by bootstrap over prompts.",
        "",
        "| | before | after | change |",
        "|---|---|---|---|",
        *_change_lines(summary),
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


def _kind(generator: Mapping[str, Any]) -> str:
    if generator["train"] == "full":
        return "all weights of the transformer were\ntrained, and take the place of the base's. They are 32-bit."
    return (
        f"rank {generator['lora_rank']}, alpha {generator['lora_alpha']}, which\n"
        "stands in the file. Suggested scale: 1.0, at which it was trained and measured; less mixes in the base."
    )


def _lora_lines(pipeline: str, base: str, pinned: str, further: Sequence[str]) -> list[str]:
    return [
        f"from diffusers import {pipeline}",
        "",
        f'pipe = {pipeline}.from_pretrained("{base}"{pinned})',
        'pipe.load_lora_weights("path/to/this/folder")',
        *(f'pipe.load_lora_weights("path/to/this/folder/{name}", load_into_{name}=True)' for name in further),
    ]


def _whole_lines(pipeline: str, base: str, pinned: str, further: Sequence[str], whole: str) -> list[str]:
    folders = {"transformer": "path/to/this/folder", **{name: f"path/to/this/folder/{name}" for name in further}}
    return [
        f"from diffusers import {', '.join(sorted((pipeline, whole)))}",
        "",
        *(f'{name} = {whole}.from_pretrained("{folder}")' for name, folder in folders.items()),
        f'pipe = {pipeline}.from_pretrained("{base}"{pinned}, {", ".join(f"{name}={name}" for name in folders)})',
    ]


def _public(path: str) -> str:
    """Return a model's path as others may read it: of a folder on this machine its name alone."""
    return Path(path).name if Path(path).is_absolute() else path


def _change_lines(summary: Mapping[str, Any]) -> list[str]:
    before, after = (_means(summary[side]) for side in ("before", "after"))
    lines = []
    for name, change in summary["difference"].items():
        ends = [f"{side[name]:.3f}" if side.get(name) is not None else "" for side in (before, after)]
        if change["mean"] is not None:
            interval = f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            lines.append(f"| {name.replace('_', ' ')} | {ends[0]} | {ends[1]} | {interval} |")
    return lines


def _means(side: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the oracle's means, or the first judge's, by the names that the differences have."""
    rewards = side["rewards"]
    means = dict(side["oracle"] or rewards["initial"])
    means["reward_initial_judge"] = rewards["initial"]["reward"]
    if "audit" in rewards:
        means["reward_audit"] = rewards["audit"]["reward"]
    return means
