"""A grid over Ray's actors; to be imported only where Ray is installed."""

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from fl.core.errors import RunError
from fl.federation.engine.local import LocalGrid

__all__ = ["Actors", "RayBackend"]

LONGEST_START_S = 120.0
"""For a client's process to start."""

ASK_AGAIN_S = 0.2
"""How long a thread stays in Ray before it looks whether the run has ended."""


class Actors(LocalGrid):
    """Clients in the actors of a backend of Flower's; one that dies or hangs is replaced."""

    def __init__(self, backend: Any, num_clients: int, states_folder: Path | None) -> None:
        super().__init__(num_clients, states_folder)
        self._app_fn, self._pool = backend.app_fn, backend.pool
        self._busy: set[Any] = set()
        self._stopped = False
        self._starting: list[threading.Thread] = []
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

    def close(self) -> None:
        """Ends the threads that start processes: one that is in Ray while that shuts down ends the whole process."""
        self._stopped = True
        for each in self._starting:
            each.join()

    def answer(self, message: Message, context: Context) -> tuple[Message, Context]:
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
        ray.kill(actor)
        if not self._stopped:
            self._starting.append(threading.Thread(target=self._start_another, daemon=True))
            self._starting[-1].start()

    def _start_another(self) -> None:
        """Puts a new actor among the free ones, or goes on with one less where it finds no place."""
        try:
            new = self._pool.create_actor_fn()
            ready, late = new.__ray_ready__.remote(), time.monotonic() + LONGEST_START_S
            while not ray.wait([ready], timeout=ASK_AGAIN_S)[0]:
                if self._stopped or time.monotonic() > late:
                    raise TimeoutError
            ray.get(ready)
            self._free.put(new)
        except Exception:  # Ray's many kinds; or the run has ended meanwhile
            with suppress(Exception):
                ray.kill(new)
            self._alive -= 1
            if self._alive == 0:
                self._free.put(None)
