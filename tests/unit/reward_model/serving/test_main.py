"""Options of `video-judge serve` that are refused before a judge is loaded, and what it announces."""

from __future__ import annotations

import argparse
import socket

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from reward_model import cli
from reward_model.serving.server import main


class Loaded(Exception):
    """The options were accepted."""


def serve(*options: object) -> int:
    """Run the command up to the point where it loads the judge."""

    def load(args: argparse.Namespace) -> None:
        raise Loaded

    return cli.main(["serve", *map(str, options)], judge_factory=load)


@pytest.mark.parametrize("port", [-1, 2**16, 2**20])
def test_a_port_out_of_range_is_one_sentence(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(f"--port={port}") == 2
    assert f"port must be in 0..65535, got {port}" in capsys.readouterr().err


def test_any_free_port_and_the_last_one_are_accepted() -> None:
    with pytest.raises(Loaded):
        serve("--port", 0)
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 2**16 - 1))
        except OSError:
            pytest.skip("the last port is taken")
    with pytest.raises(Loaded):
        serve("--port", 2**16 - 1)


@pytest.mark.parametrize(
    ("host", "token", "warned"), [("127.0.0.1", None, False), ("0.0.0.0", None, True), ("0.0.0.0", "secret", False)]
)
def test_an_address_open_to_others_without_a_token_is_warned_of(
    host: str, token: str | None, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    main._announce(argparse.Namespace(host=host, json=False), 8000, token)
    streams = capsys.readouterr()
    assert streams.out == f"serving on http://{host}:8000\n"
    assert ("anyone who can reach this address can use the judge" in streams.err) == warned
