"""What both ends are told alike."""

from fl.codec import Ecq, Uniform
from flower_quickstart.task import initial_model

codecs = {
    "broadcast": Uniform(bits=8),  # server to clients: 8-bit integers
    "update": Ecq(bits=1, error_feedback=True),  # back: about a bit each; what is lost is sent in later rounds
    "initial": initial_model,  # the first model, made alike by both ends, is never sent
}
