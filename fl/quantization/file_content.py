"""What a file is, told from its bytes, and the tensors and plain values in it; nothing of it is executed.

Files come from anywhere. Whatever one claims, no more memory is taken than a few times its own size.
"""

import codecs
import io
import pickletools
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fl.core.errors import ModelFileError

MOST_BYTES = 1 << 30
"""Of a file; this network with an optimizer's state takes about 5 MB."""

ADVICE = "save the network with torch.save(model.state_dict(), PATH)"

BENCH = "python -m fl bench runs it under the name model_PRECISION{}; for all else " + ADVICE

OBJECTS = "it holds pickled objects"

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""What files start with that torch wrote before it wrote zip archives: its magic number, pickled."""

LEGACY_PICKLES = 5
"""Magic number, version, system, content, order of storages; then the values of tensors."""

MAGIC = 0x1950A86A20F9469CFC6C
"""That torch's legacy files begin with; other numbers beyond 64 bits may be keys that collide at will."""
PLAIN = re.compile(
    r"(torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|sparse_tensor|qtensor"
    r"|meta_tensor_no_storage)|torch\.(storage\.)?(cuda\.)?\w+Storage|torch\.(Size|device|[a-z]+\d+\w*|bool)"
    r"|torch\.per_(tensor|channel)_\w+|torch\.serialization\._get_layout|torch\.nn\.parameter\.Parameter"
    r"|collections\.(OrderedDict|Counter)|builtins\.(set|complex)|__builtin__\.(set|complex)|_codecs\.encode)"
)
"""What torch's pickles of tensors and plain values name; torch lets more through, also what takes memory at will."""

STARTS = (
    (0, b"\x93NUMPY", f"a NumPy array; {ADVICE}"),
    (0, b"\x89HDF\r\n", f"an HDF5 file, as Keras writes it; {ADVICE}"),
    (0, b"GGUF", f"a GGUF file; {ADVICE}"),
    (4, b"TFL3", f"a LiteRT (TensorFlow Lite) model; {BENCH.format('.tflite')}"),
    (257, b"ustar", "a tar archive; unpack it and give the model file in it"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"BZh", "compressed with bzip2; unpack it first"),
    (0, b"\xfd7zXZ\0", "compressed with xz; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it and give the model file in it"),
)
"""What other files start with: place, bytes, what to say."""


def read(path: Path) -> tuple[bytes, Any]:
    """Returns a file's bytes and what torch or safetensors stored in it.

    Raises:
        ModelFileError: it cannot be read, is something else, damaged, or holds more than tensors and plain values;
            without the path.
    """
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
        if stat.S_ISDIR(mode):
            raise ModelFileError("is a folder; give a model file in it")
        if not stat.S_ISREG(mode):
            raise ModelFileError("is no regular file")
        if size > MOST_BYTES:
            raise ModelFileError(f"has {size:,} bytes; no model file of this network has more than {MOST_BYTES:,}")
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot be read ({error.strerror})") from error
    if not content:
        raise ModelFileError("is empty")
    if content[8:9] == b"{" and (content[6:8] == b"\0\0" or path.suffix == ".safetensors"):
        return content, _safetensors(content)
    if content[:4] in (b"PK\3\4", b"PK\5\6"):
        return content, _zip(content)
    if content[:1] == b"\x80":
        return content, _legacy(content)
    if told := _other_kind(content):
        raise ModelFileError(f"is {told}")
    if (content[:1] == b"\x08" and content[1:2] < b"\x20") or path.suffix == ".onnx":  # its first field, a version
        raise ModelFileError(f"is an ONNX model; {BENCH.format('.onnx')}")
    raise ModelFileError(
        f"is not a whole model file, nor of any kind known here (starts with {content[:8]!r}); {ADVICE}"
    )


def stored(content: bytes) -> Any:
    """Returns what `torch.save` stored in these bytes of a zip archive, under the same conditions.

    Raises:
        ModelFileError: see `read`.
    """
    if content[:4] != b"PK\3\4":
        raise ModelFileError("is no archive that torch.save wrote")
    return _zip(content)


def _other_kind(content: bytes) -> str | None:
    for place, start, told in STARTS:
        if content[place : place + len(start)] == start:
            return told
    text = _text(content[:4096])
    if text is None:
        return None
    if text.startswith("version https://git-lfs"):
        return "a git-LFS pointer, not the file itself; run: git lfs pull"
    if text.lower().startswith(("<!doctype", "<html")):
        return "a web page, not a model file; the download gave something else"
    return f"a {'JSON' if text.startswith(('{', '[')) else 'text'} file, not a model file; {ADVICE}"


def _text(start: bytes) -> str | None:
    """Returns the first bytes of a text file as text, None if it is none."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        return None
    return None if re.search(r"[\x00-\x08\x0e-\x1a\x7f]", text) else text.lstrip("\ufeff \t\r\n")


def _zip(content: bytes) -> Any:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        names = archive.namelist()
    except Exception as error:  # whatever zipfile makes of damaged bytes
        raise ModelFileError(f"is not a whole model file, it was cut off or is damaged ({_line(error)})") from error
    if told := _other_zip(names):
        raise ModelFileError(f"is {told}")
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelFileError(f"is refused: its tensors are compressed, which torch never does; {ADVICE}")
    if len(set(names)) < len(names) or sum(entry.file_size for entry in entries) > len(content):
        raise ModelFileError("is refused: it claims to hold more than it does")
    try:
        if damaged := archive.testzip():  # torch does not look
            raise ValueError(f"the checksum of {damaged} is wrong")
        structure = archive.read(pickles[0])
    except Exception as error:  # as above
        raise ModelFileError(f"is not a whole model file ({_line(error)})") from error
    _refuse_objects(structure, 1, OBJECTS)
    return _torch(content)


def _other_zip(names: list[str]) -> str | None:
    """Returns what a zip archive is, unless torch.save wrote it."""
    ends = {name.split("/")[-1] for name in names}
    if "constants.pkl" in ends:
        return f"a TorchScript program, not a state dict; {BENCH.format('.ts')}"
    if ends & {"archive_format", "serialized_exported_program.json"}:
        return f"a torch.export program, not a state dict; {BENCH.format('.pt2')}"
    if "model.weights.h5" in ends:
        return f"a Keras model; {ADVICE}"
    if names and all(name.endswith(".npy") for name in names):
        return f"a NumPy archive (.npz) of {', '.join(names[:3])}; load it into the network and {ADVICE}"
    if sum(name.split("/")[-1] == "data.pkl" for name in names) != 1:
        held = f"it holds {', '.join(names[:3])}" if names else "it is empty"
        return f"a zip archive, but not one that torch.save wrote ({held}); if a model file is in it, unpack it first"
    return None


def _legacy(content: bytes) -> Any:
    if not content.startswith(LEGACY):
        _refuse_objects(content, 1, "it is a Python pickle of objects")
        raise ModelFileError(f"refused, it is a Python pickle, which is never run; {ADVICE}")
    _refuse_objects(content, LEGACY_PICKLES, OBJECTS)
    return _torch(content)


def _refuse_objects(content: bytes, count: int, what: str) -> None:
    """Looks through the pickles that `content` starts with, without running them.

    Raises:
        ModelFileError: one names what is not `PLAIN`, or is damaged, or of a protocol that torch does not read.
    """
    stream, strings, memo, protocol = io.BytesIO(content), ["", ""], dict[Any, str](), 0
    try:
        for _ in range(count):
            for operation, argument, _place in pickletools.genops(stream):
                if operation.name == "PROTO":
                    protocol = max(protocol, int(str(argument)))
                if isinstance(argument, int) and argument.bit_length() > 64 and argument != MAGIC:
                    raise ModelFileError(f"refused, it holds a whole number of {argument.bit_length()} bits; {ADVICE}")
                name = str(argument).replace(" ", ".") if operation.name in ("GLOBAL", "INST") else None
                if operation.name == "STACK_GLOBAL":
                    name = ".".join(strings)
                if name and not PLAIN.fullmatch(name):
                    raise ModelFileError(f"refused, {what} ({name[:100]}), which are never run; {ADVICE}")
                if "PUT" in operation.name or operation.name == "MEMOIZE":
                    memo[len(memo) if argument is None else argument] = strings[-1]
                argument = memo.get(argument) if "GET" in operation.name else argument
                strings = [strings[-1], argument] if isinstance(argument, str) and not name else strings
    except ModelFileError:
        raise
    except Exception as error:  # whatever pickletools makes of damaged bytes
        raise ModelFileError(f"is not a whole model file ({_line(error)})") from error
    if protocol != 2:
        raise ModelFileError(f"is pickled with protocol {protocol}, which torch does not read; {ADVICE}")


def _torch(content: bytes) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # torch advises to unpickle what it refuses
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of bytes it did not write
        raise ModelFileError(f"is not a whole model file ({_line(error)})") from error


def _safetensors(content: bytes) -> Any:
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        raise ModelFileError(f"is a damaged safetensors file: a header of {length:,} bytes, {len(content):,} in all")
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # whatever the library makes of a damaged header
        raise ModelFileError(f"is a damaged safetensors file ({_line(error)})") from error


def _line(error: Exception) -> str:
    """Returns what an error says in a line, without torch's advice to trust the file."""
    first = next((line for line in _lines(str(error)) if line), type(error).__name__)
    return re.split(r"\. |weights_only|Weights only", first)[0][:200] or type(error).__name__


def _lines(text: str) -> Iterator[str]:
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        yield line.strip()
