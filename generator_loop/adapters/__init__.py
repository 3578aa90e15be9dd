"""Generator families by name; a new one is a file here and a line in `GENERATORS`."""

from generator_loop.adapters.cogvideox import CogVideoXGenerator
from generator_loop.adapters.hunyuan_video import HunyuanVideoGenerator
from generator_loop.adapters.ltx import LTXGenerator
from generator_loop.adapters.mochi import MochiGenerator
from generator_loop.adapters.pipeline import PipelineGenerator
from generator_loop.adapters.wan import WanGenerator
from reward_model.config import did_you_mean

GENERATORS: dict[str, type[PipelineGenerator]] = {
    "wan": WanGenerator,
    "ltx": LTXGenerator,
    "cogvideox": CogVideoXGenerator,
    "hunyuan_video": HunyuanVideoGenerator,
    "mochi": MochiGenerator,
}


def generator_class(family: str) -> type[PipelineGenerator]:
    """Return the class of a generator family.

    Args:
        family: value of `generator.family`.

    Returns:
        Its entry in `GENERATORS`.

    Raises:
        ValueError: no family has this name; the message names the nearest one.
    """
    if family not in GENERATORS:
        raise ValueError(f"generator.family is {family!r}{did_you_mean(family, list(GENERATORS))}")
    return GENERATORS[family]
