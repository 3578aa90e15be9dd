"""The server's counters as Prometheus reads them."""

from __future__ import annotations

import pytest

from reward_model.serving.server.metrics import BUCKETS, ServerMetrics


def samples(metrics: ServerMetrics, num_waiting: int = 0) -> dict[str, float]:
    """Return name with labels -> value."""
    lines = [line for line in metrics.text(num_waiting).splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_counters_add_up() -> None:
    metrics = ServerMetrics()
    for route, status, seconds in (("/score", 200, 0.2), ("/score", 200, 0.3), ("other", 404, 1e9)):
        metrics.request(route, status, seconds)
    for valid in (True, True, False):
        metrics.result(valid)
    metrics.batch(4, 1.5)
    metrics.batch(2, 0.25)
    seen = samples(metrics, num_waiting=7)
    assert seen['video_judge_requests_total{route="/score",status="200"}'] == 2
    assert seen['video_judge_requests_total{route="other",status="404"}'] == 1
    assert seen['video_judge_results_total{valid="true"}'] == 2
    assert seen['video_judge_results_total{valid="false"}'] == 1
    assert seen["video_judge_batch_size_sum"] == 6 and seen["video_judge_batch_size_count"] == 2
    assert seen["video_judge_judge_seconds_total"] == pytest.approx(1.75)
    assert seen["video_judge_waiting_questions"] == 7 and seen["video_judge_open_requests"] == 0


def test_the_histogram_counts_up_to_each_bound() -> None:
    metrics = ServerMetrics()
    for seconds in (BUCKETS[0], BUCKETS[0] + 1e-6, BUCKETS[-1] + 1):
        metrics.request("/score", 200, seconds)
    seen = samples(metrics)
    counts = [seen[f'video_judge_request_seconds_bucket{{le="{end}"}}'] for end in (*BUCKETS, "+Inf")]
    assert counts == [1, *[2] * (len(BUCKETS) - 1), 3]
    assert seen["video_judge_request_seconds_count"] == 3
    assert seen["video_judge_request_seconds_sum"] == pytest.approx(2 * BUCKETS[0] + BUCKETS[-1] + 1, abs=1e-5)
