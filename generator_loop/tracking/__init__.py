"""Everything that a training run leaves behind: checkpoints, metric log, report and model card."""
