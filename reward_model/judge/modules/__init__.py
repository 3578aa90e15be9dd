"""Trained pieces beside the base model: adapters by role, motion projector, score head."""
