"""Counters of a server in Prometheus' text format."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Upper ends, in seconds, of the histogram of request times."""


class ServerMetrics:
    """Counters, and gauges of the current state; for one thread."""

    def __init__(self) -> None:
        self.num_open = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds = [0] * (len(BUCKETS) + 1)
        self._sum_seconds = 0.0
        self._clips: Counter[bool] = Counter()
        self._num_batches = self._batched = 0
        self._judge_seconds = 0.0

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        self._requests[route, status] += 1
        self._seconds[bisect.bisect_left(BUCKETS, seconds)] += 1
        self._sum_seconds += seconds

    def result(self, valid: bool) -> None:
        """Count an answered video or pair."""
        self._clips[valid] += 1

    def batch(self, num: int, seconds: float) -> None:
        """Count a call of the judge."""
        self._num_batches += 1
        self._batched += num
        self._judge_seconds += seconds

    def text(self, num_waiting: int) -> str:
        """Return the exposition; `num_waiting` is the number of jobs in the queue."""
        requests = [
            (f'{{route="{route}",status="{status}"}}', n) for (route, status), n in sorted(self._requests.items())
        ]
        results = [(f'{{valid="{str(valid).lower()}"}}', self._clips[valid]) for valid in (False, True)]
        batches = [("_sum", self._batched), ("_count", self._num_batches)]
        blocks = (
            ("requests_total", "counter", "Finished requests.", requests),
            ("open_requests", "gauge", "Requests being answered.", [("", self.num_open)]),
            ("request_seconds", "histogram", "Time from headers to answer.", list(self._histogram())),
            ("results_total", "counter", "Videos and pairs answered.", results),
            ("waiting_questions", "gauge", "Videos and pairs in the queue of the judge.", [("", num_waiting)]),
            ("batch_size", "summary", "Videos or pairs per call of the judge.", batches),
            ("judge_seconds_total", "counter", "Time spent in calls of the judge.", [("", self._judge_seconds)]),
        )
        lines = []
        for name, kind, meaning, samples in blocks:
            full = f"video_judge_{name}"
            lines += [f"# HELP {full} {meaning}", f"# TYPE {full} {kind}"]
            lines += [f"{full}{suffix} {value}" for suffix, value in samples]
        return "\n".join([*lines, ""])

    def _histogram(self) -> Iterator[tuple[str, float]]:
        total = 0
        for end, count in zip((*BUCKETS, "+Inf"), self._seconds, strict=True):
            total += count
            yield f'_bucket{{le="{end}"}}', total
        yield "_sum", self._sum_seconds
        yield "_count", total
