"""The metric log and the charts."""

from __future__ import annotations

import math
from pathlib import Path

from generator_loop.tracking.charts import line_chart
from generator_loop.tracking.metric_log import MetricLog, read_log


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl", is_main=True)
    returned = log.write("iteration", 3, {"reward": math.nan, "loss": 0.5})
    assert read_log(tmp_path / "metrics.jsonl") == [{"kind": "iteration", "step": 3, "loss": 0.5, "reward": None}]
    assert math.isnan(returned["reward"])


def test_rewinding_drops_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl", is_main=True)
    for step in range(5):
        log.write("iteration", step, {"x": step})
    log.write("round", 2, {"y": 1})
    log.rewind(2)
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == [0, 1, 2, 2]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "iteration", "step": 0}\n{"kind": "itera')
    assert len(read_log(path)) == 1


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path: Path) -> None:
    MetricLog(tmp_path / "metrics.jsonl", is_main=False).write("iteration", 0, {"x": 1})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_chart_draws_each_known_point_and_escapes_names() -> None:
    drawn = line_chart({"a<b": [(0, 1.0), (1, None), (2, 3.0)], "empty": [(0, None)]}, x_label="round", title="T")
    assert drawn.count("<circle") == 2
    assert "a&lt;b" in drawn and "empty" not in drawn


def test_a_chart_of_a_single_value_stays_inside_its_frame() -> None:
    drawn = line_chart({"a": [(0, 0.5)]}, x_label="round", title="T")
    assert 'cx="48.0"' in drawn and "nan" not in drawn


def test_a_chart_without_values_is_left_out() -> None:
    assert line_chart({"a": [(0, None)]}, x_label="round", title="T") == ""
