"""The command: opens a model, compiles it, and answers until it is told to stop."""

import argparse
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from vit_jax import command, config
from vit_jax.command import UserError
from vit_jax.serve.served import Served, open_file, open_run

PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
DRAIN_S = 30  # seconds that requests under way have to end after SIGTERM


def main(argv: Sequence[str]) -> int:
    flags, overrides = _parser().parse(argv)
    for name in ("max_batch", "queue", "max_images", "max_pixels", "max_mb", "threads"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} {getattr(flags, name)} is not positive")
    if flags.wait_ms < 0 or not 0 <= flags.port < 2**16:
        raise UserError(f"--wait_ms {flags.wait_ms} and --port {flags.port}: expected no less than 0, a port to 65535")
    _need_packages()
    if flags.exported and overrides:
        raise UserError("--config.* changes runs and weights; an exported file is as it is: leave it out")
    if not flags.exported:
        config.check_read(overrides, "predict" if flags.workdir else "weights")
    _serve(flags, open_file(flags.exported) if flags.exported else open_run(flags.workdir or flags.weights, overrides))
    return command.DONE


def _serve(flags: argparse.Namespace, served: Served) -> None:
    """Answers requests until SIGTERM or Ctrl-C; those under way are ended first."""
    import uvicorn

    from vit_jax.serve.app import make_app
    from vit_jax.serve.batcher import Batcher
    from vit_jax.serve.uploads import Limits

    batcher = Batcher(served.probabilities, flags.max_batch, flags.wait_ms, flags.queue)
    limits = Limits(flags.max_mb * 2**20, flags.max_pixels, min(flags.max_images, flags.queue))
    print(f"compiling {served.name} for batches of {', '.join(map(str, batcher.sizes()))} images", file=sys.stderr)
    batcher.warm_up(served.preprocessing.shape)
    if served.methods:
        print(f"compiling {', '.join(served.methods)}", file=sys.stderr)
        served.warm_up()
    app = make_app(served, batcher, limits, flags.threads)
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=DRAIN_S, server_header=False)
    server = uvicorn.Server(settings)
    signal.signal(signal.SIGTERM, _end)  # uvicorn raises the signal again once it has stopped
    with _listening(flags.host, flags.port) as listening:
        host, port = listening.getsockname()[:2]
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        server.run([listening])


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"cannot listen at --host {host} --port {port}: {error.strerror}; choose others") from error


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(command.TERMINATED)


def _need_packages() -> None:
    import importlib

    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"serving needs the package {error.name}: pip install 'vit_jax[serve]'") from error


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m vit_jax.serve",
        description="A web page and an HTTP interface that classify images. There is no password: see --host.",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", type=Path, help="a run")
    model.add_argument("--weights", metavar="ADDRESS", help="or published weights: a file, a folder, hf://...")
    model.add_argument("--exported", type=Path, metavar="FILE", help="or what `vit_jax export` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    parser.add_argument("--max_batch", type=int, default=32, help="images computed together (default: 32)")
    parser.add_argument("--wait_ms", type=float, default=3.0, help="time to wait for more of them (default: 3)")
    parser.add_argument("--queue", type=int, default=256, help="images that may wait; more: 429 (default: 256)")
    parser.add_argument("--max_images", type=int, default=64, help="images of a request (default: 64)")
    parser.add_argument("--max_mb", type=int, default=20, help="MiB of a request (default: 20)")
    parser.add_argument("--max_pixels", type=int, default=50_000_000, help="of an image (default: 50,000,000)")
    parser.add_argument("--threads", type=int, default=4, help="that decode images (default: 4)")
    return parser
