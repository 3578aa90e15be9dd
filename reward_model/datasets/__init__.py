"""Rated clips: the embedded world of moving shapes and the oracle that measures it."""
