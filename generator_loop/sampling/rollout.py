"""Drawing videos from the generator: plain Euler steps of the probability-flow ODE.

Shape legend: B = prompts x G rows, the G samples of one prompt consecutive; S steps; K steps of the kept tail.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generator_loop.adapters.base import VideoGenerator
from generator_loop.records import Conditioning, Draw, Prompt, Rollout, Tail


class PromptEncoder:
    """Text embeddings by prompt, each encoded once.

    Prompts are encoded one at a time: the embedding then does not depend on which others stood in the batch, and a
    resumed run sees the very same numbers. They wait in the computer's memory, as a large text encoder's take
    megabytes each.
    """

    def __init__(self, generator: VideoGenerator, *, max_prompts: int = 1024) -> None:
        """Start empty.

        Args:
            generator: encodes the prompts.
            max_prompts: embeddings kept; the longest unused one goes first.
        """
        self._generator = generator
        self._max_prompts = max_prompts
        self._rows: dict[str, Conditioning] = {}

    def __call__(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return conditioning with one row for each prompt.

        Args:
            prompts: any prompts, repeats allowed.

        Returns:
            Conditioning with len(prompts) rows on the generator's device.
        """
        rows = [self._row(prompt.text).tensors for prompt in prompts]
        device = self._generator.device
        return Conditioning({name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]})

    def _row(self, text: str) -> Conditioning:
        row = self._rows.pop(text, None)
        if row is None:
            encoded = self._generator.encode_prompts([text]).tensors
            row = Conditioning({name: value.cpu() for name, value in encoded.items()})
        self._rows[text] = row
        if len(self._rows) > self._max_prompts:
            self._rows.pop(next(iter(self._rows)))
        return row


def tail_length(sigmas: Tensor, span: float) -> int:
    """Return the smallest number of last steps that covers a span of sigma.

    Args:
        sigmas: falling schedule [S + 1].
        span: sigma to cover in [0, 1]; 0 needs no step.

    Returns:
        K in 0..S; S where the whole schedule covers less.
    """
    if span <= 0:
        return 0
    covered = sigmas.flip(0)[1:] - sigmas[-1]  # [S], sigma covered by the last 1, 2, ... steps
    return min(int((covered < span - 1e-6).sum()) + 1, len(covered))


@torch.no_grad()
def rollout(
    generator: VideoGenerator,
    prompts: Sequence[Prompt],
    *,
    encoder: PromptEncoder,
    draw: Draw,
    group_size: int,
    num_steps: int,
    batch_size: int,
    policy: str = "policy",
    tail_span: float = 0.0,
) -> Rollout:
    """Sample groups of videos without gradient.

    Args:
        generator: the generator.
        prompts: distinct prompts of this rank.
        encoder: text embeddings of `generator`.
        draw: random streams; sample g of a prompt starts from the stream (prompt id, g).
        group_size: samples G of each prompt.
        num_steps: Euler steps S.
        batch_size: most rows in one forward pass; results differ by rounding only.
        policy: name of the weights that sample.
        tail_span: sigma span of the last steps whose states are kept; 0 keeps none.

    Returns:
        Latents on the generator's device and frames on the CPU.
    """
    if not prompts or len({prompt.prompt_id for prompt in prompts}) != len(prompts):
        raise ValueError("rollout needs at least one prompt, each of another id: repeats would draw the same samples")
    sigmas = generator.sigmas(num_steps)
    num_kept = tail_length(sigmas, tail_span)
    cond = encoder([prompt for prompt in prompts for _ in range(group_size)])
    noise = generator.init_latents([draw.generator(p.prompt_id, g) for p in prompts for g in range(group_size)])
    latents, states, frames = [], [], []
    with generator.use(policy):
        for rows in torch.arange(len(noise), device=noise.device).split(batch_size):
            path = sample_path(generator, noise[rows], sigmas, cond.select(rows), num_kept=num_kept)
            latents.append(path[-1])
            states.append(path[:-1])
            frames.append(generator.decode(path[-1]).cpu())
    return Rollout(
        prompts=tuple(prompts),
        group_size=group_size,
        noise=noise,
        latents=torch.cat(latents),
        cond=cond,
        frames=torch.cat(frames),
        tail=Tail(states=torch.cat(states, dim=1), sigmas=sigmas[-1 - num_kept :]) if num_kept else None,
    )


def sample_path(
    generator: VideoGenerator, latents: Tensor, sigmas: Tensor, cond: Conditioning, *, num_kept: int = 0
) -> Tensor:
    """Walk Euler steps from noise to clean latents with the weights in use.

    Args:
        generator: the generator.
        latents: noise [N, ...] at sigmas[0].
        sigmas: falling schedule [S + 1].
        cond: conditioning with N rows.
        num_kept: K last steps whose starting states are kept.

    Returns:
        The K kept states and, last, the clean latents [K + 1, N, ...].
    """
    path = []
    num_steps = len(sigmas) - 1
    for step in range(num_steps):
        if step >= num_steps - num_kept:
            path.append(latents)
        velocity = generator.predict(latents, sigmas[step].expand(len(latents)), cond)
        latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
    return torch.stack([*path, latents])
