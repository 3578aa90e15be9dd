"""Text encoders and VAE are on the device while they are needed, and not longer."""

import pytest
import torch
from torch import nn

from generator_loop.adapters.offload import Offload
from tests.tiny_hunyuan_video import build_hunyuan_video_generator
from tests.tiny_wan import build_generator

DEVICE = torch.device("meta")
"""Stands for a GPU; the models below only note where they are sent."""


class Sent(nn.Module):
    """A model that notes where it is sent."""

    def __init__(self, name, log):
        """Keep the log."""
        super().__init__()
        self.name, self.log = name, log

    def to(self, device):
        """Note it."""
        self.log.append((self.name, device.type))
        return self


@pytest.fixture(params=["wan", "hunyuan_video"])
def watched(request):
    """Return a generator on the CPU whose offloading moves stand-ins of its models, and the log of their moves."""
    log = []
    build = {"wan": build_generator, "hunyuan_video": build_hunyuan_video_generator}[request.param]
    generator = build()
    generator._offload = Offload([Sent("text", log), Sent("text 2", log)], Sent("vae", log), DEVICE)
    assert log == [("text", "cpu"), ("text 2", "cpu"), ("vae", "cpu")]
    log.clear()
    return generator, log


def predict(generator):
    latents, cond = generator.init_latents([torch.Generator().manual_seed(0)]), generator.encode_prompts(["a ball"])
    return generator.predict(latents, torch.tensor([0.5]), cond)


def test_text_encoders_stay_for_prompts_in_a_row_and_go_before_the_transformer_runs(watched):
    generator, log = watched
    generator.encode_prompts(["a ball"])
    assert log == [("text", "meta"), ("text 2", "meta")]
    predict(generator)
    assert log[2:] == [("text", "cpu"), ("text 2", "cpu")]
    predict(generator)
    assert log[4:] == [("text", "meta"), ("text 2", "meta"), ("text", "cpu"), ("text 2", "cpu")]


def test_the_vae_comes_for_frames_and_latents_and_goes_at_once(watched):
    generator, log = watched
    latents = generator.init_latents([torch.Generator().manual_seed(0)])
    generator.encode_prompts(["a ball"])
    log.clear()
    frames = generator.decode(latents)
    assert log == [("text", "cpu"), ("text 2", "cpu"), ("vae", "meta"), ("vae", "cpu")]
    generator.encode(frames)
    assert log[4:] == [("vae", "meta"), ("vae", "cpu")]


def test_the_vae_stays_until_the_backward_pass_is_through_it(watched):
    generator, log = watched
    latents = leaf(generator)
    frames = generator.decode(latents)
    assert log == [("vae", "meta")]
    predict(generator)
    with torch.no_grad():
        generator.decode(latents)
    assert ("vae", "cpu") not in log
    log.clear()
    frames.register_hook(lambda _gradient: log.append("frames"))
    (gradient,) = torch.autograd.grad(frames.square().sum(), latents)
    assert log == ["frames", ("vae", "cpu")]
    generator._offload = None
    frames = generator.decode(latents)
    assert torch.equal(gradient, torch.autograd.grad(frames.square().sum(), latents)[0])


def leaf(generator):
    return generator.init_latents([torch.Generator().manual_seed(0)]).requires_grad_(True)


def test_an_error_in_the_decoder_sends_the_vae_away(watched):
    generator, log = watched
    with pytest.raises(RuntimeError):
        generator.decode(torch.zeros(1, 99, 2, 4, 4))
    assert log[-1] == ("vae", "cpu")


def test_offloading_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="generator.offload=model spares the memory of a device"):
        build_generator(offload="model")


def test_only_transformers_are_loaded_to_the_device(tmp_path, monkeypatch):
    """The device is `meta`, to which any model can be sent."""
    from generator_loop.adapters.wan import WanGenerator
    from generator_loop.config import GeneratorConfig
    from tests.tiny_wan import build_wan

    build_wan(kind="2.2 A14B").save_pretrained(tmp_path)
    found = {}
    monkeypatch.setattr(
        WanGenerator, "__init__", lambda _self, pipeline, config, **_settings: found.update(config=config, it=pipeline)
    )
    size = dict(num_frames=5, height=16, width=16, fps=8.0, lora_rank=4, lora_alpha=8)
    for choice, others in (("model", "cpu"), ("none", "meta")):
        WanGenerator.from_pretrained(GeneratorConfig(path=str(tmp_path), offload=choice, **size), device=DEVICE)
        assert found["config"].offload == choice
        assert found["it"].transformer.device.type == found["it"].transformer_2.device.type == "meta"
        assert found["it"].vae.device.type == found["it"].text_encoder.device.type == others
