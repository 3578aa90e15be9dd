"""What only CogVideoX has: v-prediction brought to sigma and velocity, and times between integers."""

import pytest
import torch
from torch.testing import assert_close

from tests.family_checks import TEXTS, noise_generators
from tests.tiny_cogvideox import build_cogvideox, build_cogvideox_generator

pytestmark = pytest.mark.parity


@torch.no_grad()
@pytest.mark.parametrize("sigma", [1.0, 0.7, 0.31, 0.05])
def test_velocity_and_latents_give_back_the_models_clean_sample(sigma):
    """x_0 = x_sigma - sigma velocity must be alpha x_t - s v of the model's own parametrisation."""
    generator = build_cogvideox_generator()
    cond = generator.encode_prompts(TEXTS[:1])
    latents, level = generator.init_latents(noise_generators()[:1]), torch.tensor([sigma])
    ours = latents - sigma * generator.predict(latents, level, cond)
    size = (sigma**2 + (1 - sigma) ** 2) ** 0.5
    alpha, noise = (1 - sigma) / size, sigma / size
    own = latents / size
    v = generator.pipeline.transformer(
        hidden_states=own.transpose(1, 2),
        encoder_hidden_states=cond.tensors["positive"],
        timestep=generator._time(level),
        return_dict=False,
    )[0].transpose(1, 2)
    assert_close(ours, alpha * own - noise * v, atol=1e-5, rtol=0)


def test_times_between_integers_follow_the_noise_level():
    generator = build_cogvideox_generator()
    sigmas = generator._known_sigmas()
    middle = ((sigmas[500] + sigmas[501]) / 2).float()[None]
    assert generator._time(middle).item() == pytest.approx(500.5, abs=0.01)
    assert generator._time(torch.tensor([0.0, 1.0])).tolist() == [0.0, 999.0]


def test_other_versions_and_predictions_are_refused():
    pipeline = build_cogvideox()
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ValueError, match="does not predict v"):
        build_cogvideox_generator(pipeline=pipeline)
    pipeline = build_cogvideox()
    pipeline.transformer.register_to_config(patch_size_t=2)
    with pytest.raises(ValueError, match="CogVideoX 1.5"):
        build_cogvideox_generator(pipeline=pipeline)
