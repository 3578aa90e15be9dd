"""The commands of video-judge, one file each; every one has `add_arguments(parser)` and `run(args, judge_factory)`."""
