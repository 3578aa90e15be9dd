"""The judge learns from the generator's newest clips: pair sources, anchors, acceptance."""
