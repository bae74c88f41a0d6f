"""The default engine: clients run in this process, one after another."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from pydantic.dataclasses import dataclass

from fl.federation.engine.local import LocalGrid


@dataclass(frozen=True)
class InProcess:
    """No processes, no start-up, no settings."""

    @property
    def reaches_gpu(self) -> bool:
        """Whether a client may use a GPU of this machine."""
        return True

    @property
    def abandons_clients(self) -> bool:
        """Whether it can go on without a client that does not answer."""
        return False

    @contextmanager
    def open(self, client_app: ClientApp, num_clients: int, states_folder: Path | None = None) -> Iterator[LocalGrid]:
        """Yields a grid over `num_clients` clients that run `client_app`; see `LocalGrid`."""
        yield _Grid(client_app, num_clients, states_folder)


class _Grid(LocalGrid):
    def __init__(self, client_app: ClientApp, num_clients: int, states_folder: Path | None) -> None:
        super().__init__(num_clients, states_folder)
        self._client_app = client_app

    def answer(self, message: Message, context: Context) -> tuple[Message, Context]:
        return self._client_app(message, context), context
