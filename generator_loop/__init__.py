"""The generator loop: a text-to-video generator learns from the judge, and the judge from the generator."""
