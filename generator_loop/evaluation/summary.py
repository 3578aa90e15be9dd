"""The outcome of a run: one record per round, and before against after with a bootstrap by prompt.

Shape legend: N clips of an evaluation, those of one prompt consecutive.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from generator_loop.config import JointConfig
from generator_loop.evaluation.columns import AUDIT, CURRENT, INITIAL, OPEN, ORACLE, SPREAD, Evaluation
from generator_loop.tracking.metric_log import finite_or_none
from reward_model.config import plain

MIN_ORACLE_GAP = 0.05
"""Two clips of one prompt form a pair of the accuracy where the oracle's overall score sets them this far apart."""


def round_record(
    number: int,
    evaluation: Evaluation,
    *,
    anchored: Callable[[float], float],
    probes: Mapping[str, float],
    diversity: float,
    refresh: Mapping[str, float] | None,
    anchor_accuracy: float,
    seconds: float,
) -> dict[str, Any]:
    """Return one entry of `summary.json`'s rounds; a number that could not be measured is None.

    Args:
        number: the round, 0 before any update.
        evaluation: its measurement.
        anchored: map of the current judge to the initial judge's scale.
        probes: `kl` and, where there are clean clips, `flow_loss`.
        diversity: spread of the features that prompts leave open, relative to the renderer's or to round 0.
        refresh: metrics of the round's refresh, None where there was none.
        anchor_accuracy: the current judge's, on held-out anchors.
        seconds: wall time of the round.

    Returns:
        Values that JSON can hold.
    """
    oracle = evaluation.means(ORACLE)
    current = evaluation.mean(f"{CURRENT}/reward")
    return {
        "round": number,
        "reward_initial_judge": finite_or_none(evaluation.mean(f"{INITIAL}/reward")),
        "reward_current_judge": finite_or_none(anchored(current)),
        "reward_audit": finite_or_none(evaluation.mean(f"{AUDIT}/reward")),
        "oracle": {name: finite_or_none(value) for name, value in oracle.items()} or None,
        "judge_oracle_srcc": finite_or_none(judge_oracle_srcc(evaluation)),
        "sibling_srcc": finite_or_none(sibling_srcc(evaluation)),
        "anchor_accuracy": finite_or_none(anchor_accuracy),
        "judge_kept": None if refresh is None else bool(refresh["kept"]),
        "kl": finite_or_none(probes["kl"]),
        "flow_loss": finite_or_none(probes.get("flow_loss", math.nan)),
        "diversity": finite_or_none(diversity),
        "seconds": round(seconds, 1),
    }


def log_record(record: Mapping[str, Any]) -> dict[str, float]:
    """Return a round's numbers under flat names, for the metric log."""
    numbers = {name: value for name, value in record.items() if isinstance(value, (int, float)) and name != "round"}
    return numbers | {f"oracle_{name}": value for name, value in (record["oracle"] or {}).items() if value is not None}


def clip_scores(evaluation: Evaluation, index: int) -> dict[str, float | None]:
    """Return the rewards and the oracle's dimensions of one clip."""
    wanted = [name for name in evaluation.columns if name.startswith(f"{ORACLE}/") or name.endswith("/reward")]
    return {name: finite_or_none(evaluation.columns[name][index]) for name in wanted}


def summary(
    config: JointConfig,
    rounds: Sequence[Mapping[str, Any]],
    before: Evaluation | None,
    after: Evaluation | None,
    *,
    alarms: Sequence[str],
    checkpoint: Path,
) -> dict[str, Any]:
    """Return the content of `summary.json`.

    Args:
        config: the run.
        rounds: one record per round.
        before: all held-out prompts before any update.
        after: the same at the end.
        alarms: sentences of the monitors.
        checkpoint: the last checkpoint.

    Returns:
        Values that JSON can hold.
    """
    assert before is not None and after is not None
    settings = config.evaluation
    return {
        "rounds": list(rounds),
        "before": means_by_source(before),
        "after": means_by_source(after),
        "difference": difference(before, after, num_resamples=settings.num_resamples, seed=config.run.seed),
        "pair_accuracy": {"before": pair_accuracies(before), "after": pair_accuracies(after)},
        "num_prompts": len(set(after.prompt_ids)),
        "seeds": list(range(settings.num_seeds)),
        "valid_fraction": valid_fraction(after),
        "alarms": list(alarms),
        "generator_checkpoint": str(Path("checkpoints") / checkpoint.name / "generator"),
        "judge_checkpoint": None if config.judge.is_served else str(Path("checkpoints") / checkpoint.name / "judge"),
        "config": plain(config),
        "commit": commit_of(Path(__file__).parent),
    }


def judge_oracle_srcc(evaluation: Evaluation) -> float:
    """Return the rank correlation of the current judge's overall score with the oracle's; NaN without an oracle."""
    from reward_model import srcc

    columns = [evaluation.columns.get(f"{source}/overall", ()) for source in (CURRENT, ORACLE)]
    pairs = [pair for pair in zip(*columns, strict=False) if all(map(math.isfinite, pair))]
    return float(srcc(*np.asarray(pairs).T)) if len(pairs) > 2 else math.nan


def sibling_srcc(evaluation: Evaluation) -> float:
    """Return the rank correlation of the current judge's reward with the oracle among clips of one prompt, as a mean over prompts.

    Group-relative advantages see nothing else of a judge. NaN without an oracle or with fewer than three clips a prompt.
    """
    from reward_model import srcc

    reward, oracle = (
        np.asarray(evaluation.columns.get(name, ())) for name in (f"{CURRENT}/reward", f"{ORACLE}/overall")
    )
    if len(reward) != len(oracle):
        return math.nan
    values = []
    for prompt_id in dict.fromkeys(evaluation.prompt_ids):
        own = np.asarray(evaluation.prompt_ids) == prompt_id
        own &= np.isfinite(reward) & np.isfinite(oracle)
        if own.sum() > 2:
            values.append(float(srcc(reward[own], oracle[own])))
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def pair_accuracies(evaluation: Evaluation) -> dict[str, float] | None:
    """Return how often each judge's overall score orders two clips of one prompt as the oracle does.

    Args:
        evaluation: measured in a world with an oracle.

    Returns:
        Judge -> accuracy on the pairs that the oracle sets `MIN_ORACLE_GAP` apart, beside that of random scores
        ("random") and the number of pairs ("num_pairs"); None without an oracle or such a pair.
    """
    from reward_model import pair_accuracy, pairs_within_groups

    oracle = evaluation.columns.get(f"{ORACLE}/overall")
    if oracle is None:
        return None
    better, worse = pairs_within_groups(oracle, evaluation.prompt_ids, min_gap=MIN_ORACLE_GAP)
    scores = {"random": np.random.default_rng(0).uniform(size=len(oracle))}
    for source in (INITIAL, CURRENT, AUDIT):
        if f"{source}/overall" in evaluation.columns:
            scores[source] = np.asarray(evaluation.columns[f"{source}/overall"])
    if not len(better):
        return None
    accuracies = {
        name: pair_accuracy(values[better] - values[worse], np.ones(len(better))) for name, values in scores.items()
    }
    return accuracies | {"num_pairs": len(better)}


def difference(
    before: Evaluation, after: Evaluation, *, num_resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    """Return dimension -> mean of after minus before with its 95 % bounds, resampling prompts.

    The oracle's dimensions keep their names; without an oracle those of the initial judge take their place. The rewards
    of the initial and the audit judge come along as `reward_initial_judge` and `reward_audit`.

    Args:
        before: measured before any update.
        after: measured at the end, on the same clips' noise.
        num_resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        Dimension -> {"mean", "low", "high"}.
    """
    source = ORACLE if before.means(ORACLE) else INITIAL
    named = {name: f"{source}/{name}" for name in before.means(source) if name != "reward"}
    named |= {"reward_initial_judge": f"{INITIAL}/reward", "reward_audit": f"{AUDIT}/reward"}
    return {
        name: _interval(before, after, column, num_resamples=num_resamples, seed=seed)
        for name, column in named.items()
        if column in before.columns
    }


def _interval(
    before: Evaluation, after: Evaluation, column: str, *, num_resamples: int, seed: int
) -> dict[str, float | None]:
    from reward_model import bootstrap_interval

    change = np.asarray(after.columns[column]) - np.asarray(before.columns[column])
    kept = np.isfinite(change)
    if not kept.any():
        return {"mean": None, "low": None, "high": None}
    groups = [prompt_id for prompt_id, keep in zip(before.prompt_ids, kept, strict=True) if keep]
    interval = bootstrap_interval(np.mean, change[kept], groups=groups, num_resamples=num_resamples, seed=seed)
    return {"mean": interval.value, "low": finite_or_none(interval.low), "high": finite_or_none(interval.high)}


def means_by_source(evaluation: Evaluation) -> dict[str, Any]:
    """Return the means of an evaluation as `summary.json` states them under before and after."""
    rewards = {source: evaluation.means(source) for source in (INITIAL, CURRENT, AUDIT)}
    return {
        "oracle": {name: finite_or_none(value) for name, value in evaluation.means(ORACLE).items()} or None,
        "rewards": {
            source: {name: finite_or_none(value) for name, value in means.items()}
            for source, means in rewards.items()
            if means
        },
    }


def valid_fraction(evaluation: Evaluation) -> float:
    """Return the share of clips that the initial judge could score."""
    column = evaluation.columns[f"{INITIAL}/reward"]
    return sum(map(math.isfinite, column)) / len(column)


def open_spread(evaluation: Evaluation) -> dict[str, float]:
    """Return feature -> deviation over the clips of a prompt, averaged over prompts, for the features that prompts leave open."""
    num_seeds = evaluation.prompt_ids.count(evaluation.prompt_ids[0])
    spreads = {}
    for name in evaluation.means(OPEN):
        table = rearrange(torch.tensor(evaluation.columns[f"{OPEN}/{name}"]), "(p s) -> p s", s=num_seeds)
        spread = table.std(dim=1, correction=0)
        spreads[name] = float(spread[spread.isfinite()].mean())
    return spreads


def diversity(evaluation: Evaluation, first: Evaluation, renderer: Mapping[str, float] | None) -> float:
    """Return how varied the clips of one prompt are.

    Args:
        evaluation: the measurement in question.
        first: that of round 0.
        renderer: feature -> deviation over rendered clips of one prompt; None outside the embedded world.

    Returns:
        The mean ratio of the open features' deviations to the renderer's, or the spread of latents relative to round 0;
        NaN where a prompt has one clip, which cannot vary.
    """
    if len(evaluation.prompt_ids) == len(set(evaluation.prompt_ids)):
        return math.nan
    if renderer is None:
        return evaluation.mean(SPREAD) / max(first.mean(SPREAD), 1e-12)
    spread = open_spread(evaluation)
    ratios = [spread[name] / value for name, value in renderer.items() if value > 0]
    return sum(ratios) / len(ratios) if ratios else math.nan


def commit_of(folder: Path) -> str | None:
    """Return the git commit of the code in a folder, None outside a checkout or without git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False, timeout=10
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
