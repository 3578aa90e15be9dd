"""`video-judge serve`: options, token, socket and signals of the server; the rest is loaded once they are understood."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_model.serving.server.settings import ServerSettings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

EXTRA = ("fastapi", "uvicorn")
LOCAL = ("127.0.0.1", "::1", "localhost")

DESCRIPTION = "Score, compare and explain videos over HTTP."
EXAMPLES = """examples:
  video-judge serve --judge FOLDER --device cuda --batch-size 16
  video-judge serve --host 0.0.0.0 --token-file token.txt
  video-judge serve --port 0 --json                          a free port, told as {"url": ...}

Routes: POST /score, /compare, /explain; GET /health, /metrics (Prometheus) and /docs (OpenAPI). In Python,
`reward_model.serving.client.VideoJudgeClient(url)` has the calls of a local judge. Comparisons are made in the role
"comparator" where the judge has it, all else in the role of --role. On a network that is not yours, put a proxy with
TLS in front: idle connections are not limited here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the server's options to those of all commands."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default: 8000)")
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token that clients must send")
    for option in fields(ServerSettings):
        if option.metadata:
            name = f"--{option.name.replace('_', '-')}"
            meaning = f"{option.metadata['help']} (default: {option.default})"
            parser.add_argument(name, type=type(option.default), default=option.default, help=meaning)


def run(args: argparse.Namespace, judge_factory: Callable[[argparse.Namespace], Any]) -> int:
    """Serve until SIGTERM or SIGINT, then finish what was accepted.

    Args:
        args: parsed options, those of all commands included.
        judge_factory: makes the judge from them.

    Returns:
        Exit status 0.

    Raises:
        ValueError: a wrong option or token file, or the extra is not installed.
        OSError: the address cannot be listened on.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"serve needs {' and '.join(missing)}: pip install 'video-judge[serve]'")
    settings = ServerSettings(**{option.name: getattr(args, option.name) for option in fields(ServerSettings)})
    if not 0 <= args.port < 2**16:
        raise ValueError(f"port must be in 0..65535, got {args.port}")
    token = None if args.token_file is None else read_token(Path(args.token_file))
    listener = socket.create_server((args.host, args.port), family=_family(args.host), backlog=256)
    from reward_model.serving.server.app import create_app
    from reward_model.serving.server.judge import ServedJudge

    judge = ServedJudge(judge_factory(args), settings)
    server = make_server(create_app(judge, settings, token=token), settings)
    _announce(args, listener.getsockname()[1], token)
    _serve(server, listener)
    return 0


def make_server(app: FastAPI, settings: ServerSettings) -> uvicorn.Server:
    """Return the server of an application; on its end it waits for what it has accepted."""
    import uvicorn

    grace = math.ceil(settings.body_seconds + settings.request_seconds) + 1
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
    )
    return uvicorn.Server(config)


def read_token(path: Path) -> str:
    """Return the token of a file.

    Args:
        path: text file with the token alone; space around it does not count.

    Returns:
        The token.

    Raises:
        ValueError: an empty token, or characters that a header cannot hold.
    """
    token = path.read_text(encoding="utf-8").strip()
    if not token or not token.isascii() or any(letter.isspace() for letter in token):
        raise ValueError(f"{path}: expected a token of ASCII characters without spaces")
    return token


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run to the end; a signal that comes before uvicorn listens for it, or that it passes on afterwards, is its too."""
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _announce(args: argparse.Namespace, port: int, token: str | None) -> None:
    url = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{port}"
    sys.stdout.write(f"{json.dumps({'url': url}) if args.json else f'serving on {url}'}\n")
    sys.stdout.flush()
    if token is None and args.host not in LOCAL:
        sys.stderr.write("warning: everybody who reaches this address may use the judge; see --token-file\n")
