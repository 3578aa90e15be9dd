"""Model facts of the Wan adapter."""

import importlib.util

import pytest
import torch
from torch.testing import assert_close

from generator_loop.objectives import OBJECTIVES
from tests.family_checks import check_objective_trains
from tests.tiny_wan import KINDS, build_generator, build_wan, randomise_lora


@pytest.fixture(scope="module")
def generator():
    return build_generator()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_decoded_frames_lie_in_the_unit_range_at_the_asked_shape(generator):
    frames = generator.decode(3 * noise(2, 4, 2, 4, 4))
    assert frames.shape == (2, 5, 3, 16, 16) and frames.dtype == torch.float32
    assert frames.min() >= 0 and frames.max() <= 1


def test_decoding_by_ones_equals_decoding_at_once():
    latents = noise(3, 4, 2, 4, 4)
    one, three = (build_generator(decode_batch_size=size).decode(latents) for size in (1, 3))
    assert_close(one, three, atol=1e-5, rtol=0)


def test_encoded_latents_are_normalised_by_the_vaes_mean_and_deviation(generator):
    frames = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    vae = generator.pipeline.vae
    raw = torch.cat([vae.encode(clip[None].transpose(1, 2) * 2 - 1).latent_dist.mode() for clip in frames])
    mean, std = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.5, 0.7, 1.0, 2.0])
    expected = (raw - mean.view(1, 4, 1, 1, 1)) / std.view(1, 4, 1, 1, 1)
    assert_close(generator.encode(frames), expected, atol=1e-5, rtol=1e-5)


def test_gradient_through_the_decoder_agrees_with_a_central_difference(generator):
    latents, direction = 0.3 * noise(1, 4, 2, 4, 4), noise(1, 4, 2, 4, 4).roll(1)

    def score(latents):
        return generator.decode(latents).double().square().sum()

    variable = latents.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(variable), variable)
    step = 3e-3
    difference = (score(latents + step * direction) - score(latents - step * direction)) / (2 * step)
    # Decoding in 32 bit moves the score of 1000 by up to 1e-4, which is 0.3 % of the difference of 0.036 over this step;
    # the curvature is 0.15 % of it.
    assert_close((gradient * direction).sum().double(), difference, rtol=1e-2, atol=0)


def test_a_vae_whose_config_misstates_its_factor_is_refused():
    pipeline = build_wan()
    pipeline.vae.register_to_config(scale_factor_spatial=8)
    pipeline.vae_scale_factor_spatial = 8
    with pytest.raises(ValueError, match="shrinks time by 4 and space by 4, .* scale_factor_spatial 8"):
        build_generator(pipeline=pipeline)


def test_guidance_gives_gradient_to_both_predictions():
    generator = build_generator(guidance_scale=2.0, negative_prompt="worst quality")
    randomise_lora(generator)
    cond = generator.encode_prompts(["a red ball"])
    tensors = {name: tensor.clone().requires_grad_(True) for name, tensor in cond.tensors.items()}
    velocity = generator.predict(noise(1, 4, 2, 4, 4), torch.tensor([0.5]), type(cond)(tensors))
    gradients = torch.autograd.grad(velocity.square().sum(), list(tensors.values()))
    assert len(gradients) == 2 and all(gradient.abs().max() > 0 for gradient in gradients)


def test_timesteps_keep_their_fraction(generator):
    seen = []
    handle = generator.pipeline.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
    )
    generator.predict(noise(1, 4, 2, 4, 4), torch.tensor([0.1234567]), generator.encode_prompts(["a ball"]))
    handle.remove()
    assert seen[0].dtype == torch.float32
    assert_close(seen[0], torch.tensor([123.4567]))


def test_weights_stored_in_16_bit_are_widened_on_the_cpu_and_cut_on_request(tmp_path):
    from generator_loop.adapters import GENERATORS
    from generator_loop.config import GeneratorConfig

    build_wan().to(torch.bfloat16).save_pretrained(tmp_path)
    settings = dict(
        path=str(tmp_path), num_frames=5, height=16, width=16, fps=8.0, lora_rank=4, lora_alpha=8, max_sequence_length=8
    )
    wide = GENERATORS["wan"].from_pretrained(GeneratorConfig(**settings))
    narrow = GENERATORS["wan"].from_pretrained(GeneratorConfig(**settings, dtype="bfloat16"))
    for generator, dtype in ((wide, torch.float32), (narrow, torch.bfloat16)):
        assert generator.pipeline.transformer.proj_out.weight.dtype == dtype
        assert generator.pipeline.text_encoder.dtype == dtype
        assert generator.pipeline.vae.dtype == torch.float32
        assert all(parameter.dtype == torch.float32 for parameter in generator.trainable_parameters().values())
        velocity = generator.predict(noise(1, 4, 2, 4, 4), torch.tensor([0.5]), generator.encode_prompts(["a ball"]))
        assert velocity.dtype == torch.float32 and velocity.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 6}, "one more than a multiple of 4, got 6"),
        ({"num_frames": 0}, "generator.num_frames must be > 0, got 0"),
        ({"width": 20}, r"multiples of 8 pixels, got \(16, 20\)"),
    ],
)
def test_a_clip_shape_that_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_generator(**settings)


def test_two_transformers_need_a_noise_level_to_change_over_at():
    alone, both = build_wan(), build_wan(kind="2.2 A14B")
    alone.register_to_config(boundary_ratio=0.9)
    both.register_to_config(boundary_ratio=None)
    for pipeline in (alone, both):
        with pytest.raises(ValueError, match="boundary_ratio at which they change over"):
            build_generator(pipeline=pipeline)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_objective_trains_wan_2_2(kind, name):
    check_objective_trains(build_generator(pipeline=build_wan(kind=kind)), name)


def test_both_transformers_learn():
    generator = build_generator(pipeline=build_wan(kind="2.2 A14B"))
    randomise_lora(generator)
    noise = generator.init_latents([torch.Generator().manual_seed(seed) for seed in range(2)])
    cond = generator.encode_prompts(["a red ball", "a blue square"])
    generator.predict(noise, torch.tensor([0.9, 0.3]), cond).square().mean().backward()
    moved = {name.startswith("transformer_2.") for name, p in generator.trainable_parameters().items() if p.grad.any()}
    assert moved == {False, True}
    second = generator.pipeline.transformer_2.named_parameters()
    assert all(p.requires_grad == ("lora" in name) for name, p in second)


def test_a_diffusion_scheduler_is_refused():
    from diffusers import DDIMScheduler

    pipeline = build_wan()
    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler is not a flow-matching scheduler"):
        build_generator(pipeline=pipeline)


def test_another_attention_kernel_is_set_on_every_transformer_or_refused():
    generator = build_generator(pipeline=build_wan(kind="2.2 A14B"), attention="cudnn")
    for part in ("transformer", "transformer_2"):
        processor = getattr(generator.pipeline, part).blocks[0].attn1.processor
        assert processor._attention_backend.value == "_native_cudnn"
    others = build_generator()  # other models keep theirs
    others.predict(noise(1, 4, 2, 4, 4), torch.tensor([0.5]), others.encode_prompts(["a ball"]))
    for name in ("flash", "xformers"):
        if importlib.util.find_spec({"flash": "flash_attn"}.get(name, name)) is None:
            with pytest.raises(ValueError, match=f"generator.attention={name} is unavailable here"):
                build_generator(attention=name)


def test_tiles_are_asked_for():
    assert build_generator(vae_tiling=True).pipeline.vae.use_tiling
    assert not build_generator().pipeline.vae.use_tiling
