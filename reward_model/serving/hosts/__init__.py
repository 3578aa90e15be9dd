"""The former home of `reward_model.hosts`; its modules still load from here, with a warning, for one release."""

import warnings
from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "hosts")]

warnings.warn(
    "reward_model.serving.hosts has moved to reward_model.hosts; the old path goes away in the next release",
    DeprecationWarning,
    stacklevel=2,
)
