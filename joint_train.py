"""Train a text-to-video generator and its judge by turns.

    accelerate launch joint_train.py CONFIG.yaml [section.key=value ...] [resume=OUTPUT] [--dry-run]

Several processes on a CPU: torchrun --standalone --nproc_per_node 2 joint_train.py CONFIG.yaml
"""

import sys

from generator_loop.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
