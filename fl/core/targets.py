"""`_target_` in a configuration: which classes it may name, and building them with checked arguments."""

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from fl.core.errors import ConfigError, suggestion
from fl.core.presets import CONF

FOLDERS = {"broadcast": "codec", "update": "codec"}
"""Of groups that are not called as their folder in `conf/`."""

RENAMED = {
    **{f"fl.codec.codecs.{name}": f"fl.codec.{name}" for name in ("Fp16", "Raw", "Stc", "Uniform")},
    "fl.engine.InProcess": "fl.federation.engine.InProcess",
    "fl.engine.Ray": "fl.federation.engine.Ray",
    **{
        f"fl.faults.{name}": f"fl.federation.faults.{name}"
        for name in ("CorruptedPayload", "Crash", "Dropout", "Noise", "NotANumber", "SignFlip", "Straggler")
    },
    "fl.link.Link": "fl.communication.link.Link",
    "fl.optimizers.Muon": "fl.training.optimizers.Muon",
    **{f"fl.partition.{name}": f"fl.data.partition.{name}" for name in ("Dirichlet", "Iid", "Shards")},
    "fl.robust.NormClipping": "fl.federation.robust.NormClipping",
    "fl.strategy.FedAvgNesterov": "fl.federation.nesterov.FedAvgNesterov",
    **{f"fl.training.{name}": f"fl.training.arithmetic.{name}" for name in ("Amp", "Fp32", "Qat")},
}
"""Classes that had another name once: run folders, command lines and users' files hold it."""
FAMILIES = {
    "strategy": (re.compile(r"flwr\.serverapp\.strategy\.[A-Za-z]\w*"), "Flower's strategies"),
    "optimizer": (re.compile(r"torch\.optim\.[A-Za-z]\w*"), "torch's optimizers"),
    "model": (re.compile(r"torchvision\.models\.(?!get_|list_)[a-z]\w*"), "torchvision's models"),
}
"""Whole families of classes that a group may name beside those of `conf/`."""
MADE_BY_FUNCTIONS = ("model",)
"""Groups that a function may stand in for a class in."""


@dataclass(frozen=True)
class Target:
    """A class by its dotted name, with keyword arguments; nothing is imported before `resolve`.

    Attributes:
        target: its name.
        parameters: that it is built with.
        group: of the configuration, for error messages.
    """

    target: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    group: str = field(default="target", compare=False)

    @classmethod
    def from_config(cls, group: str, config: Any, trusted: Collection[str] = ()) -> "Target":
        """Reads `{_target_: dotted.name, key: value, ...}`.

        Args:
            group: the configuration group, for the error message.
            config: the group as plain data.
            trusted: names allowed beside those of `conf/`, because the user typed them.

        Raises:
            ConfigError: no `_target_`, or one that is not allowed.
        """
        if not isinstance(config, Mapping) or not isinstance(config.get("_target_"), str):
            raise ConfigError(f"{group}={config!r}: must be a mapping with a _target_")
        target = renamed(config["_target_"])
        folder = group.removeprefix("--").replace("/", " ").split(" ")[0]  # of "precision/int8", "--link FILE"
        folder = FOLDERS.get(folder, folder)
        family, called = FAMILIES.get(folder, (None, ""))
        if target not in {*known_classes(folder), *map(renamed, trusted)} and not (family and family.fullmatch(target)):
            allowed = f"the classes in conf/{folder}{f' and {called}' if called else ''}"
            raise ConfigError(
                f"{group}._target_={target}: only {allowed} are built from files; another class must be named on the "
                f"command line (python -m fl.train {group}._target_={target}, or python -m fl resume --trust {target})"
            )
        return cls(target, {key: value for key, value in config.items() if key != "_target_"}, group)

    def resolve(self) -> Callable[..., Any]:
        """Imports and returns the class, or the function that stands in for one.

        Raises:
            ConfigError: there is no such class.
        """
        module, _, name = self.target.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"{self.group}._target_={self.target}: cannot be imported ({error})") from error
        if not inspect.isclass(found) and not (self.group in MADE_BY_FUNCTIONS and inspect.isfunction(found)):
            raise ConfigError(f"{self.group}._target_={self.target}: is not a class")
        return found

    def check(self, provided: Collection[str] = ()) -> None:
        """Binds the parameters to the class's signature without calling it.

        Args:
            provided: parameters the project passes itself; a configuration may not set them.

        Raises:
            ConfigError: unknown, missing or already provided parameters.
        """
        try:
            signature = inspect.signature(self.resolve())
        except ValueError as error:  # a class of Python's own
            raise ConfigError(f"{self.group}._target_={self.target}: its arguments are not known") from error
        named = [name for name, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        taken = [name for name in named if name not in provided]
        for key in self.parameters:
            if key not in taken:
                takes = f"it takes: {', '.join(taken)}" if taken else "it takes none"
                raise ConfigError(
                    f"{self.group}.{key}: {self.target} has no such setting; {suggestion(key, taken)}{takes}"
                )
        try:
            signature.bind(**self.parameters, **dict.fromkeys(provided))
        except TypeError as error:
            raise ConfigError(f"{self.group}: {self.target}: {error}") from error

    def build(self, *args: Any, **provided: Any) -> Any:
        """Calls the class with the parameters and what the project provides.

        Raises:
            ConfigError: the class refuses a value.
        """
        try:
            return self.resolve()(*args, **provided, **self.parameters)
        except ValidationError as error:
            raise ConfigError(first_problem(error, self.group)) from error
        except ConfigError:
            raise
        except Exception as error:  # whatever a class makes of values it was not made for
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"{self.group}: {self.target} with {dict(self.parameters)}: {told}") from error


def renamed(target: str) -> str:
    """Returns today's name of a class."""
    return RENAMED.get(target, target)


@functools.cache
def known_classes(folder: str) -> frozenset[str]:
    """Returns the classes that the files of a folder in `conf/` name."""
    files = (CONF / folder).glob("*.yaml")
    return frozenset(
        name for file in files for name in re.findall(r"^_target_: *(\S+)", file.read_text(), re.MULTILINE)
    )


def first_problem(error: ValidationError, group: str = "") -> str:
    """Returns pydantic's first finding as `argument=value: what is wrong`."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in ((group,) if group else ()) + problem["loc"])
    kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind in ("unexpected_keyword_argument", "missing", "missing_argument"):
        return f"{place}: {message.lower()}"
    near = suggestion(str(problem["input"]), re.findall("'([^']+)'", message), "; ", "") if "literal" in kind else ""
    return f"{place}={problem['input']}: {message[0].lower()}{message[1:]}{near}"
