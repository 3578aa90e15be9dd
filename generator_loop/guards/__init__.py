"""Measurements that watch for reward hacking."""
