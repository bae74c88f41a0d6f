"""quantfl: federated training on satellite images, and what each byte of it costs.

`fl.load_model(path)` opens any model file that this project writes, and state dicts of its network that others saved.
Imports are lazy, so that `import fl` and `--help` answer at once.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]

if sys.argv[:1] == ["-m"] and sys.path[:1] == [os.getcwd()]:
    # `python -m fl VERB` in a run folder that somebody else made: what lies there is imported by nobody but who asks
    # for it by a name that is nowhere else.
    sys.path.append(sys.path.pop(0))

if "OMP_WAIT_POLICY" not in os.environ:
    # How long a thread of torch spins before it sleeps; read once, when torch is loaded, which every command does after
    # this. The default, some 300,000, stalls two threads on a busy machine; docs/performance.md has the figures.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from fl.quantization.model_file import load_model


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from fl.quantization.model_file import load_model

        return load_model
    raise AttributeError(f"module 'fl' has no attribute {name!r}")
