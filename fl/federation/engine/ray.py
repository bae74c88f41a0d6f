"""Clients in processes of their own: the Ray backend of Flower's simulation runtime, on one machine or a cluster."""

import importlib.util
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from flwr.clientapp import ClientApp
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.core.console import progress
from fl.core.cores import available_cores
from fl.core.errors import ConfigError, RunError
from fl.federation.engine.local import LocalGrid

if TYPE_CHECKING:
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend


@dataclass(frozen=True)
class Ray:
    """As many clients at once as resources allow; each message carries the client app, so that must hold settings only.

    Args:
        client_cpus: cores reserved for each client.
        client_gpus: share of a GPU reserved for each client; 0: clients see no GPU.
        address: of a running Ray cluster, `auto` for the one this machine belongs to; None starts one for this run.
    """

    client_cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    client_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "engine=ray: Ray is not installed; install it with: pip install -c constraints.txt -e '.[ray]'"
            )

    @property
    def reaches_gpu(self) -> bool:
        """Whether a client may use a GPU of this machine."""
        return self.client_gpus > 0

    @property
    def abandons_clients(self) -> bool:
        """Whether it can go on without a client that does not answer: its process is killed, and another started."""
        return True

    @contextmanager
    def open(self, client_app: ClientApp, num_clients: int, states_folder: Path | None = None) -> Iterator[LocalGrid]:
        """Yields a grid over `num_clients` clients that run `client_app`; Ray is shut down afterwards. See `LocalGrid`.

        Raises:
            RunError: Ray does not start, or no client fits on it.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by default, without warning
        for noisy in ("flwr", "alembic"):  # what they tell reaches the run as a client's failure
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        from fl.federation.engine.actors import Actors, RayBackend

        with progress("starting Ray"):
            backend = self._start(RayBackend, client_app)
        try:
            with progress("starting clients' processes"):
                grid = Actors(backend, num_clients, states_folder)
            try:
                yield grid
            finally:
                grid.close()
        finally:
            backend.terminate()

    def _start(self, make: "type[RayBackend]", client_app: ClientApp) -> "RayBackend":
        start: dict[str, Any] = {"address": self.address, "logging_level": "ERROR", "log_to_driver": False}
        if self.address is None:  # a Ray of our own, whatever else runs here, on the cores this process may use
            start |= {"address": "local", "num_cpus": max(available_cores(), math.ceil(self.client_cpus))}
        resources: dict[str, Any] = {"num_cpus": self.client_cpus, "num_gpus": self.client_gpus}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            backend = make({"init_args": start, "client_resources": resources})
        except Exception as error:  # Ray raises many kinds
            raise RunError(f"engine.address={self.address}: Ray does not start ({_first_line(error)})") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints a stack trace and aborts
        try:
            backend.build(lambda: client_app)
        except Exception as error:
            backend.terminate()
            wanted = f"engine.client_cpus={self.client_cpus:g} engine.client_gpus={self.client_gpus:g}"
            raise RunError(f"{wanted}: no client fits on this Ray ({_first_line(error)})") from error
        return backend


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
