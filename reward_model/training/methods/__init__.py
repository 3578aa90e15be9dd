"""Losses that train a judge: supervised, GRPO, and the refresh inside the loop."""
