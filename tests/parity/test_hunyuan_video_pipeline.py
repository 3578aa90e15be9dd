"""What only HunyuanVideo has: guidance that the model is told, and no negative prompt."""

import pytest
import torch

from tests.family_checks import TEXTS
from tests.tiny_hunyuan_video import build_hunyuan_video_generator

pytestmark = pytest.mark.parity


def test_guidance_is_told_to_the_model():
    latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for scale in (1.0, 6.0):
        generator = build_hunyuan_video_generator(guidance_scale=scale)
        with torch.no_grad():
            found.append(generator.predict(latents, torch.tensor([0.5]), generator.encode_prompts(TEXTS[:1])))
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_a_negative_prompt_is_refused():
    with pytest.raises(ValueError, match="negative_prompt is not read"):
        build_hunyuan_video_generator(negative_prompt="worst quality")
