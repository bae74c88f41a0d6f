"""In which precision a trained network answers: as `inference.fp16` says, or as the device is made for."""

from collections.abc import Callable

import torch

from fl.core.errors import ConfigError
from fl.models.architecture import architecture_of
from fl.models.net import Network, channels_last
from fl.quantization import precision_of

YES, NO = ("1", "true", "yes", "enable"), ("0", "false", "no", "disable")


def fp16_wanted(value: object) -> bool | None:
    """Returns True, False, or None for "auto", from a setting in any case.

    Raises:
        ConfigError: it is none of the words.
    """
    word = str(value).strip().lower()
    if word == "auto":
        return None
    if word in YES or word in NO:
        return word in YES
    choices = f"auto, {' '.join(YES)} or {' '.join(NO)}"
    raise ConfigError(f"inference.fp16={value}: must be {choices} (the variable USE_FP16 is its default)")


def prepare(
    model: Network,
    device: torch.device,
    fp16: bool | None,
    tell: Callable[[str], object] = lambda text: None,
    **options: bool,
) -> Network:
    """Returns a network for inference on `device`, in half precision where that is wanted and can be had.

    Args:
        model: FP32, in evaluation mode; it is not changed but moved to the device.
        device: where to answer.
        fp16: half precision or not; None: on CUDA only.
        tell: is given a line about what was done, if there is anything to say.
        **options: of `fl.quantization.methods.fp16`.
    """
    whole = channels_last(model.to(device))
    if not (device.type == "cuda" if fp16 is None else fp16):
        return whole
    try:
        half = precision_of("fp16").convert(model, None, **options).to(device)
        with torch.inference_mode():
            if not half(architecture_of(half).zeros(1).to(device)).isfinite().all():
                raise ValueError("its outputs are not finite")
    except Exception as error:  # whatever a device makes of a type it was not made for
        told = (str(error).splitlines() or [type(error).__name__])[0]
        tell(f"inference.fp16: half precision cannot be had, FP32 is used instead ({told})")
        return whole
    tell("inference.fp16: the model was converted to FP16 for memory efficiency")
    return half
