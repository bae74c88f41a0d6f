"""BatchNorm folded into the layers before it, for any network that torch.fx can trace."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fl.models.net import Network

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
FUSED: dict[type, Callable[[Any, Any], nn.Module]] = {nn.Conv2d: fuse_conv_bn_eval, nn.Linear: fuse_linear_bn_eval}


def traced(network: nn.Module) -> fx.GraphModule | None:
    """Returns a network in evaluation mode as a graph that shares its modules; None where its code cannot be traced."""
    try:
        return fx.symbolic_trace(network.eval())
    except Exception:  # whatever a network's code makes of values that are none
        return None


def fold_batch_norm(model: Network) -> Network:
    """Returns a copy in evaluation mode, each BatchNorm folded into its convolution or linear layer where it has one.

    The same outputs up to rounding; the folded BatchNorms are `nn.Identity`. A layer whose result goes elsewhere too,
    or that is called more than once, keeps its BatchNorm, and so does a network that cannot be traced.
    """
    folded = copy.deepcopy(model).eval()
    graph = traced(folded)
    if graph is None:
        return folded
    called = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(folded.get_submodule(str(node.target)), NORMS):
            continue
        before, norm = node.args[0], folded.get_submodule(str(node.target))
        if before.op != "call_module" or len(before.users) > 1 or {called[node.target], called[before.target]} != {1}:
            continue
        layer = folded.get_submodule(before.target)
        if norm.running_var is None or type(layer) not in FUSED:
            continue
        replace_module(folded, before.target, FUSED[type(layer)](layer, norm))
        replace_module(folded, str(node.target), nn.Identity())
    return folded


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another, by its dotted name."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)


def quantizable(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the convolutions and linear layers that can be quantized, by name, in the order of their definition."""
    return {name: module for name, module in network.named_modules() if is_quantizable(module)}


def is_quantizable(module: nn.Module) -> bool:
    """Tells a convolution over images or a linear layer; classes derived from them may do anything."""
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def always_int8(network: nn.Module) -> frozenset[str]:
    """Returns the layers that never get fewer bits than 8: the first and the last, which are the most sensitive
    (docs/results.md), and have few weights.
    """
    names = list(quantizable(network))
    return frozenset({*names[:1], *names[-1:]})
