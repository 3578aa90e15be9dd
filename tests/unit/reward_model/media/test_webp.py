"""Animated WebP: pictures laid over each other, at their times, as libwebp shows them."""

from __future__ import annotations

import io

import numpy as np
import pytest

from reward_model.media.containers import is_container
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.video_io import MediaLimits, read_video
from reward_model.media.webp import read_animation
from reward_model.records import VideoError

image = pytest.importorskip("PIL.Image")

HEIGHT, WIDTH, NUM = 64, 96, 6
DURATIONS = [40, 80, 120, 40, 40, 40]


def moving(*, alpha: int = 255, smooth: bool = False) -> list[np.ndarray]:
    """A square that moves over a still ground, so that an encoder stores the changed part of each picture alone."""
    ground = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    if smooth:
        ground[:] = np.linspace(30, 220, WIDTH).astype(np.uint8)[:, None]
    pictures = []
    for number in range(NUM):
        colours = ground.copy()
        colours[20:40, 10 * number + 5 : 10 * number + 25] = (220, 30 * number, 60)
        opacity = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
        opacity[8 * number : 8 * number + 12] = alpha
        pictures.append(np.concatenate([colours, opacity], axis=-1))
    return pictures


def save(pictures: list[np.ndarray], durations: list[int] | int = 100, **settings) -> bytes:
    buffer = io.BytesIO()
    first, *rest = (image.fromarray(picture) for picture in pictures)
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=durations, **settings)
    return buffer.getvalue()


def by_libwebp(data: bytes) -> np.ndarray:
    """Return the pictures [T, H, W, 4] as Pillow's libwebp shows them."""
    with image.open(io.BytesIO(data)) as file:
        shown = []
        for number in range(file.n_frames):
            file.seek(number)
            shown.append(np.array(file.convert("RGBA")))
    return np.stack(shown)


def ours(data: bytes, **settings) -> np.ndarray:
    frames = read_video(data, **settings)[0].frames
    return np.moveaxis((frames.numpy() * 255).round().astype(np.int16), 1, -1)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)


def three(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(3, "little") for number in numbers)


def by_hand(parts: list[tuple[np.ndarray, tuple[int, int], int]]) -> bytes:
    """Return a file of parts: picture, place (left, top; even numbers) and flags (1 cleared afterwards, 2 not blended)."""
    body = (
        chunk(b"VP8X", b"\x12\0\0\0" + three(WIDTH - 1, HEIGHT - 1)) + chunk(b"ANIM", bytes(6)) + chunk(b"JUNK", b"odd")
    )
    for picture, (left, top), flags in parts:
        buffer = io.BytesIO()
        image.fromarray(picture).save(buffer, "WEBP", lossless=True, exact=True)
        still = buffer.getvalue()
        pixels = still[still.index(b"VP8L") :]
        height, width = picture.shape[:2]
        head = three(left // 2, top // 2, width - 1, height - 1, 50) + bytes([flags])
        body += chunk(b"ANMF", head + pixels)
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body


@pytest.mark.parametrize("as_file", [True, False])
def test_lossless_pictures_and_their_times_are_exact(tmp_path, as_file):
    data = save(moving(), DURATIONS, lossless=True)
    (tmp_path / "clip.webp").write_bytes(data)
    assert any(part.width < WIDTH for part in read_animation(data).parts)
    video, plan = read_video(tmp_path / "clip.webp" if as_file else data)
    seen = np.moveaxis((video.frames.numpy() * 255).round().astype(np.uint8), 1, -1)
    assert (seen == np.stack(moving())[..., :3]).all()
    assert plan.times == pytest.approx((0, 0.04, 0.12, 0.24, 0.28, 0.32))
    assert video.fps == pytest.approx(5 / 0.32) and video.remarks == () and is_container(data)


def test_lossy_pictures_are_near_those_of_libwebp():
    data = save(moving(smooth=True), quality=95)
    gap = np.abs(ours(data) - by_libwebp(data)[..., :3])
    assert gap.mean() < 4  # FFmpeg and libwebp smooth the colours between pixels in other ways


@pytest.mark.parametrize("settings", [{"lossless": True, "exact": True}, {"quality": 95}])
def test_transparent_pictures_show_the_colours_of_libwebp_and_say_so(settings):
    data = save(moving(alpha=0, smooth=True), **settings)
    seen, expected = ours(data), by_libwebp(data)
    shown = expected[..., 3] == 255
    assert np.abs(seen - expected[..., :3])[shown].mean() < (0.01 if "lossless" in settings else 4)
    assert read_video(data)[0].remarks == ("transparency is ignored",)


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_parts_are_blended_and_cleared_as_their_flags_say(flags):
    rng = np.random.default_rng(1)
    whole = rng.integers(0, 255, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    parts = [rng.integers(0, 255, (20, 30, 4), dtype=np.uint8) for _ in range(2)]
    data = by_hand([(whole, (0, 0), 2), (parts[0], (10, 12), flags), (parts[1], (24, 20), 0)])
    seen, expected = ours(data), by_libwebp(data)
    assert np.abs(seen - expected[..., :3])[expected[..., 3] > 60].max() <= 2
    inside = expected[1, 12:32, 10:40]
    assert (seen[1, 12:32, 10:40] == parts[0][..., :3]).all() == bool(flags & 2)
    assert np.abs(seen[1, 12:32, 10:40] - inside[..., :3])[inside[..., 3] > 60].max() <= 2
    assert (seen[2, 12:20, 10:24] == 0).all() == bool(flags & 1)


def test_pictures_without_a_duration_stay_as_long_as_in_browsers():
    assert read_video(save(moving(), [0, 10, 11, 50, 0, 0]))[1].times == pytest.approx(
        (0, 0.1, 0.2, 0.211, 0.261, 0.361)
    )


def test_a_policy_and_a_largest_side_are_obeyed():
    data = save(moving(), 100, lossless=True)
    video, plan = read_video(data, policy=FramePolicy(num_frames=2), max_side=48)
    assert plan.indices == (0, 5) and video.frames.shape == (2, 3, 32, 48)


def test_a_damaged_part_is_refused_or_left_out():
    data = save(moving(), 100, lossless=True)
    third = read_animation(data).parts[2]
    broken = data[: third.start + 8] + bytes(third.end - third.start - 8) + data[third.end :]
    with pytest.raises(VideoError, match="damaged: picture 2"):
        read_video(broken)
    video, plan = read_video(broken, allow_damaged=True)
    assert plan.indices == (0, 1, 3, 4, 5) and len(video.frames) == 5


@pytest.mark.parametrize("num", [2, 3, 5])
def test_a_file_that_was_cut_off_is_damaged(num):
    data = save(moving(), 100, lossless=True)
    cut = data[: read_animation(data).parts[num].end - 1]
    with pytest.raises(VideoError, match="ends too early"):
        read_video(cut)
    whole, _ = read_video(data)
    kept, _ = read_video(cut, allow_damaged=True)
    assert len(kept.frames) == num and (kept.frames == whole.frames[:num]).all()


def test_limits_hold_before_anything_is_decoded():
    data = save(moving(), 100, lossless=True)
    with pytest.raises(VideoError, match="too large: 96x64"):
        read_video(data, limits=MediaLimits(max_frame_pixels=HEIGHT * WIDTH - 1))
    with pytest.raises(VideoError, match="more than 5 frames"):
        read_video(data, limits=MediaLimits(max_frames=NUM - 1))
    read_video(data, limits=MediaLimits(max_frame_pixels=HEIGHT * WIDTH, max_frames=NUM))


def test_parts_outside_the_canvas_or_of_another_size_are_refused():
    ground, part = np.full((HEIGHT, WIDTH, 4), 255, np.uint8), np.full((20, 30, 4), 90, np.uint8)
    assert len(ours(by_hand([(ground, (0, 0), 0), (part, (66, 44), 0)]))) == 2
    for place in ((68, 0), (0, 46)):
        with pytest.raises(VideoError, match="picture 1 leaves the canvas"):
            read_video(by_hand([(ground, (0, 0), 0), (part, place, 0)]))
    data = bytearray(by_hand([(ground, (0, 0), 0), (part, (0, 0), 0)]))
    second = read_animation(bytes(data)).parts[1]
    data[second.start - 10 : second.start - 4] = three(28, 19)
    with pytest.raises(VideoError, match="picture 1: not of the size 29x20"):
        read_video(bytes(data))


def test_one_picture_is_no_video():
    data = by_hand([(np.full((HEIGHT, WIDTH, 4), 255, np.uint8), (0, 0), 0)])
    with pytest.raises(VideoError, match="single frame"):
        read_video(data, policy=FramePolicy(num_frames=2))
    with pytest.raises(VideoError, match="no frames"):
        read_video(by_hand([]))


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_other_decoders_refuse_it(decoder):
    with pytest.raises(VideoError, match=f"{decoder} reads no animated WebP"):
        read_video(save(moving()), decoder=decoder)
