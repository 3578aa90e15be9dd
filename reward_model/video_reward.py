"""VideoJudgeReward, the public promise: a video judge as a differentiable, sampled or pairwise reward.

Shapes: B videos, D dimensions, K = 5 levels; frames are float32 RGB [B, T, C, H, W] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from reward_model.judge.families.base import VisionFamily
from reward_model.judge.model import VideoJudge
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.intake import clip_readers, clips_ahead, in_chunks, num_pixels
from reward_model.media.motion_encoders import encoder_of
from reward_model.media.shelf import ClipShelf
from reward_model.records import (
    AlignedScores,
    Clip,
    Comparison,
    Explanation,
    Ranking,
    RewardOutput,
    VideoError,
)
from reward_model.scoring.compare import compare_clips, join_comparisons, rank_clips
from reward_model.scoring.explain import explain_clip
from reward_model.scoring.fitting import fitting, shown
from reward_model.scoring.loss import pixel_loss
from reward_model.scoring.score import ClipToScore, open_assembler, score_batch
from reward_model.scoring.video_align import align_scores

if TYPE_CHECKING:
    from reward_model.media.intake import VideoLike

TOY_JUDGE = Path(__file__).parent / "assets" / "toy_judge"
"""The embedded judge of the moving-shapes world; `from_pretrained("toy")` loads it."""

DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
"""Usual short names of the weights' dtypes."""

BATCHES_AHEAD = 4
"""Batches that are planned at a time, so that clips of similar size share a batch."""


class VideoJudgeReward(nn.Module):
    """A video judge read as a reward.

    Gradients reach the pixels with `differentiable=True`; the weights stay frozen unless the caller unfreezes them.
    Calls are thread-safe: adapter switches hold the judge's lock.
    """

    def __init__(self, judge: VideoJudge, *, role: str | None = "generated", allow_damaged: bool = False) -> None:
        """Wrap a loaded judge.

        Args:
            judge: the judge; its weights are shared, not copied.
            role: adapter that scores ("natural", "generated", ...); None for the base without adapter.
            allow_damaged: judge files whose sampled frames the decoder marks as damaged, or that are shorter than they
                say, by the available frames; they are refused otherwise.

        Raises:
            ValueError: the judge has adapters but none of that name.
        """
        super().__init__()
        if role is not None and judge.roles and role not in judge.roles:
            raise ValueError(f"role must be one of {sorted(judge.roles)} or None, got {role!r}")
        self.judge = judge
        self.role = role if judge.roles else None
        self.allow_damaged = allow_damaged
        self._motion = encoder_of(judge.config.motion)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        subfolder: str = "",
        revision: str | None = None,
        role: str | None = "generated",
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        attn_implementation: str = "sdpa",
        allow_damaged: bool = False,
    ) -> VideoJudgeReward:
        """Load a judge folder, a hub id or a stock Qwen2.5-VL / Qwen3-VL checkpoint.

        Args:
            path_or_id: folder, hub id ("owner/name/sub" for a judge inside a repository), or "toy" for the embedded judge
                of the moving-shapes world.
            subfolder: where inside the folder or repository it stands.
            revision: commit, branch or tag of a hub repository.
            role: adapter that scores; a judge without adapters has no roles and ignores it.
            dtype: weights' dtype, by torch's name or one of "bf16", "fp16", "fp32"; "auto" keeps the stored one (float32 on CPU).
            device: where to put the judge; None is the first CUDA device where there is one, else the CPU.
            attn_implementation: attention backend of transformers.
            allow_damaged: see the constructor.

        Returns:
            The reward, frozen and in eval mode.

        Raises:
            ValueError: an unknown dtype, or a device that this machine or this build of torch lacks.
        """
        dtype, device = _dtype(dtype), _device(device)
        path = TOY_JUDGE if str(path_or_id) == "toy" else path_or_id
        judge = VideoJudge.from_pretrained(
            path,
            subfolder=subfolder,
            revision=revision,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
        )
        return cls(judge.requires_grad_(False).eval(), role=role, allow_damaged=allow_damaged)

    def save_pretrained(
        self, folder: str | Path, *, base: Mapping[str, Tensor] | None = None, without: Collection[str] = ()
    ) -> None:
        """Write the judge (adapters, base if trained from scratch, configuration) to a folder.

        Args:
            folder: a new or existing folder.
            base: weights of the base, for a judge that holds only a part of them here; None takes its own.
            without: roles that are left out.
        """
        self.judge.save_pretrained(folder, base=base, without=without)

    def with_role(self, role: str | None) -> VideoJudgeReward:
        """Return a view with another adapter; the weights are shared."""
        return VideoJudgeReward(self.judge, role=role, allow_damaged=self.allow_damaged)

    @property
    def device(self) -> torch.device:
        """Device of the judge."""
        return self.judge.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the base model's weights."""
        return next(self.judge.model.parameters()).dtype

    @property
    def frame_policy(self) -> FramePolicy:
        """Frame policy that the judge was trained with."""
        return FramePolicy.from_dict(self.judge.config.frame_policy)

    def forward(
        self,
        videos: VideoLike | Sequence[VideoLike],
        prompts: str | Sequence[str | None] | None = None,
        *,
        fps: float | Sequence[float] | None = None,
        layout: str = "BTCHW",
        dimensions: Sequence[str] | None = None,
        weights: Mapping[str, float] | None = None,
        readout: Literal["level", "reason"] = "level",
        num_samples: int = 1,
        normalize: Literal["unit", "raw", "z"] = "unit",
        differentiable: bool = False,
        batch_size: int = 16,
    ) -> RewardOutput:
        """Score B videos.

        Args:
            videos: tensor [B, T, C, H, W] in [0, 1] (or another `layout`), numpy array [B, T, H, W, C], or a sequence of
                tensors, arrays [T, H, W, C], lists of pictures, paths, bytes; or one such video.
            prompts: the generation prompts, one each (one string serves all); None where there is none.
            fps: frame rate in Hz; required for tensors and PIL lists.
            layout: axes of tensors.
            dimensions: dimensions to score; None for all of the judge's.
            weights: dimension -> weight of `rewards`; None makes `rewards` the overall score.
            readout: "level" (one forward pass, deterministic, differentiable) or "reason" (think/answer text).
            num_samples: reason only: 1 is the greedy answer; several are sampled at temperature 1 behind one prefix, their mean
                is the score and their deviation its `std`.
            normalize: "unit" quality in [0, 1], "raw" 1..5, "z" standardised by the judge's calibration constants.
            differentiable: keep the graph from scores to pixels (level readout only).
            batch_size: clips per forward pass.

        Returns:
            `RewardOutput`; an unavailable score is NaN with its reason, never a number.

        Raises:
            ValueError: wrong shapes, ranges, unknown dimensions, weights or readout, missing fps or constants.
        """
        _check_batch_size(batch_size)
        num, chunks = clips_ahead(
            videos,
            BATCHES_AHEAD * batch_size,
            read_ahead=self.judge.device.type != "cpu",
            policy=self.frame_policy,
            fps=fps,
            layout=layout,
            allow_damaged=self.allow_damaged,
            motion=self._motion,
        )
        assembler = open_assembler(
            self.judge,
            self.role,
            num,
            dimensions=dimensions,
            weights=weights,
            readout=readout,
            num_samples=num_samples,
            differentiable=differentiable,
        )
        texts = _one_prompt_each(prompts, num)
        done = 0
        for clips in chunks:
            planned = [
                ClipToScore(index, clip, texts[index]) for index, clip in enumerate(self._fitting(clips), start=done)
            ]
            done += len(clips)
            planned.sort(key=lambda item: _size(item.clip))  # clips of similar size need the least padding
            with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()), self.judge.use_role(self.role):
                for start in range(0, len(planned), batch_size):
                    score_batch(self.judge, assembler, planned[start : start + batch_size], readout, num_samples)
            del clips, planned  # before the next ones are read
        return assembler.output(weights, normalize)

    def _clips(
        self, videos: VideoLike | Sequence[VideoLike], fps: float | Sequence[float] | None, layout: str
    ) -> list[Clip | str]:
        return list(self._stream(videos, self.frame_policy, fps=fps, layout=layout)[1])

    def _stream(self, videos: Any, policy: FramePolicy, **rest: Any) -> tuple[int, Iterator[Clip | str]]:
        """Return the number of videos, and an iterator that plans one after the other."""
        num, chunks = clips_ahead(
            videos, 1, read_ahead=False, policy=policy, allow_damaged=self.allow_damaged, motion=self._motion, **rest
        )
        return num, (clip for chunk in chunks for clip in self._fitting(chunk))

    def _fitting(self, clips: Sequence[Clip | str]) -> list[Clip | str]:
        return [fitting(clip, self.judge.family) for clip in clips]

    def compare(
        self,
        a: VideoLike | Sequence[VideoLike],
        b: VideoLike | Sequence[VideoLike],
        prompts: str | Sequence[str | None] | None = None,
        *,
        swap: bool = True,
        fps: float | Sequence[float] | None = None,
        layout: str = "BTCHW",
        batch_size: int = 16,
    ) -> Comparison:
        """Compare pairs of videos overall, with the role of this view (use the comparator).

        Args:
            a: B first videos, as in a call.
            b: B second videos.
            prompts: the generation prompts of the pairs.
            swap: ask in both orders and average, which removes the position bias.
            fps: frame rate in Hz of tensors and PIL lists.
            layout: axes of tensors.
            batch_size: pairs per forward pass.

        Returns:
            `Comparison`; pairs with an unreadable video are NaN and not valid.

        Raises:
            ValueError: different numbers of videos, or inputs that a call refuses.
        """
        _check_batch_size(batch_size)
        (num, left), (num_second, right) = (
            self._stream(videos, self.frame_policy, fps=fps, layout=layout) for videos in (a, b)
        )
        if num != num_second:
            raise ValueError(f"compare needs as many first as second videos, got {num} and {num_second}")
        pairs = zip(left, right, _one_prompt_each(prompts, num), strict=True)
        chunks = in_chunks(pairs, batch_size, lambda pair: num_pixels(pair[0]) + num_pixels(pair[1]))
        parts = []
        for chunk in chunks:
            parts.append(
                compare_clips(self.judge, self.role, *zip(*chunk, strict=True), swap=swap, batch_size=batch_size)
            )
            del chunk  # before the next one is read
        return join_comparisons(parts or [compare_clips(self.judge, self.role, [], [], [], swap=swap, batch_size=1)])

    def rank(
        self,
        group: VideoLike | Sequence[VideoLike],
        prompt: str | None = None,
        *,
        fps: float | Sequence[float] | None = None,
        layout: str = "BTCHW",
        batch_size: int = 16,
    ) -> Ranking:
        """Put N videos of one prompt in order by comparing at most N log2 N pairs, each in both orders.

        Memory holds `MAX_SHELF_BYTES` of planned frames at the size that the judge is shown, and those of the pairs under
        comparison; files of a larger group are read again, about once for each doubling of N.

        Args:
            group: the videos, as in a call.
            prompt: their generation prompt.
            fps: frame rate in Hz of tensors and PIL lists.
            layout: axes of tensors.
            batch_size: pairs per forward pass.

        Returns:
            `Ranking`, best first; for pairs that the judge calls even, the earlier video.

        Raises:
            ValueError: inputs that a call refuses.
            RuntimeError: the judge does not answer a comparison with one of its words.
        """
        _check_batch_size(batch_size)
        readers = clip_readers(
            group,
            policy=self.frame_policy,
            fps=fps,
            layout=layout,
            allow_damaged=self.allow_damaged,
            motion=self._motion,
        )
        clips = ClipShelf([partial(_read_shown, reader, self.judge.family) for reader in readers])
        return rank_clips(self.judge, self.role, clips, prompt, batch_size=batch_size)

    def explain(
        self, video: VideoLike, prompt: str | None = None, *, fps: float | None = None, layout: str = "TCHW"
    ) -> Explanation:
        """Explain one video's scores: reasoned text, named faults, levels, and the frames that the score depends on.

        Args:
            video: one video, as an item of a call.
            prompt: its generation prompt.
            fps: frame rate in Hz of a tensor or PIL list.
            layout: axes of a tensor.

        Returns:
            `Explanation`.

        Raises:
            VideoError: the video cannot be read.
        """
        clip = self._clips([video], fps, layout)[0]
        if isinstance(clip, str):
            raise VideoError(clip)
        with self.judge.use_role(self.role):
            return explain_clip(self.judge, clip, prompt)

    def reward(
        self,
        video_paths: Sequence[str | Path],
        prompts: Sequence[str],
        fps: float | None = None,
        num_frames: int | None = None,
        max_pixels: int | None = None,
        use_norm: bool = True,
    ) -> list[dict[str, float]]:
        """Score files with VideoAlign's call and return.

        Args:
            video_paths: B files.
            prompts: B generation prompts.
            fps: sampling rate in Hz; excludes num_frames; None with num_frames None keeps the judge's own plan.
            num_frames: uniformly sampled frames; excludes fps.
            max_pixels: pixel cap per frame; None keeps the judge's.
            use_norm: z scores by the calibration constants; otherwise raw 1..5, of a score head its own numbers.

        Returns:
            B dicts with VQ, MQ, TA and Overall = VQ + MQ + TA; NaN where a score is unavailable.

        Raises:
            ValueError: fps and num_frames together, or what a call refuses.

        Source: KwaiVGI/VideoAlign, VideoVLMRewardInference.reward.
        """
        return self.aligned(video_paths, prompts, fps, num_frames, max_pixels, use_norm).records

    def aligned(
        self,
        video_paths: Sequence[str | Path],
        prompts: Sequence[str],
        fps: float | None = None,
        num_frames: int | None = None,
        max_pixels: int | None = None,
        use_norm: bool = True,
    ) -> AlignedScores:
        """Score files as `reward` does, and return the reasons of missing scores as well.

        Args:
            video_paths: see `reward`.
            prompts: see `reward`.
            fps: see `reward`.
            num_frames: see `reward`.
            max_pixels: see `reward`.
            use_norm: see `reward`.

        Returns:
            The records of `reward`, and B reasons.

        Raises:
            ValueError: see `reward`.
        """
        if fps is not None and num_frames is not None:
            raise ValueError("fps and num_frames exclude each other")
        policy = self.frame_policy
        if fps is not None:
            policy = FramePolicy(mode="fps", fps=fps, max_frames=policy.max_frames)
        elif num_frames is not None:
            policy = FramePolicy(mode="uniform", num_frames=num_frames)
        num, clips = self._stream(list(video_paths), policy)
        scores = AlignedScores([], [])
        for clip, text in zip(clips, _one_prompt_each(prompts, num), strict=True):
            one = align_scores(self.judge, self.role, [clip], [text], max_pixels=max_pixels, use_norm=use_norm)
            scores.records.extend(one.records)
            scores.reasons.extend(one.reasons)
        return scores

    def as_loss(
        self,
        target: float | None = None,
        *,
        scale: float = 1.0,
        space: Literal["expectation", "logit"] = "expectation",
        weights: Mapping[str, float] | None = None,
        check_gradients: bool = True,
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return `loss(videos, prompts, fps=...) -> (loss, reward)` with gradient to the pixels.

        Args:
            target: None minimises -reward; a number minimises |reward - target|.
            scale: factor of the loss.
            space: "expectation" uses the quality in [0, 1]; "logit" its log-odds, which do not saturate near the ends.
            weights: dimension -> weight of the reward; None for overall.
            check_gradients: raise RuntimeError in the backward pass, naming the clips, where the judge's gradient is not finite;
                False where a gradient scaler skips such steps.

        Returns:
            The loss callable; its reward [B] is detached quality.

        Raises:
            ValueError: unknown space, or log-odds of a weighted sum, which need not lie in [0, 1].
        """
        return pixel_loss(self, target, scale=scale, space=space, weights=weights, check_gradients=check_gradients)


def _read_shown(reader: Callable[[], Clip | str], family: VisionFamily) -> Clip | str:
    return shown(fitting(reader(), family), family)


def _size(clip: Clip | str) -> int:
    return 0 if isinstance(clip, str) else clip.frames.numel()


def _one_prompt_each(prompts: str | Sequence[str | None] | None, num: int) -> list[str | None]:
    if prompts is None or isinstance(prompts, str):
        return [prompts] * num
    if len(prompts) != num:
        raise ValueError(f"prompts must be one each: got {len(prompts)} for {num} videos")
    return list(prompts)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")


def _dtype(name: str | torch.dtype) -> str | torch.dtype:
    """Return the dtype that a name stands for; "auto" stays."""
    if isinstance(name, torch.dtype) or name == "auto":
        return name
    full = DTYPE_NAMES.get(name, name)
    if full not in DTYPE_NAMES.values():
        raise ValueError(f"dtype must be 'auto', one of {sorted(DTYPE_NAMES)} or torch's name of one, got {name!r}")
    return getattr(torch, full)


def _device(name: str | torch.device | None) -> torch.device | None:
    """Return the device of a name, after trying it."""
    if name is None:
        return None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be such as 'cpu', 'cuda' or 'cuda:1', got {str(name)!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count() if torch.version.cuda else "no CUDA in this build of torch; 0"
        raise ValueError(f"device {str(name)!r} is not available here: {count} CUDA devices; use device='cpu'")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(name)!r} is not available here: {reason}") from error
    return device
