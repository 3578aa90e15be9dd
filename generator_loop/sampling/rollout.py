"""Drawing videos from the generator: plain Euler steps of the probability-flow ODE, some of them random where asked for.

Shape legend: B = prompts x G samples, the G of one prompt consecutive; S steps; K steps of the kept tail.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generator_loop.adapters.base import VideoGenerator
from generator_loop.flow.sde import Kernel, RandomSteps
from generator_loop.records import Conditioning, Draw, Prompt, Rollout, TailStates, Trajectory


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
        self._known: dict[str, Conditioning] = {}

    def __call__(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Return conditioning with one sample for each prompt.

        Args:
            prompts: any prompts, repeats allowed.

        Returns:
            Conditioning of len(prompts) samples on the generator's device.
        """
        encoded = [self._encode(prompt.text).tensors for prompt in prompts]
        device = self._generator.device
        return Conditioning({name: torch.cat([one[name] for one in encoded]).to(device) for name in encoded[0]})

    def _encode(self, text: str) -> Conditioning:
        cond = self._known.pop(text, None)
        if cond is None:
            encoded = self._generator.encode_prompts([text]).tensors
            cond = Conditioning({name: value.cpu() for name, value in encoded.items()})
        self._known[text] = cond
        if len(self._known) > self._max_prompts:
            self._known.pop(next(iter(self._known)))
        return cond


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
    random_steps: RandomSteps | None = None,
) -> Rollout:
    """Sample groups of videos without gradient.

    Args:
        generator: the generator.
        prompts: distinct prompts of this rank.
        encoder: text embeddings of `generator`.
        draw: random streams; sample g of a prompt starts from the stream (prompt id, g).
        group_size: samples G of each prompt.
        num_steps: Euler steps S.
        batch_size: most clips in one forward pass; results differ by rounding only.
        policy: name of the weights that sample.
        tail_span: sigma span of the last steps whose states are kept; 0 keeps none.
        random_steps: steps that are drawn at random, and kept; the same ones for all clips of a rollout, with noise
            keyed like the start. None takes Euler steps only.

    Returns:
        Latents on the generator's device and frames on the CPU.
    """
    if not prompts or len({prompt.prompt_id for prompt in prompts}) != len(prompts):
        raise ValueError("rollout needs at least one prompt, each of another id: repeats would draw the same samples")
    sigmas = generator.sigmas(num_steps)
    num_kept = tail_length(sigmas, tail_span)
    keys = [(prompt.prompt_id, sample) for prompt in prompts for sample in range(group_size)]
    cond = encoder([prompt for prompt in prompts for _ in range(group_size)])
    noise = generator.init_latents([draw.generator(*key) for key in keys])
    random_range = None if random_steps is None else random_steps.choose(num_steps, draw.fork("window").generator(0, 0))
    latents, states, frames, trajectories = [], [], [], []
    with generator.use(policy):
        for index in torch.arange(len(noise), device=noise.device).split(batch_size):
            trajectory = None
            if random_steps is not None and random_range is not None:
                trajectory = TrajectoryRecorder(
                    random_steps.kernel, random_range, sigmas, draw, [keys[place] for place in index.tolist()]
                )
                trajectories.append(trajectory)
            path = sample_path(
                generator, noise[index], sigmas, cond.select(index), num_kept=num_kept, trajectory=trajectory
            )
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
        tail=TailStates(states=torch.cat(states, dim=1), sigmas=sigmas[-1 - num_kept :]) if num_kept else None,
        trajectory=_joined(trajectories, sigmas) if trajectories else None,
    )


@torch.no_grad()
def decoded(
    generator: VideoGenerator,
    prompts: Sequence[Prompt],
    noise: Tensor,
    latents: Tensor,
    *,
    encoder: PromptEncoder,
    group_size: int,
    batch_size: int,
) -> Rollout:
    """Decode clips whose latents are known.

    Args:
        generator: it decodes.
        prompts: of the groups.
        noise: starting latents [B, c, F, h, w].
        latents: clean ones.
        encoder: text embeddings.
        group_size: samples G of each prompt.
        batch_size: as when they were sampled.

    Returns:
        The same as `rollout` gave.
    """
    noise, latents = noise.to(generator.device), latents.to(generator.device)
    return Rollout(
        prompts=tuple(prompts),
        group_size=group_size,
        noise=noise,
        latents=latents,
        cond=encoder([prompt for prompt in prompts for _ in range(group_size)]),
        frames=torch.cat([generator.decode(part).cpu() for part in latents.split(batch_size)]),
    )


class TrajectoryRecorder:
    """Draws the random steps of some samples, each from its own stream, and remembers them."""

    def __init__(
        self, kernel: Kernel, steps: range, sigmas: Tensor, draw: Draw, keys: Sequence[tuple[int, int]]
    ) -> None:
        self.kernel, self.steps, self.sigmas = kernel, steps, sigmas.tolist()
        self.draw, self.keys = draw, keys
        self.states: list[Tensor] = []
        self.results: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    def take(self, number: int, latents: Tensor, velocity: Tensor) -> Tensor:
        """Return latents [B, F, C, h, w] after random step `number`, and remember both ends and its log-probability."""
        sigma, after = self.sigmas[number : number + 2]
        step = self.kernel.transition(latents, velocity, sigma, after, ceiling=self.sigmas[1])
        streams = [self.draw.fork(f"step {number}").generator(*key) for key in self.keys]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=stream) for stream in streams])
        result = step.mean + step.std * noise.to(latents.device)
        self.states.append(latents)
        self.results.append(result)
        self.log_probs.append(self.kernel.log_prob(step, result))
        return result


def _joined(trajectories: Sequence[TrajectoryRecorder], sigmas: Tensor) -> Trajectory:
    tensors = {
        name: torch.cat([torch.stack(getattr(trajectory, name)) for trajectory in trajectories], dim=1)
        for name in ("states", "results", "log_probs")
    }
    return Trajectory(steps=tuple(trajectories[0].steps), sigmas=sigmas, **tensors)


def sample_path(
    generator: VideoGenerator,
    latents: Tensor,
    sigmas: Tensor,
    cond: Conditioning,
    *,
    num_kept: int = 0,
    trajectory: TrajectoryRecorder | None = None,
) -> Tensor:
    """Integrate from noise to clean latents with the weights in use, by Euler steps but for those that `trajectory` draws.

    Args:
        generator: the generator.
        latents: noise [N, ...] at sigmas[0].
        sigmas: falling schedule [S + 1].
        cond: conditioning of N samples.
        num_kept: K last steps whose starting states are kept.
        trajectory: draws its steps at random.

    Returns:
        The K kept states and, last, the clean latents [K + 1, N, ...].
    """
    path = []
    num_steps = len(sigmas) - 1
    for step in range(num_steps):
        if step >= num_steps - num_kept:
            path.append(latents)
        velocity = generator.predict(latents, sigmas[step].expand(len(latents)), cond)
        if trajectory is not None and step in trajectory.steps:
            latents = trajectory.take(step, latents, velocity)
        else:
            latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
    return torch.stack([*path, latents])
