"""A linear head that scores at special tokens of one long question, as reward models without language have them.

Shapes: N clips, K scores, D hidden size of the text model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_model.records import Clip, JudgeRequest

HEAD_FILE = "score_head.safetensors"

_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
_SLOT = "{text_prompt}"


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How a head is asked and what its numbers mean."""

    template: str
    """The question, with "{text_prompt}" for the generation prompt and each of `tokens` once, in their order."""
    tokens: tuple[str, ...]
    """Special tokens at which the K scores are read."""
    dimensions: tuple[str, ...]
    """What each score rates."""
    mean: tuple[float, ...]
    """Mean of each raw score on the clips that it was calibrated on."""
    std: tuple[float, ...]
    """Their standard deviation, > 0."""

    def __post_init__(self) -> None:
        """Check that the question fits the tokens."""
        if not len(self.tokens) == len(self.dimensions) == len(self.mean) == len(self.std) or min(self.std) <= 0:
            raise ValueError(f"a head needs a dimension, a mean and a std > 0 for each of {', '.join(self.tokens)}")
        places = [self.template.find(part) for part in self.tokens]
        once = all(self.template.count(part) == 1 for part in (*self.tokens, _SLOT))
        if not once or places != sorted(places):
            raise ValueError(f"the template must have {_SLOT} and, in this order, {', '.join(self.tokens)}, each once")


class ScoreHead(nn.Module):
    """The head: one row for all tokens, or one row for each."""

    def __init__(self, weight: Tensor, settings: HeadSettings, tokenizer: Any) -> None:
        """Take the parts.

        Args:
            weight: [1, D], or [K, D] of which token k reads row k.
            settings: the question and the scale.
            tokenizer: knows each of the settings' tokens as one.

        Raises:
            ValueError: another number of rows, or a token that the tokenizer does not know.
        """
        super().__init__()
        known = tokenizer.get_added_vocab()
        if missing := [token for token in settings.tokens if token not in known]:
            raise ValueError(f"the tokenizer has no token {missing[0]}")
        if len(weight) not in (1, len(settings.tokens)):
            raise ValueError(f"the head has {len(weight)} rows, expected 1 or {len(settings.tokens)}")
        self.weight = nn.Parameter(weight)
        self.settings = settings
        self.token_ids = tuple(known[token] for token in settings.tokens)

    def request(self, clip: Clip, prompt: str) -> JudgeRequest:
        """Return the question; special-token syntax in the prompt is taken apart, so that it cannot score itself."""
        question = self.settings.template.replace(_SLOT, prompt.replace("<|", "< |"))
        return JudgeRequest((clip,), (_SYSTEM, 0), (f"{question}{_ASSISTANT}",))

    def forward(self, states: Tensor) -> Tensor:
        """Return raw scores [N, K] of hidden states [N, K, D] at the tokens."""
        return (states * self.weight).sum(dim=-1)

    def normalise(self, scores: Tensor) -> Tensor:
        """Return z scores [N, K] of raw ones."""
        return (scores - scores.new_tensor(self.settings.mean)) / scores.new_tensor(self.settings.std)

    def save(self, folder: Path) -> None:
        """Write the weight, with the settings in its file's metadata."""
        from safetensors.torch import save_file

        settings = json.dumps(dataclasses.asdict(self.settings))
        save_file({"weight": self.weight.detach().cpu()}, folder / HEAD_FILE, metadata={"settings": settings})

    @classmethod
    def load(cls, folder: Path, tokenizer: Any, device: torch.device) -> ScoreHead | None:
        """Read what `save` wrote; None where there is none."""
        if not (folder / HEAD_FILE).is_file():
            return None
        from safetensors import safe_open

        with safe_open(folder / HEAD_FILE, framework="pt", device=str(device)) as file:
            values = json.loads(file.metadata()["settings"])
            weight = file.get_tensor("weight")
        rest = {name: tuple(values[name]) for name in ("tokens", "dimensions", "mean", "std")}
        return cls(weight, HeadSettings(template=values["template"], **rest), tokenizer)


def states_at(hidden: Tensor, tokens: Tensor, branch: Tensor, ends: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Return the hidden states at special tokens of each branch, in the order of `ids`.

    Args:
        hidden: [R, L, D] of packed rows.
        tokens: [R, L] their token ids.
        branch: [R, L] number of the branch that each token belongs to.
        ends: flat index of each branch's last token.
        ids: token ids; each stands in each branch once.

    Returns:
        [len(ends), len(ids), D].
    """
    length, wanted = tokens.shape[1], torch.tensor(list(ids))
    places = []
    for end in ends:
        row = end // length
        inside = branch[row] == branch[row, end % length]
        places.append(row * length + ((tokens[row] == wanted[:, None]) & inside).long().argmax(dim=1))
    return hidden.flatten(0, 1)[torch.stack(places).to(hidden.device)]
