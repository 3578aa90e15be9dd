"""A fully trained transformer, saved, in stock diffusers: its own class, and a pipeline that takes it as a component."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from generator_loop.records import Draw, Prompt
from generator_loop.sampling.rollout import PromptEncoder, rollout
from tests.parity.test_family_pipelines import FAMILIES, stock_call
from tests.tiny_wan import build_generator, build_wan, randomise_lora

PROMPT = Prompt(7, "a red ball moves left")
CALL = dict(height=16, width=16, num_frames=5, num_inference_steps=3, max_sequence_length=8)


def ours(generator, num_steps=3):
    settings = dict(draw=Draw(seed=0, step=0), group_size=2, num_steps=num_steps, batch_size=2)
    return rollout(generator, [PROMPT], encoder=PromptEncoder(generator), **settings).frames


def stock(pipeline, **call):
    streams = [Draw(seed=0, step=0).generator(PROMPT.prompt_id, sample) for sample in range(2)]
    return pipeline([PROMPT.text] * 2, generator=streams, guidance_scale=1.0, output_type="pt", **call).frames


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["2.1", "2.2 A14B"])
def test_stock_classes_load_the_folder_and_reproduce_our_samples(kind, tmp_path):
    from diffusers import WanPipeline, WanTransformer3DModel

    build_wan(kind=kind).save_pretrained(tmp_path / "base")
    generator = build_generator(pipeline=build_wan(kind=kind), train="full")
    randomise_lora(generator, std=0.05)
    generator.save(tmp_path / "trained")
    frames = ours(generator)
    parts = {"transformer": WanTransformer3DModel.from_pretrained(tmp_path / "trained")}
    if kind == "2.2 A14B":
        parts["transformer_2"] = WanTransformer3DModel.from_pretrained(tmp_path / "trained" / "transformer_2")
    pipeline = WanPipeline.from_pretrained(tmp_path / "base", **parts)
    pipeline.set_progress_bar_config(disable=True)
    assert_close(stock(pipeline, **CALL), frames, atol=1e-6, rtol=0)
    base = stock(build_wan(kind=kind), **CALL)
    assert (frames - base).abs().max() > 0.01  # or training did nothing and the line above proves nothing


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_is_saved_as_its_own_class_reads_it(family, tmp_path):
    generator = family.generator(train="full")
    randomise_lora(generator, std=0.02)
    generator.save(tmp_path)
    model = generator.pipeline.transformer
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    other = family.generator(train="full")
    other.load(tmp_path)
    assert all(torch.equal(value, other.weights("policy")[name]) for name, value in generator.weights("policy").items())
    stock_pipeline = family.build()
    stock_pipeline.transformer.load_state_dict(again.state_dict())
    call = stock_call(family)
    assert_close(stock(stock_pipeline, **call), ours(generator, call["num_inference_steps"]), atol=1e-4, rtol=0)
