"""Loads models and runs their server until it is interrupted."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

import torch
import uvicorn

from framework.evaluation.predict import Predictor
from framework.run.model_card import read_model_card, training_data
from framework.runtime.console import print0
from framework.runtime.errors import UserError
from framework.serve.app import ABOUT, ServedModel, build_app

SHUTDOWN_S = 5  # for open requests


def load_served(runs: Sequence[Path], num_beams: int | None) -> list[ServedModel]:
    """The models of runs, or of exported models.

    Raises:
        UserError: there is no model, or two have one name.
    """
    names = [f"{run.resolve().parent.name}/{run.resolve().name}" for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError("duplicate-name", "two runs have this name", place=twice, hint="Serve one of them.")
    models = []
    for name, run in zip(names, runs):
        card = read_model_card(run if (run / "model.safetensors").is_file() else run / "model")
        models.append(ServedModel(name, Predictor(run, num_beams), training_data(card), card))
        print0(f"loaded {name}")
    return models


def serve_runs(runs: Sequence[Path], host: str, port: int, limit: int, num_beams: int | None) -> None:
    """Serves the models until Ctrl-C.

    Raises:
        UserError: a model cannot be loaded, or the address is in use.
    """
    listening = _listen(host, port)
    with listening:
        app = build_app(load_served(runs, num_beams), frozenset({host.lower()}), limit)
        number = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        if not _is_loopback(host):
            print0(f"warning: everyone who reaches {host} can use the models; there is no password and no encryption")
        print0(f"{ABOUT}\nopen    http://{shown}:{number}\nschema  http://{shown}:{number}/openapi.json")
        torch.set_grad_enabled(False)
        config = uvicorn.Config(app, server_header=False, timeout_graceful_shutdown=SHUTDOWN_S, log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """The socket, before models are loaded: an address in use shows at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        hint = "Choose another --port, or 0 for a free one."
        raise UserError("in-use", f"cannot listen ({error.strerror})", place=f"{host}:{port}", hint=hint) from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
