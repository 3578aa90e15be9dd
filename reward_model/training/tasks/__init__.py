"""Examples and the training text or rollout prompt made of each."""
