"""Which network, and how large: a class by its name, with what the images ask of it."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fl.core.errors import ConfigError, suggestion
from fl.core.pixels import Pixels, described_pixels
from fl.core.presets import choices, preset
from fl.core.seeds import drawn_by, torch_generator
from fl.core.targets import Target
from fl.models.net import Net, Network, to_input

NET = Target("fl.models.net.Net", {}, "model")
WEIGHTS, PIXELS = "weights", "pixels"
"""Not the constructor's: a setting of the group, and what files tell beside its settings."""
CLASSES, BANDS = "num_classes", ("in_channels", "in_chans")
"""What a network's constructor may call the numbers of classes and bands."""


@dataclass(frozen=True)
class Architecture:
    """A network without weights: of the project, of torchvision, or anybody's `nn.Module`.

    Attributes:
        target: its class, or a function that returns one.
        num_classes: of the images.
        pixels: what the images are like, and what they are normalised by.
    """

    target: Target = field(default=NET)
    num_classes: int = 10
    pixels: Pixels = field(default_factory=Pixels)

    @property
    def bands(self) -> int:
        """Of an image."""
        return self.pixels.bands

    def zeros(self, count: int) -> Tensor:
        """Returns inputs of zeros, float32 [count, bands, height, width]."""
        return torch.zeros(count, self.bands, self.pixels.height, self.pixels.width)

    def blank(self, count: int) -> Tensor:
        """Returns images of zeros, [count, height, width, bands] of the pixels' type."""
        return torch.from_numpy(np.zeros((count, *self.pixels.shape), self.pixels.dtype))

    def sized(self, num_classes: int | None = None, bands: int | None = None) -> "Architecture":
        """Returns it for other numbers of classes or bands, of which nobody knows the means."""
        pixels = self.pixels if bands in (None, self.bands) else replace(self.pixels.plain, bands=bands)
        return replace(self, num_classes=num_classes or self.num_classes, pixels=pixels)

    def build(self) -> Network:
        """Returns a network with weights that its constructor draws.

        Raises:
            ConfigError: the class cannot be imported, takes other arguments, or makes no `nn.Module`.
        """
        made = self.target.build(**self._provided())
        if not isinstance(made, nn.Module):
            raise ConfigError(f"model._target_={self.target.target}: makes a {type(made).__name__}, no torch.nn.Module")
        return as_network(made, self)

    def check(self) -> None:
        """Refuses settings that the class does not take, without building anything.

        Raises:
            ConfigError: names them.
        """
        self.target.check(self._provided())

    def initial(self, seed: int) -> Network:
        """Returns a network whose weights depend on the architecture and `seed` only.

        A class with a method `initialize(generator)` draws them itself; of others they are what the constructor draws.
        """
        with drawn_by(seed, "init"):
            network = self.build()
        if callable(initialize := getattr(network, "initialize", None)):
            initialize(torch_generator(seed, "init"))
        return network

    @property
    def shapes(self) -> dict[str, Tensor]:
        """The state dict without values, on torch's meta device: it takes no memory, however large."""
        return _skeleton(json.dumps(self.describe()))[0]

    @property
    def parameters(self) -> frozenset[str]:
        """The names of what is trained; all else in the state dict are buffers."""
        return _skeleton(json.dumps(self.describe()))[1]

    @property
    def head(self) -> frozenset[str]:
        """The names of tensors whose size is the number of classes."""
        other = self.sized(num_classes=self.num_classes + 1).shapes
        return frozenset(name for name, tensor in self.shapes.items() if other[name].shape != tensor.shape)

    def fitted(self, sizes: Mapping[str, tuple[int, ...]]) -> "Architecture":
        """Returns it with the numbers of classes and bands that a state dict of these sizes has, as far as it tells."""
        fitted = self
        for number in ("num_classes", "bands"):
            now = getattr(fitted, number)
            more = fitted.sized(**{number: now + 1}).shapes
            for name, tensor in fitted.shapes.items():
                grown, given = more[name].shape, sizes.get(name, ())
                steps = [
                    (after - size, place) for place, (size, after) in enumerate(zip(tensor.shape, grown, strict=True))
                ]
                step, place = max(steps, default=(0, 0))
                if step > 0 and len(given) == tensor.dim():
                    found = now + (given[place] - tensor.shape[place]) // step
                    fitted = fitted.sized(**{number: max(found, 1)})
                    break
        return fitted

    def describe(self) -> dict[str, Any]:
        """Returns what a file keeps of it, plain data; see `described`."""
        own = {"_target_": self.target.target, **self.target.parameters}
        told = {**own, "num_classes": self.num_classes, "bands": self.bands}
        return told | ({PIXELS: found} if (found := self.pixels.describe()) else {})

    def told(self) -> dict[str, Any]:
        """Returns what files say of it: `network`, or nothing where it is the default, as they always did."""
        is_default = self == Architecture(NET, self.num_classes)
        return {} if is_default else {"network": self.describe()}

    def refuse_misfits(self) -> None:
        """Lets a network answer once for such images.

        Raises:
            ConfigError: it cannot, or its answer is not one logit for each class.
        """
        name, network = self.target.target, self.build().eval()
        images = self.zeros(2)
        try:
            with torch.inference_mode():
                answer = network(images)
        except Exception as error:  # whatever a network makes of input it was not made for
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"model._target_={name}: cannot answer for images of {self.pixels.told()} ({told}); set "
                "data.image_size, or take a network for any size, as model=resnet18"
            ) from error
        if not isinstance(answer, Tensor) or answer.shape != (2, self.num_classes):
            found = f"[{', '.join(map(str, answer.shape))}]" if isinstance(answer, Tensor) else type(answer).__name__
            raise ConfigError(
                f"model._target_={name}: answers two images with {found} instead of [2, {self.num_classes}], a logit "
                f"for each class of the images; give its constructor a parameter {CLASSES}, or other images"
            )

    def _provided(self) -> dict[str, int]:
        """Returns what the constructor is given beside its own settings."""
        try:
            parameters = inspect.signature(_resolved(self.target)).parameters.values()
        except ValueError:  # a class of Python's own
            return {}
        named = {each.name for each in parameters}
        takes_any = any(each.kind == each.VAR_KEYWORD for each in parameters)
        bands = {name: self.bands for name in BANDS if name in named}
        return bands | ({CLASSES: self.num_classes} if CLASSES in named or takes_any else {})


def described(told: Mapping[str, Any], target_of: Callable[[Mapping[str, Any]], Target]) -> Architecture:
    """Returns what `Architecture.describe` told.

    Args:
        told: from a file; anything may be in it.
        target_of: makes a `Target` of `{_target_: name, ...}`, or refuses it.

    Raises:
        ValueError: the numbers are none, or weights are asked for.
    """
    numbers = {name: told.get(name) for name in ("num_classes", "bands")}
    if not all(type(number) is int and number > 0 for number in numbers.values()):
        raise ValueError(f"its network has the sizes {json.dumps(numbers, default=str)}")
    own = {key: value for key, value in told.items() if key not in (*numbers, PIXELS)}
    if not isinstance(told.get(PIXELS), Mapping | None):
        raise ValueError("what its images are like is told in no way that is known")
    pixels = described_pixels(told.get(PIXELS), cast(int, numbers["bands"]))
    if downloads := [key for key in own if str(key).startswith(WEIGHTS)]:  # torchvision fetches what these name
        raise ValueError(f"its network asks for {', '.join(downloads)}")
    return Architecture(target_of(own), cast(int, numbers["num_classes"]), pixels)


def architecture_of(network: nn.Module) -> Architecture:
    """Returns the architecture that built a network, or of which it is."""
    known = getattr(network, "architecture", None)
    if isinstance(known, Architecture):
        return known
    if isinstance(network, Net):
        return Architecture(NET, network.num_classes, Pixels(bands=network.conv1.in_channels))
    raise ValueError(f"{type(network).__name__}: nobody knows how it was built")


def input_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Returns what makes a network's input of images [n, height, width, bands]: normalised, in its type."""
    dtype = getattr(network, "input_dtype", torch.float32)
    return partial(to_input, dtype=dtype, pixels=architecture_of(network).pixels)


def network_named(model: str | Callable[..., Any]) -> Target:
    """Returns which network is meant: one of `conf/model/`, a dotted name, or a class or function itself.

    Raises:
        ConfigError: it is none of them.
    """
    if not isinstance(model, str):
        name = f"{getattr(model, '__module__', '')}.{getattr(model, '__qualname__', type(model).__name__)}"
        if "<locals>" in name or not callable(model):
            raise ConfigError(f"model={name}: must be a class or function at the top of a module, or its name")
        return Target(name, {}, "model")
    if model in choices("model"):
        config = preset("model", model)
        return Target.from_config("model", {key: value for key, value in config.items() if key != WEIGHTS})
    if "." not in model:
        known, near = choices("model"), suggestion(model, choices("model"), "; ", "")
        told = f"is none of {', '.join(known)}, nor a class by its dotted name, as my_module.MyNet{near}"
        raise ConfigError(f"--model {model}: {told}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # where a module of the user's own lies, whatever command asks
    target = Target(model, {}, "model")
    _resolved(target)
    return target


def _resolved(target: Target) -> Callable[..., Any]:
    """Imports and returns a network's class or function."""
    if not target.target.startswith("fl."):
        import fl.core.torchvision_import  # noqa: F401  others' networks import torchvision where they like
    return target.resolve()


def as_network(module: nn.Module, architecture: Architecture) -> Network:
    """Returns a module with what the project asks of networks; those of others take float32."""
    network: Any = module
    if not isinstance(module, Network):
        network.input_dtype, network.quantization_info = torch.float32, {}
    network.architecture = architecture
    return cast(Network, network)


@lru_cache(maxsize=16)
def _skeleton(key: str) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Returns the state dict of a described architecture without values, and which of it are parameters.

    Apart from it, for an architecture travels to every client.
    """
    architecture = described(
        json.loads(key),
        lambda own: Target(own["_target_"], {key: own[key] for key in own if key != "_target_"}, "model"),
    )
    try:
        with torch.device("meta"):
            network = architecture.build()
    except (ConfigError, NotImplementedError, RuntimeError):  # a constructor that looks at values
        network = architecture.build()
    state = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    return state, frozenset(name for name, _ in network.named_parameters())
