"""The dry run's count of the memory that training keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from generator_loop.run.estimate import trained_lines


@pytest.mark.parametrize("copies", ["device", "cpu"])
def test_six_sizes_of_the_trained_weights_are_counted(copies: str) -> None:
    trained = {"w": torch.nn.Parameter(torch.empty(125_000_000, 2, device="meta"))}  # 1 GB in 32 bits
    count, kept = trained_lines(trained, SimpleNamespace(train="full", copies=copies))
    assert count.split() == ["trained", "250,000,000", "parameters,", "generator.train=full"]
    assert kept.startswith("kept") and "6.00 GB" in kept
    parts = "weights 1.00, gradients 1.00, moments 2.00, old and reference 2.00"
    assert kept.endswith(parts if copies == "device" else f"{parts} (these in the computer's memory)")
