"""What every generator family must pass, whatever its model."""

import torch

from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.advantages import group_advantages
from generator_loop.objectives import OBJECTIVE_CONFIGS, OBJECTIVES
from generator_loop.records import Draw, Prompt
from generator_loop.sampling.rollout import PromptEncoder, rollout
from generator_loop.update import Updater, actors_of
from tests.toy_flow import toy_scores


def check_objective_trains(generator, name):
    """Take one step with an objective: the policy moves, and its probability ratio was 1 before."""
    objective = OBJECTIVES[name](OBJECTIVE_CONFIGS[name]())
    for role in (OLD, REFERENCE):
        generator.set_weights(role, {key: value.clone() for key, value in generator.weights(POLICY).items()})
    kept = dict(tail_span=objective.tail_span, random_steps=objective.random_steps)
    settings = dict(encoder=PromptEncoder(generator), draw=Draw(0, 0), group_size=4, num_steps=3, batch_size=4)
    samples = rollout(generator, [Prompt(0, "a red ball moves left")], **settings, **kept)
    rewards = torch.linspace(0, 1, 4)
    credit = group_advantages(rewards, group_size=4)
    updater = Updater(generator.trainable_parameters(), lr=1e-3)
    who = actors_of(generator, lambda frames, _prompts: frames.flatten(1).mean(1))
    before = {key: value.clone() for key, value in generator.weights(POLICY).items()}
    plan = objective.plan(samples, toy_scores(rewards), credit, draw=Draw(0, 0), micro_batch_size=4)
    metrics = updater.step(objective, next(iter(plan)), who)
    assert any(not torch.equal(value, before[key]) for key, value in generator.weights(POLICY).items())
    assert metrics.get("ratio_error", 0.0) < 1e-5
