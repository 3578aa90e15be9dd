"""A judge's role without weights, to which nothing could be handed on, stops the run."""

from types import SimpleNamespace

import pytest

from generator_loop.refresh.refresh import load_adapter_tensors


def test_a_role_without_weights_stops_the_run() -> None:
    judge = SimpleNamespace(role="generated", judge=SimpleNamespace(role_parameters=lambda _role: []))
    with pytest.raises(RuntimeError, match="role 'generated' of the judge has no weights"):
        load_adapter_tensors(judge, {})
