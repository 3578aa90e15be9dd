"""Training objectives by name; each is built from its config dataclass."""

from generator_loop.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from generator_loop.objectives.draft import Draft, DraftConfig
from generator_loop.objectives.nft import NFT, NFTConfig

OBJECTIVES = {"nft": NFT, "dpo": DiffusionDPO, "draft": Draft}

OBJECTIVE_CONFIGS = {"nft": NFTConfig, "dpo": DiffusionDPOConfig, "draft": DraftConfig}
