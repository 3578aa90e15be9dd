"""A diffusers text-to-video pipeline as the loop sees it, common to all families.

A family's file holds model facts only: how prompts are encoded, latents shaped and normalised, the schedule chosen, the
transformer called, and pixels decoded.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from generator_loop.adapters.base import POLICY
from generator_loop.adapters.folders import load_pipeline, refuse_changed_lora
from generator_loop.adapters.full import FullWeights
from generator_loop.adapters.kernels import compile_blocks, use_attention
from generator_loop.adapters.lora import LoraWeights
from generator_loop.adapters.named_weights import NamedWeights
from generator_loop.adapters.offload import offload_of
from generator_loop.adapters.partial_decode import check_excerpt, held_outside
from generator_loop.config import GeneratorConfig
from generator_loop.records import Conditioning
from reward_model.weights import write_checksums


class PipelineGenerator(ABC):
    """A pipeline whose transformers learn, by LoRA or as a whole; see `VideoGenerator` for the contract.

    Families fill in `_check`, `_factors`, `_schedule_of`, `_sigmas`, `_velocity`, `_pixels` and `_normalise`, and `_pixels_of`
    where their decoder can leave latent frames out.
    """

    name: str
    pipeline_name: ClassVar[str]
    """Class of the pipeline in diffusers."""
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
    """Every linear layer of attention and feed-forward."""
    text_tensors: ClassVar[tuple[str, ...]] = ("positive", "negative")
    """Names of the tensors that the pipeline's `encode_prompt` returns, in its order."""

    def __init__(
        self, pipeline: Any, config: GeneratorConfig, *, lora_seed: int = 0, lora_targets: Sequence[str] | None = None
    ) -> None:
        """Freeze the pipeline, and attach LoRA to its transformers or let them learn as a whole.

        Args:
            pipeline: loaded pipeline, on its device; it is changed in place.
            config: clip, training, guidance and memory settings; its path and revision are not read here.
            lora_seed: seed of LoRA's first state.
            lora_targets: endings of module names; None takes the family's.

        Raises:
            ValueError: if the pipeline is of a kind that is not supported, or the clip's shape or a setting does not fit it.
        """
        self.config, self.pipeline = config, pipeline
        self.num_frames, self.size, self.fps = config.num_frames, (config.height, config.width), config.fps
        self._check()
        self._check_guidance()
        self._shape = self._latent_shape()
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        self.device = pipeline.transformer.device
        self._schedule = self._schedule_of(pipeline.scheduler)
        self._transformers = {name: getattr(pipeline, name) for name in self._transformer_names()}
        self._trained = self._trained_weights(lora_targets or self.lora_targets, lora_seed)
        if config.checkpoint_decode:
            self._checkpoint_decoder()
        if config.vae_tiling:
            pipeline.vae.enable_tiling()
        for transformer in self._transformers.values():
            _prepare(transformer, config)
        self._offload = offload_of(pipeline, config.offload)

    def _trained_weights(self, lora_targets: Sequence[str], lora_seed: int) -> NamedWeights:
        config = self.config
        if config.train == "full":
            return FullWeights(self._transformers, copies=config.copies)
        return LoraWeights(
            self._transformers,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            targets=lora_targets,
            seed=lora_seed,
            copies=config.copies,
        )

    @classmethod
    def from_pretrained(
        cls,
        config: GeneratorConfig,
        *,
        device: torch.device | None = None,
        lora_seed: int = 0,
        place: Callable[[nn.Module, torch.device], object] = nn.Module.to,
    ) -> Self:
        """Load the pipeline folder or hub id that `config.path` names, ready to learn.

        Args:
            config: the generator; its dtype is that of transformer and text encoder, the VAE and what learns are always float32.
            device: where the models live; None is the CPU.
            lora_seed: seed of LoRA's first state.
            place: brings a transformer to the device, whole or in part; LoRA, which is attached afterwards, stays whole.

        Returns:
            The generator.

        Raises:
            ValueError: a path that cannot be loaded as this family's pipeline, see `load_pipeline`.
        """
        device = device or torch.device("cpu")
        dtype = dtype_of(config, device)
        pipeline = load_pipeline(
            cls.pipeline_name,
            config.path,
            revision=config.revision,
            dtype=dtype,
            transformer_dtype=torch.float32 if config.train == "full" else dtype,
            vae_dtype=torch.float32,
        )
        for name, component in pipeline.components.items():
            if isinstance(component, nn.Module) and name.startswith("transformer"):
                place(component, device)
            elif isinstance(component, nn.Module) and config.offload == "none":
                component.to(device)
        return cls(pipeline, config, lora_seed=lora_seed)

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw unit Gaussian noise [B, c, F, h, w], one sample from each CPU generator."""
        samples = [torch.randn(self._shape, generator=generator) for generator in generators]
        return torch.stack(samples).to(self.device)

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Predict the velocity [B, c, F, h, w], guided where the conditioning holds a negative prompt."""
        if self._offload is not None:
            self._offload.end_text()
        with self._precision():
            velocity = self._velocity(latents, sigma, _side(cond, "positive"))
            if "negative" not in cond.tensors:
                return velocity
            unguided = self._velocity(latents, sigma, _side(cond, "negative"))
        return unguided + self._guidance(sigma) * (velocity - unguided)

    def _precision(self) -> AbstractContextManager[Any]:
        """Compute in the config's dtype where all weights learn, which are 32-bit; elsewhere weights are of that dtype themselves."""
        dtype = dtype_of(self.config, self.device)
        if self.config.train == "lora" or dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    def _guidance(self, sigma: Tensor) -> float | Tensor:
        """Return the scale of guidance, one for all samples or as [B, 1, 1, 1, 1]."""
        return self.config.guidance_scale

    def decode(self, latents: Tensor, excerpt: range | None = None) -> Tensor:
        """Decode latents [B, c, F, h, w], or an excerpt of them, to frames [B, T, 3, H, W] in [0, 1], a few clips at a time."""
        if excerpt is not None:
            check_excerpt(excerpt, latents.shape[2])
        with self._vae_for(latents) as inputs:
            return torch.cat([self._decode(clips, excerpt) for clips in inputs.split(self.config.decode_batch_size)])

    def _decode(self, latents: Tensor, excerpt: range | None) -> Tensor:
        pixels = self._pixels(latents) if excerpt is None else self._pixels_of(held_outside(latents, excerpt), excerpt)
        return (pixels.float().transpose(1, 2) * 0.5 + 0.5).clamp(0, 1)

    def frames_of(self, excerpt: range) -> slice:
        """Return the pixel frames that an excerpt of latent frames becomes: one for the first of the clip, r for every other."""
        _, temporal, _ = self._factors()
        return slice(max(temporal * (excerpt.start - 1) + 1, 0), temporal * (excerpt.stop - 1) + 1)

    def _pixels_of(self, latents: Tensor, excerpt: range) -> Tensor:
        """Decode the frames of an excerpt: decode the whole clip and drop the rest, for decoders that mix all frames."""
        return self._pixels(latents)[:, :, self.frames_of(excerpt)]

    def encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """Encode prompts, and the negative prompt where guidance is on, to `text_tensors` with B samples each."""
        if self._offload is not None:
            self._offload.begin_text()
        return self._encode_prompts(texts)

    @torch.no_grad()
    def _encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        encoded = self.pipeline.encode_prompt(
            list(texts),
            [self.config.negative_prompt] * len(texts),
            do_classifier_free_guidance=self.config.guidance_scale > 1,
            max_sequence_length=self.config.max_sequence_length,
            device=self.device,
            dtype=self.pipeline.transformer.dtype,
        )
        named = zip(self.text_tensors, encoded, strict=True)
        return Conditioning({name: value for name, value in named if value is not None})

    def sigmas(self, num_steps: int) -> Tensor:
        """Return the sigmas [S + 1] of the checkpoint's own schedule, falling from 1 to 0.

        Args:
            num_steps: number S of solver steps.

        Returns:
            Float32, on the generator's device.

        Raises:
            ValueError: the checkpoint's scheduler has no such schedule of this many steps.
        """
        sigmas = self._sigmas(num_steps)
        if sigmas[0] != 1 or sigmas[-1] != 0 or not bool((sigmas.diff() < 0).all()):
            raise ValueError(
                f"{self.name}: {num_steps} steps of {type(self._schedule).__name__} must fall from sigma 1 to 0, got "
                f"{[round(sigma, 4) for sigma in sigmas.tolist()]}; change the number of steps, or the pipeline's "
                "scheduler_config.json if any number fails"
            )
        return sigmas

    @abstractmethod
    def _sigmas(self, num_steps: int) -> Tensor:
        """Return the sigmas [S + 1] as the stock pipeline's call sets them."""

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames [B, T, 3, H, W] in [0, 1] to the mode of their latents [B, c, F, h, w], a few clips at a time."""
        vae = self.pipeline.vae
        pixels = (frames.to(self.device) * 2 - 1).transpose(1, 2).to(vae.dtype)
        with self._vae_for(pixels):
            modes = [
                vae.encode(clips).latent_dist.mode().float() for clips in pixels.split(self.config.decode_batch_size)
            ]
        return self._normalise(torch.cat(modes))

    def _vae_for(self, inputs: Tensor) -> AbstractContextManager[Tensor]:
        return nullcontext(inputs) if self._offload is None else self._offload.vae(inputs)

    def _checkpoint_decoder(self) -> None:
        """Recompute the decoder in the backward pass: as a whole, unless a family does so in smaller steps."""
        decoder = self.pipeline.vae.decoder
        forward = decoder.forward
        decoder.forward = lambda *args, **named: checkpoint(forward, *args, use_reentrant=False, **named)

    @abstractmethod
    def _check(self) -> None:
        """Refuse pipelines of this class that are not supported (ValueError)."""

    def _check_guidance(self) -> None:
        num_transformers = len(self._transformer_names())
        if self.config.guidance_scale_2 is not None and (num_transformers == 1 or self.config.guidance_scale <= 1):
            raise ValueError(
                f"generator.guidance_scale_2 guides the second of two transformers beside guidance_scale > 1; {self.name} has "
                f"{num_transformers} here and guidance_scale is {self.config.guidance_scale}: set generator.guidance_scale_2=null"
            )

    def _transformer_names(self) -> tuple[str, ...]:
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
        """Return a scheduler of the checkpoint's settings, from which sigmas are read; the pipeline's own stays as it is."""

    @abstractmethod
    def _velocity(self, latents: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Call the transformer with one side of the conditioning, its names without "positive_" or "negative_"."""

    @abstractmethod
    def _pixels(self, latents: Tensor) -> Tensor:
        """Decode normalised latents to pixels [B, 3, T, H, W] in [-1, 1]."""

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        return self._trained.parameters()

    def models(self) -> dict[str, nn.Module]:
        """Return the models of the pipeline by name."""
        return {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}

    def use(self, name: str) -> AbstractContextManager[None]:
        """Predict with the named weights inside the context."""
        return self._trained.use(name)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the named weights, detached and not copied."""
        return self._trained.weights(name)

    def set_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into the named set, creating it if it is new."""
        self._trained.set_weights(name, weights)

    def save(self, folder: Path) -> None:
        """Write the policy with checksums as stock diffusers loads it: a LoRA folder with alpha in its metadata, or a transformer's
        own folder.

        Every transformer beside the first has a folder of its own inside, of its name.
        """
        self._trained.save(self.pipeline, self._folders(folder))
        write_checksums(folder)

    def load(self, folder: Path) -> None:
        """Read a policy that `save` wrote, exactly.

        Args:
            folder: the policy; one without checksums, of an earlier version or of others, is read with a warning.

        Raises:
            ValueError: a policy of another rank, alpha, shape or model, a cut file, or one that is not as it was saved.
        """
        folders = self._folders(folder)
        weights = self._trained.read(folders)
        files = sorted(file for place in folders.values() for file in place.glob("*.safetensors"))
        refuse_changed_lora(folder, files)
        self.set_weights(POLICY, weights)

    def _folders(self, folder: Path) -> dict[str, Path]:
        return {name: folder if place == 0 else folder / name for place, name in enumerate(self._transformers)}


def dtype_of(config: GeneratorConfig, device: torch.device) -> torch.dtype:
    """Return the dtype that a config asks for on a device, by which `auto` is decided."""
    standard = "float32" if device.type == "cpu" else "bfloat16"
    return getattr(torch, standard if config.dtype == "auto" else config.dtype)


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


def _prepare(transformer: Any, config: GeneratorConfig) -> None:
    """Set how a transformer attends and whether it is recomputed and compiled; compiling comes last."""
    if config.checkpoint_transformer:
        transformer.enable_gradient_checkpointing()
    use_attention(transformer, config.attention)
    if config.compile:
        compile_blocks(transformer)
