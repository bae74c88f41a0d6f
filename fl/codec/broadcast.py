"""The broadcast: one chain of frames for all clients, which leads everyone to the same reference."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from fl.codec.base import Codec
from fl.codec.changes import applied, difference, without_rounding
from fl.codec.payload import NO_STATE, Tensors, base_of, specs_of
from fl.codec.tensors import fingerprint
from fl.codec.uniform import Raw
from fl.core.errors import PayloadError
from fl.core.seeds import numpy_generator

NOTHING = b""
"""The fingerprint of who holds no model."""


class Once:
    """What is made of the newest model for several clients alike: made once, and held once.

    With another model all of it is forgotten.
    """

    def __init__(self) -> None:
        self._model, self._made = NOTHING, dict[Hashable, Any]()

    def __call__(self, model: bytes, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns what `make` does, or what it did for the same model, by its fingerprint, and the same key."""
        if model != self._model:
            self._model, self._made = model, {}
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class BroadcastChain:
    """The server's side: it holds the exact model and the reference that all clients hold.

    A frame codes the exact model minus the reference; both sides add the decoded difference to the reference. Nothing
    has to be remembered beside the reference: if the exact model moves on from where it was, what a frame lost is in
    the next difference (EF21-P, arXiv 2209.15218), and if it moves on from the reference, it is given up.

    Args:
        codec: of the frames.
        start: the reference before the first frame, known to all clients; None when the first model is sent whole.
        seed: of random rounding and rotation.
        once: shared by chains of single clients; those that hold the same get the same frame, coded once.
    """

    def __init__(self, codec: Codec, start: Tensors | None, seed: int, once: Once | None = None) -> None:
        self._codec, self._seed, self._once = codec, seed, once
        self._reference = dict(start) if start is not None else {}
        self._frames: list[bytes] = []
        self._ids = [fingerprint(start) if start is not None else NOTHING]  # before each frame, and after the last
        self._coded = self._ids[0]  # fingerprint of the exact model that the last frame was made from
        self._snapshot: bytes | None = None
        self._count = 0

    def advance(self, exact: Tensors) -> dict[str, np.ndarray]:
        """Returns the new reference, after adding a frame if `exact` is a new model."""
        if not self._reference:
            self._reference = {name: array.copy() for name, array in exact.items()}
            self._ids = [fingerprint(self._reference)]
            self._coded = self._ids[0]
            return self._reference
        if specs_of(exact) != specs_of(self._reference):
            raise PayloadError("the model has other names, shapes or types than the one clients were to begin with")
        if (new := fingerprint(exact)) != self._coded:
            make = partial(self._frame, exact)
            alike = (self._ids[-1], self._count)
            frame, self._reference, after = make() if self._once is None else self._once(new, alike, make)
            self._frames.append(frame)
            self._ids.append(after)
            self._coded, self._snapshot, self._count = new, None, self._count + 1
            self._forget()
        return self._reference

    def _frame(self, exact: Tensors) -> tuple[bytes, dict[str, np.ndarray], bytes]:
        """Returns the frame to a new model, the reference that it leads to, and that one's fingerprint."""
        rng = numpy_generator(self._seed, "broadcast", self._count)
        change = without_rounding(self._codec, difference(self._codec, exact, self._reference), self._reference)
        frame = self._codec.in_round(self._count + 1).encode(change, rng, base=self._ids[-1])
        reference = applied(self._codec, frame, self._reference)
        return frame, reference, fingerprint(reference)

    def begins_with(self, exact: Tensors) -> bool:
        """Tells whether a first model is the one that all clients were to begin with, or there is none.

        The frame to another one would be a difference as large as the model itself.
        """
        known = bool(self._reference) and specs_of(exact) == specs_of(self._reference)
        return not known or fingerprint(exact) == self._coded

    def _forget(self) -> None:
        """Drops frames so old that whoever misses them is better off with the whole model."""
        size = sum(array.nbytes for array in self._reference.values())
        while sum(map(len, self._frames)) > size and len(self._frames) > 1:
            del self._frames[0], self._ids[0]

    def forget_before(self, held: bytes) -> None:
        """Drops the frames that lead to what the only client holds."""
        if held in self._ids:
            place = self._ids.index(held)
            del self._frames[:place], self._ids[:place]

    def payloads_for(self, held: bytes) -> list[bytes] | None:
        """Returns what leads a client to the reference: the frames it missed, or the whole model when that is shorter.

        Args:
            held: fingerprint of what the client holds; None is returned for `NOTHING`, for who knows no tensors
                cannot decode any.
        """
        if held == NOTHING:
            return None
        missed = self._frames[self._ids.index(held) :] if held in self._ids else None
        if missed is not None and len(missed) < 2:
            return missed
        if self._snapshot is None:
            values = Raw().differences(self._reference, self._reference)  # constants that are not finite stay out
            self._snapshot = Raw().encode(values, np.random.default_rng(0))
        if missed is not None and sum(map(len, missed)) < len(self._snapshot):
            return missed
        return [self._snapshot]

    def state(self) -> dict[str, Any]:
        """Returns all of it as what torch saves and loads with `weights_only=True`."""
        return {
            "reference": {name: torch.from_numpy(array) for name, array in self._reference.items()},
            "frames": [torch.frombuffer(bytearray(frame), dtype=torch.uint8) for frame in self._frames],
            "ids": [each.hex() for each in self._ids],
            "coded": self._coded.hex(),
            "count": self._count,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self._reference = {name: tensor.numpy() for name, tensor in state["reference"].items()}
        self._frames = [tensor.numpy().tobytes() for tensor in state["frames"]]
        self._ids = [bytes.fromhex(each) for each in state["ids"]]
        self._coded, self._count, self._snapshot = bytes.fromhex(state["coded"]), int(state["count"]), None
        if len(self._ids) != len(self._frames) + 1 or self._count < 0:
            raise ValueError("frames without their fingerprints")


def follow(codec: Codec, held: Tensors | None, payloads: Sequence[bytes]) -> dict[str, np.ndarray] | None:
    """Returns the reference as a client that holds `held` comes to it, None if it lacks what the payloads start from.

    Raises:
        PayloadError: a payload is damaged, or of another codec.
    """
    if held is None:
        return None
    reference, specs = dict(held), specs_of(held)
    current = fingerprint(reference)
    bases = [base_of(payload) for payload in payloads]
    if current in bases:  # a client whose last answer was lost has some of the frames already
        payloads = payloads[bases.index(current) :]
    for payload in payloads:
        base = base_of(payload)
        if base == NO_STATE:
            reference = Raw().applied(reference, Raw().decode(payload, specs))
        elif base == current:
            reference = applied(codec, payload, reference)
        else:
            return None
        current = fingerprint(reference)
    return reference
