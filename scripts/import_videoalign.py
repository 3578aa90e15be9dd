"""Converts VideoAlign's VideoReward to a judge folder.

python scripts/import_videoalign.py SOURCE OUTPUT --template FILE

SOURCE is a folder with model_config.json and checkpoint-N. Its release is a pickle, which is not read here: in a clone of
github.com/KwaiVGI/VideoAlign, which you trust, write it as safetensors once, and the question that it was trained with:

    import torch
    from prompt_template import DETAILED_PROMPT_WITH_SPECIAL_TOKEN
    from safetensors.torch import save_file
    state = torch.load("checkpoints/checkpoint-11352/model.pth", map_location="cpu", weights_only=True)
    save_file({k: v.clone() for k, v in state.items()}, "checkpoints/checkpoint-11352/model.safetensors")
    open("checkpoints/template.txt", "w").write(DETAILED_PROMPT_WITH_SPECIAL_TOKEN)

OUTPUT is a judge folder with all weights: `VideoJudge.from_pretrained(OUTPUT).head_scores(clips, prompts)`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from reward_model.judge.exchange.videoalign import load_videoalign
from reward_model.terminal import visible


def main(argv: Sequence[str]) -> int:
    """Convert one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with model_config.json and checkpoint-N")
    parser.add_argument("output", type=Path, help="judge folder to write")
    parser.add_argument("--template", type=Path, required=True, help="file with the question that it was trained with")
    parser.add_argument("--base", default="Qwen/Qwen2-VL-2B-Instruct", help="folder or hub id of its base")
    parser.add_argument("--base-revision", help="revision of a hub base")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights written")
    options = parser.parse_args(argv)
    judge = load_videoalign(
        options.source,
        base=options.base,
        template=options.template.read_text(encoding="utf-8"),
        base_revision=options.base_revision,
        dtype=getattr(torch, options.dtype),
    )
    judge.save_pretrained(options.output)
    sys.stdout.write(f"{visible(str(options.output))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
