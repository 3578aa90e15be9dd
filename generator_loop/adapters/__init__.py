"""Generator families by name."""

from generator_loop.adapters.cogvideox import CogVideoXGenerator
from generator_loop.adapters.hunyuan_video import HunyuanVideoGenerator
from generator_loop.adapters.ltx import LTXGenerator
from generator_loop.adapters.wan import WanGenerator

GENERATORS = {
    "wan": WanGenerator,
    "ltx": LTXGenerator,
    "cogvideox": CogVideoXGenerator,
    "hunyuan_video": HunyuanVideoGenerator,
}
