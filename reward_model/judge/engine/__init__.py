"""From requests to logits: packing, shared prefixes, vision features, decoding, readouts."""
