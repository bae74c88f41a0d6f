"""Clients in processes of their own: the Ray backend of Flower's simulation runtime, on one machine or a cluster."""

import importlib.util
import logging
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.engine.local import LocalGrid
from fl.environment import available_cores
from fl.errors import ConfigError, RunError

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
            raise ConfigError("engine=ray: Ray is not installed; install it with: pip install -e '.[ray]'")

    @property
    def reaches_gpu(self) -> bool:
        """Whether a client may use a GPU of this machine."""
        return self.client_gpus > 0

    @contextmanager
    def open(self, client_app: ClientApp, num_clients: int) -> Iterator[LocalGrid]:
        """Yields a grid over `num_clients` clients that run `client_app`; Ray is shut down afterwards.

        Raises:
            RunError: Ray does not start, or no client fits on it.
        """
        backend = self._start(client_app)
        try:
            yield _Grid(backend, num_clients)
        finally:
            backend.terminate()

    def _start(self, client_app: ClientApp) -> "RayBackend":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by default, without warning
        for noisy in ("flwr", "alembic"):  # what they tell reaches the run as a client's failure
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

        start: dict[str, Any] = {"address": self.address, "logging_level": "ERROR", "log_to_driver": False}
        if self.address is None:  # a Ray of our own, whatever else runs here, on the cores this process may use
            start |= {"address": "local", "num_cpus": max(available_cores(), math.ceil(self.client_cpus))}
        resources: dict[str, Any] = {"num_cpus": self.client_cpus, "num_gpus": self.client_gpus}
        try:
            backend = RayBackend({"init_args": start, "client_resources": resources})
        except Exception as error:  # Ray raises many kinds
            raise RunError(f"engine.address={self.address}: Ray does not start ({_first_line(error)})") from error
        try:
            backend.build(lambda: client_app)
        except Exception as error:
            backend.terminate()
            wanted = f"engine.client_cpus={self.client_cpus:g} engine.client_gpus={self.client_gpus:g}"
            raise RunError(f"{wanted}: no client fits on this Ray ({_first_line(error)})") from error
        return backend


class _Grid(LocalGrid):
    def __init__(self, backend: "RayBackend", num_clients: int) -> None:
        super().__init__(num_clients)
        self._backend = backend

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yields replies as they come; as many clients work at once as there are actors."""
        pool = ThreadPoolExecutor(self._backend.num_workers)
        try:
            for done in as_completed([pool.submit(self._deliver, message) for message in messages]):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def answer(self, message: Message, context: Context) -> tuple[Message, Context]:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        pool: Any = self._backend.pool
        actor = pool.pool.pop()  # one is free: there are as many threads as actors
        try:
            work = actor.run.remote(self._backend.app_fn, message, str(context.node_config["partition-id"]), context)
            _, reply, changed = ray.get(work)
            return reply, changed
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError:  # its process died; Flower's own pool would hand the next clients to the dead one
            actor = pool.create_actor_fn()
            raise
        finally:
            pool.pool.append(actor)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
