"""Commands in a fork of a process that has the libraries loaded: seconds less for each than a new interpreter takes.

The project's own code is never loaded before the fork: a command runs from its door's first line on, as its users' do.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = (
    "torch._dynamo",
    "torch.fx",
    "torch.ao.quantization",
    "flwr.server.strategy",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.simulation",
    "flwr_datasets.partitioner",
    "hydra",
    "hydra.main",
    "hydra.core.global_hydra",
    "matplotlib.pyplot",
    "pydantic.dataclasses",
    "rich.table",
    "safetensors.torch",
    "scipy.stats",
    "constriction",
    "PIL.Image",
)

# how long a command may take before it counts as hanging: machines differ by a factor of five
PATIENCE_S = 900


class Preloaded:
    """A process that forks a command whenever it is told to; it ends with the one that made it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)

    def run(
        self, arguments: Sequence[object], cwd: Path, timeout: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs `python ARGUMENTS`; as `subprocess.run` with `capture_output` and `text`."""
        arguments = [str(each) for each in arguments]
        reader, writer = os.pipe()
        with open(reader) as status, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(os.environ)}
            socket.send_fds(self._socket, [json.dumps(request).encode()], [out.fileno(), err.fileno(), writer])
            os.close(writer)
            group = int(status.readline())
            if not select.select([status], [], [], timeout)[0]:
                os.killpg(group, signal.SIGKILL)
                raise subprocess.TimeoutExpired(arguments, timeout)
            code = int(status.readline())
            texts = []
            for file in out, err:
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(arguments, code, *texts)

    def close(self) -> None:
        """Ends it."""
        self._socket.close()
        self._process.wait()


def serve(connection: socket.socket) -> list[str]:
    """Forks for every request; returns the arguments, in the fork that is to run them."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not message:
            os._exit(0)
        if os.fork():
            for file in files:
                os.close(file)
            continue
        connection.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        out, err, status = files
        if child := os.fork():
            os.close(out), os.close(err)
            os.write(status, f"{child}\n".encode())
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.setpgid(child, child)
            os.write(status, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
            os._exit(0)
        os.setpgid(0, 0)
        os.close(status)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1), os.dup2(err, 2)
        os.closerange(3, max(files) + 1)
        request = json.loads(message)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        return request["arguments"]


def start(arguments: list[str]) -> None:
    """Does what `python ARGUMENTS` does."""
    if arguments[0] == "-m":
        sys.path.insert(0, "")
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(arguments[0]).parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # else a fork copies all of the libraries' pages as soon as it collects garbage
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    importlib.invalidate_caches()
    code = 0
    try:
        start(arguments)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        code = ended.code or 0
    # as the interpreter ends, but for taking the libraries apart, which would copy them as well and take seconds
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
