"""Commands in documents: where they stand, and whether each would be taken as it is written.

A fenced `bash` block is run by a test by its own text (test_documents.py), in a checkout with the files that documents
show under a title and with stand-ins for what they only name. A block that cannot run there has a comment above it that
names what does: `<!-- run by: make test-cluster -->`, with a file in brackets where one of the tests is meant.
"""

import functools
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from conftest import REPOSITORY

DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "outputs/README.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "examples").rglob("*.md")),
]
RUNNERS = ("test", "test-long", "test-all", "test-cluster", "test-deployment")
"""Targets of make that tests stand behind."""
BLOCK = re.compile(
    r'(?:^<!-- run by: (?P<by>.+) -->\n)?^```(?P<language>\w*)(?: title="(?P<title>.+)")?\n(?P<text>(?:.*\n)*?)```$',
    re.MULTILINE,
)
STARTS = r"python|make|quantfl|flwr run|pip install|\./submit_job\.sh|scripts/\S+\.sh|tests/\S+\.sh|pytest"
INLINE = re.compile(rf"`(?=(?:[A-Z_]+=\S+ )*(?:{STARTS})[ `])([^`]+)`")
SHELL = ("echo", "cat", "cd", "eval", "export", "grep", "pkill", "sbatch", "scancel", "source", "squeue")
"""What no program of ours reads."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; `run_by` is what its comment says."""

    path: Path
    language: str
    text: str
    title: str | None
    run_by: str | None

    def commands(self) -> list[str]:
        """Returns its lines that are typed, those that go on in the next one joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line[2:] for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip()] if self.language == "bash" else []


def blocks(path: Path) -> Iterator[Block]:
    """Yields the fenced blocks of a document."""
    for match in BLOCK.finditer(path.read_text()):
        yield Block(path, match["language"], match["text"], match["title"], match["by"])


def inline(path: Path) -> list[str]:
    """Returns the commands within a document's sentences and tables; those with ... say only how they begin."""
    text = BLOCK.sub("", path.read_text())
    return [" ".join(match.split()) for match in INLINE.findall(text) if "..." not in match.replace("=... ", "=x ")]


def simple_commands(line: str) -> Iterator[list[str]]:
    """Yields the words of each command of a line, without variables set for it."""
    words: list[str] = []
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    lexer.whitespace_split = True
    for word in [*lexer, "&&"]:
        if not set(word) <= set("&;|"):
            words.append(word)
        elif words:
            first = next(number for number, each in enumerate([*words, ""]) if not re.match(r"[A-Z_]+=", each))
            yield words[first:]
            words = []


class _Read(BaseException):
    """A parser has read its command line."""


def check(words: Sequence[str], monkeypatch) -> None:
    """Fails unless the command exists and takes these arguments."""
    program, *rest = ("1" if word == "N" else word for word in words)
    if program in SHELL:
        return
    for word in rest:
        if re.match(r"(benchmarks|conf|docs|examples|scripts|tests)/", word) and "*" not in word:
            assert (REPOSITORY / word).exists() or rest[rest.index(word) - 1] in ("--output", "--json"), word
    if program in ("python", "quantfl"):
        _python(rest if program == "python" else ["-m", "fl", *rest], monkeypatch)
    elif program == "make":
        assert {word for word in rest if "=" not in word} <= targets(), words
    elif program == "pip":
        _pip(rest)
    elif program == "./submit_job.sh":
        _submit(rest)
    elif program == "flwr":
        _flwr(rest)
    elif program.endswith(".sh"):
        text = (REPOSITORY / program).read_text()
        assert not rest or re.search(rf"^ *([a-z]+ \| )*{rest[0]}( \| [a-z]+)*\)", text, re.MULTILINE), words
    else:
        assert program == "pytest", f"nothing here knows {program}"


def targets() -> set[str]:
    """Returns the targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def _python(arguments: Sequence[str], monkeypatch) -> None:
    if arguments[:1] != ["-m"]:
        if arguments[0] == "compare_quantizations.py":
            _read("compare", arguments[1:], monkeypatch)
            return
        text = (REPOSITORY / arguments[0]).read_text() + (REPOSITORY / "benchmarks" / "table.py").read_text()
        assert all(option in text for option in arguments[1:] if option.startswith("--")), arguments
        return
    module, *rest = arguments[1:] if arguments[1] != "cProfile" else arguments[arguments.index("-m", 1) + 1 :]
    if module == "fl" and rest:
        module = f"fl.{rest.pop(0)}"
    if module == "fl.--completion":
        assert rest[0] in ("bash", "zsh", "fish"), rest  # and where it goes
    elif module == "fl.train":
        composes(rest)
    elif module.startswith("fl."):
        _read(module.removeprefix("fl."), rest, monkeypatch)
    else:
        assert module == "fl" or list((REPOSITORY / "examples").glob(f"*/{module.replace('.', '/')}.py")), module


def _read(verb: str, arguments: Sequence[str], monkeypatch) -> None:
    """Starts a verb up to where its arguments are read."""
    from fl.commands.arguments import Parser

    def read(parser, given=None, namespace=None):
        super(Parser, parser).parse_args(given, namespace)
        raise _Read

    door = import_module(f"fl.commands.{verb}")
    if not arguments:
        return  # a sentence names the verb
    with monkeypatch.context() as patched:
        patched.setattr(Parser, "parse_args", read, raising=False)
        patched.setattr("sys.argv", [verb, *arguments])
        try:
            door.main()
        except _Read:
            return
    raise AssertionError(f"{verb} did not read {arguments}")


def composes(arguments: Sequence[str]) -> None:
    """Fails unless these settings are taken, of a sweep those of the first and the last job."""
    _composes(*arguments)


@functools.cache
def _composes(*arguments: str) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from fl.experiment.composing import composed, overrides_first, typed_targets
    from fl.experiment.settings import settings_from

    options = get_args_parser().parse_args(overrides_first(list(arguments)))
    jobs = [options.overrides]
    if options.multirun:
        parsed = OverridesParser.create().parse_overrides(options.overrides)
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    for job in jobs[:: max(1, len(jobs) - 1)]:
        settings_from(composed(job), trusted=typed_targets(job))


def _pip(arguments: Sequence[str]) -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert arguments[:3] == ["install", "-c", "constraints.txt"], arguments
    for word in arguments:
        if named := re.match(r"\.\[(.+)\]", word):
            assert set(named[1].split(",")) <= set(extras), word


def _submit(arguments: Sequence[str]) -> None:
    from fl.core.presets import choices

    text = (REPOSITORY / "submit_job.sh").read_text()
    options = [each.partition("=")[0] for each in arguments if each.startswith("--")]
    assert all(re.search(rf"{each}(?![\w-])", text) for each in options), arguments
    if arguments:
        assert arguments[0] in choices("experiment")
        assert arguments[1].isdigit()
        composes([each for each in arguments[2:] if re.match(r"[\w.@]+=", each)])


def _flwr(arguments: Sequence[str]) -> None:
    text = (Path(find_spec("flwr").origin).parent / "cli" / "run" / "run.py").read_text()  # not imported: seconds
    assert all(f'"{each}"' in text for each in arguments if each.startswith("--")), arguments
    for option, value in itertools.pairwise(arguments):
        if option == "--run-config":
            overrides = shlex.split(tomllib.loads(value)["overrides"])
            composes([each for each in overrides if not each.startswith("hydra.run.dir=")])
