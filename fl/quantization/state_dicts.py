"""State dicts of a network as others save them: within checkpoints, under longer names, in other types."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fl.core.errors import ModelFileError
from fl.models.architecture import Architecture

SHOWN = 3
"""How many wrong keys or shapes an error names."""

WRAPPERS = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into names."""

COUNTER = "num_batches_tracked"

STATISTICS = ("running_mean", "running_var")

CAST = (torch.float16, torch.bfloat16, torch.float64)
"""What weights are taken in besides float32."""

AVERAGED = "n_averaged"
"""torch's `AveragedModel` counts its models beside them."""

OPTIMIZER = re.compile(r"(?i)(^|[_.])optim(izer)?s?(_|$)")
"""In the name of an entry: what an optimizer remembers, which may be sorted by the names of the network."""

DEPTH = 3
"""How many dicts deep a state dict is looked for."""


def find(content: Any, known: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Returns the one state dict in a file's content, and the entry that holds it ("" for the content itself).

    Args:
        content: of the file.
        known: names in the network's state dict, in order.

    Raises:
        ModelFileError: there is none, or more than one; without the path.
    """
    states = _dicts_of_tensors(content, (), set())
    ours = [(path, state) for path, state in states if set(known) & renamed(state, known)[0].keys()]
    if len(ours) > 1:
        places = " and ".join(repr(".".join(path)) if path else "the file itself" for path, _ in ours)
        raise ModelFileError(f"{places} hold state dicts of this network; save the one that is meant")
    if not ours:
        held = f"a {type(content).__name__}"
        if isinstance(content, dict):
            held = ", ".join(str(name) for name in list(content)[:SHOWN]) or "nothing"
        first, *_, last = known
        raise ModelFileError(f"holds no state dict of this network; it has {held}, not {first}, ..., {last}")
    ((path, state),) = ours
    return plain(state), ".".join(path)


def _dicts_of_tensors(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the dicts that hold tensors, but those of optimizers, which may be sorted by the same names."""
    if not isinstance(value, dict) or id(value) in seen or len(path) > DEPTH or OPTIMIZER.search("".join(path[-1:])):
        return
    seen.add(id(value))  # it may hold itself
    if any(isinstance(each, Tensor) for each in value.values()):
        yield path, value
    for name, each in value.items():
        several = dict(enumerate(each)) if isinstance(each, list | tuple) else {None: each}
        for place, one in several.items():
            yield from _dicts_of_tensors(one, (*path, str(name) if place is None else f"{name}.{place}"), seen)


def plain(state: Any) -> dict[str, Tensor]:
    """Returns a state dict if it is one of tensors on the CPU that take no more memory than they bring.

    Raises:
        ModelFileError: names what is something else; without the path.
    """
    if not isinstance(state, dict) or not state:
        raise ModelFileError("holds no state dict")
    state = {
        name: torch.tensor(value) if str(name).endswith(COUNTER) and _is_number(value) else value
        for name, value in state.items()
    }
    wrong = [str(name) for name, value in state.items() if not isinstance(name, str) or not _is_plain(value)]
    if wrong:
        raise ModelFileError(f"holds no state dict, these are no tensors with values: {', '.join(wrong[:SHOWN])}")
    grown = [name for name, tensor in state.items() if tensor.nbytes > tensor.untyped_storage().nbytes()]
    if grown:
        raise ModelFileError(f"is refused: these claim more values than are stored: {', '.join(grown[:SHOWN])}")
    return {name: tensor.detach() for name, tensor in state.items()}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def renamed(state: Mapping[Any, Any], known: Collection[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the names of a state dict by what they are without what wrappers put into them, and what that is.

    Args:
        state: a dict that holds tensors.
        known: names in the network's state dict.
    """
    removed: list[str] = []
    names = {str(name): str(name).split(".") for name in state}
    for name, parts in names.items():
        if name in known:
            continue
        removed += [part for part in parts[:-1] if part in WRAPPERS]
        names[name] = [part for part in parts[:-1] if part not in WRAPPERS] + parts[-1:]
    layers = {name.split(".")[0] for name in known}
    while len(firsts := {parts[0] for parts in names.values() if len(parts) > 1}) == 1 and not firsts & layers:
        if any(len(parts) == 1 for parts in names.values()):
            break
        removed += firsts
        names = {name: parts[1:] for name, parts in names.items()}
    found: dict[str, list[str]] = {}
    for name, parts in names.items():
        found.setdefault(".".join(parts), []).append(name)
    return found, list(dict.fromkeys(removed))


def as_fp32(
    state: Mapping[str, Tensor], architecture: Architecture
) -> tuple[dict[str, Tensor], list[str], Architecture]:
    """Returns a state dict as a network has it, in FP32, what was done for that, in words, and the network's sizes.

    Counters are no weights: they may be of any numeric type, or missing. Buffers that are neither counters nor floats,
    or constants such as masks, may hold what they like.

    Raises:
        ModelFileError: other names or shapes, weights that are integers or do not fit; without the path.
    """
    names, removed = renamed(state, architecture.shapes)
    twice = [f"{' and '.join(sorted(old))} are both {new}" for new, old in names.items() if len(old) > 1]
    if twice:
        raise ModelFileError(f"{len(twice)} names stand for one tensor: {'; '.join(twice[:SHOWN])}")
    given = {new: state[old[0]] for new, old in names.items() if new != AVERAGED}
    architecture = architecture.fitted({name: tuple(tensor.shape) for name, tensor in given.items()})
    wanted = architecture.shapes
    counters = {name for name in wanted if name.endswith(COUNTER)}
    absent = {name for name in counters if name not in given or not given[name].numel()}
    given = {name: tensor for name, tensor in given.items() if name not in absent}
    check_names({name: old for name, old in wanted.items() if name not in absent}, given)
    given = {n: tensor.reshape(()) if n in counters and tensor.numel() == 1 else tensor for n, tensor in given.items()}
    check_shapes(wanted, given)
    notes = [f"removed prefix {', '.join(repr(part + '.') for part in removed)}"] if removed else []
    notes += [f"left out {AVERAGED}"] if AVERAGED in names else []
    others = {n for n, old in wanted.items() if n not in counters and not old.is_floating_point()}
    check_shapes({n: wanted[n] for n in others}, {n: given[n] for n in others}, types=True)
    weights = {name: tensor for name, tensor in given.items() if name not in counters | others}
    if types := _types(weights.values(), torch.float32):
        notes.append(f"cast {types} to float32")
    kept = {name: tensor for name, tensor in given.items() if name in counters}
    if types := _types(kept.values(), torch.int64):
        notes.append(f"counters {types} to int64")
    if absent:
        notes.append(f"{len(absent)} counters absent, set to 0")
    constants = wanted.keys() - architecture.parameters - {n for n in wanted if n.endswith(STATISTICS)}
    ready = {name: _weight(name, tensor, name in constants) for name, tensor in weights.items()}
    ready |= {name: _counter(name, tensor) for name, tensor in kept.items()} | {name: given[name] for name in others}
    return {name: ready[name] if name in ready else torch.tensor(0) for name in wanted}, notes, architecture


def check_names(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Makes sure that both have the same names.

    Raises:
        ModelFileError: names the first few; without the path.
    """
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    if missing or unexpected:
        parts = [f"missing {', '.join(missing[:SHOWN])}"] if missing else []
        parts += [f"unexpected {', '.join(unexpected[:SHOWN])}"] if unexpected else []
        raise ModelFileError(f"{len(missing) + len(unexpected)} wrong keys for this network: {'; '.join(parts)}")


def check_shapes(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], types: bool = False) -> None:
    """Makes sure that tensors have the shapes, and if asked the types, that they should have.

    Raises:
        ModelFileError: names the first few; without the path.
    """
    wrong = [
        f"{name} is {tensor.dtype}{list(tensor.shape)} instead of {wanted[name].dtype}{list(wanted[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != wanted[name].shape or (types and tensor.dtype != wanted[name].dtype)
    ]
    if wrong:
        raise ModelFileError(f"{len(wrong)} wrong shapes or types: {'; '.join(wrong[:SHOWN])}")


def _weight(name: str, tensor: Tensor, constant: bool) -> Tensor:
    """Returns a weight or statistic in float32, or a constant, which may be infinite.

    Raises:
        ModelFileError: it is no float, not finite, or does not fit; without the path.
    """
    if tensor.dtype not in (*CAST, torch.float32):
        raise ModelFileError(
            f"{name} is {tensor.dtype}: no weights by themselves; give the FP32 model they were made from"
        )
    if constant:
        return tensor.float()
    if not torch.isfinite(tensor).all():
        raise ModelFileError(f"{name} holds NaN or infinity; nothing can be measured on such a model")
    if name.endswith("running_var") and (tensor < 0).any():
        raise ModelFileError(f"{name} holds negative variances; the model is broken")
    single = tensor.float()
    if not torch.isfinite(single).all():
        raise ModelFileError(f"{name} holds {float(tensor.abs().max()):g}, which is beyond float32")
    return single


def _counter(name: str, tensor: Tensor) -> Tensor:
    """Returns a counter in int64, rounded: the mean over clients need not be whole.

    Raises:
        ModelFileError: it is no number of batches; without the path.
    """
    if tensor.is_complex() or tensor.is_quantized or tensor.dtype == torch.bool:
        raise ModelFileError(f"{name} is {tensor.dtype}; a counter is a number")
    value = tensor.item()
    if not 0 <= value < 2**63:  # nor NaN
        raise ModelFileError(f"{name} is {value:g}; a counter is finite and at least 0")
    return torch.tensor(round(value), dtype=torch.int64)


def _types(tensors: Iterable[Tensor], wanted: torch.dtype) -> str:
    """Returns the types that differ, in words."""
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.dtype != wanted}))
