"""What a run leaves behind: checkpoints, the metric log and the report."""
