"""Motion features: what they react to, SlowFast's names and values, what loads, and the cache on disk."""

import hashlib
import pickle

import pytest
import torch
from safetensors.torch import save_file

from reward_model.media.motion import TemporalDifferences, cached, clip_key, segments
from reward_model.media.slowfast import SlowFast, SlowFastR50, hash_weights, pathways, read_weights

ENCODER = TemporalDifferences()
BLOCKS = ENCODER.grid**2
SIZE, UNEVENNESS, DRIFT = slice(0, BLOCKS), slice(BLOCKS, 2 * BLOCKS), slice(2 * BLOCKS, 3 * BLOCKS)  # at lag 1
LEVEL, FLICKER, CONTRAST = (slice((9 + part) * BLOCKS, (10 + part) * BLOCKS) for part in range(3))


def moving_bar(num_frames=16, side=32, step=1):
    """Return a white bar of 4 columns that moves right over black."""
    frames = torch.zeros(num_frames, 3, side, side)
    for index in range(num_frames):
        frames[index, :, :, (torch.arange(4) + index * step) % side] = 1
    return frames


def noise_clip(num_frames, height=64, width=48, seed=0):
    return torch.rand(num_frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("num_frames", "fps", "seconds", "expected"),
    [
        (9, 8, 1.0, [(0, 9)]),
        (24, 8, 1.0, [(0, 8), (8, 16), (16, 24)]),
        (25, 8, 1.0, [(0, 8), (8, 16), (16, 25)]),
        (1, 25, 1.0, [(0, 1)]),
        (3, 0.5, 1.0, [(0, 1), (1, 2), (2, 3)]),
        (8, 8, 0.5, [(0, 4), (4, 8)]),
    ],
)
def test_segments_cover_the_clip_evenly(num_frames, fps, seconds, expected):
    assert segments(num_frames, fps, seconds) == expected


def test_a_still_clip_has_no_motion_and_knows_that_it_repeats():
    (token,) = ENCODER.encode(noise_clip(1).expand(8, -1, -1, -1), 8.0)
    assert token.shape == (ENCODER.feature_size,)
    assert torch.equal(token[: 9 * BLOCKS], torch.zeros(9 * BLOCKS))
    assert token[-2] == 1.0
    assert token[-1] == pytest.approx(3 / 8)  # log2(8) / 8


def test_one_frame_has_level_and_contrast_but_no_motion():
    (token,) = ENCODER.encode(moving_bar(1), 25.0)
    assert torch.equal(token[: 9 * BLOCKS], torch.zeros(9 * BLOCKS))
    # Of the first block's 8 columns, 4 are white: mean 0.5 and deviation 0.5.
    assert token[LEVEL][0] == pytest.approx(0.5) and token[CONTRAST][0] == pytest.approx(0.5, abs=1e-4)
    assert token[LEVEL][1] == 0.0
    assert torch.equal(token[FLICKER], torch.zeros(BLOCKS)) and token[-2] == 0.0


def test_the_size_of_a_change_is_exact_for_a_fade():
    # Luma rises by 0.04 a frame everywhere: mean change 0.04, without unevenness, drift 0.04.
    frames = (0.1 + 0.04 * torch.arange(8.0))[:, None, None, None].expand(8, 3, 16, 16)
    (token,) = ENCODER.encode(frames, 8.0)
    torch.testing.assert_close(token[SIZE], torch.full((BLOCKS,), 0.2))  # sqrt(0.04)
    torch.testing.assert_close(token[UNEVENNESS], torch.zeros(BLOCKS), atol=1e-6, rtol=0)
    torch.testing.assert_close(token[DRIFT], torch.full((BLOCKS,), 0.04))


def test_stutter_shows_as_uneven_change_and_repeated_frames():
    smooth = moving_bar(16, step=1)
    stuttering = smooth[torch.arange(16) // 2 * 2]
    (even,), (uneven,) = ENCODER.encode(smooth, 16.0), ENCODER.encode(stuttering, 16.0)
    assert uneven[UNEVENNESS].sum() > 1.5 * even[UNEVENNESS].sum()
    assert even[-2] == 0.0 and uneven[-2] == pytest.approx(8 / 15)  # 8 of 15 steps repeat the frame before


def test_reversal_turns_the_sign_of_a_fade_only():
    frames = torch.linspace(0.2, 0.8, 9)[:, None, None, None].expand(9, 3, 16, 16)
    (forth,), (back,) = ENCODER.encode(frames, 8.0), ENCODER.encode(frames.flip(0), 8.0)
    torch.testing.assert_close(back[DRIFT], -forth[DRIFT], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(back[SIZE], forth[SIZE])


def test_a_fault_changes_the_token_of_its_second_and_of_no_other():
    frames = noise_clip(32, 16, 16)
    damaged = frames.clone()
    damaged[20] = 0
    changed = (ENCODER.encode(frames, 8.0) != ENCODER.encode(damaged, 8.0)).any(1)
    # Frame 20 lies in the third second; the longest lag of 4 frames does not reach it from frames before 16.
    assert changed.tolist() == [False, False, True, False]


def test_features_carry_no_gradient_and_stay_near_one():
    token = ENCODER.encode(noise_clip(16).requires_grad_(), 8.0)
    assert not token.requires_grad and token.dtype == torch.float32
    assert token.abs().max() <= 1.0


def test_settings_change_the_identity():
    assert ENCODER.weights_hash == TemporalDifferences().weights_hash
    assert ENCODER.weights_hash != TemporalDifferences(grid=2).weights_hash
    assert TemporalDifferences(grid=2, lags=(1,)).encode(noise_clip(4), 8.0).shape == (1, 3 * 2 * 4 + 2)


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (torch.rand(3, 8, 8), 8.0, r"\[T, 3, H, W\]"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 8.0, "must be float"),
        (torch.full((4, 3, 8, 8), 255.0), 8.0, r"must lie in \[0, 1\], got \[255, 255\]"),
        (torch.full((4, 3, 8, 8), float("nan")), 8.0, "must lie in"),
        (torch.rand(4, 3, 8, 8), 0.0, "fps must be a finite rate"),
    ],
)
def test_what_is_no_clip_is_refused(frames, fps, message):
    with pytest.raises(ValueError, match=message):
        ENCODER.encode(frames, fps)


@pytest.mark.parametrize("settings", [{"segment_seconds": 0.0}, {"lags": ()}, {"lags": (0,)}, {"grid": 200}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="must be|need"):
        TemporalDifferences(**settings)


class Counting(TemporalDifferences):
    """Counts how often it computes."""

    def encode(self, frames, fps):
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        return super().encode(frames, fps)


def test_a_clip_is_computed_once_and_then_read_back_equal(tmp_path):
    encoder, frames = Counting(), noise_clip(9)
    store = cached(encoder, tmp_path / "motion")
    first, second = store.encode(frames, 8.0), cached(encoder, tmp_path / "motion").encode(frames.clone(), 8.0)
    assert encoder.calls == 1
    assert torch.equal(first, second) and torch.equal(first, ENCODER.encode(frames, 8.0))
    assert [path.suffix for path in (tmp_path / "motion").iterdir()] == [".safetensors"]


def test_the_key_tells_pixels_shape_rate_and_encoder_apart():
    frames = noise_clip(4, 8, 8)
    keys = {
        clip_key(ENCODER, frames, 8.0),
        clip_key(ENCODER, frames, 16.0),
        clip_key(ENCODER, frames + 1e-6, 8.0),
        clip_key(ENCODER, frames.reshape(4, 3, 4, 16), 8.0),
        clip_key(TemporalDifferences(grid=2), frames, 8.0),
    }
    assert len(keys) == 5
    assert clip_key(ENCODER, frames.clone().requires_grad_(), 8.0) in keys
    assert clip_key(ENCODER, frames, 8) in keys


def test_the_cache_has_the_identity_of_its_encoder(tmp_path):
    store = cached(ENCODER, tmp_path)
    assert (store.name, store.weights_hash, store.feature_size) == (
        ENCODER.name,
        ENCODER.weights_hash,
        ENCODER.feature_size,
    )


def seeded_weights():
    """Return weights of useful size by name, drawn in the order of names from one stream."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in SlowFast().state_dict().items()}
    weights = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
        elif len(shape) >= 2:
            weights[name] = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        elif name.endswith("norm_c.weight"):
            weights[name] = 0.1 + 0.1 * torch.rand(shape, generator=generator)
        elif name.endswith("running_var") or ("norm" in name and name.endswith(".weight")):
            weights[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            weights[name] = 0.1 * torch.randn(shape, generator=generator)
    return weights


@pytest.fixture(scope="module")
def weights():
    return seeded_weights()


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("slowfast") / "slowfast.safetensors"
    save_file(weights, str(path))
    return path


@pytest.fixture(scope="module")
def slowfast(checkpoint):
    return SlowFastR50(checkpoint, size=32)


def test_weights_bear_the_names_and_shapes_of_the_public_model(weights):
    """662 names; the digest was taken from pytorchvideo 0.1.5, models/hub/slowfast.py, slowfast_r50()."""
    lines = "\n".join(f"{name} {tuple(weights[name].shape)}" for name in sorted(weights))
    assert len(weights) == 662
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest == "b64258d537dd0d36112ed878c11546389102ac459f198d1924d33a3dbf2ebe30"


@pytest.mark.parity
def test_features_equal_the_public_model_with_the_same_weights(weights):
    """Values of pytorchvideo 0.1.5 with these weights and this input, means over its last two feature maps."""
    network = SlowFast().eval()
    network.load_state_dict(weights, strict=True)
    clip = torch.randn(32, 3, 64, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        (features,) = network(*pathways(clip))
    chosen = features[[0, 1, 1000, 2047, 2048, 2303]]
    expected = torch.tensor([5.249928, 0.0, 0.12089, 2.643846, 15.861332, 0.25004])
    # Six printed digits, and sums in another order on another machine.
    torch.testing.assert_close(chosen, expected, rtol=1e-4, atol=1e-4)
    assert features.mean().item() == pytest.approx(2.945710, rel=1e-4)
    assert features.std().item() == pytest.approx(3.747244, rel=1e-4)


def test_the_slow_pathway_has_a_quarter_of_the_frames_ends_included():
    clip = torch.arange(32.0)[:, None, None, None].expand(32, 3, 1, 1)
    slow, fast = pathways(clip)
    assert slow[0, 0, :, 0, 0].tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    assert fast[0, 2, :, 0, 0].tolist() == list(range(32))


def test_a_token_for_each_second_without_gradient(slowfast):
    frames = noise_clip(16, 40, 32).requires_grad_()
    tokens = slowfast.encode(frames, 8.0)
    assert tokens.shape == (2, slowfast.feature_size) == (2, 2304)
    assert not tokens.requires_grad
    assert not torch.equal(tokens[0], tokens[1])
    # The second token sees frames 8 to 15 and then the last one again.
    padded = torch.cat([frames[8:], frames[-1:].expand(24, -1, -1, -1)])
    torch.testing.assert_close(slowfast.encode(padded, 32.0)[0], tokens[1])


def test_frames_are_scaled_to_the_shorter_side_and_normalised(slowfast):
    sizes = []
    hook = slowfast._network.register_forward_pre_hook(lambda _, inputs: sizes.append((inputs[0], inputs[1].shape)))
    slowfast.encode(torch.full((4, 3, 64, 128), 0.675), 8.0)
    hook.remove()
    ((slow, fast_shape),) = sizes
    assert slow.shape == (1, 3, 8, 32, 64) and fast_shape == (1, 3, 32, 32, 64)
    torch.testing.assert_close(slow, torch.ones_like(slow))  # (0.675 - 0.45) / 0.225


def test_both_kinds_of_file_load_and_have_one_identity(weights, checkpoint, slowfast, tmp_path):
    torch.save({"model_state": weights}, tmp_path / "public.pyth")
    assert hash_weights(read_weights(tmp_path / "public.pyth")) == slowfast.weights_hash == hash_weights(weights)
    assert slowfast.name == "slowfast_r50_32"


class Harmful:
    """Would leave a mark if a loader executed it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_a_pickle_of_anything_else_is_refused_unexecuted(tmp_path):
    mark = tmp_path / "mark"
    torch.save({"model_state": Harmful(mark)}, tmp_path / "bad.pyth")
    (tmp_path / "plain.pyth").write_bytes(pickle.dumps(Harmful(mark), protocol=2))
    for name in ("bad.pyth", "plain.pyth"):
        with pytest.raises(ValueError, match="holds no plain tensors"):
            SlowFastR50(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("path", [None, ""])
def test_a_checkpoint_must_be_named(path):
    with pytest.raises(ValueError, match="SlowFastR50 needs a checkpoint: name a local file"):
        SlowFastR50(path)


def test_missing_other_and_damaged_files_are_refused(tmp_path):
    (tmp_path / "weights.pkl").write_bytes(b"x")
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    torch.save([1, 2], tmp_path / "list.pyth")
    for name, message in (
        ("none.safetensors", "none.safetensors does not exist"),
        ("weights.pkl", "neither .safetensors nor .pyth"),
        ("weights.safetensors", "holds no plain tensors"),
        ("list.pyth", "holds no tensors by name"),
    ):
        with pytest.raises(ValueError, match=message):
            SlowFastR50(tmp_path / name)


def test_another_models_weights_are_refused(tmp_path):
    with torch.device("meta"):
        state = SlowFast().state_dict()
    few = {name: torch.zeros(1) for name in list(state)[:-1]}
    save_file(few | {"extra": torch.zeros(1)}, str(tmp_path / "few.safetensors"))
    with pytest.raises(ValueError, match="1 weights are missing and 1 unknown, for instance no 'blocks.6.proj.bias'"):
        SlowFastR50(tmp_path / "few.safetensors")
    save_file({name: torch.zeros(1) for name in state}, str(tmp_path / "flat.safetensors"))
    with pytest.raises(ValueError, match=r"has shape \(1,\), expected"):
        SlowFastR50(tmp_path / "flat.safetensors")


def test_a_size_that_no_stage_survives_is_refused(checkpoint):
    with pytest.raises(ValueError, match="size must be >= 32"):
        SlowFastR50(checkpoint, size=16)


def test_one_token_of_few_frames_sees_each_of_them_and_only_them(slowfast):
    frames = noise_clip(6)
    token = slowfast.encode_whole(frames, 0.5)
    assert token.shape == (1, 2304) and not token.requires_grad
    for index in range(6):
        other = frames.clone()
        other[index] = 0.5
        assert not torch.equal(slowfast.encode_whole(other, 0.5), token)
    assert not torch.equal(slowfast.encode(frames, 0.5)[:1], token)  # padded to 32 frames
    with pytest.raises(ValueError, match="fps must be"):
        slowfast.encode_whole(frames, 0.0)
