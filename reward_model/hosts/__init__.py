"""The judge in other people's trainers: one file per host, which opens with the lines that plug it in.

Each adapter turns the host's layout, range and frame rate into a call of `VideoJudgeReward` and its answer into what the
host expects. A clip without a score is whatever the host knows for that (None, NaN, a flag); where it knows nothing the
call raises, and a number is never made up. No host is imported, but torchmetrics by its own file.
"""
