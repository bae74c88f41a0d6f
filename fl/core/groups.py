"""Groups of settings: dataclasses beside the code that obeys them, filled by field name from one flat configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fl.core.errors import ConfigError
from fl.core.targets import first_problem

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
Count = Annotated[int, Field(ge=1, le=1_000_000_000, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Group = TypeVar("Group")


def names_of(group: type) -> list[str]:
    """Returns the settings of a group, as users write them."""
    return [field.name for field in dataclasses.fields(group) if field.metadata.get("setting", True)]


def filled(group: type[Group], values: Mapping[str, Any]) -> Group:
    """Returns a group with those of `values` that it has fields for.

    Args:
        group: a dataclass of pydantic's.
        values: by field name; others are other groups'.

    Raises:
        ConfigError: names the setting, its value and what is wrong.
    """
    own = {name: values[name] for name in names_of(group) if name in values}
    try:
        return TypeAdapter(group).validate_python(own)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from error
