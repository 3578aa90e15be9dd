"""Training objectives by name; each is built from its config dataclass."""

from generator_loop.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from generator_loop.objectives.draft import Draft, DraftConfig
from generator_loop.objectives.flow_grpo import FlowGRPO, FlowGRPOConfig
from generator_loop.objectives.nft import NFT, NFTConfig

OBJECTIVES = {"nft": NFT, "dpo": DiffusionDPO, "draft": Draft, "flow_grpo": FlowGRPO}

OBJECTIVE_CONFIGS = {"nft": NFTConfig, "dpo": DiffusionDPOConfig, "draft": DraftConfig, "flow_grpo": FlowGRPOConfig}
