"""The embedded world of moving shapes: renderer, labels, tracker and oracle."""
