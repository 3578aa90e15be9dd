"""How the embedded generator is made, and that the shipped one still fits the code."""

import json
from pathlib import Path

import pytest
import torch

from generator_loop.pretrain import build_toy_wan, fingerprints, flow, pipeline, pretrain_generator, round_trip, vae
from reward_model import moving_shapes

SHIPPED = Path(__file__).resolve().parents[4] / "generator_loop/assets/toy_wan"


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    return build_toy_wan(vae.build_vae().eval(), seed=0)


def test_the_shipped_generator_was_made_for_this_world():
    record = json.loads((SHIPPED / "provenance.json").read_text())
    assert record["fingerprints"] == fingerprints()


def test_the_shipped_generator_has_the_architecture_of_the_code(toy):
    for part in ("transformer", "vae", "text_encoder"):
        config = json.loads((SHIPPED / part / "config.json").read_text())
        ours = getattr(toy, part).config
        for name, value in config.items():
            if name.startswith("_") or name in (
                "latents_mean",
                "latents_std",
                "dtype",
                "transformers_version",
                "architectures",
            ):
                continue
            found = getattr(ours, name)
            assert (list(found) if isinstance(found, tuple) else found) == value, f"{part}.{name}"


def test_every_word_of_the_grammar_is_one_token(toy):
    for scene in moving_shapes.FULL.scenes()[::37]:
        caption = moving_shapes.caption(scene)
        ids = toy.tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 1 <= pipeline.MAX_TOKENS
        assert toy.tokenizer.unk_token_id not in ids


def test_captions_have_embeddings_of_their_own_that_are_zero_beyond_the_end(toy):
    captions = [moving_shapes.caption(scene) for scene in moving_shapes.CORE.scenes()[:32]]
    text = pipeline.encode_captions(toy, captions)
    assert text.shape == (32, pipeline.MAX_TOKENS, 64)
    assert (text[:, 12:] == 0).all()
    assert torch.pdist(text.flatten(1)).min() > 0.1


def test_no_held_out_or_finetuning_caption_is_trained_on():
    _, captions = flow._training_clips(200, seed=1)
    core = moving_shapes.CORE
    unseen = {*moving_shapes.split(core)[1], *moving_shapes.finetuning_scenes(core)}
    assert not {moving_shapes.parse_caption(text) for text in captions} & unseen


def test_two_in_five_training_clips_are_damaged_or_mismatched():
    pool = moving_shapes.pretraining_scenes(moving_shapes.CORE)
    rated = moving_shapes.sample_rated(400, seed=2, scenes=pool, clean_share=0.75, match_share=0.8)
    faulty = sum(bool(clip.facts["defects"]) or clip.facts["scene"] != clip.facts["shown"] for clip in rated)
    assert 0.33 < faulty / 400 < 0.47


def test_latents_survive_the_change_of_scale(toy):
    toy.vae.register_to_config(latents_mean=[0.3] * vae.LATENT_CHANNELS, latents_std=[2.0] * vae.LATENT_CHANNELS)
    clips = vae.moving_shapes_frames(2, seed=0)
    latents = pipeline.encode_clips(toy.vae, clips)
    assert latents.shape == (2, vae.LATENT_CHANNELS, *pipeline.LATENT_GRID)
    direct = vae.reconstruct(toy.vae, vae.to_wan(clips)).transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(pipeline.decode_clips(toy.vae, latents), direct, atol=1e-5, rtol=0)


def test_round_trip_keeps_labels_and_changes_pixels(toy):
    clips = moving_shapes.sample_rated(3, seed=0)
    back = round_trip(toy.vae, clips)
    for before, after in zip(clips, back, strict=True):
        assert (before.quality, before.prompt, before.facts) == (after.quality, after.prompt, after.facts)
        assert before.video.frames.shape == after.video.frames.shape
        assert not torch.equal(before.video.frames, after.video.frames)


def test_one_step_moves_convolutions_and_the_rest():
    torch.manual_seed(0)
    model = vae.build_vae()
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = vae._optimizer(model)
    generator = torch.Generator().manual_seed(0)
    clips = vae.to_wan(vae.moving_shapes_frames(2, seed=0))
    first = vae.reconstruction_loss(model, clips, generator)
    first.backward()
    optimizer.step(lr_scale=1.0)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {"decoder.conv_in.weight", "decoder.conv_in.bias"} <= moved
    assert all(value.grad is None for value in model.parameters())
    for _ in range(3):
        vae.reconstruction_loss(model, clips, generator).backward()
        optimizer.step(lr_scale=1.0)
    assert vae.reconstruction_loss(model, clips, generator) < first


def test_the_flow_loss_of_the_true_velocity_is_zero():
    latents = torch.randn(4, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    def oracle_velocity(x, timestep, text, return_dict):
        sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
        return ((x - latents) / sigma,)  # x = x_0 + sigma (eps - x_0)

    loss = flow.flow_loss(oracle_velocity, latents, torch.zeros(4, 1, 1), torch.Generator().manual_seed(1))
    assert float(loss) < 1e-8


def test_euler_steps_of_the_true_velocity_reach_the_clean_latents():
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, 1, 2, 2, generator=generator) for _ in range(2))

    def constant(x, timestep, text, return_dict):
        return (noise - clean,)

    found = pipeline.sample_latents(constant, torch.zeros(2, 1, 1), noise, num_steps=5)
    torch.testing.assert_close(found, clean)


def test_the_learning_rate_warms_up_and_ends_at_three_hundredths():
    assert vae.lr_schedule(15, 100) == pytest.approx(0.5)
    assert vae.lr_schedule(40, 100) == 1.0
    assert vae.lr_schedule(75, 100) == pytest.approx(0.5)
    assert vae.lr_schedule(100, 100) == 0.03


def test_pretraining_runs_and_does_not_repeat_a_finished_cycle(toy, tmp_path, monkeypatch):
    toy.vae.save_pretrained(tmp_path / "vae")
    monkeypatch.setattr(flow, "evaluate", lambda pipeline, *, seed: {"overall": 0.0})
    monkeypatch.setattr(flow, "BATCH_SIZE", 2)
    first = pretrain_generator(tmp_path / "vae", tmp_path / "wan", cycles=(2,), num_clips=3)
    assert first["loss"] > 0
    trained = (tmp_path / "wan/transformer/diffusion_pytorch_model.safetensors").read_bytes()
    monkeypatch.setattr(flow, "_run_cycle", None)
    pretrain_generator(tmp_path / "vae", tmp_path / "wan", cycles=(2,), num_clips=3)
    assert (tmp_path / "wan/transformer/diffusion_pytorch_model.safetensors").read_bytes() == trained
