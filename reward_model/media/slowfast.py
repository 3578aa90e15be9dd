"""SlowFast-R50 8x8 as a frozen motion encoder, with the module names of the public checkpoint.

Two residual networks see one clip: the slow one has few frames and many channels, the fast one all frames and few channels;
after the stem and after each stage but the last, the fast features are added to the slow pathway's channels. Their global
means are the features.

Source: Feichtenhofer et al., SlowFast Networks (arXiv 1812.03982), table 1 with T x tau = 8 x 8, alpha 4, beta 1/8;
module names and details (fusion kernel 7, no temporal stride) as in pytorchvideo/models/{slowfast,resnet,stem}.py of
facebookresearch/pytorchvideo at f3142bb (Apache-2.0). Clips of 32 frames that start each second: W2S-VQA (arXiv
2505.03631), which keeps the fast features only, and VQAThinker (arXiv 2508.06051), which keeps both.

Shapes: B clips, T frames, t frames of a pathway, C channels, H, W pixels; N tokens.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_model.media.motion import check_clip, segments

CLIP_FRAMES = 32
"""Frames of the fast pathway."""
ALPHA = 4
"""Frames of the fast pathway for one of the slow pathway."""
MEAN, STD = 0.45, 0.225
"""Kinetics normalisation, the same for red, green and blue."""

DEPTHS = (3, 4, 6, 3)
"""Blocks of the four stages."""
SLOW_WIDTHS = (64, 256, 512, 1024, 2048)
"""Channels of the slow pathway after the stem and the stages; the fast pathway has an eighth."""
SLOW_REACH = (1, 1, 3, 3)
"""Frames that the first convolution of a slow block sees, by stage; fast ones see 3 throughout."""
SLOW_SIZE, FAST_SIZE = 2048, 256
"""Features of the two pathways."""
NUM_CLASSES = 400
"""Classes of the checkpoint's head, which is loaded, so that names match strictly, and not used."""


class SlowFast(nn.Module):
    """The network, with random weights; `blocks` and all below bear the names of the public checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        stems = _Pathways([_Stem(64, reach=1), _Stem(8, reach=5)], _Fusion(8))
        stages = [_stage(number) for number in range(4)]
        # Block 5 pools and has no weights.
        head = nn.ModuleDict({"proj": nn.Linear(SLOW_SIZE + FAST_SIZE, NUM_CLASSES)})
        self.blocks = nn.ModuleList([stems, *stages, nn.Identity(), head])

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        """Run both pathways.

        Args:
            slow: normalised RGB [B, 3, t, H, W].
            fast: the same clips with `ALPHA` times as many frames.

        Returns:
            Features [B, 2304], slow before fast.
        """
        for block in self.blocks[:5]:
            slow, fast = block(slow, fast)
        return torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], dim=1)


class SlowFastR50:
    """A frozen SlowFast-R50 as `motion.MotionEncoder`: one token of 2048 slow and 256 fast features for each second.

    Each token covers the 32 frames from the start of its second, at the clip's own rate, so that rate and stutter show; past
    the end of the clip, its last frame is repeated. Frames keep their shape (the released code squeezes them into a
    square); the shorter side becomes `size` pixels.
    """

    def __init__(self, path: str | Path | None, *, size: int = 224, device: str | torch.device = "cpu") -> None:
        """Load a checkpoint.

        Args:
            path: local .safetensors or .pyth file with the weights of pytorchvideo's slowfast_r50.
            size: pixels of the frames' shorter side, >= 32; 224 as in training and in W2S-VQA.
            device: where the network runs.

        Raises:
            ValueError: there is no such file, or it holds something else; size is out of range.
        """
        if size < 32:
            raise ValueError(f"size must be >= 32 pixels, got {size}")
        weights = read_weights(path)
        # On no device until the weights come: a random start would be thrown away.
        with torch.device("meta"):
            network = SlowFast()
        _check_names(weights, network.state_dict(), path)
        network.load_state_dict(weights, strict=True, assign=True)
        self._network = network.to(device).eval().requires_grad_(False)
        self._hash = hash_weights(weights)
        self._size = size
        self._device = torch.device(device)

    @property
    def name(self) -> str:
        """Name of the encoder, with the size of frames."""
        return f"slowfast_r50_{self._size}"

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights, the same for both kinds of file."""
        return self._hash

    @property
    def feature_size(self) -> int:
        """Slow and fast features together."""
        return SLOW_SIZE + FAST_SIZE

    @property
    def sees_planned(self) -> bool:
        """False."""
        return False

    def encode(self, frames: Tensor, fps: float) -> Tensor:
        """Return one token for each second.

        Args:
            frames: float RGB [T, 3, H, W] in [0, 1].
            fps: rate in Hz, > 0.

        Returns:
            [N, 2304] float32 on the frames' device, slow features first.

        Raises:
            ValueError: frames or rate are not as described.
        """
        check_clip(frames, fps)
        with torch.no_grad():
            tokens = [self._token(frames, start) for start, _ in segments(len(frames), fps)]
        return torch.cat(tokens).to(frames.device)

    def encode_whole(self, frames: Tensor, fps: float) -> Tensor:
        """Return one token [1, 2304] of a whole clip, each of whose frames the fast pathway sees; arguments as `encode`'s.

        Of 6 frames the slow pathway sees 2 and of 12 it sees 3, as in VQAThinker's code.
        """
        check_clip(frames, fps)
        with torch.no_grad():
            return self._features(frames).to(frames.device)

    def _token(self, frames: Tensor, start: int) -> Tensor:
        index = (start + torch.arange(CLIP_FRAMES)).clamp_max(len(frames) - 1)
        return self._features(frames[index.to(frames.device)])

    def _features(self, frames: Tensor) -> Tensor:
        clip = frames.to(self._device, torch.float32)
        scale = self._size / min(clip.shape[-2:])
        size = [round(side * scale) for side in clip.shape[-2:]]
        clip = F.interpolate(clip, size=size, mode="bilinear", align_corners=False, antialias=True)
        return self._network(*pathways((clip - MEAN) / STD))


def pathways(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Return a normalised clip [T, 3, H, W] as slow [1, 3, T / 4, H, W] and fast [1, 3, T, H, W], ends included.

    Where `ALPHA` does not divide T, the slow pathway has as many frames as the fusion strides over.
    """
    fast = clip.transpose(0, 1)[None]
    index = torch.linspace(0, len(clip) - 1, (len(clip) - 1) // ALPHA + 1, device=clip.device).long()
    return fast[:, :, index], fast


def read_weights(path: str | Path | None) -> dict[str, Tensor]:
    """Read weights by name from a local file; nothing in it is executed.

    Args:
        path: .safetensors, or the public .pyth, which holds the weights under "model_state".

    Returns:
        Name to tensor, on the CPU.

    Raises:
        ValueError: no such file, another kind of file, or a pickle that holds more than tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    hint = "name a local file with pytorchvideo's slowfast_r50 (SLOWFAST_8x8_R50.pyth, or converted to .safetensors)"
    if not path:
        raise ValueError(f"SlowFastR50 needs a checkpoint: {hint}")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"SlowFastR50: {path} does not exist; {hint}")
    if path.suffix not in (".safetensors", ".pyth"):
        raise ValueError(f"SlowFastR50: {path} is neither .safetensors nor .pyth; {hint}")
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"SlowFastR50: {path} holds no plain tensors ({first}); {hint}") from error
    state = loaded.get("model_state", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"SlowFastR50: {path} holds no tensors by name; {hint}")
    return dict(state)


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 in hex of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _check_names(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path | None) -> None:
    missing, unknown = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if missing or unknown:
        example = f"no {missing[0]!r}" if missing else f"unknown {unknown[0]!r}"
        raise ValueError(
            f"SlowFastR50: {path} is no slowfast_r50: {len(missing)} weights are missing and {len(unknown)} unknown, "
            f"for instance {example}"
        )
    wrong = [name for name in sorted(wanted) if weights[name].shape != wanted[name].shape]
    if wrong:
        shape, expected = tuple(weights[wrong[0]].shape), tuple(wanted[wrong[0]].shape)
        raise ValueError(f"SlowFastR50: {path}: {wrong[0]!r} has shape {shape}, expected {expected}")


def _stage(number: int) -> _Pathways:
    """Return stage `number` (0 to 3) of both pathways; the slow one includes the channels fused before it."""
    width_in, width_out = SLOW_WIDTHS[number], SLOW_WIDTHS[number + 1]
    stride = 1 if number == 0 else 2
    slow = _Stage(width_in + width_in // 4, width_out, DEPTHS[number], reach=SLOW_REACH[number], stride=stride)
    fast = _Stage(width_in // 8, width_out // 8, DEPTHS[number], reach=3, stride=stride)
    return _Pathways([slow, fast], _Fusion(width_out // 8) if number < 3 else None)


def _conv(width_in: int, width_out: int, frames: int = 1, side: int = 1, stride: int = 1) -> nn.Conv3d:
    """Return a convolution over `frames` and `side` x `side` pixels, without bias, that pads to keep its input's size."""
    kernel, padding = (frames, side, side), (frames // 2, side // 2, side // 2)
    return nn.Conv3d(width_in, width_out, kernel, stride=(1, stride, stride), padding=padding, bias=False)


class _Stem(nn.Module):
    def __init__(self, width: int, *, reach: int) -> None:
        super().__init__()
        self.conv = _conv(3, width, reach, 7, stride=2)
        self.norm = nn.BatchNorm3d(width)

    def forward(self, clip: Tensor) -> Tensor:
        """Return the features [B, width, T, H / 4, W / 4] of a clip [B, 3, T, H, W]."""
        return F.max_pool3d(self.norm(self.conv(clip)).relu(), (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))


class _Bottleneck(nn.Module):
    def __init__(self, width_in: int, width_out: int, *, reach: int, stride: int) -> None:
        super().__init__()
        inner = width_out // 4
        self.conv_a, self.norm_a = _conv(width_in, inner, reach), nn.BatchNorm3d(inner)
        self.conv_b, self.norm_b = _conv(inner, inner, side=3, stride=stride), nn.BatchNorm3d(inner)
        self.conv_c, self.norm_c = _conv(inner, width_out), nn.BatchNorm3d(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual [B, width_out, T, H / stride, W / stride]."""
        x = self.norm_a(self.conv_a(x)).relu()
        x = self.norm_b(self.conv_b(x)).relu()
        return self.norm_c(self.conv_c(x))


class _Residual(nn.Module):
    def __init__(self, width_in: int, width_out: int, *, reach: int, stride: int) -> None:
        super().__init__()
        self.projects = width_in != width_out or stride != 1
        if self.projects:
            self.branch1_conv, self.branch1_norm = _conv(width_in, width_out, stride=stride), nn.BatchNorm3d(width_out)
        self.branch2 = _Bottleneck(width_in, width_out, reach=reach, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [B, width_out, T, H / stride, W / stride]."""
        shortcut = self.branch1_norm(self.branch1_conv(x)) if self.projects else x
        return (shortcut + self.branch2(x)).relu()


class _Stage(nn.Module):
    def __init__(self, width_in: int, width_out: int, depth: int, *, reach: int, stride: int) -> None:
        super().__init__()
        first = _Residual(width_in, width_out, reach=reach, stride=stride)
        rest = [_Residual(width_out, width_out, reach=reach, stride=1) for _ in range(depth - 1)]
        self.res_blocks = nn.ModuleList([first, *rest])

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last block."""
        for block in self.res_blocks:
            x = block(x)
        return x


class _Fusion(nn.Module):
    """Fusion of the fast pathway's features, one frame in `ALPHA`, into the slow pathway at twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_fast_to_slow = nn.Conv3d(width, 2 * width, (7, 1, 1), (ALPHA, 1, 1), (3, 0, 0), bias=False)
        self.norm = nn.BatchNorm3d(2 * width)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        """Return the slow features with the fast ones behind them, along the channels."""
        return torch.cat([slow, self.norm(self.conv_fast_to_slow(fast)).relu()], dim=1)


class _Pathways(nn.Module):
    def __init__(self, paths: list[nn.Module], fusion: _Fusion | None) -> None:
        super().__init__()
        self.multipathway_blocks = nn.ModuleList(paths)
        self.multipathway_fusion = fusion

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of both pathways, the slow ones fused."""
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        return slow if self.multipathway_fusion is None else self.multipathway_fusion(slow, fast), fast
