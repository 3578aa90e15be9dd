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
from einops import rearrange
from torch import Tensor, nn

from reward_model.records import Clip, JudgeRequest
from reward_model.weights import read_tensors, tensor_notes, tensor_shapes

HEAD_FILE = "score_head.safetensors"

_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
_SLOT = "{text_prompt}"


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Question of a head, and meaning and scale of its scores."""

    template: str
    """The question, with "{text_prompt}" for the generation prompt and each of `tokens` once, in their order."""
    tokens: tuple[str, ...]
    """Special tokens at which the K scores are read."""
    dimensions: tuple[str, ...]
    """Dimension that each score rates."""
    mean: tuple[float, ...]
    """Mean of each raw score on the clips that it was calibrated on."""
    std: tuple[float, ...]
    """Their standard deviation, > 0."""

    def __post_init__(self) -> None:
        """Check that the question fits the tokens."""
        if not len(self.tokens) == len(self.dimensions) == len(self.mean) == len(self.std) or min(self.std) <= 0:
            raise ValueError(f"a head needs a dimension, a mean and a std > 0 for each of {', '.join(self.tokens)}")
        places = [self.template.find(token) for token in self.tokens]
        once = all(self.template.count(text) == 1 for text in (*self.tokens, _SLOT))
        if not once or places != sorted(places):
            raise ValueError(f"the template must have {_SLOT} and, in this order, {', '.join(self.tokens)}, each once")


class ScoreHead(nn.Module):
    """The head: one weight vector for all tokens, or one for each."""

    def __init__(self, weight: Tensor, config: HeadConfig, tokenizer: Any) -> None:
        """Take weights and question.

        Args:
            weight: [1, D] for all tokens, or [K, D] with one vector for each.
            config: the question and the scale.
            tokenizer: knows each of the config's tokens as one.

        Raises:
            ValueError: another number of vectors, or a token that the tokenizer does not know.
        """
        super().__init__()
        known = tokenizer.get_added_vocab()
        if missing := [token for token in config.tokens if token not in known]:
            raise ValueError(f"the tokenizer has no token {missing[0]}")
        if len(weight) not in (1, len(config.tokens)):
            raise ValueError(f"the head has {len(weight)} weight vectors, expected 1 or {len(config.tokens)}")
        self.weight = nn.Parameter(weight)
        self.config = config
        self.token_ids = tuple(known[token] for token in config.tokens)

    def request(self, clip: Clip, prompt: str) -> JudgeRequest:
        """Return the question; special-token syntax in the prompt is broken up, so that a prompt cannot score itself."""
        question = self.config.template.replace(_SLOT, prompt.replace("<|", "< |"))
        return JudgeRequest((clip,), (_SYSTEM, 0), (f"{question}{_ASSISTANT}",))

    def forward(self, states: Tensor) -> Tensor:
        """Return raw scores [N, K] of hidden states [N, K, D] at the tokens."""
        return (states * self.weight).sum(dim=-1)

    def normalise(self, scores: Tensor) -> Tensor:
        """Return z scores [N, K] of raw ones."""
        return (scores - scores.new_tensor(self.config.mean)) / scores.new_tensor(self.config.std)

    def save(self, folder: Path) -> None:
        """Write the weight, with the config in its file's metadata."""
        from safetensors.torch import save_file

        settings = json.dumps(dataclasses.asdict(self.config))
        save_file({"weight": self.weight.detach().cpu()}, folder / HEAD_FILE, metadata={"settings": settings})

    @classmethod
    def load(cls, folder: Path, tokenizer: Any, hidden: Tensor) -> ScoreHead | None:
        """Read the file that `save` wrote; None where there is none.

        Args:
            folder: of the judge.
            tokenizer: of the judge.
            hidden: weight [V, D] of the model's embeddings, for their size and device.

        Returns:
            The head on the device of `hidden`.

        Raises:
            ValueError: a cut or malformed file, or a weight or a question that does not fit the judge.
        """
        file = folder / HEAD_FILE
        if not file.is_file():
            return None
        try:
            config = _head_config(json.loads(tensor_notes(file)["settings"]))
            num = tensor_shapes(file).get("weight", (1,))[0]
            vectors = num if num in (1, len(config.tokens)) else len(config.tokens)
            weight = read_tensors(file, {"weight": (vectors, hidden.shape[1])})["weight"]
            return cls(weight.to(hidden.device), config, tokenizer)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} has no settings of a head in its metadata: {error}") from error
        except ValueError as error:
            raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error


def _head_config(values: Any) -> HeadConfig:
    rest = {name: tuple(values[name]) for name in ("tokens", "dimensions", "mean", "std")}
    return HeadConfig(template=values["template"], **rest)


def states_at(hidden: Tensor, tokens: Tensor, branch: Tensor, ends: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Return the hidden states at special tokens of each branch, in the order of `ids`.

    Args:
        hidden: [R, L, D] of packed sequences.
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
        sequence = end // length
        inside = branch[sequence] == branch[sequence, end % length]
        places.append(sequence * length + ((tokens[sequence] == wanted[:, None]) & inside).long().argmax(dim=1))
    return rearrange(hidden, "r l d -> (r l) d")[torch.stack(places).to(hidden.device)]
