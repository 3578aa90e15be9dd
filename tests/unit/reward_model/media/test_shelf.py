"""The shelf of planned clips: bounded, and whatever it returns is what was read."""

import pytest
import torch

from reward_model.media.shelf import ClipShelf
from reward_model.records import Clip, FramePlan

PLAN = FramePlan((0, 1), (0.0, 0.5), ("slow", "slow"), 2.0)


def clip(seed, *, eight_bit=True, side=8):
    frames = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return Clip(frames.mul(255).round_().div_(255) if eight_bit else frames, PLAN, remarks=(str(seed),))


def shelf_of(clips, **how):
    reads = []

    def reader(place):
        return lambda: reads.append(place) or clips[place]

    return ClipShelf([reader(place) for place in range(len(clips))], **how), reads


@pytest.mark.parametrize("eight_bit", [True, False])
def test_a_clip_comes_back_bit_for_bit_however_often_it_is_asked_for(eight_bit):
    clips = [clip(seed, eight_bit=eight_bit) for seed in range(3)]
    shelf, reads = shelf_of(clips)
    for _ in range(2):
        for got, wanted in zip(shelf, clips, strict=True):
            assert got.frames.dtype == torch.float32 and torch.equal(got.frames, wanted.frames)
            assert (got.plan, got.remarks) == (wanted.plan, wanted.remarks)
    assert reads == [0, 1, 2]
    assert shelf.num_bytes == 3 * 2 * 3 * 64 * (1 if eight_bit else 4)


def test_all_256_steps_of_8_bits_survive():
    frames = torch.arange(256, dtype=torch.uint8).float().div_(255).expand(2, 3, 1, 256).contiguous()
    shelf, _ = shelf_of([Clip(frames, PLAN)])
    assert torch.equal(shelf[0].frames, frames) and torch.equal(shelf[0].frames, frames)
    assert shelf.num_bytes == 2 * 3 * 256


def test_the_bytes_stay_below_their_limit_and_the_least_wanted_clip_is_read_again():
    one = 2 * 3 * 64
    shelf, reads = shelf_of([clip(seed) for seed in range(4)], max_bytes=2 * one)
    for place in (0, 1, 0, 2, 0, 1):
        assert shelf[place].remarks == (str(place),)
        assert shelf.num_bytes <= 2 * one
    assert reads == [0, 1, 2, 1]


def test_a_clip_that_never_fits_is_read_each_time_and_reasons_take_no_room():
    shelf, reads = shelf_of([clip(0), "damaged: cut"], max_bytes=100)
    assert torch.equal(shelf[0].frames, shelf[0].frames) and shelf[1] == shelf[1] == "damaged: cut"
    assert reads.count(0) == 2 and shelf.num_bytes == 0


def test_frames_of_other_types_and_motion_are_kept_as_they_are():
    double = Clip(torch.rand(2, 3, 4, 4, dtype=torch.float64), PLAN, motion=torch.ones(1, 5))
    shelf, _ = shelf_of([double])
    assert [shelf[0], shelf[0]] == [double, double]
    assert shelf.num_bytes == 2 * 3 * 16 * 8 + 20
