"""A diffusers text-to-video pipeline as the loop sees it: what all families share.

A family's file holds model facts only: how prompts are encoded, latents shaped and normalised, the schedule chosen, the
transformer called, and pixels decoded.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from generator_loop.adapters.base import POLICY
from generator_loop.adapters.kernels import Attention, compile_blocks, use_attention
from generator_loop.adapters.lora import LoraWeights
from generator_loop.adapters.offload import Offloading, offload_of
from generator_loop.adapters.partial_decode import check_run, held_outside
from generator_loop.records import Conditioning

LORA_FILE = "pytorch_lora_weights.safetensors"
"""File name that stock `load_lora_weights` looks for."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Precision of transformer and text encoder; `auto` is float32 on the CPU and bfloat16 elsewhere."""


class PipelineGenerator(ABC):
    """A frozen pipeline with LoRA on its transformers; see `VideoGenerator` for the contract.

    Families fill in `_check`, `_factors`, `_schedule_of`, `sigmas`, `_velocity`, `_pixels` and `_normalise`, and `_pixels_of`
    where their decoder can leave latent frames out.
    """

    name: str
    pipeline_name: ClassVar[str]
    """Class of the pipeline in diffusers."""
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
    """Every linear layer of attention and feed-forward."""
    text_tensors: ClassVar[tuple[str, ...]] = ("positive", "negative")
    """Names of what the pipeline's `encode_prompt` returns."""

    def __init__(
        self,
        pipeline: Any,
        *,
        num_frames: int,
        size: tuple[int, int],
        fps: float,
        lora_rank: int,
        lora_alpha: int,
        lora_targets: Sequence[str] | None = None,
        lora_seed: int = 0,
        guidance_scale: float = 1.0,
        guidance_scale_2: float | None = None,
        negative_prompt: str = "",
        max_sequence_length: int = 512,
        decode_batch_size: int = 1,
        checkpoint_decode: bool = False,
        checkpoint_transformer: bool = False,
        attention: Attention = "native",
        compile_transformer: bool = False,
        vae_tiling: bool = False,
        offload: Offloading = "none",
    ) -> None:
        """Freeze the pipeline and attach LoRA to its transformers.

        Args:
            pipeline: loaded pipeline, on its device; it is changed in place.
            num_frames: pixel frames T, one more than a multiple of the VAE's temporal factor.
            size: height and width in pixels.
            fps: frames a second that the model was trained for.
            lora_rank: inner dimension of LoRA.
            lora_alpha: LoRA's update is scaled by alpha / rank.
            lora_targets: endings of module names; None takes the family's.
            lora_seed: seed of LoRA's first state.
            guidance_scale: classifier-free guidance; 1 is off and saves half of every prediction.
            guidance_scale_2: guidance of a second transformer; None takes the first one's.
            negative_prompt: what guidance leads away from.
            max_sequence_length: text tokens L; shorter prompts are padded.
            decode_batch_size: clips decoded or encoded at once.
            checkpoint_decode: recompute the decoder in the backward pass instead of keeping its activations.
            checkpoint_transformer: likewise for the transformer's blocks.
            attention: kernel of the transformers' attention.
            compile_transformer: compile the transformers' blocks at their first call.
            vae_tiling: decode and encode large frames tile by tile.
            offload: what becomes of text encoders and VAE while they are not in use.

        Raises:
            ValueError: if the pipeline is of a kind that is not supported, or the clip's shape or a setting does not fit it.
        """
        height, width = size
        self.num_frames, self.size, self.fps = num_frames, (height, width), fps
        self.guidance_scale, self.guidance_scale_2 = guidance_scale, guidance_scale_2
        self.negative_prompt = negative_prompt
        self.max_sequence_length = max_sequence_length
        self.decode_batch_size = decode_batch_size
        self.pipeline = pipeline
        self._check()
        self._check_guidance()
        self._shape = self._latent_shape()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        self.device = pipeline.transformer.device
        self._schedule = self._schedule_of(pipeline.scheduler)
        self._transformers = {part: getattr(pipeline, part) for part in self._parts()}
        self._lora = LoraWeights(
            self._transformers,
            rank=lora_rank,
            alpha=lora_alpha,
            targets=lora_targets or self.lora_targets,
            seed=lora_seed,
        )
        if checkpoint_decode:
            self._checkpoint_decoder()
        if vae_tiling:
            pipeline.vae.enable_tiling()
        for transformer in self._transformers.values():
            _prepare(transformer, attention, checkpointed=checkpoint_transformer, compiled=compile_transformer)
        self._offload = offload_of(pipeline, offload)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        *,
        revision: str | None = None,
        dtype: Precision = "auto",
        device: torch.device | None = None,
        offload: Offloading = "none",
        **settings: Any,
    ) -> Self:
        """Load a pipeline folder or hub id and attach LoRA.

        Args:
            path_or_id: diffusers pipeline folder or hub id.
            revision: hub revision.
            dtype: precision of the frozen transformer and text encoder; the VAE and LoRA are always float32.
            device: where the models live; None is the CPU.
            offload: what becomes of text encoders and VAE while they are not in use.
            **settings: the constructor's, by name.

        Returns:
            The generator.
        """
        import diffusers

        device = device or torch.device("cpu")
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" else "bfloat16"
        dtypes = {"default": getattr(torch, dtype), "vae": torch.float32}
        pipeline = getattr(diffusers, cls.pipeline_name).from_pretrained(path_or_id, revision=revision, dtype=dtypes)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and (offload == "none" or name.startswith("transformer")):
                part.to(device)
        return cls(pipeline, offload=offload, **settings)

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw unit Gaussian noise [B, c, F, h, w], one row from each CPU generator."""
        rows = [torch.randn(self._shape, generator=generator) for generator in generators]
        return torch.stack(rows).to(self.device)

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Predict the velocity [B, c, F, h, w], guided where the conditioning holds a negative prompt."""
        if self._offload is not None:
            self._offload.end_text()
        velocity = self._velocity(latents, sigma, _side(cond, "positive"))
        if "negative" not in cond.tensors:
            return velocity
        unguided = self._velocity(latents, sigma, _side(cond, "negative"))
        return unguided + self._guidance(sigma) * (velocity - unguided)

    def _guidance(self, sigma: Tensor) -> float | Tensor:
        """Return the scale of guidance, one for all rows or as [B, 1, 1, 1, 1]."""
        return self.guidance_scale

    def decode(self, latents: Tensor, run: range | None = None) -> Tensor:
        """Decode latents [B, c, F, h, w], or a run of them, to frames [B, T, 3, H, W] in [0, 1], a few clips at a time."""
        if run is not None:
            check_run(run, latents.shape[2])
        with self._vae_for(latents) as inputs:
            return torch.cat([self._decode(part, run) for part in inputs.split(self.decode_batch_size)])

    def _decode(self, latents: Tensor, run: range | None) -> Tensor:
        pixels = self._pixels(latents) if run is None else self._pixels_of(held_outside(latents, run), run)
        return (pixels.float().transpose(1, 2) * 0.5 + 0.5).clamp(0, 1)

    def frames_of(self, run: range) -> slice:
        """Return the pixel frames that a run of latent frames becomes: one for the first of the clip, r for every other."""
        _, temporal, _ = self._factors()
        return slice(max(temporal * (run.start - 1) + 1, 0), temporal * (run.stop - 1) + 1)

    def _pixels_of(self, latents: Tensor, run: range) -> Tensor:
        """Decode the frames of a run: the whole clip, and the rest is thrown away; for decoders that mix all frames."""
        return self._pixels(latents)[:, :, self.frames_of(run)]

    def encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """Encode prompts, and the negative prompt where guidance is on, to `text_tensors` with B rows each."""
        if self._offload is not None:
            self._offload.begin_text()
        return self._encode_prompts(texts)

    @torch.no_grad()
    def _encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        found = self.pipeline.encode_prompt(
            list(texts),
            [self.negative_prompt] * len(texts),
            do_classifier_free_guidance=self.guidance_scale > 1,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
            dtype=self.pipeline.transformer.dtype,
        )
        named = zip(self.text_tensors, found, strict=True)
        return Conditioning({name: value for name, value in named if value is not None})

    @abstractmethod
    def sigmas(self, num_steps: int) -> Tensor:
        """Return the Euler schedule [S + 1] with the checkpoint's own shift."""

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames [B, T, 3, H, W] in [0, 1] to the mode of their latents [B, c, F, h, w], a few clips at a time."""
        vae = self.pipeline.vae
        pixels = (frames.to(self.device) * 2 - 1).transpose(1, 2).to(vae.dtype)
        with self._vae_for(pixels):
            modes = [vae.encode(part).latent_dist.mode().float() for part in pixels.split(self.decode_batch_size)]
        return self._normalise(torch.cat(modes))

    def _vae_for(self, inputs: Tensor) -> AbstractContextManager[Tensor]:
        return nullcontext(inputs) if self._offload is None else self._offload.vae(inputs)

    def _checkpoint_decoder(self) -> None:
        """Recompute the decoder in the backward pass: as a whole, unless a family knows its parts."""
        decoder = self.pipeline.vae.decoder
        forward = decoder.forward
        decoder.forward = lambda *args, **named: checkpoint(forward, *args, use_reentrant=False, **named)

    @abstractmethod
    def _check(self) -> None:
        """Refuse pipelines of this class that are not supported (ValueError)."""

    def _check_guidance(self) -> None:
        num_transformers = len(self._parts())
        if self.guidance_scale_2 is not None and (num_transformers == 1 or self.guidance_scale <= 1):
            raise ValueError(
                f"generator.guidance_scale_2 guides the second of two transformers beside guidance_scale > 1; {self.name} has "
                f"{num_transformers} here and guidance_scale is {self.guidance_scale}: set generator.guidance_scale_2=null"
            )

    def _parts(self) -> tuple[str, ...]:
        """Return the names of the pipeline's transformers, all of which are trained."""
        return ("transformer",)

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """Return (c, F, h, w); ValueError where the clip's shape does not fit."""
        spatial, temporal, patch = self._factors()
        check_clip(self.size, self.num_frames, spatial=spatial * patch, temporal=temporal)
        channels = self.pipeline.transformer.config.in_channels
        return channels, (self.num_frames - 1) // temporal + 1, self.size[0] // spatial, self.size[1] // spatial

    @abstractmethod
    def _factors(self) -> tuple[int, int, int]:
        """Return by how much the VAE shrinks space and time, and the side of the transformer's patches."""

    @abstractmethod
    def _normalise(self, latents: Tensor) -> Tensor:
        """Bring the VAE's latents to unit scale."""

    @abstractmethod
    def _schedule_of(self, scheduler: Any) -> Any:
        """Return a one-step flow-matching solver with the checkpoint's shift."""

    @abstractmethod
    def _velocity(self, latents: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Call the transformer with one side of the conditioning, its names without "positive_" or "negative_"."""

    @abstractmethod
    def _pixels(self, latents: Tensor) -> Tensor:
        """Decode normalised latents to pixels [B, 3, T, H, W] in [-1, 1]."""

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the LoRA parameters by name."""
        return self._lora.parameters()

    def use(self, name: str) -> AbstractContextManager[None]:
        """Predict with the named weights inside the context."""
        return self._lora.use(name)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the named weights, detached and not copied."""
        return self._lora.weights(name)

    def set_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into the named set, creating it if it is new."""
        self._lora.set_weights(name, weights)

    def save(self, folder: Path) -> None:
        """Write the policy as a diffusers LoRA folder; alpha is kept in the file's metadata.

        Every transformer beside the first has a folder of its own inside, of its name.
        """
        for part in self._transformers:
            tensors, settings = self._lora.to_peft(part)
            self.pipeline.save_lora_weights(
                self._folder_of(part, folder),
                transformer_lora_layers=tensors,
                weight_name=LORA_FILE,
                transformer_lora_adapter_metadata=settings,
            )

    def load(self, folder: Path) -> None:
        """Read a policy that `save` wrote, exactly; a LoRA of another rank or alpha raises ValueError."""
        paths = {part: self._folder_of(part, folder) / LORA_FILE for part in self._transformers}
        self.set_weights(POLICY, self._lora.read(paths))

    def _folder_of(self, part: str, folder: Path) -> Path:
        return folder if part == next(iter(self._transformers)) else folder / part


def _side(cond: Conditioning, side: str) -> dict[str, Tensor]:
    """Return the tensors of one side: "positive" becomes "text", "positive_mask" becomes "mask"."""
    return {
        name.removeprefix(side).lstrip("_") or "text": v for name, v in cond.tensors.items() if name.startswith(side)
    }


def check_clip(size: tuple[int, int], num_frames: int, *, spatial: int, temporal: int) -> None:
    """Refuse (ValueError) a clip that does not fit: sides are multiples of `spatial`, frames one more than of `temporal`."""
    if num_frames < 1 or (num_frames - 1) % temporal:
        raise ValueError(f"num_frames must be one more than a multiple of {temporal}, got {num_frames}")
    if any(pixels < 1 or pixels % spatial for pixels in size):
        raise ValueError(f"height and width must be multiples of {spatial} pixels, got {tuple(size)}")


def _prepare(transformer: Any, attention: Attention, *, checkpointed: bool, compiled: bool) -> None:
    """Set how a transformer attends and whether it is recomputed and compiled; compiling comes last."""
    if checkpointed:
        transformer.enable_gradient_checkpointing()
    use_attention(transformer, attention)
    if compiled:
        compile_blocks(transformer)
