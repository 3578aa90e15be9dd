"""Generator families by name; a further one needs its file here and its name in `config.GeneratorConfig.family`."""

from generator_loop.adapters.cogvideox import CogVideoXGenerator
from generator_loop.adapters.hunyuan_video import HunyuanVideoGenerator
from generator_loop.adapters.ltx import LTXGenerator
from generator_loop.adapters.mochi import MochiGenerator
from generator_loop.adapters.wan import WanGenerator

GENERATORS = {
    "wan": WanGenerator,
    "ltx": LTXGenerator,
    "cogvideox": CogVideoXGenerator,
    "hunyuan_video": HunyuanVideoGenerator,
    "mochi": MochiGenerator,
}
