"""What only LTX-Video has, against the stock `diffusers.LTXPipeline` call, in float32 on the CPU."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.sampling.rollout import sample_path
from tests.family_checks import TEXTS, noise_generators
from tests.tiny_ltx import build_ltx, build_ltx_generator

pytestmark = pytest.mark.parity

NUM_STEPS = 4
CALL = dict(height=32, width=32, num_frames=5, frame_rate=8.0, num_inference_steps=NUM_STEPS, max_sequence_length=8)


@torch.no_grad()
def test_a_decoder_with_a_time_is_given_the_pipelines_default():
    generator = build_ltx_generator(pipeline=build_ltx(timestep_conditioning=True))
    stock = generator.pipeline(TEXTS, generator=noise_generators(), guidance_scale=1.0, output_type="pt", **CALL).frames
    path = sample_path(
        generator,
        generator.init_latents(noise_generators()),
        generator.sigmas(NUM_STEPS),
        generator.encode_prompts(TEXTS),
    )
    assert_close(generator.decode(path[-1]), stock, atol=1e-5, rtol=0)
