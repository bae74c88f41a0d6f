"""Any network in integers: its convolutions and linear layers quantized in the graph that torch.fx traces of it."""

import operator
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fl.models.architecture import architecture_of
from fl.models.net import Network
from fl.quantization.folding import always_int8, fold_batch_norm, is_quantizable, quantizable, replace_module, traced
from fl.quantization.kernels import REFERENCE, cpu_kernels, max_pool
from fl.quantization.modules import LAYOUT, GroupedLayer, QuantizedLayer
from fl.quantization.numeric import IMAGE, GroupLevels, QParams, choose_activation_qparams

CALIBRATION_PIXELS = 128 * 64 * 64
"""Of a batch of images to calibrate on, at most, but one image at least."""
RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_", nn.ReLU)
DROPPED = (nn.Dropout, nn.Dropout2d, nn.Identity)
"""Modules that do nothing when a network answers."""
SHAPES = ("size", "dim", "shape")
"""What asks a tensor for no values."""
MOVED = (torch.flatten, "flatten", "view", "reshape", "contiguous", nn.Flatten)
"""What moves values and does not change them."""
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
POOLS = (F.max_pool2d, torch.max_pool2d, nn.MaxPool2d)
Place = tuple[str, int]
"""What a layer takes: 0, its input, or 1, what it adds."""
Range = tuple[float, float]


class QuantizedGraph(fx.GraphModule):
    """A network with every convolution and linear layer in integers, as traced; all else in float32.

    BatchNorm is folded where it follows a layer. Dynamic: what a layer takes is quantized over the range of the batch.
    Static: over stored ranges, and what only other layers take stays uint8 on its way, through ReLU and max pooling; a
    convolution adds what is added to its result, and rounds once.
    The first layer is given the integers of an 8-bit image; where it pads, an edge is half a pixel's step from zero. Of
    images that are normalised band by band it takes what any layer takes.
    """

    input_dtype, layout = torch.float32, LAYOUT
    quantization_info: Mapping[str, Any] = {}
    architecture: Any = None

    @property
    def kernels(self) -> str:
        """What executes the layers where the model is now."""
        return _kernels(self)


def quantized(model: Network, calibration: Tensor | None = None, groups: GroupLevels | None = None) -> Network:
    """Returns a network in integers; one whose code cannot be traced layer by layer, with ranges per batch.

    Args:
        model: FP32.
        calibration: float [n, bands, height, width], for stored ranges.
        groups: of weights of few bits; first and last layer have 8.
    """
    folded = fold_batch_norm(model)
    whole = traced(folded)
    if whole is None:
        return _layer_by_layer(folded, groups)
    _without_what_does_nothing(whole)
    layers = _layers_of(whole)
    exact = set() if architecture_of(model).pixels.mean else {n for n, node in layers.items() if _sees_image(node)}
    sums, ranges = _additions(whole, layers), dict[Place, Range]()
    if calibration is not None:
        inputs = {(name, 0): (node, node.args[0]) for name, node in layers.items() if name not in exact}
        others = {(name, 1): (node, _other(node, layers[name])) for name, node in sums.items()}
        ranges = _ranges(whole, inputs | others, calibration)
    for name, node in sums.items():
        if (name, 1) in ranges:
            layers[name] = _added_within(whole, layers[name], node)
    joined = {name: _joined(node, layers) for name, node in layers.items()} if ranges else {}
    for consumers in joined.values():  # one value, one range: pooling may have narrowed it for some
        if consumers:
            wide = _widest([ranges[each] for each in consumers])
            ranges |= dict.fromkeys(consumers, wide)
    stored = {key: choose_activation_qparams(*found) for key, found in ranges.items()}
    known = {name: IMAGE if name in exact else stored.get((name, 0)) for name in layers}
    made = _replaced(folded, known, groups)
    for name, node in layers.items():
        made[name].relu = _fused_relu(whole, node)
    for name, consumers in joined.items():
        made[name].following = tuple(made[each] for each, place in consumers if place == 0)
        for each in (each for each, place in consumers if place == 1):
            made[each].added_from, made[each].keeps_added = (made[name],), _needed_later(layers[each])
        if consumers and not made[name].following:
            made[name].store_output(stored[consumers[0]])
    _pool_integers(whole)
    whole.graph.lint()
    return cast(Network, QuantizedGraph(folded, whole.graph))


def float_tensors(model: nn.Module) -> dict[str, int]:
    """Returns what is still FP32 in a quantized network, but scales and biases of its layers: bytes by name."""
    ours = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, QuantizedLayer))
    return {
        name: tensor.numel() * tensor.element_size()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not name.startswith(ours)
    }


def _layers_of(whole: fx.GraphModule) -> dict[str, fx.Node]:
    """Returns the nodes of layers that can be quantized: called once, and nobody else touches their weights."""
    nodes = list(whole.graph.nodes)
    called = Counter(str(node.target) for node in nodes if node.op == "call_module")
    touched = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    return {
        str(node.target): node
        for node in nodes
        if node.op == "call_module"
        and is_quantizable(whole.get_submodule(str(node.target)))
        and called[str(node.target)] == 1
        and str(node.target) not in touched
    }


def _additions(whole: fx.GraphModule, layers: Mapping[str, fx.Node]) -> dict[str, fx.Node]:
    """Returns the additions to the result of a convolution that follow it at once and alone take it, by its name."""
    found = {}
    for addition in whole.graph.nodes:
        if not _is(addition, whole, ADDITIONS) or addition.kwargs:
            continue
        layer, operands = addition.prev, {each for each in addition.args if isinstance(each, fx.Node)}
        name = str(layer.target)
        is_layer = layers.get(name) is layer and isinstance(whole.get_submodule(name), nn.Conv2d)
        if is_layer and layer in operands and len(operands) == 2 and list(layer.users) == [addition]:
            found[name] = addition
    return found


def _other(addition: fx.Node, layer: fx.Node) -> fx.Node:
    """Returns what is added to the result of a layer."""
    return next(cast(fx.Node, each) for each in addition.args if each is not layer)


def _added_within(whole: fx.GraphModule, layer: fx.Node, addition: fx.Node) -> fx.Node:
    """Lets a layer add what is added to its result, and returns its new node."""
    with whole.graph.inserting_before(addition):
        node = whole.graph.call_module(str(layer.target), (layer.args[0], _other(addition, layer)))
    addition.replace_all_uses_with(node)
    whole.graph.erase_node(addition)
    whole.graph.erase_node(layer)
    return node


def _needed_later(node: fx.Node) -> bool:
    """Tells whether what a layer adds, or what shares its memory, is used by the layer itself or after it."""
    whole, root = cast(fx.GraphModule, node.graph.owning_module), cast(fx.Node, node.args[1])
    while _is(root, whole, MOVED):
        root = cast(fx.Node, root.args[0])
    shared = [root]
    for each in shared:
        shared += [user for user in each.users if _is(user, whole, MOVED)]
    users = {user for each in shared for user in each.users}
    return node.args[0] in shared or any(node < user for user in users)


def _ranges(
    whole: fx.GraphModule, taken: Mapping[Place, tuple[fx.Node, Any]], calibration: Tensor
) -> dict[Place, Range]:
    """Returns the smallest and the largest value of what is taken, but of what is added in another shape.

    Args:
        whole: the network.
        taken: who takes it, and what, by place.
        calibration: float [n, bands, height, width].
    """
    found, wanted = dict[Place, Range](), defaultdict[fx.Node, list[tuple[Place, fx.Node]]](list)
    for place, (user, value) in taken.items():
        wanted[user].append((place, value))

    class Watched(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            for (name, place), value in wanted[n]:
                values = [self.env[each] for each in (n.args if place else (value,)) if isinstance(each, fx.Node)]
                if all(isinstance(each, Tensor) and each.shape[1:] == values[0].shape[1:] for each in values):
                    low, high = torch.aminmax(self.env[value])
                    found[name, place] = _widest([(low.item(), high.item()), found.get((name, place), (0.0, 0.0))])
            return super().run_node(n)

    with torch.inference_mode():
        for batch in calibration.split(max(1, CALIBRATION_PIXELS // calibration[0, 0].numel())):
            Watched(whole).run(batch)
    return found


def _widest(ranges: list[tuple[float, float]]) -> tuple[float, float]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _sees_image(node: fx.Node) -> bool:
    return isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"


def _replaced(
    folded: Network, layers: Mapping[str, QParams | None], groups: GroupLevels | None
) -> dict[str, QuantizedLayer]:
    """Puts quantized layers, with what is stored of their input, into the places of those in float; returns them."""
    ends, made = always_int8(folded), dict[str, QuantizedLayer]()
    for name, stored in layers.items():
        layer = folded.get_submodule(name)
        few = None if name in ends else groups
        made[name] = QuantizedLayer(layer, stored) if few is None else GroupedLayer(layer, few)
        replace_module(folded, name, made[name])
    return made


def _is(node: fx.Node, whole: fx.GraphModule, kinds: tuple[Any, ...]) -> bool:
    """Tells whether a node is a function, a method or a module of some kinds."""
    if node.op == "call_module":
        return type(whole.get_submodule(str(node.target))) in kinds
    return node.op in ("call_function", "call_method") and node.target in kinds


def _without_what_does_nothing(whole: fx.GraphModule) -> None:
    for node in list(whole.graph.nodes):
        if _is(node, whole, DROPPED):
            node.replace_all_uses_with(cast(fx.Node, node.args[0]))
            whole.graph.erase_node(node)


def _joined(node: fx.Node, layers: Mapping[str, fx.Node]) -> tuple[Place, ...]:
    """Returns where layers take a node's value, if it goes nowhere else on ways that integers can take."""
    whole, found = cast(fx.GraphModule, node.graph.owning_module), list[Place]()
    open_ends = [(node, user) for user in node.users]
    while open_ends:
        value, user = open_ends.pop(0)
        if user.op == "call_module" and layers.get(str(user.target)) is user:
            found += [(str(user.target), place) for place, each in enumerate(user.args) if each is value]
        elif _asks_for_shape(user):
            continue
        elif _is(user, whole, (*MOVED, *POOLS)) or (_is(user, whole, RELUS) and list(node.users) == [user]):
            open_ends += [(user, each) for each in user.users]
        else:
            return ()
    return tuple(found)


def _asks_for_shape(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in SHAPES
    return node.op == "call_method" and node.target in SHAPES


def _fused_relu(whole: fx.GraphModule, node: fx.Node) -> bool:
    """Takes the ReLU after a layer out of the graph, if its result goes nowhere else."""
    users = list(node.users)
    if len(users) != 1 or not _is(users[0], whole, RELUS):
        return False
    users[0].replace_all_uses_with(node)
    whole.graph.erase_node(users[0])
    return True


def _pool_integers(whole: fx.GraphModule) -> None:
    """Lets max pooling take integers too."""
    for node in list(whole.graph.nodes):
        if not _is(node, whole, POOLS):
            continue
        if node.op == "call_module":
            pool = whole.get_submodule(str(node.target))
            own = {name: getattr(pool, name) for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}
        else:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            own = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        if own.pop("return_indices", False):
            continue
        with whole.graph.inserting_before(node):
            taken = whole.graph.call_function(max_pool, (node.args[0],), own)
        node.replace_all_uses_with(taken)
        whole.graph.erase_node(node)


def _layer_by_layer(folded: Network, groups: GroupLevels | None) -> Network:
    """Returns a network whose layers are quantized where they are, each by itself."""
    ends = always_int8(folded)
    for name, layer in quantizable(folded).items():
        few = None if name in ends else groups
        replace_module(folded, name, QuantizedLayer(layer, None) if few is None else GroupedLayer(layer, few))
    network: Any = folded
    network.__class__ = type(f"Quantized{type(folded).__name__}", (_LayerByLayer, type(folded)), {})
    return cast(Network, network)


class _LayerByLayer(nn.Module):
    """What the class of a network that could not be traced has beside its own."""

    @property
    def kernels(self) -> str:
        """What executes the layers where the model is now."""
        return _kernels(self)


def _kernels(network: nn.Module) -> str:
    device = next(iter(network.state_dict().values())).device.type
    return cpu_kernels() if device == "cpu" else REFERENCE
