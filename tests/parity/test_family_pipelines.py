"""Each family's sampling against the stock diffusers call, stage by stage, in float32 on the CPU.

What only one family has stands in a file of its own, and so does Wan, which has several versions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from generator_loop.adapters.base import POLICY
from generator_loop.objectives import OBJECTIVES
from generator_loop.sampling.rollout import sample_path
from tests.family_checks import (
    TEXTS,
    check_encoding,
    check_objective_trains,
    check_stock_pipeline_loads_the_lora,
    noise_generators,
    scheduler_after_first_step,
)
from tests.tiny_cogvideox import build_cogvideox, build_cogvideox_generator
from tests.tiny_hunyuan_video import build_hunyuan_video, build_hunyuan_video_generator
from tests.tiny_ltx import build_ltx, build_ltx_generator
from tests.tiny_mochi import build_mochi, build_mochi_generator
from tests.tiny_wan import randomise_lora

pytestmark = pytest.mark.parity

NUM_STEPS = 4
NEGATIVE = "worst quality"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A tiny pipeline and our generator on it, and in what form the pipeline keeps what ours keeps."""

    build: Callable[..., Any]
    generator: Callable[..., Any]
    call: Mapping[str, Any]
    noise_shape: tuple[int, ...]
    encoded: tuple[str, ...] = ("positive", "positive_mask", "negative", "negative_mask")
    encoding: Mapping[str, Any] = field(default_factory=dict)
    negative: bool = True
    as_ours: Callable[[Any, torch.Tensor], torch.Tensor] = lambda generator, latents: latents
    sigmas: Callable[[torch.Tensor], torch.Tensor] | None = lambda sigmas: sigmas
    latent_scale: Callable[[torch.Tensor], torch.Tensor] = torch.ones_like
    tolerance: float = 1e-5
    bad_clips: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


FAMILIES = {
    "cogvideox": Family(
        build=build_cogvideox,
        generator=build_cogvideox_generator,
        call={"num_frames": 5, "max_sequence_length": 8},
        noise_shape=(2, 4, 5, 32, 32),
        encoded=("positive", "negative"),
        encoding={"scale": 0.7},
        as_ours=lambda generator, latents: latents.transpose(1, 2),
        sigmas=None,
        latent_scale=lambda sigmas: (sigmas**2 + (1 - sigmas) ** 2).rsqrt(),
        tolerance=2e-5,
    ),
    "hunyuan_video": Family(
        build=build_hunyuan_video,
        generator=build_hunyuan_video_generator,
        call={"num_frames": 5, "max_sequence_length": 16},
        noise_shape=(2, 4, 32, 32, 5),
        encoding={"scale": 0.5},
        negative=False,
    ),
    "ltx": Family(
        build=build_ltx,
        generator=build_ltx_generator,
        call={"num_frames": 5, "max_sequence_length": 8, "frame_rate": 8.0},
        noise_shape=(2, 4, 32, 32, 5),
        encoding={"mean": [0.1, -0.2, 0.3, 0.0], "std": [1.5, 0.7, 1.0, 2.0]},
        as_ours=lambda generator, latents: generator.pipeline._unpack_latents(latents, 2, 8, 8),
        bad_clips={"multiple of 4": {"num_frames": 6}, "pixels": {"width": 34}},
    ),
    "mochi": Family(
        build=build_mochi,
        generator=build_mochi_generator,
        call={"num_frames": 7, "max_sequence_length": 8},
        noise_shape=(2, 12, 32, 32, 7),
        encoding={"scale": 0.8},
        sigmas=lambda sigmas: 1 - sigmas,
        bad_clips={"multiple of 6": {"num_frames": 8}, "pixels": {"width": 40}},
    ),
}

CASES = {
    "CogVideoX 2B, no guidance": ("cogvideox", 1.0, {"rotary": False}),
    "CogVideoX 5B, guidance 3": ("cogvideox", 3.0, {"rotary": True}),
    "HunyuanVideo, guidance 1": ("hunyuan_video", 1.0, {}),
    "HunyuanVideo, guidance 6": ("hunyuan_video", 6.0, {}),
    "LTX, no guidance": ("ltx", 1.0, {}),
    "LTX, guidance 3": ("ltx", 3.0, {}),
    "Mochi, no guidance": ("mochi", 1.0, {}),
    "Mochi, guidance 3": ("mochi", 3.0, {}),
}


def stock_call(family):
    """Return what a stock pipeline is called with, prompts and guidance apart."""
    return {"height": 32, "width": 32, "num_inference_steps": NUM_STEPS, **family.call}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def stages(request):
    """Return family, our generator, and what the stock call went through on the same pipeline object with LoRA in place."""
    name, scale, version = request.param
    family = FAMILIES[name]
    pipeline, seen = family.build(**version), {"latents": []}
    words = {"negative_prompt": NEGATIVE} if family.negative else {}
    generator = family.generator(pipeline=pipeline, guidance_scale=scale, **words)
    randomise_lora(generator)

    def record(_pipeline, _step, _timestep, tensors):
        seen["latents"].append(family.as_ours(generator, tensors["latents"]).clone())
        return {}

    call = dict(prompt=TEXTS, guidance_scale=scale, output_type="pt", **stock_call(family))
    call |= {"negative_prompt": [NEGATIVE] * 2} if family.negative else {}
    call |= dict(callback_on_step_end=record, callback_on_step_end_tensor_inputs=["latents"])
    seen["frames"] = pipeline(generator=noise_generators(), **call).frames
    seen["sigmas"] = getattr(pipeline.scheduler, "sigmas", torch.zeros(0)).clone()
    where = torch.float32, torch.device("cpu"), noise_generators()
    seen["noise"] = family.as_ours(generator, pipeline.prepare_latents(*family.noise_shape, *where))
    return family, generator, seen


def test_prompt_embeddings_and_masks_equal_the_pipelines(stages):
    family, generator, _ = stages
    cond, length = generator.encode_prompts(TEXTS).tensors, family.call["max_sequence_length"]
    if not family.negative:
        text, pooled, mask = generator.pipeline.encode_prompt(TEXTS, max_sequence_length=length)
        assert torch.equal(cond["positive"], text) and torch.equal(cond["positive_pooled"], pooled)
        assert torch.equal(cond["positive_mask"], mask.float()) and len(cond) == 3
        return
    guided = generator.config.guidance_scale > 1
    stock = generator.pipeline.encode_prompt(TEXTS, [NEGATIVE] * 2, guided, max_sequence_length=length)
    assert list(cond) == list(family.encoded[: None if guided else len(family.encoded) // 2])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cond.values(), stock, strict=False))


def test_initial_latents_equal_the_pipelines(stages):
    _, generator, seen = stages
    assert torch.equal(generator.init_latents(noise_generators()), seen["noise"])


def test_schedule_equals_the_pipelines(stages):
    family, generator, seen = stages
    sigmas = generator.sigmas(NUM_STEPS)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
    if family.sigmas is not None:
        assert torch.equal(sigmas, family.sigmas(seen["sigmas"]))
        return
    generator.pipeline.scheduler.set_timesteps(NUM_STEPS)
    assert torch.equal(generator._time(sigmas[:-1]).long(), generator.pipeline.scheduler.timesteps)


@pytest.mark.parametrize("num_steps", [2, 3, 10, 25, 50])
@pytest.mark.parametrize("name", FAMILIES)
def test_schedule_equals_the_pipelines_at_any_number_of_steps(name, num_steps):
    family = FAMILIES[name]
    generator = family.generator(pipeline=family.build())
    sigmas = generator.sigmas(num_steps)
    scheduler = scheduler_after_first_step(
        generator.pipeline, **{**stock_call(family), "num_inference_steps": num_steps}
    )
    if family.sigmas is None:
        assert torch.equal(generator._time(sigmas[:-1]).long(), scheduler.timesteps)
    else:
        assert torch.equal(sigmas, family.sigmas(scheduler.sigmas))


@pytest.mark.parametrize(("name", "message"), [("ltx", "must fall from sigma 1 to 0"), ("mochi", "at least 2 steps")])
def test_a_single_step_is_refused_where_the_pipelines_schedule_has_none(name, message):
    family = FAMILIES[name]
    with pytest.raises(ValueError, match=message):
        family.generator(pipeline=family.build()).sigmas(1)


@pytest.mark.parametrize("name", ["cogvideox", "hunyuan_video"])
def test_a_single_step_goes_from_one_to_zero(name):
    family = FAMILIES[name]
    assert family.generator(pipeline=family.build()).sigmas(1).tolist() == [1, 0]


def test_schedule_of_a_cogvideox_checkpoint_with_the_dpm_solver_has_its_times():
    from diffusers import CogVideoXDPMScheduler

    family = FAMILIES["cogvideox"]
    pipeline = family.build()
    pipeline.scheduler = CogVideoXDPMScheduler.from_config(pipeline.scheduler.config)
    generator = family.generator(pipeline=pipeline)
    scheduler = scheduler_after_first_step(pipeline, **{**stock_call(family), "num_inference_steps": 25})
    assert torch.equal(generator._time(generator.sigmas(25)[:-1]).long(), scheduler.timesteps)


@torch.no_grad()
def test_one_step_and_the_whole_loop_equal_the_pipelines(stages):
    family, generator, seen = stages
    cond, sigmas = generator.encode_prompts(TEXTS), generator.sigmas(NUM_STEPS)
    path = sample_path(generator, seen["noise"], sigmas, cond, num_kept=NUM_STEPS)
    ours = family.latent_scale(sigmas).view(-1, 1, 1, 1, 1, 1) * path
    assert_close(ours, torch.stack([seen["noise"], *seen["latents"]]), atol=family.tolerance, rtol=0)


@torch.no_grad()
def test_decoded_frames_equal_the_pipelines(stages):
    _, generator, seen = stages
    # a decoder of some twenty normalised layers, each of which rounds by 6e-8 of its values, in batches of another size
    assert_close(generator.decode(seen["latents"][-1]), seen["frames"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_stock_pipeline_with_the_saved_lora_reproduces_our_samples(family, tmp_path):
    generator = family.generator(lora_rank=4, lora_alpha=12)
    check_stock_pipeline_loads_the_lora(generator, family.build(), stock_call(family), tmp_path)
    other = family.generator(lora_rank=4, lora_alpha=12, lora_seed=5)
    other.load(tmp_path)
    assert all(torch.equal(value, other.weights(POLICY)[name]) for name, value in generator.weights(POLICY).items())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_encoding_scales_as_the_pipeline_does(family):
    generator = family.generator()
    config = generator.pipeline.vae.config
    normal = {"mean": config.latents_mean, "std": config.latents_std} if family is FAMILIES["mochi"] else {}
    check_encoding(generator, **normal, **family.encoding)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_each_objective_trains_it_and_the_ratio_is_one_before(family, name):
    check_objective_trains(family.generator(decode_batch_size=4), name)


@pytest.mark.parametrize("family", ["ltx", "mochi"])
def test_clips_that_do_not_fit_are_refused(family):
    for message, setting in FAMILIES[family].bad_clips.items():
        with pytest.raises(ValueError, match=message):
            FAMILIES[family].generator(**setting)
