"""Training objectives by name; a new one is a file here and a line in `OBJECTIVES`."""

from typing import Any

from generator_loop.objectives.awm import AWM
from generator_loop.objectives.base import ObjectiveConfig
from generator_loop.objectives.crd import CRD
from generator_loop.objectives.dgpo import DGPO
from generator_loop.objectives.diffusion_dpo import DiffusionDPO
from generator_loop.objectives.draft import Draft
from generator_loop.objectives.flow_grpo import FlowGRPO
from generator_loop.objectives.nft import NFT
from generator_loop.objectives.refl import ReFL
from generator_loop.objectives.rwr import RWR

OBJECTIVES: dict[str, Any] = {
    "nft": NFT,
    "dpo": DiffusionDPO,
    "draft": Draft,
    "refl": ReFL,
    "flow_grpo": FlowGRPO,
    "rwr": RWR,
    "awm": AWM,
    "crd": CRD,
    "dgpo": DGPO,
}
"""Name -> class, an `Objective` that is built from its `config_class`."""


def objective_configs() -> dict[str, type[ObjectiveConfig]]:
    """Return the config dataclass of each objective by the objective's name."""
    return {name: objective.config_class for name, objective in OBJECTIVES.items()}
