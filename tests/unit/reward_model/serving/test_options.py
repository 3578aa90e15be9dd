"""The options of a score request, from the client's call to the server's batches."""

from __future__ import annotations

import json

import pytest

from reward_model.serving.options import ScoreOptions

pytest.importorskip("pydantic")

from reward_model.serving.server.schema import ScoreBody

CALL = {"dimensions": ["overall", "visual_quality"], "readout": "reason", "num_samples": 3, "normalize": "raw"}


def test_weights_in_another_order_are_the_same_options():
    one = ScoreOptions.of(**CALL, weights={"overall": 1.0, "visual_quality": 2.0})
    other = ScoreOptions.of(**CALL, weights={"visual_quality": 2.0, "overall": 1.0})
    assert one == other and hash(one) == hash(other)
    assert one != ScoreOptions.of(**CALL, weights=None)
    assert one.weight_of == {"overall": 1.0, "visual_quality": 2.0}


@pytest.mark.parametrize("weights", [None, {"visual_quality": 2.0, "overall": 1.0}])
def test_the_server_reads_the_options_that_the_client_has_sent(weights):
    sent = ScoreOptions.of(**CALL, weights=weights)
    body = ScoreBody.model_validate_json(json.dumps({"videos": [{"file": ""}], **sent.fields()}))
    assert body.options() == sent
