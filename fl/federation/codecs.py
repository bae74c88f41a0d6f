"""The codecs of a run, one for each direction."""

from dataclasses import dataclass

from fl.codec import Codec
from fl.core.errors import ConfigError
from fl.core.targets import Target


@dataclass(frozen=True)
class Codecs:
    """How the model is sent and how clients answer; None for plain arrays."""

    broadcast: Codec | None = None
    update: Codec | None = None

    @classmethod
    def of(cls, broadcast: Target | None, update: Target | None) -> "Codecs":
        """Builds and checks both.

        Raises:
            ConfigError: a target is no codec, or a setting does nothing.
        """
        return cls(_built(broadcast), _built(update))

    @property
    def active(self) -> bool:
        """Whether there is any."""
        return self.broadcast is not None or self.update is not None


def _built(target: Target | None) -> Codec | None:
    if target is None:
        return None
    target.check()
    codec, group = target.build(), target.group
    if not isinstance(codec, Codec):
        raise ConfigError(f"{group}._target_={target.target}: is no codec")
    if codec.decay != 1 and not codec.error_feedback:
        raise ConfigError(f"{group}.decay={codec.decay:g}: does nothing without {group}.error_feedback=true")
    return codec
