"""Data regularisation: the ordinary flow-matching loss on real clips, beside the objective.

It keeps the policy near what real clips look like (forward KL to the data), where a penalty towards the reference keeps it
near what the base already drew.

Source: DDRL (arXiv 2512.04332): reward maximisation plus the diffusion loss on real data.

Shape legend: N clips of one optimiser step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from generator_loop.adapters.base import VideoGenerator
from generator_loop.flow.path import keyed_noise, logit_normal_sigmas, mean_square, noised
from generator_loop.objectives.base import NoisyBatch, Policies
from generator_loop.real_clips import RealClips
from generator_loop.records import Conditioning, Draw, Prompt, Rollout, Scored

Clips = Callable[[int, Draw, slice], tuple[Sequence[Prompt], Tensor]]
"""clips(number, draw, share) -> prompts and clean latents [N, c, F, h, w] of a share of as many distinct real clips; fewer where
some cannot be read."""


class FileClips:
    """Latents of a file's real clips; the encoded ones stay in memory."""

    def __init__(self, clips: RealClips, generator: VideoGenerator, *, max_kept: int = 256) -> None:
        """Keep the list.

        Args:
            clips: the list.
            generator: it encodes; its size and rate are those of the clips.
            max_kept: latents kept in memory.
        """
        self._clips, self._generator, self._max_kept = clips, generator, max_kept
        self._kept: dict[int, Tensor | None] = {}

    def __call__(self, num: int, draw: Draw, share: slice) -> tuple[Sequence[Prompt], Tensor]:
        """Return prompts and latents of a share of up to `num` clips; see `Clips`."""
        pairs = [(prompt, self._latents(prompt, path)) for prompt, path in self._clips.choose(num, draw)[share]]
        usable = [(prompt, latents) for prompt, latents in pairs if latents is not None]
        if not usable:
            return (), torch.zeros(0)
        return [prompt for prompt, _ in usable], torch.stack([latents for _, latents in usable])

    def _latents(self, prompt: Prompt, path: Path) -> Tensor | None:
        if prompt.prompt_id not in self._kept:
            generator = self._generator
            frames = self._clips.read(path, size=(generator.num_frames, *generator.size), fps=generator.fps)
            while len(self._kept) >= self._max_kept:
                self._kept.pop(next(iter(self._kept)))
            self._kept[prompt.prompt_id] = None if frames is None else generator.encode(frames[None])[0]
        return self._kept[prompt.prompt_id]


class DataLoss:
    """Adds weight x flow-matching loss on real clips to every optimiser step."""

    metrics: tuple[str, ...] = ("data_loss",)

    def __init__(
        self,
        clips: Clips,
        encoder: Callable[[Sequence[Prompt]], Conditioning],
        *,
        weight: float,
        batch_size: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        """Keep where clips come from.

        Args:
            clips: draws real clips.
            encoder: text embeddings.
            weight: of the loss.
            batch_size: clips of one optimiser step over all processes.
            rank: this process.
            num_ranks: number of processes; each takes its share of the clips.
        """
        self._clips, self._encoder, self._weight = clips, encoder, weight
        self._num, self._share = batch_size, slice(rank, None, num_ranks)

    def prepare(self, samples: Rollout, scored: Scored) -> None:
        """Look at nothing: real clips do not depend on the samples."""

    def batches(self, draw: Draw) -> Iterator[NoisyBatch]:
        """Yield real clips, unless none can be read; see `Regulariser.batches`."""
        if not range(self._num)[self._share]:
            return
        draw = draw.fork("data")
        prompts, latents = self._clips(self._num, draw, self._share)
        if len(prompts):
            keys = [(prompt.prompt_id, 0) for prompt in prompts]
            sigma = logit_normal_sigmas(draw, keys).to(latents.device)
            yield NoisyBatch(latents, keyed_noise(draw, keys, latents), sigma, self._encoder(prompts))

    def backward(self, batch: NoisyBatch, policies: Policies, *, scale: float) -> Mapping[str, float]:
        """Add the gradient of scale x weight x mean loss; see `Regulariser.backward`."""
        noisy, target = noised(batch.latents, batch.noise, batch.sigma)
        loss = mean_square(policies.policy(noisy, batch.sigma, batch.cond) - target).mean()
        (scale * self._weight * loss).backward()
        return {"data_loss": float(loss.detach())}

    def adapt(self, metrics: Mapping[str, float]) -> None:
        """Keep the weight: it is the config's."""

    def state(self) -> Mapping[str, float]:
        """Return nothing: there is no state."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from nothing."""
