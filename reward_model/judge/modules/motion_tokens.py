"""Motion tokens: features of a frozen motion encoder in slots of the prompt, behind the clip's frames.

A judge sees few frames; an encoder of dense clips (`media.motion`) sees stutter, jumps and speed. Its features are
projected to the width of the text model.

Shapes: N motion tokens, F features of the encoder, D hidden size.

Source: VQAThinker (arXiv 2508.06051), motion projector: LayerNorm, Linear, GELU, Linear.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from reward_model.weights import read_tensors

MOTION_TOKEN = "<|vision_pad|>"
"""Stands for one motion token; the Qwen vocabularies have it, and nothing else uses it."""

WEIGHTS_FILE = "extra.safetensors"


class MotionProjector(nn.Module):
    """Two linear layers from features [N, F] to embeddings [N, D]; small at first, so that a trained judge hardly notices."""

    def __init__(self, feature_size: int, hidden_size: int) -> None:
        """Build it with random weights of deviation 0.01.

        Args:
            feature_size: F.
            hidden_size: D.
        """
        super().__init__()
        self.norm = nn.LayerNorm(feature_size)
        self.inner, self.outer = nn.Linear(feature_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the embeddings [N, D] of features [N, F]."""
        return self.outer(nn.functional.gelu(self.inner(self.norm(features.to(self.norm.weight)))))

    def save(self, folder: Path) -> None:
        """Write the weights to `extra.safetensors`."""
        from safetensors.torch import save_file

        save_file(
            {f"motion.{name}": v.detach().cpu().contiguous() for name, v in self.state_dict().items()},
            folder / WEIGHTS_FILE,
        )

    def load(self, folder: Path) -> None:
        """Read the file that `save` wrote; another file, other names or other shapes raise ValueError."""
        wanted = {f"motion.{name}": value.shape for name, value in self.state_dict().items()}
        weights = read_tensors(folder / WEIGHTS_FILE, wanted)
        self.load_state_dict({name.removeprefix("motion."): value for name, value in weights.items()})


def motion_slots(features: Tensor | None) -> str:
    """Return the text that stands for a clip's motion features [N, F]; empty for a clip without them."""
    return "" if features is None else f"Motion:{MOTION_TOKEN * len(features)}"


def check_motion(features: Tensor, feature_size: int) -> None:
    """Refuse features that are not [N, F] with N >= 1 (ValueError)."""
    if (
        features.ndim != 2
        or not len(features)
        or features.shape[1] != feature_size
        or not torch.isfinite(features).all()
    ):
        raise ValueError(f"motion features must be finite [N, {feature_size}], got {tuple(features.shape)}")
