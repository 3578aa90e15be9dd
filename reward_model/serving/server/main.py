"""`video-judge serve`: options, token, socket and signals of the server; heavy imports follow once these are checked."""

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

from reward_model.serving.server.config import ServerConfig

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

EXTRA = ("fastapi", "uvicorn", "python_multipart")
LOCAL = ("127.0.0.1", "::1", "localhost")

DESCRIPTION = "Score, compare and explain videos over HTTP."
EXAMPLES = """examples:
  video-judge serve --judge FOLDER --device cuda --batch-size 16
  video-judge serve --host 0.0.0.0 --token-file token.txt
  video-judge serve --port 0 --json                          a free port, printed as {"url": ...}
  video-judge serve --port 8100 --fastvideo                  the reward service of FastVideo's PromptRL

Routes: POST /score, /compare, /explain; GET /health, /metrics (Prometheus) and /docs (OpenAPI). In Python,
`reward_model.serving.client.VideoJudgeClient(url)` has the calls of a local judge. Comparisons use the role "comparator"
if the judge has it; everything else uses the role given by --role. On an untrusted network, put a proxy with TLS in
front."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server to those of all commands."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default: 8000)")
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token that clients must send")
    parser.add_argument(
        "--fastvideo",
        action="store_true",
        help="also answer FastVideo's PromptRL trainer, at /v1/rewards:score and /healthz; it sends no token",
    )
    for option in fields(ServerConfig):
        if option.metadata:
            name = f"--{option.name.replace('_', '-')}"
            meaning = f"{option.metadata['help']} (default: {option.default})"
            parser.add_argument(name, type=type(option.default), default=option.default, help=meaning)


def run(args: argparse.Namespace, judge_factory: Callable[[argparse.Namespace], Any]) -> int:
    """Serve until SIGTERM or SIGINT, then answer the accepted requests.

    Args:
        args: parsed options, including those of all commands.
        judge_factory: makes the judge from the options.

    Returns:
        Exit status 0.

    Raises:
        ValueError: an option or the token file is wrong, or the extra is not installed.
        OSError: the address is in use or not available.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"serve needs {' and '.join(missing)}: pip install 'video-judge[serve]'")
    config = ServerConfig(**{option.name: getattr(args, option.name) for option in fields(ServerConfig)})
    if not 0 <= args.port < 2**16:
        raise ValueError(f"port must be in 0..65535, got {args.port}")
    token = None if args.token_file is None else read_token(Path(args.token_file))
    if args.fastvideo and token is not None:
        raise ValueError("--fastvideo and --token-file exclude each other: FastVideo's client sends no token")
    listener = socket.create_server((args.host, args.port), family=_family(args.host), backlog=256)
    from reward_model.serving.server.app import create_app
    from reward_model.serving.server.judge import JudgeService

    judge = JudgeService(judge_factory(args), config)
    server = make_server(create_app(judge, config, token=token, fastvideo=args.fastvideo), config)
    _announce(args, listener.getsockname()[1], token)
    _serve(server, listener)
    return 0


def make_server(app: FastAPI, config: ServerConfig) -> uvicorn.Server:
    """Return the server of an application; on shutdown it drains accepted requests."""
    import uvicorn

    from reward_model.serving.server.connections import limited_connections

    grace = math.ceil(config.body_seconds + config.request_seconds) + 1
    options = uvicorn.Config(
        app,
        http=limited_connections(config),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
    )
    return uvicorn.Server(options)


def read_token(path: Path) -> str:
    """Return the token of a file.

    Args:
        path: text file that holds the token alone; surrounding white space is ignored.

    Returns:
        The token.

    Raises:
        ValueError: the token is empty or has characters that a header cannot hold.
    """
    token = path.read_text(encoding="utf-8").strip()
    if not token or not token.isascii() or any(letter.isspace() for letter in token):
        raise ValueError(f"{path}: expected a token of ASCII characters without spaces")
    return token


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run the server to its end; it also handles signals from before uvicorn listens and those that uvicorn re-raises."""
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
        sys.stderr.write("warning: anyone who can reach this address can use the judge; see --token-file\n")
