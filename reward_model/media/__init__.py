"""Pixels in and out: decoding, which frames, and known damage."""
