"""Times a GRPO step on one video behind a shared prefix against trl's, which repeats the prompt for every answer.

python scripts/bench/grpo.py [--groups N ...] [--sides PIXELS ...] [--answer-tokens N ...] [--repeats N] [--docs docs] [--smoke]

Same random Qwen2.5-VL (10 M), same adapter, one clip, one thread, one update per rollout, reference counted. Three ways:
ours; trl's trainer mended so that the video reaches its log-prob passes and is encoded once per pass; the same with the
vision tower run for every answer, as trl does with images. Log-probabilities and gradients are compared before anything
is timed. Prints a table and, last, one JSON line. Needs trl and datasets (the extra `train`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.engine.batching import clip_grid, patches_of
from reward_model.judge.engine.decoding import END_TOKENS, Completion, token_ids
from reward_model.judge.families.tiny import build_tiny
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import reason_request
from reward_model.records import DIMENSIONS, Answer, Clip, FramePlan, Label, RewardValues
from reward_model.training.methods.grpo import (
    AnswerAdvantages,
    AnswerGroups,
    AnswerGRPOConfig,
    GRPOSteps,
    LabelledAnswers,
    grpo_micro_batches,
)
from reward_model.training.tasks.rollout_prompts import RolloutPrompt

KL_COEF, RANK, ALPHA = 0.04, 16, 32
EXPLAINED = (
    "# A GRPO step on one video against trl's",
    "",
    "Rollout, reference, log-probabilities and backward pass, one update per rollout, on a random Qwen2.5-VL of 10 M, one CPU",
    "thread. `ratio`: time of trl's trainer, mended to keep the video and to encode it once per pass, over ours; `ratio_shipped`:",
    "with the vision tower run for every answer; `predicted`: G (P + A) / (P + G A) for P prompt and A answer tokens, what",
    "sharing the prompt alone would save; `saved_share`: bytes kept for the backward pass, ours over trl's. Last, the largest",
    "difference of log-probabilities and the relative one of gradients on the same answers, ours against trl's; and how far the",
    "ratio of our policy to itself is from 1 before its first update, the worst token of all timed steps.",
)
"""Head of docs/bench_grpo.md."""

TARGETS = r".*language_model\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def build_model(size: dict[str, int]) -> tuple[Any, Any]:
    """Return the random model and its tokenizer, the same each time."""
    return build_tiny("qwen2_5_vl", patch_size=14, init_std=0.05, **size)


def build_question(side: int, num_frames: int) -> RolloutPrompt:
    """Return a reasoned question about a clip of noise."""
    frames = torch.rand(num_frames, 3, side, side, generator=torch.Generator().manual_seed(0))
    times = tuple(i / 8 for i in range(num_frames))
    clip = Clip(frames, FramePlan(tuple(range(num_frames)), times, ("slow",) * num_frames, 8.0))
    return RolloutPrompt("reason", reason_request(clip, "a dog runs", DIMENSIONS), Label(scores={"overall": 3.0}), 0)


def worth(text: str) -> float:
    """Return a reward that differs among random answers."""
    return float(sum(map(ord, text)) % 17)


def reward(answers: Sequence[Answer], labels: Any, groups: Any, *, perturbed: Any = None) -> RewardValues:
    """Return `worth` as a reward of ours."""
    return RewardValues(torch.tensor([worth(answer.text) for answer in answers]), {})


def build_judge(size: dict[str, int], side: int) -> VideoJudge:
    """Return a judge with a policy adapter that is not zero and its frozen copy; answers never end early."""
    model, tokenizer = build_model(size)
    pixels = side**2
    judge = VideoJudge(model, tokenizer, JudgeConfig.for_model(model.config, min_pixels=pixels, max_pixels=pixels))
    judge.add_role("policy", rank=RANK, alpha=ALPHA)
    generator = torch.Generator().manual_seed(1)
    for parameter in judge.train_only("policy"):
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    judge.add_role("start", copy_from="policy")
    judge.suppressed_ids = (*judge.suppressed_ids, *token_ids(tokenizer, END_TOKENS))
    judge.train_only("policy")
    return judge


def build_trainer(
    judge: VideoJudge, question: RolloutPrompt, size: dict[str, int], group_size: int, num_tokens: int, *, once: bool
) -> Any:
    """Return trl's trainer on an equal model with an equal adapter, mended to keep the video.

    Args:
        judge: whose adapter, tokenizer and preprocessing are taken.
        question: the one question.
        size: of the model.
        group_size: G.
        num_tokens: length of every answer.
        once: encode the clip once per log-prob pass, not once per answer.

    Returns:
        The trainer.
    """
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import GRPOConfig, GRPOTrainer

    video, ids = _video_of(judge, question)
    kinds = (torch.tensor(ids) == judge.family.facts.video_token_id).int() * 2

    class Mended(GRPOTrainer):
        """trl's trainer with the video in all its passes."""

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list, None, dict]:
            num = len(prompts)
            fields = {name: torch.cat([value] * num) for name, value in video.items()}
            return [ids] * num, None, fields | {"mm_token_type_ids": [kinds.tolist()] * num}

        def _get_per_token_logps_and_entropies(self, model: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            num = len(input_ids)
            base = self.accelerator.unwrap_model(model).get_base_model()
            extra = {name: torch.cat([value] * num) for name, value in video.items()}
            if once:
                seen = base.model.get_video_features(
                    video["pixel_values_videos"], video["video_grid_thw"], return_dict=True
                )
                seen.pooler_output = tuple(seen.pooler_output) * num
                extra = {"mm_encoder_outputs": {"video": seen}} | {
                    name: value for name, value in extra.items() if name != "pixel_values_videos"
                }
            extra["mm_token_type_ids"] = (input_ids == base.config.video_token_id).int() * 2

            def call(**inputs: Any) -> Any:
                """Call the model with the video."""
                return model(**inputs, **extra)

            return super()._get_per_token_logps_and_entropies(call, input_ids, *args, **kwargs)

    model, _ = build_model(size)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    with torch.no_grad():
        for theirs, ours in zip(_adapter(model), _adapter(judge.model, "policy"), strict=True):
            theirs.copy_(ours)
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=group_size,
        num_generations=group_size,
        max_completion_length=num_tokens,
        beta=KL_COEF,
        loss_type="grpo",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        generation_kwargs={"suppress_tokens": list(judge.suppressed_ids)},
    )
    trainer = Mended(
        model=model,
        reward_funcs=lambda completions, **_: [worth(text) for text in completions],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["video"] * group_size}),
        processing_class=judge.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1  # set by its own loop otherwise
    return trainer


def _video_of(judge: VideoJudge, question: RolloutPrompt) -> tuple[dict[str, Tensor], list[int]]:
    """Return the model's video inputs and the prompt's token ids."""
    (clip,), family = question.request.clips, judge.family
    before, _, after = question.request.prefix
    text = f"{before}{family.placeholder(clip.plan, clip_grid(clip, family))}{after}"
    patches, grid = patches_of([clip], family, quantise=True, device=judge.device)
    seconds = torch.tensor([family.facts.temporal_patch_size / clip.plan.fps])
    encode = judge.tokenizer.encode
    ids = encode(text) + encode(question.request.branches[0])
    return {"pixel_values_videos": patches, "video_grid_thw": grid, "second_per_grid_ts": seconds}, ids


def _adapter(model: Any, name: str = "default") -> list[Tensor]:
    """Return the adapter's weights in the order of their layers."""
    return [p for key, p in model.named_parameters() if ".lora_" in key and key.split(".")[-2] == name]


def compare(judge: VideoJudge, trainer: Any, question: RolloutPrompt, settings: AnswerGRPOConfig) -> dict[str, float]:
    """Return how far log-probabilities and gradients of one rollout of trl's differ between the two ways.

    Args:
        judge: ours.
        trainer: trl's, mended.
        question: the question.
        settings: of the step.

    Returns:
        "log_probs", the largest difference, and "gradient", the relative norm of the difference.
    """
    inputs = trl_rollout(trainer, settings.group_size)
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, inputs).backward()
    theirs = torch.cat([p.grad.flatten() for p in _adapter(trainer.model)])
    tokens = [tuple(ids) for ids in inputs["completion_ids"].tolist()]
    with torch.no_grad(), judge.use_role("policy"):
        log_probs = judge.log_probs([question.request], [[tokens]], suppressed=())
    sequence = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    with torch.no_grad():
        stock = trainer._get_per_token_logps_and_entropies(
            trainer.model, sequence, torch.ones_like(sequence), len(tokens[0])
        )[0]
    drawn = [Completion(t, v, ended=False) for t, v in zip(tokens, log_probs.by_answer(), strict=True)]
    answered = LabelledAnswers(("reason",) * len(tokens), (question.label,) * len(tokens), (0,) * len(tokens), ())
    rollout = AnswerGroups((question,), (tuple(drawn),), answered)
    credited = AnswerAdvantages(inputs["advantages"], len(tokens), sum(map(len, tokens)), {})
    suppressed, judge.suppressed_ids = judge.suppressed_ids, ()  # trl's log-probs count tokens that cannot come
    judge.zero_grad()
    for loss, _ in grpo_micro_batches(
        judge, rollout, credited, settings, role="policy", reference=lambda: judge.use_role("policy")
    ):
        loss.backward()
    judge.suppressed_ids = suppressed
    ours = torch.cat([p.grad.flatten() for p in _adapter(judge.model, "policy")])
    return {
        "log_probs": float((log_probs.values - stock.flatten()).abs().max()),
        "gradient": float((ours - theirs).norm() / theirs.norm()),
    }


def trl_rollout(trainer: Any, group_size: int) -> dict[str, Any]:
    """Let trl draw, reward and reference one group."""
    return trainer._generate_and_score_completions([{"prompt": "video"}] * group_size)


def trl_step(trainer: Any, group_size: int) -> None:
    """Do one step of trl's without the optimiser."""
    trainer.model.zero_grad()
    inputs = trl_rollout(trainer, group_size)
    trainer.compute_loss(trainer.model, inputs).backward()


def our_step(steps: GRPOSteps, question: RolloutPrompt, number: int) -> float:
    """Do one step of ours without the optimiser, and return how far a token's ratio is from 1."""
    steps.judge.zero_grad()
    worst = 0.0
    for loss, metrics in steps.micro_batches([question], number, seed=number):
        loss.backward()
        worst = max(worst, metrics["ratio_error"])
    return worst


def saved_bytes(action: Callable[[], object]) -> int:
    """Return the bytes of all distinct tensors that an action saves for its backward pass."""
    storages: dict[int, int] = {}
    kept = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        """Note a tensor that is saved."""
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        action()
    return sum(storages.values())


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def bench_cell(
    size: dict[str, int], side: int, frames: int, group: int, num_tokens: int, repeats: int
) -> dict[str, Any]:
    """Compare and time one prompt length, group size and answer length, on one thread.

    Args:
        size: of the model.
        side: of the clip's frames in pixels.
        frames: of the clip.
        group: G.
        num_tokens: length of every answer.
        repeats: runs of which the shortest counts.

    Returns:
        Figures of the cell, by column.
    """
    torch.set_num_threads(1)
    question, judge = build_question(side, frames), build_judge(size, side)
    settings = AnswerGRPOConfig(group_size=group, kl_coef=KL_COEF, max_answer_tokens=num_tokens)
    once, each = (build_trainer(judge, question, size, group, num_tokens, once=flag) for flag in (True, False))
    differs = compare(judge, once, question, settings)
    steps = GRPOSteps(judge, {"reason": reward}, settings, role="policy", reference=lambda: judge.use_role("start"))
    numbers = iter(range(1000))
    ratio_errors: list[float] = []
    ours = seconds(lambda: ratio_errors.append(our_step(steps, question, next(numbers))), repeats)
    mended = seconds(lambda: trl_step(once, group), repeats)
    shipped = seconds(lambda: trl_step(each, group), repeats)
    drawn = trl_rollout(once, group)
    state = SimpleNamespace(rollout=steps.sample([question], 0))
    own_bytes = saved_bytes(
        lambda: list(
            grpo_micro_batches(
                judge, *state.rollout, settings, role="policy", reference=lambda: judge.use_role("start")
            )
        )
    )
    their_bytes = saved_bytes(lambda: once.compute_loss(once.model, drawn))
    length = len(_video_of(judge, question)[1])
    return {
        "prompt_tokens": length,
        "answer_tokens": num_tokens,
        "group": group,
        "ours_s": ours,
        "ratio": mended / ours,
        "predicted": group * (length + num_tokens) / (length + group * num_tokens),
        "ratio_shipped": shipped / ours,
        "saved_share": own_bytes / their_bytes,
        **{f"{name}_difference": value for name, value in differs.items()},
        "ratio_error": max(ratio_errors),
    }


def main(argv: Sequence[str]) -> int:
    """Measure every cell and print the table; 1 if the two ways, or our rollout and log-prob pass, disagree in any of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 8, 16], help="answers per question")
    parser.add_argument("--sides", type=int, nargs="+", default=[140, 224, 308], help="frame sides, multiples of 28")
    parser.add_argument("--frames", type=int, default=16, help="frames of the clip")
    parser.add_argument("--answer-tokens", type=int, nargs="+", default=[64, 128], help="length of every answer")
    parser.add_argument("--repeats", type=int, default=2, help="runs of which the shortest counts")
    parser.add_argument("--docs", type=Path, help="folder that gets the table as bench_grpo.md and .json")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to try the script")
    options = parser.parse_args(argv)
    size = {"hidden": 256, "layers": 6, "vision_hidden": 256, "vision_layers": 4}
    if options.smoke:
        size = {"hidden": 64, "layers": 2, "vision_hidden": 32, "vision_layers": 2}
    cells_done, names = (
        [],
        ("prompt_tokens", "answer_tokens", "group", "ours_s", "ratio", "predicted", "ratio_shipped", "saved_share"),
    )
    errors = ("log_probs_difference", "gradient_difference", "ratio_error")
    lines = ["  ".join(name.rjust(13) for name in (*names, "log_probs", "gradient", "ratio_error"))]
    print(lines[0])
    # a process per cell: memory that trl does not free adds up to gigabytes
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for side, group, num_tokens in itertools.product(options.sides, options.groups, options.answer_tokens):
            figures = pool.submit(bench_cell, size, side, options.frames, group, num_tokens, options.repeats).result()
            cells_done.append(figures)
            cells = [f"{figures[name]:.2f}" for name in names]
            cells += [f"{figures[name]:.1e}" for name in errors]
            lines.append("  ".join(cell.rjust(13) for cell in cells))
            print(lines[-1], flush=True)
    named = {
        "bench": "grpo",
        "command": " ".join(["python", "scripts/bench/grpo.py", *argv]),
        "torch": torch.__version__,
    }
    print(json.dumps({**named, "rows": cells_done}))
    if options.docs is not None:
        options.docs.mkdir(parents=True, exist_ok=True)
        (options.docs / "bench_grpo.json").write_text(
            json.dumps({**named, "rows": cells_done}, indent=1) + "\n", encoding="utf-8"
        )
        text = [*EXPLAINED, "", f"`{named['command']}`", "", "```", *lines, "```", ""]
        (options.docs / "bench_grpo.md").write_text("\n".join(text), encoding="utf-8")
    agree = all(
        figures["log_probs_difference"] < 1e-4 and figures["gradient_difference"] < 1e-4 for figures in cells_done
    )
    return int(not agree or any(figures["ratio_error"] > 1e-5 for figures in cells_done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
