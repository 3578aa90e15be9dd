"""The metric in the real torchmetrics, alone and gathered over two processes."""

from __future__ import annotations

import json
import math
import os
import pickle
from types import SimpleNamespace

import pytest
import torch
from torchmetrics import Metric, MetricCollection, MetricTracker

from reward_model.hosts.torchmetrics import VideoJudgeMetric
from tests.host_clips import FPS, clips

PROMPT = "a red circle moving left"


def test_means_run_over_all_updates_and_start_anew_after_a_reset(judge):
    metric = VideoJudgeMetric("toy", fps=FPS, device="cpu")
    assert isinstance(metric, Metric) and not metric.is_differentiable
    metric.update(clips(3), PROMPT)
    metric.update(clips(1, seed=1), [PROMPT])
    both = torch.cat([clips(3), clips(1, seed=1)])
    expected = judge(both, PROMPT, fps=FPS).scores
    found = metric.compute()
    assert set(found) == {"visual_quality", "motion_quality", "text_alignment", "overall", "valid"}
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values.mean(), rtol=0, atol=1e-5)
    assert found["valid"] == 1
    metric.reset()
    metric.update(clips(1, seed=1), PROMPT)
    torch.testing.assert_close(metric.compute()["overall"], expected["overall"][3], rtol=0, atol=1e-5)


def test_videos_that_miss_a_score_do_not_count_for_it(judge, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    metric = VideoJudgeMetric(judge, fps=FPS)
    metric.update([clips(1)[0], tmp_path / "notes.mp4"], [None, PROMPT])
    found, expected = metric.compute(), judge(clips(1), fps=FPS)
    torch.testing.assert_close(found["overall"], expected.rewards[0])
    assert math.isnan(found["text_alignment"]) and found["valid"] == 0.5


def test_layouts_and_stills_are_taken(judge):
    first, second = VideoJudgeMetric(judge, fps=FPS, layout="BCTHW"), VideoJudgeMetric(judge, fps=FPS)
    first.update(clips().transpose(1, 2), PROMPT)
    second.update(clips(), PROMPT)
    assert first.compute() == second.compute()
    second.update(clips()[:, 0], PROMPT)
    expected = torch.cat([judge(videos, PROMPT, fps=FPS).rewards for videos in (clips(), clips()[:, :1])])
    torch.testing.assert_close(second.compute()["overall"], expected.mean(), rtol=0, atol=1e-5)


def test_copies_share_the_judge_and_not_the_state(judge, monkeypatch):
    metric = VideoJudgeMetric(judge, fps=FPS)
    collection = MetricCollection({"judge": metric}, prefix="val_")
    copy = collection.clone(prefix="test_")
    collection.update(clips(), PROMPT)
    assert "val_overall" in collection.compute() and "val_judge_overall" not in collection.compute()
    assert copy["judge"].scores == []
    assert list(metric.state_dict()) == [] and list(metric.parameters()) == []

    def answer(*videos, **how):
        raise LookupError("this very judge")

    monkeypatch.setattr(judge, "forward", answer)
    with pytest.raises(LookupError, match="this very judge"):
        copy["judge"].update(clips(), PROMPT)


def test_one_dimension_is_a_number_of_which_a_tracker_knows_the_best(judge):
    metric = VideoJudgeMetric(judge, fps=FPS, dimension="overall")
    assert metric.higher_is_better
    tracker, each = MetricTracker(metric), []
    for seed in range(3):
        tracker.increment()
        tracker.update(clips(2, seed=seed), PROMPT)
        each.append(judge(clips(2, seed=seed), PROMPT, fps=FPS).rewards.mean().item())
    best, step = tracker.best_metric(return_step=True)
    assert best == pytest.approx(max(each), abs=1e-5) and step == each.index(max(each))
    torch.testing.assert_close(tracker.compute_all(), torch.tensor(each), rtol=0, atol=1e-5)
    collection = MetricCollection(
        {name: VideoJudgeMetric(judge, fps=FPS, dimension=name) for name in ("overall", "valid")}
    )
    tracker = MetricTracker(collection)
    tracker.increment()
    tracker.update(clips(2), PROMPT)
    assert tracker.best_metric() == pytest.approx({"overall": each[0], "valid": 1.0}, abs=1e-5)


def test_a_dict_of_dimensions_has_no_best_and_a_tracker_is_told_so(judge):
    with pytest.raises(AttributeError, match="does not have a 'higher_is_better' attribute"):
        MetricTracker(VideoJudgeMetric(judge, fps=FPS))
    with pytest.raises(ValueError, match="dimension must be None or one of .*overall.*, valid, got 'beauty'"):
        VideoJudgeMetric(judge, fps=FPS, dimension="beauty")


@pytest.mark.parametrize("dimension", [None, "overall"])
def test_a_metric_survives_pickle_with_its_state_and_without_its_judge(judge, dimension):
    metric = VideoJudgeMetric("toy", fps=FPS, device="cpu", dimension=dimension)
    metric.update(clips(), PROMPT)
    text = pickle.dumps(metric)
    assert len(text) < 100_000  # the judge has millions of weights
    again = pickle.loads(text)
    assert again.compute() == metric.compute()
    for one in (metric, again):
        one.update(clips(seed=1), PROMPT)
    assert (
        again.compute() == metric.compute() and again.fps == FPS and again.higher_is_better is metric.higher_is_better
    )
    with pytest.raises(pickle.PicklingError, match="give it the judge's folder or hub id"):
        pickle.dumps(VideoJudgeMetric(judge, fps=FPS))


@pytest.mark.parametrize(("dimension", "num_points"), [(None, 5), ("overall", 1)])
def test_a_metric_can_be_plotted(judge, dimension, num_points):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    metric = VideoJudgeMetric(judge, fps=FPS, dimension=dimension)
    metric.update(clips(), PROMPT)
    figure, axes = metric.plot()
    assert len(axes.get_lines()) >= num_points
    figure, axes = metric.plot([metric.compute(), metric.compute()])
    pyplot.close("all")


class MeanPixelJudge:
    """A judge whose only score is the mean pixel."""

    judge = SimpleNamespace(config=SimpleNamespace(dimensions=("overall",)))

    def __call__(self, videos, prompts, *, fps, layout):
        values = videos.mean(dim=(1, 2, 3, 4))
        return SimpleNamespace(rewards=values, scores={"overall": values})


def gather(rank, folder):
    """Write what a process of two ends with: the mean of uneven shares and its own states, then a mean of one share."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    metric = VideoJudgeMetric(MeanPixelJudge(), fps=FPS)
    for values in [[0.1, 0.3], [0.8]] if rank == 0 else [[0.2]]:
        metric.update(torch.tensor(values).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4), None)
    found = [metric.compute()["overall"].item(), len(metric.scores)]
    metric.reset()
    if rank == 1:
        metric.update(torch.full((2, 2, 3, 4, 4), 0.7), None)
    found += [value.item() for value in metric.compute().values()]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_agree_on_the_mean_even_where_one_has_seen_nothing(tmp_path):
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                gather(rank, tmp_path)
            finally:
                os._exit(not (tmp_path / f"{rank}.json").exists())
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == pytest.approx([(0.1 + 0.3 + 0.8 + 0.2) / 4, 2, 0.7, 1.0])
    assert second == pytest.approx([(0.1 + 0.3 + 0.8 + 0.2) / 4, 1, 0.7, 1.0])
