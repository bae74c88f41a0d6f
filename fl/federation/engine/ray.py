"""Clients in processes of their own: the Ray backend of Flower's simulation runtime, on one machine or a cluster."""

import importlib.util
import logging
import math
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.core.errors import ConfigError, RunError
from fl.core.machine import available_cores
from fl.federation.engine.local import LocalGrid

if TYPE_CHECKING:
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend


LONGEST_START_S = 120.0
"""For a client's process to start."""


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
        backend = self._start(client_app)
        try:
            yield _Grid(backend, num_clients, states_folder)
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
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            backend = RayBackend({"init_args": start, "client_resources": resources})
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


class _Grid(LocalGrid):
    def __init__(self, backend: Any, num_clients: int, states_folder: Path | None) -> None:
        super().__init__(num_clients, states_folder)
        import ray

        self._app_fn, self._pool = backend.app_fn, backend.pool
        self._busy: set[Any] = set()
        self._stopped = False
        self._free: SimpleQueue[Any] = SimpleQueue()
        ping = {actor.__ray_ready__.remote(): actor for actor in backend.pool.pool}
        started, _ = ray.wait(list(ping), num_returns=len(ping), timeout=LONGEST_START_S)
        for ready in started:
            self._free.put(ping[ready])
        self._alive = len(started)
        if not started:
            raise RunError(f"engine=ray: no client process started within {LONGEST_START_S:g} s; is this Ray busy?")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yields replies as they come; as many clients work at once as there are actors.

        Args:
            messages: to the clients.
            timeout: seconds for all of them; who has not answered then is left alone.
        """
        import ray

        pool = ThreadPoolExecutor(self._alive or 1)
        try:
            with suppress(TimeoutError):  # of the waiting; a client's own is its answer
                for done in as_completed([pool.submit(self._deliver, message) for message in messages], timeout):
                    yield done.result()
        except BaseException:  # the run is stopped
            self._stopped = True
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for actor in list(self._busy):  # when the run is stopped, or time is over; no thread may go on waiting
                ray.kill(actor)
            pool.shutdown()

    def answer(self, message: Message, context: Context) -> tuple[Message, Context]:
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        actor = self._free.get()
        if actor is None:
            self._free.put(None)
            raise RuntimeError("no client process is left on this Ray")
        self._busy.add(actor)
        try:
            work = actor.run.remote(self._app_fn, message, str(context.node_config["partition-id"]), context)
            _, reply, changed = ray.get(work, timeout=self.reply_timeout_s)
        except RayTaskError as error:
            self._free.put(actor)
            raise error.cause from None
        except GetTimeoutError:
            self._replace(actor)
            raise TimeoutError(f"no answer within reply_timeout_s={self.reply_timeout_s:g}") from None
        except RayError:  # its process died; Flower's own pool would hand the next clients to the dead one
            self._replace(actor)
            raise
        finally:
            self._busy.discard(actor)
        self._free.put(actor)
        return reply, changed

    def _replace(self, actor: Any) -> None:
        """Starts another actor for a dead one, beside whatever the others do."""
        import ray

        ray.kill(actor)
        if not self._stopped:
            threading.Thread(target=self._start_another, daemon=True).start()

    def _start_another(self) -> None:
        """Puts a new actor among the free ones, or goes on with one less where it finds no place."""
        import ray

        try:
            new = self._pool.create_actor_fn()
            ray.get(new.__ray_ready__.remote(), timeout=LONGEST_START_S)
            self._free.put(new)
        except Exception:  # Ray's many kinds; or the run has ended meanwhile, and Ray with it
            with suppress(Exception):
                ray.kill(new)
            self._alive -= 1
            if self._alive == 0:
                self._free.put(None)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
