"""What travels between client and server survives the way there and back, and nothing else is let in."""

import json
import math
from dataclasses import fields

import pytest
import torch
from safetensors.torch import save

from reward_model.records import Comparison, Explanation, FramePlan, RewardOutput
from reward_model.scoring.json_records import (
    JsonRecord,
    comparison_records,
    explanation_record,
    output_records,
    unscored_record,
)
from reward_model.serving import wire

NAN = math.nan
PLAN = FramePlan((0, 4), (0.0, 0.5), ("slow", "fast"), 2.0)


def output() -> RewardOutput:
    """Return a scored video and one that could not be read."""
    good = torch.tensor([0.1, NAN])
    return RewardOutput(
        rewards=good,
        scores={"visual_quality": good, "text_alignment": torch.tensor([NAN, NAN])},
        std={"visual_quality": torch.tensor([0.25, NAN]), "text_alignment": torch.tensor([NAN, NAN])},
        level_probs={"visual_quality": torch.tensor([[0.6, 0.1, 0.1, 0.1, 0.1], [NAN] * 5])},
        level_mass={"visual_quality": torch.tensor([0.9, NAN])},
        valid={"visual_quality": torch.tensor([True, False]), "text_alignment": torch.tensor([False, False])},
        reasons={"visual_quality": ["", "damaged: cut"], "text_alignment": ["no prompt", "damaged: cut"]},
        texts=["because", ""],
        frame_plan=[PLAN, None],
        overall_from=[("visual_quality",), ()],
        warnings=[("24 judged frames a second",), ()],
    )


def crossed(records: list[JsonRecord]) -> list[JsonRecord]:
    """Return records as they arrive; strict JSON has no NaN."""
    return json.loads(json.dumps(records, allow_nan=False))


def assert_same(left: object, right: object) -> None:
    """Compare two records field by field, NaN equal to NaN."""
    for part in fields(left):
        one, other = getattr(left, part.name), getattr(right, part.name)
        tensors = list(one.values()) if isinstance(one, dict) else [one]
        if isinstance(tensors[0], torch.Tensor):
            torch.testing.assert_close(one, other, equal_nan=True, rtol=0, atol=0)
        else:
            assert one == other, part.name


def test_scores_survive_the_wire_exactly():
    records = crossed(output_records(output(), [None, "a cat"]))
    assert_same(wire.reward_output(records), output())


def test_a_row_is_valid_where_only_a_prompt_was_missing():
    first, second = output_records(output(), [None, "a cat"])
    assert (first["valid"], second["valid"]) == (True, False)
    assert first["valid_dimensions"] == {"visual_quality": True, "text_alignment": False}
    assert first["scores"]["text_alignment"] is None
    assert first["reasons"] == {"text_alignment": "no prompt"}
    assert second["reasons"] == {"visual_quality": "damaged: cut", "text_alignment": "damaged: cut"}
    assert second["prompt"] == "a cat"


def test_a_level_readout_has_no_texts():
    records = [{**record, "text": None} for record in output_records(output(), [None, None])]
    assert wire.reward_output(records).texts is None


def test_a_video_that_nobody_scored_has_the_fields_of_one_that_was():
    found = unscored_record("the process died", "a cat")
    assert set(found) == set(output_records(output(), [None, "a cat"])[0])
    assert found["reasons"]["overall"] == "the process died"
    assert not found["valid"]


def test_comparisons_survive_the_wire():
    found = Comparison(
        p_first=torch.tensor([0.7, NAN]),
        p_tie=torch.tensor([0.1, NAN]),
        margin=torch.tensor([0.5, NAN]),
        valid=torch.tensor([True, False]),
        reasons=["", "damaged: cut"],
        consistent=torch.tensor([True, False]),
    )
    records = crossed(comparison_records(found, ["x", "y"]))
    assert (records[1]["p_first"], records[1]["consistent"], records[1]["reason"]) == (None, None, "damaged: cut")
    assert_same(wire.comparison(records), found)


def test_explanations_survive_the_wire():
    found = Explanation(
        text="<think>It flickers.</think>",
        quality={"motion_quality": 0.25, "overall": NAN},
        levels={"motion_quality": "poor"},
        labels={"motion_quality": ("flicker",)},
        saliency={"motion_quality": torch.tensor([0.25, 0.75])},
        reason="",
        words="theirs",
    )
    (record,) = crossed([explanation_record(found, "x")])
    assert record["valid"] is True
    back = wire.explanation(record)
    assert (back.text, back.levels, back.labels, back.reason) == (found.text, found.levels, found.labels, "")
    assert back.words == "theirs"
    assert (back.quality["motion_quality"], math.isnan(back.quality["overall"])) == (0.25, True)
    torch.testing.assert_close(back.saliency["motion_quality"], found.saliency["motion_quality"])


@pytest.mark.parametrize("dtype", wire.DTYPES)
def test_frames_survive_the_wire_exactly(dtype):
    frames = (torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) / 120 * (255 if dtype is torch.uint8 else 1)).to(dtype)
    back = wire.decode_frames(wire.encode_frames(frames.permute(0, 1, 3, 2)))
    assert back.dtype == dtype
    assert torch.equal(back, frames.permute(0, 1, 3, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/etc/passwd", "not base64"),
        ("http://host/a.mp4", "not base64"),
        ("AAAA\nAAAA", "not base64"),
        ("AAA", "not base64"),
        (wire.encode_bytes(b""), "not a safetensors file"),
        (wire.encode_bytes(b"\xff" * 8 + b"{}"), "not a safetensors file"),
        (wire.encode_bytes(save({"frames": torch.zeros(1, 3, 2, 2)})[:-1]), "not a safetensors file"),
        (wire.encode_bytes(save({"video": torch.zeros(1, 3, 2, 2)})), "one tensor named 'frames'"),
        (wire.encode_bytes(save({"frames": torch.zeros(1), "more": torch.zeros(1)})), "one tensor named 'frames'"),
        (wire.encode_bytes(save({"frames": torch.zeros(3, 2, 2)})), "T, C, H, W"),
        (wire.encode_bytes(save({"frames": torch.zeros(1, 3, 0, 2)})), "none of them empty"),
        (wire.encode_bytes(save({"frames": torch.zeros(1, 3, 2, 2, dtype=torch.float64)})), "got float64"),
        (wire.encode_bytes(save({"frames": torch.zeros(1, 3, 2, 2, dtype=torch.int32)})), "got int32"),
    ],
)
def test_anything_but_frames_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        wire.decode_frames(text)
