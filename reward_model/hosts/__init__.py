"""Adapters that plug the judge into other people's trainers: one file per host, which opens with the lines to copy.

Each adapter converts the host's layout, range and frame rate into a call of `VideoJudgeReward`, and the result into the
form that the host expects. A missing score is reported in the host's own way (None, NaN, a flag); where the host has
none, the call raises. No score is ever made up. Only torchmetrics.py imports its host.
"""
