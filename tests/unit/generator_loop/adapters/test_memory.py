"""What saves memory changes nothing else: recomputed decoders and transformers, in every family."""

import pytest
import torch

from generator_loop.adapters.base import OLD
from tests.tiny_cogvideox import build_cogvideox_generator
from tests.tiny_hunyuan_video import build_hunyuan_video_generator
from tests.tiny_ltx import build_ltx_generator
from tests.tiny_mochi import build_mochi_generator
from tests.tiny_wan import build_generator, randomise_lora

BUILDERS = {
    "wan": build_generator,
    "ltx": build_ltx_generator,
    "cogvideox": build_cogvideox_generator,
    "hunyuan_video": build_hunyuan_video_generator,
    "mochi": build_mochi_generator,
}


@pytest.fixture(params=BUILDERS)
def pair(request):
    """Return a generator and one that recomputes its decoder and its transformer, with the same weights."""
    return built_pair(BUILDERS[request.param])


def built_pair(build, *, std=0.3, **settings):
    """Return two generators of equal weights, the second of which recomputes."""
    both = build(**settings), build(checkpoint_decode=True, checkpoint_transformer=True, **settings)
    for generator in both:
        randomise_lora(generator, std=std)
    return both


def latents_of(generator):
    return generator.init_latents([torch.Generator().manual_seed(0)])


def test_a_recomputed_decoder_has_the_same_value_and_gradient(pair):
    found = []
    for generator in pair:
        latents = latents_of(generator).requires_grad_(True)
        frames = generator.decode(latents)
        found.append((frames.detach(), *torch.autograd.grad(frames.square().sum(), latents)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-6)
    assert found[0][1].abs().max() > 0


def gradients(generator):
    """Return the gradient of a prediction by all trained weights, after a swap to other weights and back."""
    latents, cond = latents_of(generator), generator.encode_prompts(["a ball"])
    velocity = generator.predict(latents, torch.tensor([0.5]), cond)
    with generator.use(OLD), torch.no_grad():
        generator.predict(latents, torch.tensor([0.5]), cond)
    return torch.autograd.grad(
        velocity.square().sum(), list(generator.trainable_parameters().values()), materialize_grads=True
    )


def test_a_recomputed_transformer_has_the_same_gradient(pair):
    for one, other in zip(*map(gradients, pair), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("copies", ["device", "cpu"])
def test_a_recomputed_transformer_that_learns_as_a_whole_has_the_same_gradient(dtype, copies):
    pair = built_pair(build_generator, std=0.05, train="full", dtype=dtype, copies=copies)
    found = [gradients(generator) for generator in pair]
    assert sum(bool(one.any()) for one in found[0]) > 0.9 * len(found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def held_bytes(generator, latents):
    """Return the most bytes that decoding keeps for its backward pass at any one time, recomputed ones left out."""
    now, peak = 0, 0

    class Holder:
        def __init__(self, tensor):
            nonlocal now, peak
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            now += self.size
            peak = max(peak, now)

        def __del__(self):
            nonlocal now
            now -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Holder, lambda holder: holder.tensor):
        generator.decode(latents).square().sum().backward()
    return peak


def test_wans_recomputed_decoder_keeps_only_what_latent_frames_hand_on():
    latents = torch.randn(1, 4, 6, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    plain, flat = (build_generator(num_frames=21, checkpoint_decode=recompute) for recompute in (False, True))
    assert held_bytes(flat, latents) < 0.15 * held_bytes(plain, latents)
