"""Wan 2.1 text-to-video (diffusers `WanPipeline` layout).

Model facts kept here: flow time is sigma x 1000 as a float, pixels live in [-1, 1] as [B, C, T, H, W], latents are
normalised by the VAE's per-channel mean and deviation, and T pixel frames are 4 F - 3.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from generator_loop.adapters.base import POLICY
from generator_loop.adapters.lora import LoraWeights
from generator_loop.records import Conditioning

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin, WanPipeline

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
"""Every linear layer of attention and feed-forward."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""File name that stock `load_lora_weights` looks for."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Precision of transformer and text encoder; `auto` is float32 on the CPU and bfloat16 elsewhere."""


class WanGenerator:
    """A Wan pipeline as the loop sees it; see `VideoGenerator` for the contract."""

    name = "wan"

    def __init__(
        self,
        pipeline: WanPipeline,
        *,
        num_frames: int,
        size: tuple[int, int],
        fps: float,
        lora_rank: int,
        lora_alpha: int,
        lora_targets: Sequence[str] = LORA_TARGETS,
        lora_seed: int = 0,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        max_sequence_length: int = 512,
        decode_batch_size: int = 1,
        checkpoint_decode: bool = False,
        checkpoint_transformer: bool = False,
    ) -> None:
        """Freeze the pipeline and attach LoRA to its transformer.

        Args:
            pipeline: loaded pipeline, on its device; it is changed in place.
            num_frames: pixel frames T, one more than a multiple of the VAE's temporal factor.
            size: height and width in pixels.
            fps: frames a second that the model was trained for.
            lora_rank: inner dimension of LoRA.
            lora_alpha: LoRA's update is scaled by alpha / rank.
            lora_targets: endings of module names.
            lora_seed: seed of LoRA's first state.
            guidance_scale: classifier-free guidance; 1 is off and saves half of every prediction.
            negative_prompt: what guidance leads away from.
            max_sequence_length: text tokens L; shorter prompts are padded.
            decode_batch_size: clips decoded or encoded at once.
            checkpoint_decode: recompute the decoder in the backward pass instead of keeping its activations.
            checkpoint_transformer: likewise for the transformer's blocks.

        Raises:
            ValueError: if the pipeline is of a kind that is not supported, or the clip's shape does not fit it.
        """
        height, width = size
        self.num_frames, self.size, self.fps = num_frames, (height, width), fps
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self.max_sequence_length = max_sequence_length
        self.decode_batch_size, self.checkpoint_decode = decode_batch_size, checkpoint_decode
        self.pipeline = pipeline
        _check_supported(pipeline)
        self._latent_shape = _latent_shape(pipeline, num_frames, self.size)
        for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
            part.eval().requires_grad_(False)
        self.device = pipeline.transformer.device
        self._schedule = _euler_schedule(pipeline.scheduler)
        self._lora = LoraWeights(
            pipeline.transformer, rank=lora_rank, alpha=lora_alpha, targets=lora_targets, seed=lora_seed
        )
        if checkpoint_transformer:
            pipeline.transformer.enable_gradient_checkpointing()

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        *,
        num_frames: int,
        size: tuple[int, int],
        fps: float,
        lora_rank: int,
        lora_alpha: int,
        revision: str | None = None,
        dtype: Precision = "auto",
        device: torch.device | None = None,
        lora_targets: Sequence[str] = LORA_TARGETS,
        lora_seed: int = 0,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        max_sequence_length: int = 512,
        decode_batch_size: int = 1,
        checkpoint_decode: bool = False,
        checkpoint_transformer: bool = False,
    ) -> WanGenerator:
        """Load a pipeline folder or hub id and attach LoRA.

        Args:
            path_or_id: diffusers pipeline folder or hub id.
            num_frames: see the constructor, as all that is not named here.
            size: height and width in pixels.
            fps: frames a second.
            lora_rank: inner dimension of LoRA.
            lora_alpha: scale of LoRA.
            revision: hub revision.
            dtype: precision of the frozen transformer and text encoder; the VAE and LoRA are always float32.
            device: where the models live; None is the CPU.
            lora_targets: endings of module names.
            lora_seed: seed of LoRA.
            guidance_scale: classifier-free guidance.
            negative_prompt: what guidance leads away from.
            max_sequence_length: text tokens.
            decode_batch_size: clips decoded at once.
            checkpoint_decode: recompute the decoder in the backward pass.
            checkpoint_transformer: recompute the transformer in the backward pass.

        Returns:
            The generator.
        """
        from diffusers import WanPipeline

        device = device or torch.device("cpu")
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" else "bfloat16"
        dtypes = {"default": getattr(torch, dtype), "vae": torch.float32}
        pipeline = WanPipeline.from_pretrained(path_or_id, revision=revision, dtype=dtypes)
        return cls(
            pipeline.to(device),
            num_frames=num_frames,
            size=size,
            fps=fps,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            lora_seed=lora_seed,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            max_sequence_length=max_sequence_length,
            decode_batch_size=decode_batch_size,
            checkpoint_decode=checkpoint_decode,
            checkpoint_transformer=checkpoint_transformer,
        )

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """Encode prompts, and the negative prompt where guidance is on, to [B, L, d]."""
        positive, negative = self.pipeline.encode_prompt(
            list(texts),
            self.negative_prompt,
            do_classifier_free_guidance=self.guidance_scale > 1,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
            dtype=self.pipeline.transformer.dtype,
        )
        tensors = {"positive": positive, "negative": negative}
        return Conditioning({name: value for name, value in tensors.items() if value is not None})

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw unit Gaussian noise [B, c, F, h, w], one row from each CPU generator."""
        rows = [torch.randn(self._latent_shape, generator=generator) for generator in generators]
        return torch.stack(rows).to(self.device)

    def sigmas(self, num_steps: int) -> Tensor:
        """Return the Euler schedule [S + 1] with the checkpoint's own shift."""
        self._schedule.set_timesteps(num_steps)
        return self._schedule.sigmas.to(self.device)

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Predict the velocity [B, c, F, h, w], guided where the conditioning holds a negative prompt."""
        velocity = self._velocity(latents, sigma, cond.tensors["positive"])
        if "negative" not in cond.tensors:
            return velocity
        unguided = self._velocity(latents, sigma, cond.tensors["negative"])
        return unguided + self.guidance_scale * (velocity - unguided)

    def _velocity(self, latents: Tensor, sigma: Tensor, embedding: Tensor) -> Tensor:
        transformer = self.pipeline.transformer
        output = transformer(
            hidden_states=latents.to(transformer.dtype),
            timestep=sigma.float() * self._schedule.config.num_train_timesteps,
            encoder_hidden_states=embedding,
            return_dict=False,
        )[0]
        return output.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, c, F, h, w] to frames [B, T, 3, H, W] in [0, 1], a few clips at a time."""
        return torch.cat([self._decode(part) for part in latents.split(self.decode_batch_size)])

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean, inverse_std = self._latent_statistics()
        scaled = (latents / inverse_std + mean).to(vae.dtype)
        if self.checkpoint_decode and torch.is_grad_enabled() and scaled.requires_grad:
            pixels = torch.utils.checkpoint.checkpoint(_first_output, vae.decode, scaled, use_reentrant=False)
        else:
            pixels = _first_output(vae.decode, scaled)
        return (pixels.float().transpose(1, 2) * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames [B, T, 3, H, W] in [0, 1] to the mode of their latents [B, c, F, h, w]."""
        vae = self.pipeline.vae
        mean, inverse_std = self._latent_statistics()
        pixels = (frames.to(self.device) * 2 - 1).transpose(1, 2).to(vae.dtype)
        modes = [vae.encode(part).latent_dist.mode().float() for part in pixels.split(self.decode_batch_size)]
        return (torch.cat(modes) - mean) * inverse_std

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        mean, std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, 1 / std

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
        """Write the policy as a diffusers LoRA folder; alpha is kept in the file's metadata."""
        tensors, settings = self._lora.to_peft()
        self.pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=tensors,
            weight_name=LORA_FILE,
            transformer_lora_adapter_metadata=settings,
        )

    def load(self, folder: Path) -> None:
        """Read a policy that `save` wrote, exactly; a LoRA of another rank or alpha raises ValueError."""
        from safetensors import safe_open

        with safe_open(folder / LORA_FILE, framework="pt") as file:
            written = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
            tensors = {name.removeprefix("transformer."): file.get_tensor(name) for name in file.keys()}
        _, settings = self._lora.to_peft()
        for key in ("r", "lora_alpha"):
            if written.get(f"transformer.{key}") != settings[key]:
                raise ValueError(
                    f"{folder / LORA_FILE} has lora {key} {written.get(f'transformer.{key}')}, the attached one has "
                    f"{settings[key]}; set generator.lora_rank and generator.lora_alpha to the file's"
                )
        self.set_weights(POLICY, tensors)


def _first_output(decode: Callable[..., tuple[Tensor, ...]], latents: Tensor) -> Tensor:
    return decode(latents, return_dict=False)[0]


def _check_supported(pipeline: WanPipeline) -> None:
    if pipeline.transformer is None or pipeline.transformer_2 is not None or pipeline.config.boundary_ratio is not None:
        raise ValueError(
            "wan: two-expert checkpoints (Wan 2.2 A14B) are not supported; use a Wan 2.1 text-to-video one"
        )
    if pipeline.config.expand_timesteps:
        raise ValueError("wan: checkpoints with per-token timesteps (Wan 2.2 TI2V) are not supported; use Wan 2.1")


def _latent_shape(pipeline: WanPipeline, num_frames: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    config = pipeline.vae.config
    temporal = 2 ** sum(config.temperal_downsample)
    spatial = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
    if (temporal, spatial) != (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial):
        raise ValueError(
            f"the VAE shrinks time by {temporal} and space by {spatial}, but its config.json says scale_factor_temporal "
            f"{config.scale_factor_temporal} and scale_factor_spatial {config.scale_factor_spatial}; correct the config"
        )
    if num_frames < 1 or (num_frames - 1) % temporal:
        raise ValueError(f"num_frames must be one more than a multiple of {temporal}, got {num_frames}")
    for pixels, patch in zip(size, pipeline.transformer.config.patch_size[1:], strict=True):
        if pixels < 1 or pixels % (spatial * patch):
            raise ValueError(f"height and width must be multiples of {spatial * patch} pixels, got {tuple(size)}")
    channels = pipeline.transformer.config.in_channels
    return channels, (num_frames - 1) // temporal + 1, size[0] // spatial, size[1] // spatial


def _euler_schedule(scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
    """Return a one-step solver with the shift of whichever flow scheduler the checkpoint names."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    if scheduler.config.get("use_flow_sigmas"):
        return FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=scheduler.config.num_train_timesteps, shift=scheduler.config.flow_shift
        )
    raise ValueError(f"wan: {type(scheduler).__name__} is not a flow-matching scheduler; nothing to take a shift from")
