"""Settings of every test process: one thread unless asked, no network, no parity test that goes missing in CI."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before torch is imported: two processes with spinning threads lose more than half their speed on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --no-onednn: no environment variable takes oneDNN's kernels out of torch."""
    parser.addoption("--no-onednn", action="store_true", help="compute without oneDNN, in the test process itself")


def pytest_configure(config: pytest.Config) -> None:
    """Take oneDNN out where asked."""
    if config.getoption("--no-onednn"):
        torch.backends.mkldnn.enabled = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Turn a skipped parity test into a failure where CI runs: what was not compared is not known to be right."""
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("parity")
        and os.environ.get("CI")
    ):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: a parity test may not be skipped in CI ({report.longrepr})"
    return report
