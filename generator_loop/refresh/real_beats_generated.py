"""Preference pairs: a real clip beats a generated one of the same prompt, so that the judge sees what generators do wrong.

The adversarial refresh of SHIFT and Adv-GRPO (arXiv 2511.20256). The real clip passes through the generator's own
autoencoder first, or the judge would learn to tell decoded frames from filmed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from generator_loop.real_clips import RealClips
from generator_loop.refresh.base import Candidate, PairSourceConfig, PairTools, any_clip, preferred
from reward_model.records import VideoPair


@dataclass(frozen=True, kw_only=True)
class RealBeatsGeneratedConfig(PairSourceConfig):
    """Config of the pairs of real and generated clips."""

    name: Literal["real_beats_generated"] = "real_beats_generated"
    """Chooses this source."""
    path: str | None = None
    """CSV or JSONL of real clips with their captions (columns video and prompt); null renders the prompts' world."""

    @property
    def needs_world(self) -> bool:
        """Whether it needs a world: where no file of real clips is named."""
        return self.path is None


class RealBeatsGenerated:
    """One pair for each prompt: of the world's, or as many captions of the file."""

    config_class: ClassVar[type[Any]] = RealBeatsGeneratedConfig

    def __init__(self, config: Any) -> None:
        """Read which clips there are; ValueError as in `RealClips`, or where none of them can be read."""
        self._clips = None if config.path is None else RealClips(config.path)
        if self._clips is not None:
            self._clips.refuse_unusable(size=(1, 2, 2), fps=1.0)

    def pairs(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[int, VideoPair]]:
        """Return the pair of every prompt; see `PairSource.pairs`."""
        draw = tools.draw.fork("real beats generated")
        real: Sequence[Tensor] = ()
        if self._clips is None:
            assert tools.render is not None, "the config asks for a world"
            real = list(tools.render([one.prompt for one in candidates], draw)) if candidates else []
        else:
            candidates, real = self._of_file(tools)
        pairs = []
        for one, clip in zip(candidates, real, strict=True):
            decoded = tools.decode(tools.encode(clip[None]))[0].cpu()
            pair = preferred(decoded, any_clip(one, draw), one.prompt, fps=tools.fps, source="real beats generated")
            pairs.append((one.place, pair))
        return pairs

    def _of_file(self, tools: PairTools) -> tuple[list[Candidate], list[Tensor]]:
        """Return captions of the file with clips that the newest policy draws for them, and the real clips."""
        assert self._clips is not None
        chosen = self._clips.choose(tools.num_prompts, tools.draw.fork("real clips"))
        read = [
            (place, prompt, self._clips.read(path, size=tools.size, fps=tools.fps))
            for place, (prompt, path) in list(enumerate(chosen))[tools.rank :: tools.num_ranks]
        ]
        usable = [(place, prompt, frames) for place, prompt, frames in read if frames is not None]
        if not usable:
            return [], []
        samples, scored = tools.sample([prompt for _, prompt, _ in usable])
        frames = samples.frames.unflatten(0, (-1, samples.group_size))
        rewards = scored.rewards.unflatten(0, (-1, samples.group_size))
        made = [
            Candidate(place=place, prompt=prompt, frames=frames[index], rewards=rewards[index])
            for index, (place, prompt, _) in enumerate(usable)
        ]
        return made, [clip for _, _, clip in usable]
