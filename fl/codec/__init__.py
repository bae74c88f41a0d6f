"""What crosses the link: codecs, the payload format, and the mod and strategy that apply them to any Flower app."""

from fl.codec.base import Codec
from fl.codec.client_mod import codec_mod
from fl.codec.ecq import Ecq
from fl.codec.eden import Eden
from fl.codec.payload import Composition, composition
from fl.codec.server_link import ServerLink
from fl.codec.sparse import Stc
from fl.codec.strategy import CodecStrategy
from fl.codec.tcq import Tcq
from fl.codec.tensors import fingerprint
from fl.codec.uniform import Fp16, Raw, Uniform
from fl.core.errors import PayloadError

__all__ = [
    "Codec",
    "CodecStrategy",
    "Composition",
    "Ecq",
    "Eden",
    "Fp16",
    "PayloadError",
    "Raw",
    "ServerLink",
    "Stc",
    "Tcq",
    "Uniform",
    "codec_mod",
    "composition",
    "fingerprint",
]
