"""Commands of video-judge, one file each, with `add_arguments(parser)` and `run(args, judge_factory)`."""
