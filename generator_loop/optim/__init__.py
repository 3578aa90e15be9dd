"""The optimiser step and moving averages of weights."""
