"""An excerpt of latent frames is decoded to the very frames of the whole clip, and costs less where the decoder allows it."""

import pytest
import torch
from torch.testing import assert_close

from tests.tiny_cogvideox import build_cogvideox_generator
from tests.tiny_hunyuan_video import build_hunyuan_video_generator
from tests.tiny_ltx import build_ltx_generator
from tests.tiny_mochi import build_mochi_generator
from tests.tiny_wan import build_generator, build_wan


def build_ti2v(**settings):
    return build_generator(pipeline=build_wan(kind="2.2 TI2V"), **settings)


BUILDERS = {
    "wan": (build_generator, 4),
    "wan 2.2 TI2V": (build_ti2v, 4),
    "ltx": (build_ltx_generator, 4),
    "cogvideox": (build_cogvideox_generator, 4),
    "hunyuan_video": (build_hunyuan_video_generator, 4),
    "mochi": (build_mochi_generator, 6),
}
CAUSAL = ("wan", "wan 2.2 TI2V", "cogvideox", "mochi")
EXCERPTS = {
    4: (range(0, 1), range(1, 3), range(3, 4)),
    9: (range(0, 2), range(3, 4), range(4, 8), range(8, 9)),
}
"""Latent frames of a clip -> excerpts: the beginning, the end, and within and across the batches and tiles of decoders."""


def build(family, num_latent_frames, **settings):
    builder, factor = BUILDERS[family]
    generator = builder(num_frames=factor * (num_latent_frames - 1) + 1, **settings)
    return generator, generator.init_latents([torch.Generator().manual_seed(0)]).requires_grad_(True)


def gradient_of(frames, latents, **how):
    weights = torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((frames * weights).sum(), latents, **how)[0]


def check_excerpts(generator, latents, excerpts):
    """Compare frames and gradient of excerpts with those of the whole clip."""
    whole = generator.decode(latents)
    for excerpt in excerpts:
        frames, expected = generator.decode(latents, excerpt), whole[:, generator.frames_of(excerpt)]
        # rounding alone: a decoder of some twenty layers on another number of frames
        assert_close(frames, expected, atol=5e-5, rtol=0)
        inside = slice(excerpt.start, excerpt.stop)
        found = gradient_of(frames, latents)
        expected = gradient_of(expected, latents, retain_graph=True)
        scale = expected[:, :, inside].abs().max()
        assert_close(found[:, :, inside] / scale, expected[:, :, inside] / scale, atol=1e-4, rtol=0)
        assert scale > 0
        assert not found[:, :, : excerpt.start].any() and not found[:, :, excerpt.stop :].any()


@pytest.mark.parametrize("num_latent_frames", EXCERPTS)
@pytest.mark.parametrize("family", BUILDERS)
def test_frames_and_gradient_of_a_run_are_those_of_the_whole_clip(family, num_latent_frames):
    check_excerpts(*build(family, num_latent_frames), EXCERPTS[num_latent_frames])


@pytest.mark.parametrize("family", ["wan", "cogvideox", "mochi"])
def test_a_recomputed_decoder_decodes_runs_alike(family):
    check_excerpts(*build(family, 5, checkpoint_decode=True), [range(2, 4)])


@pytest.mark.parametrize("family", ["wan", "cogvideox", "hunyuan_video", "mochi"])
def test_a_decoder_of_tiles_decodes_runs_alike(family):
    generator, latents = build(family, 5, vae_tiling=True)
    height, _ = generator.size
    small = {"tile_sample_min_height": height // 2, "tile_sample_min_width": height // 2}
    if family != "cogvideox":
        small |= {"tile_sample_stride_height": height // 2, "tile_sample_stride_width": height // 2}
    calls, decoder = [], generator.pipeline.vae.decoder
    generator.pipeline.vae.enable_tiling(**small)
    decoder.register_forward_pre_hook(lambda _module, args, **_how: calls.append(args[0].shape[-1]))
    check_excerpts(generator, latents, [range(4, 5)])
    assert set(calls) < set(range(1, latents.shape[-1]))


@pytest.mark.parametrize("family", BUILDERS)
def test_the_frames_of_all_latent_frames_make_up_the_clip(family):
    for num_latent_frames in (4, 5):
        generator, latents = build(family, num_latent_frames)
        num_frames = generator.decode(latents.detach()).shape[1]
        parts = [generator.frames_of(range(place, place + 1)) for place in range(num_latent_frames)]
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == num_frames


@pytest.mark.parametrize("family", CAUSAL)
def test_latent_frames_after_a_run_are_not_decoded(family):
    generator, latents = build(family, 7)
    decoded, decoder = [], generator.pipeline.vae.decoder
    decoder.register_forward_pre_hook(lambda _module, args, **_how: decoded.append(args[0].shape[2]))
    generator.decode(latents.detach(), range(1, 3))
    assert sum(decoded) == 3


@pytest.mark.parametrize(
    ("family", "share"), [("wan", 0.25), ("cogvideox", 0.35), ("mochi", 0.3), ("hunyuan_video", 0.6)]
)
def test_only_a_run_is_held_for_the_backward_pass(family, share):
    """The shares of one latent frame of nine, where two come at a time (CogVideoX), and of a tile and the next one's start."""
    generator, latents = build(family, 9)
    assert held_bytes(generator, latents, range(8, 9)) < share * held_bytes(generator, latents, None)


def held_bytes(generator, latents, excerpt):
    """Return the bytes that decoding keeps for its backward pass, each storage once and the decoder's weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in generator.pipeline.vae.parameters()}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        generator.decode(latents, excerpt)
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("excerpt", [range(2, 2), range(-1, 1), range(1, 6), range(0, 4, 2)])
def test_an_excerpt_that_is_no_part_of_the_clip_is_refused(excerpt):
    generator, latents = build("wan", 5)
    with pytest.raises(ValueError, match=r"consecutive latent frames within range\(5\), got range"):
        generator.decode(latents, excerpt)


def test_an_error_in_the_decoder_leaves_it_as_it_was():
    for family in ("wan", "cogvideox", "mochi"):
        generator, latents = build(family, 3)
        expected = generator.decode(latents.detach())
        with pytest.raises(RuntimeError):
            generator.decode(latents[:, :2], range(1, 2))
        assert torch.equal(generator.decode(latents.detach()), expected)
