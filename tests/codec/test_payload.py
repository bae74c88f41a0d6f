"""The payload format: what docs/payload.md says, and that nothing but PayloadError comes of damaged or forged ones."""

import base64
import bisect
import json
import math
import random
import re
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import REPOSITORY, composed
from hydra.utils import instantiate

from fl.codec import Codec, Ecq, PayloadError, Tcq, Uniform
from fl.codec.payload import CODED, PLANES, assemble, base_of, dissect, seal, specs_of, varint
from fl.codec.tensors import fingerprint
from fl.models.net import initial_model

FILES = sorted((REPOSITORY / "conf" / "codec").glob("*.yaml"))
PRESETS = {path.stem: instantiate(composed(f"codec@update={path.stem}")["update"]) for path in FILES}
PRESETS = {name: codec for name, codec in PRESETS.items() if isinstance(codec, Codec)}
CODECS = PRESETS | {
    f"{name}-{entropy}": replace(PRESETS[name], entropy=entropy, **({"bits": 3} if name == "ecq" else {}))
    for name in ("int8", "ecq", "eden", "stc")
    for entropy in ("none", "zstd", "ans")
    if entropy != PRESETS[name].entropy
}
MUTANTS = {"tcq": 1_000}
"""Of a payload, 2,000 or 20,000 else; decoding `tcq` goes along a trellis step by step."""
CONSTANT_BYTES = 2**18
"""What decoding may take beside four times the model: Python's objects, tables of histograms, a group of blocks."""


def small_model():
    """Tensors of every way to travel; two are the codec's own."""
    rng = np.random.default_rng(3)
    return {
        "conv.weight": rng.laplace(size=(8, 16, 3, 3)).astype(np.float32),
        "fc.weight": rng.normal(size=(4, 300)).astype(np.float32) * 1e-3,
        "fc.bias": rng.normal(size=40).astype(np.float32),
        "bn.running_mean": rng.normal(size=20).astype(np.float32),
        "bn.running_var": rng.lognormal(0, 10, size=20).astype(np.float32),
        "bn.num_batches_tracked": np.array(77),
        "steps": np.arange(100),
        "mask": rng.random(11) < 0.5,
        "nothing": np.zeros((0, 3), np.float32),
    }


# Damaged and forged payloads

NUMBERS = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 31, 32, 33, 127, 128, 255, 256, 511, 512, 2**15, 2**16 - 1, 2**31 - 1, 2**31]
NUMBERS += [2**32 - 1, 2**32 - 2**10, 0x7F800000, 0x7FC00000, 0xFF7FFFFF]  # infinity, NaN, the lowest float32
HUGE_FRAMES = [
    zstandard.ZstdCompressor().compress(bytes(2**20)),
    bytes.fromhex("28b52ffde0") + struct.pack("<Q", 2**33) + bytes(8),  # says it is 8 GiB
    bytes.fromhex("28b52ffd0070") + bytes(8),  # says its window is 16 MiB, and nothing of its length
    bytes.fromhex("502a4d18") + struct.pack("<I", 2**31) + bytes(8),  # a frame to skip
]


def changed(content: bytes, rng: random.Random) -> bytes:
    """Returns bytes with one change, more often near the beginning, where the tables are."""
    way, length = rng.randrange(10), len(content)
    at = rng.randrange(min(length, rng.choice([12, 40, 600, length])) or 1) if length else 0
    if way < 3:
        flipped = bytearray(content or b"\0")
        flipped[at] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if way < 5:
        number = rng.choice(NUMBERS) if way == 3 else rng.getrandbits(32)
        width = rng.choice([1, 2, 4])
        return content[:at] + number.to_bytes(4, "little")[:width] + content[at + width :]
    if way == 5:
        return content[: rng.randrange(length + 1)]
    if way == 6:
        return content + rng.randbytes(rng.choice([1, 2, 4, 8, 300]))
    if way == 7:
        end = rng.randrange(at, min(length, at + 64) + 1)
        return content[:at] + content[end:]
    if way == 8:
        return content[:at] + rng.randbytes(rng.choice([1, 4, 16])) + content[at:]
    return content[:at] + rng.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * rng.choice([1, 4, 600]) + content[at + 4 :]


def mutant(payload: bytes, parts: tuple[bytes, list[tuple[int, bytes]]], rng: random.Random) -> bytes:
    """Returns a damaged payload; half of them are sealed again, with the right length."""
    if rng.random() < 0.4:
        content = changed(payload[:-4], rng)
        for _ in range(rng.choice([0, 0, 1, 3])):
            content = changed(content, rng)
    else:  # a table that adds up, over bodies that are not what they should be
        head, rows = parts[0], list(parts[1])
        for _ in range(rng.choice([1, 1, 2])):
            one, other = rng.randrange(len(rows)), rng.randrange(len(rows))
            kind, body = rows[one]
            way = rng.randrange(8)
            if way == 0:
                rows[one], rows[other] = rows[other], rows[one]
            elif way == 1:
                rows[one] = rng.choice([0, 1, 2, 3, 4, 5, 255]), body
            elif way == 2:
                rows[one] = rng.choice(
                    [(PLANES, frame) for frame in HUGE_FRAMES] + [(kind, body[:10] + HUGE_FRAMES[0])]
                )
            else:
                rows[one] = kind, changed(body, rng)
        table = b"".join(bytes([kind]) + varint(len(body)) for kind, body in rows)
        content = head + table + b"".join(body for _, body in rows)
    if rng.random() < 0.5:
        return content[: len(payload) + rng.choice([-4, 0])] + payload[-4:]
    return seal(content[:5] + struct.pack("<I", len(content) + 4) + content[9:])


@pytest.mark.parametrize("most", [2_000, pytest.param(20_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", CODECS)
def test_of_any_mutant_comes_a_payload_error_or_a_sound_model(name, most):
    codec, model, rng = CODECS[name], small_model(), random.Random(name)
    specs, model_bytes = specs_of(model), sum(array.nbytes for array in model.values())
    payload = codec.encode(model, np.random.default_rng(0))
    _, bodies = dissect(payload, specs)
    parts = payload[: 24 + payload[9]], [(kind, bytes(body)) for kind, body in bodies]
    decoded = refused = 0
    mutants = min(most, MUTANTS.get(name, most))
    for number in range(mutants):
        forged = mutant(payload, parts, rng)
        measured = number % 16 == 0  # measuring takes longer than decoding
        if measured:
            tracemalloc.start()
        try:
            tensors = codec.decode(forged, specs)
        except PayloadError:
            refused += 1
        except BaseException as error:  # a panic of the Rust library is no Exception
            raise AssertionError(f"mutant {number} of {name}: {error!r}") from error
        else:
            decoded += 1
            assert specs_of(tensors) == specs
            assert all(np.isfinite(array).all() for array in tensors.values())
        finally:
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak_bytes <= 4 * model_bytes + CONSTANT_BYTES, f"mutant {number} of {name}"
    assert decoded > mutants / 50, "the mutants are too wild: nearly none gets to the bodies"
    assert refused > mutants / 2


@pytest.mark.parametrize("bits", [2, 8, 14, 22, 28])
@pytest.mark.parametrize("zeros", [0.0, 0.45])
def test_of_any_rate_decoding_takes_the_memory_of_a_few_models(bits, zeros):
    """The rate is not in the payload: a forged one can have any."""
    rng = np.random.default_rng(0)
    model = {"weight": (rng.standard_normal((64, 1024)) * (rng.random((64, 1024)) >= zeros)).astype(np.float32)}
    payload = Ecq(bits=bits).encode(model, rng)
    tracemalloc.start()
    Ecq(bits=1).decode(payload, specs_of(model))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes <= 4 * model["weight"].nbytes


@pytest.fixture(scope="module")
def network():
    """The state dict of our network, as an update looks."""
    rng = np.random.default_rng(0)
    state = {name: tensor.numpy() for name, tensor in initial_model(10, 0).state_dict().items()}
    return {n: rng.laplace(size=a.shape).astype(np.float32) if n.endswith("weight") else a for n, a in state.items()}


@pytest.mark.parametrize("name", CODECS)
def test_decoding_takes_memory_in_proportion_to_the_model_whatever_a_header_claims(name, network):
    codec, specs = CODECS[name], specs_of(network)
    payload = codec.encode(network, np.random.default_rng(0))
    header, bodies = dissect(payload, specs)
    largest = max(range(len(bodies)), key=lambda number: len(bodies[number][1]))
    forgeries = [payload]
    for kind, body in [(PLANES, frame) for frame in HUGE_FRAMES] + [
        (CODED, bytes(bodies[largest][1][:at]) + b"\xff\xff\xff\x7f" * 4 + bytes(bodies[largest][1][at + 16 :]))
        for at in (0, 4, 5, 6, 10, 200, 512, 1030)
    ]:
        rows = [(each, bytes(content)) for each, content in bodies]
        rows[largest] = kind, body
        forgeries.append(assemble(header, specs, rows))
    for at in range(len(codec.description) + 24):  # each length and count of the header, and the checksum right
        forgeries.append(seal(payload[:at] + b"\xff\xff\xff\xff" + payload[at + 4 : -4]))
    for forged in forgeries:
        tracemalloc.start()
        try:
            codec.decode(forged, specs)
        except PayloadError:
            assert forged is not payload
        finally:
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak_bytes <= 4 * sum(array.nbytes for array in network.values()) + CONSTANT_BYTES


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda payload: b"", "too short"),
        (lambda payload: payload[:-1], "says it is"),
        (lambda payload: payload + b"\0", "says it is"),
        (lambda payload: b"PK" + payload[2:], "begins with"),
        (lambda payload: payload[:4] + b"\3" + payload[5:], "version 3, not .* version 1 to 2"),
        (lambda payload: payload[:-1] + bytes([payload[-1] ^ 1]), "checksum"),
        (lambda payload: seal(payload[:10] + b"\xff" + payload[11:-4]), "not ASCII"),
        (lambda payload: seal(payload[:10] + b"X" + payload[11:-4]), "was coded by"),
        (lambda payload: seal(payload[:9] + b"\xff" + payload[10:-4]), "another model|ends within|ASCII"),
        (lambda payload: seal(payload[:41] + b"\1" + payload[42:-4]), "add up"),
        (lambda payload: seal(payload[:41] + b"\xff" * 6 + payload[47:-4]), "add up|ends within"),
    ],
)
def test_a_refusal_says_the_reason(damage, reason):
    codec = Uniform(8)
    payload = codec.encode(small_model(), np.random.default_rng(0))
    with pytest.raises(PayloadError, match=reason):
        codec.decode(damage(payload), specs_of(small_model()))


def test_another_model_is_refused():
    codec, model = Uniform(8), small_model()
    payload = codec.encode(model, np.random.default_rng(0), base=b"12345678")
    assert base_of(payload) == b"12345678"
    for other in (
        {name: array for name, array in model.items() if name != "mask"},
        dict(reversed(model.items())),
        model | {"mask": model["mask"].astype(np.int8)},
        model | {"fc.weight": model["fc.weight"].T},
    ):
        with pytest.raises(PayloadError, match="another model"):
            codec.decode(payload, specs_of(other))


OLD = json.loads((Path(__file__).with_name("payloads_v1.json")).read_text())
"""Payloads of the format's first version, and the fingerprint of what they decoded to then."""


@pytest.mark.parametrize("name", OLD)
def test_payloads_of_the_first_version_decode_to_the_same(name):
    codec, specs, payload = CODECS[name], specs_of(small_model()), base64.b85decode(OLD[name]["payload"])
    assert payload[4] == 1
    assert codec.description == OLD[name]["description"]
    assert fingerprint(codec.decode(payload, specs)).hex() == OLD[name]["decoded"]
    for damaged in (payload[:-1], seal(payload[:30] + payload[40:-4]), seal(payload[:9] + b"\xff" + payload[10:-4])):
        with pytest.raises(PayloadError):
            codec.decode(damaged, specs)


# The document


def sections(language):
    """Returns the code blocks of docs/payload.md in a language."""
    text = (REPOSITORY / "docs" / "payload.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_document_shows_the_bytes_that_its_command_prints(capsys):
    exec(sections("python")[0], {})
    printed = capsys.readouterr().out.split()
    shown = [byte for line in sections("text")[-1].splitlines() for byte in line.split("  ")[0].split()]
    assert shown == printed
    payload = bytes.fromhex("".join(shown))
    decoded = decoded_by_the_document(payload, {"w": ((2, 512), "<f4"), "b": ((3,), "<f4"), "n": ((), "<i8")})
    assert decoded == {"w": [127 / 256] * 512 + [127 / 64] * 512, "b": [0.5, -1.0, 0.0], "n": [7]}


@pytest.mark.parametrize(
    "codec",
    [Uniform(b, scales=s, entropy=e) for b in (8, 4, 3, 2) for s in ("channel", "tensor") for e in ("none", "ans")]
    + [Tcq(bits=bits, error_feedback=feedback) for bits in (1.2, 3) for feedback in (False, True)],
    ids=str,
)
def test_the_document_is_enough_to_write_a_decoder(codec):
    model = {name: array for name, array in small_model().items() if name != "steps"}  # which zstandard shortens
    rng = np.random.default_rng(1)  # with columns that tell
    model["wide.weight"] = (rng.laplace(size=(50, 80)) * np.repeat([1, 4, 0.2, 9], 20)).astype(np.float32)
    payload = codec.encode(model, np.random.default_rng(0))
    decoded = decoded_by_the_document(payload, {n: (a.shape, a.dtype.str) for n, a in model.items()})
    for name, array in codec.decode(payload, specs_of(model)).items():
        assert array.reshape(-1).tolist() == decoded[name]


def decoded_by_the_document(payload, model):
    """A decoder of integers, `tcq` and small tensors, of the standard library alone, written after docs/payload.md.

    Args:
        payload: bytes.
        model: shape and type of each tensor, by name.
    """
    magic, version, length, described = struct.unpack_from("<4sBIB", payload)
    assert (magic, version, length) == (b"QFPL", 2, len(payload))
    assert struct.unpack("<I", payload[-4:])[0] == zlib.crc32(payload[:-4])
    codec = payload[10 : 10 + described].decode("ascii")
    at = 10 + described
    _, signature, count = struct.unpack_from("<8sIH", payload, at)
    text = "".join(f"{name}:{dtype}:[{','.join(map(str, shape))}];" for name, (shape, dtype) in model.items())
    assert (signature, count) == (zlib.crc32(text.encode()), len(model))
    at, rows, decoded = at + 14, [], {}
    for _ in range(count):
        (size_bytes,), end = varints(payload, at + 1, 1)
        rows.append((payload[at], size_bytes))
        at = end
    for (kind, size_bytes), (name, (shape, dtype)) in zip(rows, model.items(), strict=True):
        body, size = payload[at : at + size_bytes], math.prod(shape)
        at += size_bytes
        if kind == 0:
            decoded[name] = list(struct.unpack(f"<{size}{ {'<f4': 'f', '<i8': 'q', '|b1': '?'}[dtype] }", body))
        elif kind == 2:
            exponent, *halves = struct.unpack(f"<h{size}e", body)
            decoded[name] = [as_float32(math.ldexp(half, exponent)) for half in halves]
        elif kind == 4:
            exponent, *codes = struct.unpack(f"<h{size}B", body)
            steps = [code if code < 16 else (16 + code % 16) << (code // 16 - 1) for code in range(128)]
            signed = [steps[code % 128] * (1 if code < 128 else -1) for code in codes]
            decoded[name] = [as_float32(math.ldexp(each, exponent)) for each in signed]
        elif codec == "tcq":
            assert kind == 3
            decoded[name] = along_the_trellis(body, size)
        else:
            assert kind == 3
            bits, scales = re.fullmatch(r"int(\d) per (channel|tensor)", codec).groups()
            scaled = shape[0] if scales == "channel" and len(shape) > 1 else 1
            steps = struct.unpack(f"<{scaled}f", body[: 4 * scaled])
            symbols = unpacked(body[4 * scaled :], size, size // shape[0] if len(shape) > 1 else size)
            assert max(map(abs, symbols)) < 2 ** (int(bits) - 1)
            decoded[name] = [as_float32(each * steps[n * scaled // size]) for n, each in enumerate(symbols)]
    assert at == len(payload) - 4
    return decoded


def as_float32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def varints(content, at, count):
    """Returns integers of seven bits a byte, and where they end."""
    found = []
    for _ in range(count):
        value = place = 0
        while content[at] >= 128:
            value, place, at = value | (content[at] & 127) << place, place + 7, at + 1
        found.append(value | content[at] << place)
        at += 1
    return found, at


class Words:
    """Decodes the words of asymmetric numeral systems."""

    def __init__(self, content):
        self.words, self.state = list(struct.unpack(f"<{len(content) // 4}I", content)), 0

    def next(self, counts, size):
        """Returns indices into a histogram."""
        scale, before, lefts = (2**24 - len(counts)) / sum(counts), 0, []
        for index, one in enumerate(counts):
            lefts.append(int(before * scale) + index)
            before += one
        lefts.append(2**24)
        found = []
        for _ in range(size):
            while self.state < 2**32 and self.words:
                self.state = self.state << 32 | self.words.pop()
            place = self.state % 2**24
            index = bisect.bisect_right(lefts, place) - 1
            self.state = (self.state >> 24) * (lefts[index + 1] - lefts[index]) + place - lefts[index]
            found.append(index)
        return found

    def end(self):
        """Nothing is left."""
        assert (self.state, self.words) == (0, [])


def along_the_trellis(body, size):
    """Returns the elements of a `tcq` body."""
    (step, largest), off = struct.unpack_from("<fB", body), struct.unpack_from("<6b", body, 5)
    signs, at = varints(body, 11, 2)
    first, at = varints(body, at, largest + 1)
    second, at = varints(body, at, largest + 1)
    levels = [[0.0] + [2 * k - quantizer for k in range(1, largest + 1)] for quantizer in (0, 1)]
    for place, each in enumerate(off):
        quantizer, k = place // 3, place % 3 + 1
        if k <= largest:
            levels[quantizer][k] = as_float32(levels[quantizer][k] + as_float32(each / 127))
    following = [(0, 1), (3, 2), (5, 4), (6, 7), (1, 0), (2, 3), (4, 5), (7, 6)]
    lanes = max(1, round(size / 256))
    steps, words, states = math.ceil(size / lanes), Words(body[at:]), [0] * lanes
    found = []
    for _ in range(steps):
        now = [0] * lanes
        for quantizer, counts in enumerate((first, second)):
            mine = [lane for lane in range(lanes) if states[lane] % 2 == quantizer]
            for lane, index in zip(mine, words.next(counts, len(mine)) if mine else [], strict=True):
                now[lane] = index
        found.append([(index, state % 2) for index, state in zip(now, states, strict=True)])
        states = [following[state][index % 2] for index, state in zip(now, states, strict=True)]
    assert sum(index > 0 for row in found for index, _ in row) == sum(signs)
    minus = iter(words.next(signs, sum(signs)) if sum(signs) else [])
    words.end()
    rows = [[as_float32(levels[q][k] * step) * (1 - 2 * next(minus)) if k else 0.0 for k, q in row] for row in found]
    return [rows[n % steps][n // steps] for n in range(size)]


def unpacked(content, size, columns):
    """Returns symbols that are packed plainly, by ANS with a histogram, or with one for each group of columns."""
    if content[0] == 3:
        return by_columns(content[1:], size // columns, columns)
    mode, shift, low, span = struct.unpack_from("<BBiI", content)
    assert shift == 0
    body = content[10:]
    if mode == 0:
        width, bits = span.bit_length(), int.from_bytes(body, "little")
        assert len(body) == (size * width + 7) // 8
        return [low + (bits >> n * width & (1 << width) - 1) for n in range(size)]
    assert mode == 2
    counts, at = varints(body, 0, span + 1)
    words = Words(body[at:])
    symbols = [low + index for index in words.next(counts, size)]
    words.end()
    return symbols


def by_columns(content, rows, columns):
    """Returns the symbols of a matrix whose columns are grouped by what the rows before hold."""
    highest = content[0]
    overall, at = varints(content, 1, highest + 1)
    words, matrix, sums, first = Words(content[at:]), [], [0] * columns, 0
    counts = [[640 * each // sum(overall) + 1 for each in overall] for _ in range(6)]
    for bound in (3, 4, 6, 8, 12, 18, 24, 36, 48):
        last = (rows * bound + 47) // 48
        if last == first:
            continue
        edge = [sums[0]] * 4 + sums + [sums[-1]] * 4
        likely = [9 * sums[n] + 2 * sum(edge[n : n + 9]) for n in range(columns)]
        order = sorted(range(columns), key=lambda n: likely[n])
        ranked = [likely[n] for n in order]
        starts = [bisect.bisect_left(ranked, ranked[columns * group // 6]) for group in range(6)]
        groups = list(enumerate(zip(starts, [*starts[1:], columns], strict=True)))
        if not first:
            order, groups = list(range(columns)), [(None, (0, columns))]
        block = [[0] * columns for _ in range(first, last)]
        for group, (start, end) in groups:
            table = overall if group is None else counts[group]
            both = [*table[:0:-1], 2 * table[0], *table[1:]]
            found = iter(words.next(both, len(block) * (end - start)) if end > start else [])
            for row in block:
                for n in order[start:end]:
                    row[n] = next(found) - highest
        for group, (start, end) in groups:
            for row in block:
                for n in order[start:end]:
                    sums[n] += min(abs(row[n]), 3)
                    if group is not None:
                        counts[group][abs(row[n])] += 16
        matrix, first = matrix + block, last
    words.end()
    return [each for row in matrix for each in row]
