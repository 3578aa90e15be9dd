"""The mathematics of flow matching: the path between noise and data, and random sampling steps."""
