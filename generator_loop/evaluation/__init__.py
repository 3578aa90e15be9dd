"""Held-out prompts measured before, during and after training."""
