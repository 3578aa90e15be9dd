"""Sampling: prompts, and groups of clips from the generator."""
