"""Training objectives by name; each is built from its config dataclass."""

from generator_loop.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from generator_loop.objectives.draft import Draft, DraftConfig
from generator_loop.objectives.flow_grpo import FlowGRPO, FlowGRPOConfig
from generator_loop.objectives.nft import NFT, NFTConfig
from generator_loop.objectives.refl import ReFL, ReFLConfig
from generator_loop.objectives.rwr import RWR, RWRConfig

OBJECTIVES = {"nft": NFT, "dpo": DiffusionDPO, "draft": Draft, "refl": ReFL, "flow_grpo": FlowGRPO, "rwr": RWR}

DIFFERENTIATING = ("draft", "refl")
"""Objectives that need the reward's gradient."""

OBJECTIVE_CONFIGS = {
    "nft": NFTConfig,
    "dpo": DiffusionDPOConfig,
    "draft": DraftConfig,
    "refl": ReFLConfig,
    "flow_grpo": FlowGRPOConfig,
    "rwr": RWRConfig,
}
