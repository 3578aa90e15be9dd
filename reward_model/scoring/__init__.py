"""Everything that `VideoJudgeReward` delegates to: score, compare, rank, explain, loss."""
