"""A linear velocity field and the records around it, so that objectives are tested without a model."""

import dataclasses

import torch

from generator_loop.objectives.base import Policies
from generator_loop.records import Conditioning, Prompt, Rollout, Scored, TailStates, Trajectory


class LinearField(torch.nn.Module):
    """velocity = x W + sigma b + cond, with the bend that `curve` adds."""

    def __init__(self, dim=3, *, seed=0, curve=0.0):
        """Draw W and b."""
        super().__init__()
        noise = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(dim, dim, generator=noise))
        self.bias = torch.nn.Parameter(torch.randn(dim, generator=noise))
        self.curve = curve

    def forward(self, x, sigma, cond):
        """Predict."""
        velocity = x @ self.weight + sigma[:, None] * self.bias + cond.tensors["text"]
        return velocity + self.curve * velocity.square()


def policies(policy, old=None, reference=None, *, decode=None, reward=None):
    """Return policies whose frozen policies run without gradient, as the loop's do."""

    def frozen(field):
        return torch.no_grad()(field.forward if field is not None else policy.forward)

    return Policies(
        policy=policy,
        old=frozen(old),
        reference=frozen(reference),
        decode=decode or (lambda latents: latents),
        reward=reward or (lambda frames, _prompts: frames.flatten(1).sum(1)),
    )


def toy_rollout(*, num_prompts=2, group_size=4, dim=3, num_kept=0, seed=0, first_id=0):
    """Return random latents with prompt ids from `first_id` on, drawn so that a prompt's rows depend on its id."""
    prompts = tuple(Prompt(first_id + place, f"prompt {first_id + place}") for place in range(num_prompts))
    streams = [torch.Generator().manual_seed(1000 * seed + prompt.prompt_id) for prompt in prompts]
    rows = torch.cat([torch.randn(group_size, 3 + num_kept, dim, generator=stream) for stream in streams])
    return Rollout(
        prompts=prompts,
        group_size=group_size,
        noise=rows[:, 0],
        latents=rows[:, 1],
        cond=Conditioning({"text": rows[:, 2]}),
        frames=rows[:, 1],
        tail=TailStates(rows[:, 3:].transpose(0, 1), torch.linspace(0.5, 0, num_kept + 1)) if num_kept else None,
    )


def with_walk(rollout, field, kernel):
    """Return a rollout whose first two of three steps were drawn from a field, with the rollout's own rows as noise."""
    sigmas, results, log_probs = torch.tensor([0.9, 0.6, 0.3, 0.0]), [], []
    levels = sigmas.tolist()
    for place, noise in enumerate((rollout.noise, rollout.latents)):
        state = rollout.tail.states[place]
        with torch.no_grad():
            velocity = field(state, torch.full((len(state),), levels[place]), rollout.cond)
        step = kernel.transition(state, velocity, levels[place], levels[place + 1], ceiling=levels[1])
        results.append(step.mean + step.std * noise)
        log_probs.append(kernel.log_prob(step, results[-1]))
    walk = Trajectory((0, 1), rollout.tail.states, torch.stack(results), torch.stack(log_probs), sigmas)
    return dataclasses.replace(rollout, trajectory=walk)


def toy_scores(rewards):
    """Return rewards as the loop's record."""
    return Scored(rewards=rewards, valid=rewards.isfinite(), scores={"overall": rewards})
