"""Makes the embedded generator from nothing: autoencoder, pipeline, flow matching."""

from generator_loop.pretrain.flow import pretrain_generator
from generator_loop.pretrain.pipeline import MAX_TOKENS, build_toy_wan, fingerprints, save_toy_wan
from generator_loop.pretrain.vae import round_trip, train_vae, wait_for_vae

__all__ = [
    "MAX_TOKENS",
    "build_toy_wan",
    "fingerprints",
    "pretrain_generator",
    "round_trip",
    "save_toy_wan",
    "train_vae",
    "wait_for_vae",
]
