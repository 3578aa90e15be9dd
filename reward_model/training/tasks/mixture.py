"""Mixtures of data sections, drawn by seed and step, and the planner that shows a judge their clips."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from reward_model.datasets.readers import DataConfig, Keep, open_source, refuse_faults
from reward_model.datasets.sources import Listed, Part, Source
from reward_model.judge.model import VideoJudge
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.intake import plan_clip
from reward_model.media.motion_encoders import encoder_of
from reward_model.records import Annotation, Clip, Video

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SEED_STRIDE = 1_000_003
"""Distance of the seeds of two stages; a stage's steps are counted between them."""


class Mixture:
    """Sections of data; each two clips of a step come from one of them, by weight.

    Listed sections go through their examples in epochs, whatever the number of processes. Rendered sections know no epochs:
    each process renders clips of its own.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        """Keep the sections."""
        self._sources, self._weights = list(sources), list(weights)
        self._shown: tuple[tuple[int, int, int], int, Counter[int]] | None = None

    def __call__(self, seed: int, num: int) -> list[Annotation]:
        """Draw about `num` clips by a seed alone; of a list each at most once, so that fewer may come."""
        chosen = Counter(self._choose(seed, (num + 1) // 2))
        with torch.autocast("cpu", enabled=False):  # clips are what they are whatever precision the judge runs in
            drawn = [
                source.once(seed, 2 * chosen[i]) if isinstance(source, Listed) else source(seed, 2 * chosen[i])
                for i, source in enumerate(self._sources)
            ]
        return [example for section in drawn for example in section][:num]

    @property
    def clips_per_epoch(self) -> int:
        """Length of all listed sections, a pair counting as two; 0 where a section is rendered without end."""
        lengths = [source.num_clips if isinstance(source, Listed) else 0 for source in self._sources]
        return sum(lengths) if all(lengths) else 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be drawn."""
        return all(isinstance(source, Listed) and not source.examples for source in self._sources)

    def draw(self, seed: int, step: int, num: int, *, rank: int = 0, world: int = 1) -> list[Annotation]:
        """Draw a process's share of a step's batch.

        Args:
            seed: of the stage.
            step: number of the optimiser step.
            num: clips of the whole batch, a multiple of `world`.
            rank: of the process.
            world: number of processes.

        Returns:
            The examples. Of listed sections, those of all processes are the same for any number of processes, and those of
            consecutive steps show every example once an epoch.
        """
        own_seed, share = (seed * SEED_STRIDE + step) * world + rank, num // world
        if not any(isinstance(source, Listed) for source in self._sources):
            return self(own_seed, share)
        sections = self._sections(seed, step, num, world)
        before = self._before(seed, step, num, world) + Counter(sections[: rank * share])
        own = Counter(sections[rank * share : (rank + 1) * share])
        drawn: list[Annotation] = []
        with torch.autocast("cpu", enabled=False):
            for i, source in enumerate(self._sources):
                if isinstance(source, Listed):
                    drawn += source.draw(seed * len(self._sources) + i, before[i], own[i])
                else:
                    drawn += source(own_seed, own[i])
        return drawn

    def _choose(self, seed: int, num: int) -> list[int]:
        return random.Random(seed).choices(range(len(self._sources)), self._weights, k=num)

    def _sections(self, seed: int, step: int, num: int, world: int) -> list[int]:
        """Return the section of each clip of a step's batch, the processes' shares one after another."""
        listed = all(isinstance(source, Listed) for source in self._sources)
        shares = 1 if listed else world  # rendered clips are chosen and made by each process for itself
        chosen = (
            self._choose((seed * SEED_STRIDE + step) * shares + rank, (num // shares + 1) // 2)
            for rank in range(shares)
        )
        return [i for one in chosen for i in [i for section in one for i in (section, section)][: num // shares]]

    def _before(self, seed: int, step: int, num: int, world: int) -> Counter[int]:
        """Return the clips that each section has shown before a step."""
        key, first, shown = (seed, num, world), 0, Counter[int]()
        if self._shown is not None and self._shown[0] == key and self._shown[1] <= step:
            _, first, shown = self._shown
        for earlier in range(first, step):
            shown = shown + Counter(self._sections(seed, earlier, num, world))
        self._shown = key, step, shown
        return shown


def open_mixture(configs: Sequence[DataConfig], *, part: Part = "train", keep: Keep = refuse_faults) -> Mixture:
    """Return the mixture of a part of some data sections.

    Args:
        configs: the sections.
        part: of each section's data.
        keep: see `readers.open_source`.

    Returns:
        The mixture.
    """
    return Mixture(
        [open_source(config, part=part, keep=keep) for config in configs], [config.weight for config in configs]
    )


def clip_planner(judge: VideoJudge) -> Callable[[Video | Path], Clip]:
    """Return the function that reads and plans a video the way this judge sees clips; an image is a clip of one frame."""
    policy, motion = FramePolicy.from_dict(judge.config.frame_policy), encoder_of(judge.config.motion)

    def plan(video: Video | Path) -> Clip:
        """Return the clip as the judge sees it."""
        if isinstance(video, Path) and video.suffix.lower() in IMAGE_SUFFIXES:
            still = plan_clip(video, None, motion=motion)
            if len(still.plan.indices) == 1:
                return still  # else animated
        return plan_clip(video, policy, motion=motion)

    return plan
