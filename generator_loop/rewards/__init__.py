"""Clips in, rewards and advantages out."""
