"""What the server finds of a model on its own images."""

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from fl.codec import ServerLink
from fl.core.console import say
from fl.core.machine import compute_with
from fl.core.records import Score, Scores
from fl.data.images import ImageSet, Rows
from fl.federation.task import ServerTask
from fl.models.net import channels_last
from fl.training.evaluation import evaluate_as_told

BATCH_SIZE = 250


class Evaluator:
    """Scores models on the test and the validation images of one run.

    Attributes:
        network: the one that models are loaded into.
    """

    def __init__(self, task: ServerTask, images: ImageSet, server_link: ServerLink) -> None:
        self._task, self._images, self._server_link = task, images, server_link
        self._device = torch.device(task.device)
        self.network = channels_last(task.start.network().to(self._device)).eval()
        self._told: set[str] = set()

    def scores(self, arrays: ArrayRecord) -> tuple[Scores, str]:
        """Returns the scores of the server's model, and the type they were computed in ("float32", "float16")."""
        compute_with(self._task.compute.threads_per_client)
        split, server_model = self._task.split, self._task.server.server_model
        models = {"exact": arrays}
        broadcast = self._task.codecs.broadcast
        if broadcast is not None and not broadcast.exact and not self._task.clock.by_contacts:
            models["reference"] = self._reference(arrays)
        tested, dtype = {}, ""
        for name, model in models.items():
            tested[name], dtype = self._score(model, split.test)
        chosen = server_model if server_model in models else "exact"
        validation = None
        if len(split.validation):
            validation, dtype = self._score(models[chosen], split.validation)
        return Scores(tested[chosen], validation, **(tested if len(tested) > 1 else {})), dtype

    def chosen(self, arrays: ArrayRecord) -> ArrayRecord:
        """Returns the model that is saved: the server's own, or what clients hold of it, as `server_model` says."""
        return self._reference(arrays) if self._task.server.server_model == "reference" else arrays

    def _reference(self, arrays: ArrayRecord) -> ArrayRecord:
        return ArrayRecord({name: Array(array) for name, array in self._server_link.reference(arrays).items()})

    def _score(self, model: ArrayRecord, positions: np.ndarray) -> tuple[Score, str]:
        self.network.load_state_dict(model.to_torch_state_dict())
        found, dtype = evaluate_as_told(
            self.network,
            Rows(self._images.images, positions),
            self._images.labels[positions],
            batch_size=BATCH_SIZE,
            device=self._device,
            fp16=self._task.compute.inference.fp16,
            tell=self._tell_once,
        )
        return found.score, str(dtype).removeprefix("torch.")

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            say(text, "warning")
