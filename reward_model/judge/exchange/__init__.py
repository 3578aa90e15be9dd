"""Judges to and from stock checkpoints and released models."""
