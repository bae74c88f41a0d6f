"""Entry of `flwr run .`: server and clients as configured by Hydra overrides in one run-config string.

    flwr run . --stream --federation-config 'num-supernodes=4' --run-config 'overrides="num_clients=4 num_rounds=3"'

Flower runs apps in a folder of its own, so paths among the overrides must be absolute; `hydra.run.dir` names the run
folder, `~/quantfl-outputs/DATE/TIME` otherwise. With `resume=true` among the overrides it is the folder of a run that
was begun with the same ones, and that goes on.
"""

import shlex
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl.core.console import say
from fl.core.errors import ConfigError, QuantflError, silence_s
from fl.core.output import speak_as_typed
from fl.core.run_folder import SETTINGS, is_complete
from fl.core.steps import heartbeat
from fl.experiment.composing import composed, new_folder, typed_targets
from fl.experiment.run import client_app, run

RUN_DIR, RESUME = "hydra.run.dir=", "resume=true"


def overrides_in(text: str) -> list[str]:
    """Returns the Hydra overrides in a string, split as a shell would.

    Raises:
        ConfigError: an open quote.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"overrides={text}: {error}") from error


def configured(overrides: list[str]) -> dict[str, Any]:
    """Returns the configuration as plain data.

    Raises:
        ConfigError: an override that cannot be honoured, or a path that is not absolute.
    """
    config = composed([each for each in overrides if not each.startswith(RUN_DIR) and each != RESUME])
    for name in ("path", "cache_dir", "split_files"):
        _check_absolute(f"data.{name}", config["data"].get(name))
    _check_absolute("model.weights", config["model"].get("weights"))
    return config


def _check_absolute(name: str, path: str | None) -> None:
    if path and not Path(path).expanduser().is_absolute():
        raise ConfigError(f"{name}={path}: must be an absolute path, for Flower runs apps in a folder of its own")


def _run_dir(overrides: list[str]) -> Path:
    """Makes and returns the run folder."""
    default = f"~/quantfl-outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}"
    wanted = next((each.removeprefix(RUN_DIR) for each in overrides if each.startswith(RUN_DIR)), default)
    _check_absolute(RUN_DIR.rstrip("="), wanted)
    folder = Path(wanted).expanduser()
    if RESUME not in overrides:
        return Path(new_folder(str(folder)))
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"{RUN_DIR}{wanted}: {RESUME} needs the folder of a run, and this one has no {SETTINGS}")
    return folder


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Runs all rounds over Flower's nodes; there must be `num_clients` of them."""
    try:
        overrides = overrides_in(str(context.run_config.get("overrides", "")))
        speak_as_typed(overrides)
        config = configured(overrides)
        run_dir = _run_dir(overrides)
        say(f"Run folder: {run_dir}", event="result")
        if RESUME in overrides and is_complete(run_dir):
            say(f"{run_dir}: is finished, nothing is left to do", event="result")
            return
        with heartbeat(silence_s()):
            run(config, run_dir, trusted=typed_targets(overrides), resume=RESUME in overrides, grid=grid)
    except QuantflError as error:
        say(f"error: {error}", level="error", event="error")  # Flower prints a traceback; this is the line to read
        raise


@lru_cache(maxsize=2)
def _clients(text: str) -> ClientApp:
    overrides = overrides_in(text)
    return client_app(configured(overrides), typed_targets(overrides))


class _Clients(ClientApp):
    """The clients that the run config of each message's context describes."""

    def __call__(self, message: Message, context: Context) -> Message:
        return _clients(str(context.run_config.get("overrides", "")))(message, context)


client = _Clients()
