"""Video input and output: every decoder against the same clips, and a reason for every kind of bad file."""

import importlib
import random
import resource
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.video_io import MediaLimits, encode_video, read_video, write_video
from reward_model.records import VideoError

CLIPS = Path(__file__).resolve().parents[5] / "shared" / "clips"
NUM_FRAMES, HEIGHT, WIDTH = 20, 48, 64


@pytest.fixture(params=["pyav", "decord", "torchcodec"])
def decoder(request):
    if request.param != "pyav":
        try:
            importlib.import_module(request.param + (".decoders" if request.param == "torchcodec" else ""))
        except (ImportError, RuntimeError) as error:  # torchcodec without FFmpeg libraries raises RuntimeError
            pytest.skip(f"{request.param} is not usable here: {type(error).__name__}")
    return request.param


def numbered_frame(index, height=HEIGHT, width=WIDTH):
    """A grey picture whose left bar is as wide as the frame's number, with a red top."""
    picture = np.full((height, width, 3), 60, np.uint8)
    picture[:, : 2 * (index + 1)] = 200
    picture[:8] = (220, 40, 40)
    return picture


def frame_numbers(frames):
    """Read the numbers back from the width of the bar."""
    return [round(row / 2) - 1 for row in (frames[:, 1, HEIGHT - 4, :WIDTH] > 0.5).sum(dim=-1).tolist()]


@pytest.fixture
def make_clip(tmp_path):
    """Write a numbered clip and return its path."""

    def make(
        name="clip.mp4",
        *,
        num_frames=NUM_FRAMES,
        size=(WIDTH, HEIGHT),
        codec="libx264",
        milliseconds=None,
        rotation=None,
        options=None,
    ):
        path = tmp_path / name
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p" if size[0] % 2 == 0 and size[1] % 2 == 0 else "yuv444p"
            if milliseconds:
                stream.codec_context.time_base = Fraction(1, 1000)
            if rotation:
                stream.set_display_rotation(rotation)
            for index in range(num_frames):
                frame = av.VideoFrame.from_ndarray(numbered_frame(index, size[1], size[0]), format="rgb24")
                if milliseconds:
                    frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


def reason(source, **settings):
    with pytest.raises(VideoError) as caught:
        read_video(source, **settings)
    return str(caught.value)


def test_planned_frames_are_the_ones_that_come_back(make_clip, decoder):
    video, plan = read_video(make_clip(), policy=FramePolicy(num_frames=5), decoder=decoder)
    assert plan.indices == (0, 5, 10, 14, 19)  # 4.75, 9.5, 14.25 rounded
    assert frame_numbers(video.frames) == list(plan.indices)
    assert video.frames.shape == (5, 3, HEIGHT, WIDTH)
    assert video.frames.dtype == torch.float32
    assert plan.times == pytest.approx((0.0, 0.5, 1.0, 1.4, 1.9))


def test_bytes_read_like_the_file(make_clip, decoder):
    path = make_clip()
    from_file, _ = read_video(path, decoder=decoder)
    from_bytes, _ = read_video(path.read_bytes(), decoder=decoder)
    assert torch.equal(from_file.frames, from_bytes.frames)
    assert (from_file.source, from_bytes.source) == (str(path), "bytes")
    assert from_file.fps == pytest.approx(10.0)


def test_decoders_give_the_same_pixels(make_clip, decoder):
    path = make_clip()
    assert torch.equal(read_video(path, decoder=decoder)[0].frames, read_video(path)[0].frames)


@pytest.mark.parametrize("max_side", [None, 32])
def test_reading_keeps_to_one_thread(make_clip, max_side):
    """A conversion that hands its picture to threads of its own waits for them, once a frame or more."""
    clip = make_clip()
    read_video(clip, max_side=max_side)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    for _ in range(5):
        read_video(clip, max_side=max_side)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < NUM_FRAMES


def test_large_frames_shrink_to_max_side_and_small_ones_stay(make_clip, decoder):
    path = make_clip()
    small = read_video(path, max_side=32, decoder=decoder)[0].frames
    assert small.shape == (NUM_FRAMES, 3, 24, 32)
    expected = torch.nn.functional.avg_pool2d(read_video(path)[0].frames, 2)
    assert (small - expected).abs().mean() < 0.03  # the filters differ at edges
    assert read_video(path, max_side=64, decoder=decoder)[0].frames.shape[-2:] == (HEIGHT, WIDTH)


def test_odd_sizes_come_back_as_they_are(make_clip, decoder):
    path = make_clip(size=(51, 37), num_frames=3)
    assert read_video(path, decoder=decoder)[0].frames.shape == (3, 3, 37, 51)


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_metadata_sets_the_picture_upright(make_clip, rotation):
    upright = read_video(make_clip("upright.mp4"))[0].frames
    turned = read_video(make_clip("turned.mp4", rotation=rotation))[0].frames
    # The metadata counts counter-clockwise, as rot90 over (height, width) does.
    torch.testing.assert_close(
        turned, torch.rot90(upright, rotation // 90, (2, 3)), atol=0.02, rtol=0
    )  # chroma is upsampled first


def test_decord_refuses_clips_on_their_side_which_it_distorts(make_clip):
    pytest.importorskip("decord")
    assert "use the pyav decoder" in reason(make_clip(rotation=90), decoder="decord")


def test_variable_rate_is_sampled_by_time(make_clip, decoder):
    milliseconds = [0, 100, 200, 300, 400, 500, 600, 700, 2000, 4000]
    path = make_clip(num_frames=10, milliseconds=milliseconds)
    video, plan = read_video(path, policy=FramePolicy(num_frames=5), decoder=decoder)
    assert plan.indices == (0, 7, 8, 8, 9)  # on the screen at 0, 1, 2, 3, 4 s
    assert frame_numbers(video.frames) == [0, 7, 8, 8, 9]
    assert video.times == pytest.approx((0.0, 0.7, 2.0, 2.0, 4.0))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.ts", "mpeg2video"), ("a.avi", "mpeg4")]
)
def test_other_containers_are_read_whole(make_clip, name, codec):
    video, plan = read_video(make_clip(name, codec=codec))
    assert len(plan.indices) == NUM_FRAMES
    assert video.fps == pytest.approx(10.0, rel=0.01)  # Matroska rounds stamps to milliseconds


def test_missing_empty_and_foreign_files_are_named(tmp_path, decoder):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    assert reason(tmp_path / "none.mp4", decoder=decoder) == "no such file"
    assert reason(tmp_path, decoder=decoder) == "not a file"
    assert reason(tmp_path / "empty.mp4", decoder=decoder) == "empty: the file has 0 bytes"
    assert reason(b"", decoder=decoder) == "empty: no bytes"
    assert "not a video" in reason(tmp_path / "text.mp4", decoder=decoder)
    assert "not a video" in reason(random.Random(0).randbytes(5000), decoder=decoder)


def test_a_playlist_may_not_open_other_files(make_clip, tmp_path, decoder):
    make_clip("part.ts")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\npart.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist)
    assert "not a video" in reason(tmp_path / "list.m3u8", decoder=decoder)


def test_audio_is_not_video(tmp_path, decoder):
    path = tmp_path / "sound.mp4"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    assert reason(path, decoder=decoder) == "no video stream in the file"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("end.mp4", {}),
        ("start.mp4", {"movflags": "faststart"}),
        ("parts.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", {}),
    ],
)
def test_truncated_files_are_refused(make_clip, decoder, name, options, share):
    whole = make_clip(name, options=options).read_bytes()
    assert len(read_video(whole, decoder=decoder)[1].indices) == NUM_FRAMES
    assert reason(whole[: int(share * len(whole))], decoder=decoder)


def test_what_is_left_of_a_truncated_file_is_read_when_damage_is_allowed(make_clip):
    whole = make_clip(options={"movflags": "faststart"}).read_bytes()
    video, plan = read_video(whole[: int(0.9 * len(whole))], allow_damaged=True)
    assert 0 < len(plan.indices) < NUM_FRAMES
    assert len(video.frames) == len(plan.times) == len(plan.kinds) == len(plan.indices)


def test_a_single_frame_has_no_motion_to_judge(make_clip):
    path = make_clip(num_frames=1)
    assert "single frame" in reason(path, policy=FramePolicy())
    assert read_video(path)[0].frames.shape == (1, 3, HEIGHT, WIDTH)


def test_huge_inputs_are_refused_with_the_limit(make_clip):
    path = make_clip()
    assert "64x48 exceeds 3000 pixels" in reason(path, limits=MediaLimits(max_frame_pixels=3000))
    assert "more than 19 frames" in reason(path, limits=MediaLimits(max_frames=19))
    limits = MediaLimits(max_kept_pixels=10 * WIDTH * HEIGHT)
    assert "20 frames of 64x48" in reason(path, limits=limits)
    assert len(read_video(path, policy=FramePolicy(num_frames=10), limits=limits)[1].indices) == 10


def test_flipped_bits_are_found_wherever_they_reach_the_sampled_frames(make_clip):
    whole = make_clip(num_frames=30, size=(128, 96)).read_bytes()
    policy = FramePolicy(num_frames=6)
    clean = read_video(whole, policy=policy)[0].frames
    start = whole.index(b"mdat") + 800  # behind the encoder's text, which no decoder reads
    rng = random.Random(0)
    num_changed = num_found = 0
    for _ in range(20):
        broken = bytearray(whole)
        for _ in range(3):
            bit = rng.randrange(8 * start, 8 * (whole.index(b"moov") - 4))
            broken[bit >> 3] ^= 1 << (bit & 7)
        seen = read_video(bytes(broken), policy=policy, allow_damaged=True)[0].frames
        if seen.shape == clean.shape and torch.equal(seen, clean):
            continue
        num_changed += 1
        try:
            read_video(bytes(broken), policy=policy)
        except VideoError as error:
            assert "damaged" in str(error)
            num_found += 1
    assert num_changed >= 10
    assert num_found >= 0.95 * num_changed


def test_unknown_settings_are_refused(make_clip):
    with pytest.raises(ValueError, match="decoder must be one of"):
        read_video(make_clip(), decoder="opencv")
    with pytest.raises(ValueError, match="max_side must be"):
        read_video(make_clip(), max_side=1)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_encoding_keeps_pictures_and_rate(tmp_path, codec):
    ramp = torch.linspace(0, 1, 80).expand(9, 3, 66, 80)
    write_video(tmp_path / "new" / "clip.mp4", ramp, 8.0, codec=codec)
    video, plan = read_video(tmp_path / "new" / "clip.mp4")
    assert video.fps == pytest.approx(8.0)
    assert video.frames.shape == ramp.shape
    # 8-bit limited-range YUV at crf 18 is good to a few grey levels.
    assert (video.frames - ramp).abs().mean() < 0.02


def test_encoding_odd_sizes_repeats_the_last_row_and_column():
    frames = torch.rand(1, 3, 1, 1).expand(4, 3, 33, 47)
    seen = read_video(encode_video(frames, 8.0))[0].frames
    assert seen.shape == (4, 3, 34, 48)
    assert (seen[..., :33, :47] - frames).abs().max() < 0.03


def test_small_hevc_pictures_are_padded_where_x265_would_corrupt_memory():
    frames = torch.rand(1, 3, 1, 1).expand(9, 3, 36, 48)
    for _ in range(3):
        seen = read_video(encode_video(frames, 8.0, codec="hevc"))[0].frames
    assert seen.shape == (9, 3, 64, 64)
    assert (seen - frames[:, :, :1, :1]).abs().max() < 0.03


def test_encoding_clips_values_outside_the_range():
    frames = torch.full((3, 3, 32, 32), 1.5)
    assert read_video(encode_video(frames, 8.0))[0].frames.min() > 0.97


@pytest.mark.parametrize(
    ("frames", "fps", "settings", "message"),
    [
        (torch.zeros(3, 1, 8, 8), 8.0, {}, r"RGB \[T, 3, H, W\]"),
        (torch.zeros(0, 3, 8, 8), 8.0, {}, "non-empty"),
        (torch.full((2, 3, 8, 8), float("nan")), 8.0, {}, "not finite"),
        (torch.zeros(2, 3, 8, 8), 0.0, {}, "fps must be"),
        (torch.zeros(2, 3, 8, 8), 8.0, {"codec": "mjpeg"}, "codec must be one of"),
    ],
)
def test_encoding_refuses_what_is_no_video(frames, fps, settings, message):
    with pytest.raises(ValueError, match=message):
        encode_video(frames, fps, **settings)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not at hand")
def test_real_clips_are_read_alike_by_every_decoder(decoder):
    path = CLIPS / "pair3_B.mp4"
    policy = FramePolicy(mode="fps")
    video, plan = read_video(path, policy=policy, decoder=decoder)
    assert plan.indices == (0, 12, 24, 35, 47, 59)  # 60 frames at 16 Hz: 7.5 frames at 2 Hz, rounded down to 6
    assert torch.equal(video.frames, read_video(path, policy=policy)[0].frames)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_the_same_frames_are_always_encoded_to_the_same_bytes(codec):
    frames = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    frames = torch.nn.functional.avg_pool2d(frames, 5, 1, 2)
    first = encode_video(frames, 8.0, codec=codec, crf=30)
    for _ in range(60 if codec == "h264" else 12):  # decoding in between brought other bytes one time in ten
        read_video(first)
        assert encode_video(frames, 8.0, codec=codec, crf=30) == first


def test_a_file_whose_codec_is_unknown_is_refused():
    whole = encode_video(torch.rand(8, 3, 32, 32), fps=8)
    assert whole.count(b"avc1") >= 1
    with pytest.raises(VideoError, match="codec is unknown"):
        read_video(whole.replace(b"avc1", b"av\x00\x01"))


def test_metadata_that_is_no_text_harms_nothing():
    whole = encode_video(torch.rand(8, 3, 32, 32), fps=8)
    broken = whole.replace(b"Lavf", b"\xff\xfe\xef\xfd")
    assert broken != whole
    assert torch.equal(read_video(broken)[0].frames, read_video(whole)[0].frames)
