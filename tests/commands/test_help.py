"""Every command shows two examples that its parser takes, names the nearest valid value, and is completed by shells."""

import argparse
import os
import pty
import re
import runpy
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest
from conftest import REPOSITORY, composed

from fl.__main__ import EXAMPLES, VERBS
from fl.commands.arguments import Parser
from fl.core.errors import QuantflError
from fl.core.presets import CONF, yaml_file

DOORS = {"python compare_quantizations.py": "compare", **{f"python -m fl {verb}": verb for verb in VERBS}}


def parsed(line):
    """Reads an example as the command would; returns its verb."""
    words = shlex.split(line, comments=True)
    prefix = (
        "python -m fl"
        if words[0] == "quantfl"
        else next(p for p in (*DOORS, "python -m fl.train") if line.startswith(p))
    )
    rest = words[1:] if words[0] == "quantfl" else words[len(prefix.split()) :]
    verb = rest.pop(0) if words[0] == "quantfl" else DOORS.get(prefix, "train")
    if verb == "train":
        composed(*rest)
    elif verb in VERBS:
        import_module(f"fl.commands.{verb}").parser().parse_args(rest)
    return verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_two_examples_that_it_takes(verb, capsys):
    if verb == "train":
        told = yaml_file(CONF / "config.yaml", resolve=False)["hydra"]["help"]["template"]
    else:
        with pytest.raises(SystemExit):
            import_module(f"fl.commands.{verb}").parser().parse_args(["--help"])
        told = capsys.readouterr().out
    examples = re.findall("^ *(python .*)$", told.partition("Examples:")[2], re.MULTILINE)
    assert len(examples) >= 2
    assert {parsed(each) for each in examples} == {verb}


def test_the_list_of_verbs_shows_examples_too(command):
    told = command("fl", "--help", check=0).stdout
    assert [each in told for each in EXAMPLES] == [True] * len(EXAMPLES)
    assert [parsed(each) for each in EXAMPLES] == ["train", "compare", "--completion"]


class Parsed(Exception):
    """The command line was read: nothing more is to happen."""


PROGRAMS = [
    path
    for path in (*sorted((REPOSITORY / "benchmarks").glob("*.py")), *sorted((REPOSITORY / "scripts").glob("*.py")))
    if '__name__ == "__main__"' in path.read_text() and path.stem != "reference_app"  # which takes no arguments
]


@pytest.mark.long
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_other_programs_show_two_examples_that_they_take(path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(path.parent))

    def run(arguments):
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        runpy.run_path(str(path), run_name="__main__")

    with pytest.raises(SystemExit) as ended:
        run(["--help"])
    assert ended.value.code in (0, None)
    examples = re.findall(r"^ *\S*python (.*)$", capsys.readouterr().out.partition("Examples:")[2], re.MULTILINE)
    assert len(examples) >= 2
    read = argparse.ArgumentParser.parse_args

    def stop(*arguments):
        read(*arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for each in examples:
        name, *arguments = shlex.split(each, comments=True)
        assert (REPOSITORY / name) == path
        with pytest.raises(Parsed):
            run(arguments)


def test_shell_scripts_show_two_examples():
    for script in ("submit_job.sh", "scripts/deployment.sh"):
        told = subprocess.check_output([REPOSITORY / script, "--help"], text=True)
        assert len(re.findall(rf"^ +\S*{script}( \w[^\[\n]*)$", told, re.MULTILINE)) >= 2, told


def choose(*overrides):
    from fl.experiment.composing import composed as compose

    return lambda: compose(overrides)


def check(*overrides):
    from fl.experiment.settings import settings_from

    return lambda: settings_from(composed(*overrides))


def asked(module, name, *arguments):
    return lambda: getattr(import_module(module), name)(*arguments)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (choose("strategy=fedagv"), ["strategy=fedagv", "did you mean fedavg?"]),
        (choose("codec@update=int3"), ["codec@update=int3", "did you mean int8?"]),
        (choose("model=resnet19"), ["model=resnet19", "did you mean resnet18?"]),
        (choose("engine=rya"), ["engine=rya", "did you mean ray?"]),
        (choose("num_round=3"), ["num_round=3", "did you mean num_rounds?"]),
        (check("lr_schedule=cosin"), ["lr_schedule=cosin", "did you mean cosine?"]),
        (check("augmentation=dihedrl"), ["augmentation=dihedrl", "did you mean dihedral?"]),
        (check("server_model=exakt"), ["server_model=exakt", "did you mean exact?"]),
        (check("data.split=randon"), ["data.split=randon", "did you mean random?"]),
        (check("device=cude"), ["device=cude", "did you mean cuda?"]),
        (check("checkpoint.keep=bets"), ["checkpoint.keep=bets", "did you mean best?"]),
        (check("log=jsn"), ["log=jsn", "did you mean json?"]),
        (asked("fl.quantization.precisions", "precisions", ["int9"]), ["--precisions int9", "did you mean int8?"]),
        (asked("fl.deployment.formats", "formats", ["onxx"], "--formats"), ["--formats onxx", "did you mean onnx?"]),
        (asked("fl.communication.pricing", "load_link", "flatrate"), ["--link flatrate", "did you mean flat_rate?"]),
        (asked("fl.models.architecture", "network_named", "resnt18"), ["--model resnt18", "did you mean resnet18?"]),
        (asked("fl.commands.completion", "script", "bsh", VERBS), ["--completion bsh", "did you mean bash?"]),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_a_wrong_value_is_answered_with_the_nearest_valid_one(wrong, words):
    with pytest.raises(QuantflError) as refused:
        wrong()
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_so_is_a_wrong_choice_of_an_option(capsys):
    with pytest.raises(SystemExit):
        import_module("fl.commands.export").parser().parse_args(["run", "--metric", "acuracy"])
    assert "did you mean accuracy?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        Parser(prog="prog").parse_args(["--log", "yaml"])
    assert "did you mean" not in capsys.readouterr().err


COMPLETE = """
source script.bash
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_shtab_quantfl quantfl "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
echo "${COMPREPLY[@]}"
"""


def test_bash_completes_verbs_options_and_settings(command, tmp_path):
    (tmp_path / "script.bash").write_text(command("fl", "--completion", "bash", check=0).stdout)
    (tmp_path / "a folder").mkdir()

    def completed(line):
        words = ["bash", "-c", COMPLETE, "bash", *line.split(" ")]
        return subprocess.check_output(words, cwd=tmp_path, text=True).split()

    assert completed("quantfl comp") == ["compare"]
    assert completed("quantfl export --me") == ["--metric"]
    assert completed("quantfl export --metric ac") == ["accuracy"]
    assert completed("quantfl export --lo") == ["--log"]
    assert completed("quantfl communication --link cu") == ["cubesat_sband"]
    assert {"int8", "int8_static"} <= set(completed("quantfl compare --precisions int"))
    assert {"strategy=fedavg", "strategy=fedadam"} <= set(completed("quantfl train strategy=fe"))
    assert completed("quantfl train codec@update=ec") == ["codec@update=ecq"]
    assert completed("quantfl train num_r") == ["num_rounds="]
    assert completed("quantfl train update.error") == ["update.error_feedback="]
    assert completed("quantfl compare a") == ["a", "folder"]


INTERACTIVE = {
    "bash": (["bash", "--norc", "-i"], "source ./script"),
    "zsh": (["zsh", "-f", "-i"], "fpath+=$PWD; autoload -Uz compinit; compinit -u -d $PWD/dump"),
}


def typed(words, setup, line, whole, folder):
    """Types a line and a tab at a shell's prompt; returns what the terminal shows in the end, `whole` at the latest."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(words[0], words, os.environ | {"PS1": "> ", "TERM": "dumb"})

    def shown(wanted):
        text, late = "", time.monotonic() + 60
        while time.monotonic() < late and not re.search(wanted, text, re.DOTALL):
            if select.select([terminal], [], [], 0.2)[0]:
                text += os.read(terminal, 65536).decode(errors="replace")
                text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[\x07\r]", "", text).replace(" \b", "")
        return text

    try:
        os.write(terminal, f"{setup}; echo re''ady\n".encode())
        shown(r"ready\n.*> $")
        os.write(terminal, f"{line}\t".encode())
        return shown(f"{re.escape(whole)}$")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.mark.parametrize("shell", INTERACTIVE)
def test_settings_are_completed_at_a_prompt_and_wait_for_their_value(shell, command, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} on this machine")
    script = command("fl", "--completion", shell, check=0).stdout
    (tmp_path / {"bash": "script", "zsh": "_quantfl"}[shell]).write_text(script)
    words, setup = INTERACTIVE[shell]
    for line, whole in (
        ("quantfl train num_r", "quantfl train num_rounds="),
        ("quantfl train codec@update=ec", "quantfl train codec@update=ecq "),
        ("quantfl communication --link cu", "quantfl communication --link cubesat_sband "),
    ):
        assert typed(words, setup, line, whole, tmp_path).endswith(whole)


def test_fish_completes_verbs_options_and_settings(command, tmp_path):
    if not shutil.which("fish"):
        pytest.skip("there is no fish on this machine")
    (tmp_path / "script.fish").write_text(command("fl", "--completion", "fish", check=0).stdout)

    def completed(line):
        asked = f"source script.fish; complete -C '{line}'"
        told = subprocess.check_output(["fish", "--no-config", "-c", asked], cwd=tmp_path, text=True)
        return [each.split("\t")[0] for each in told.splitlines()]

    assert completed("quantfl comp") == ["compare"]
    assert completed("quantfl train num_r") == ["num_rounds="]
    assert completed("quantfl train codec@update=ec") == ["codec@update=ecq"]
    assert completed("quantfl communication --link cu") == ["cubesat_sband"]
    assert "--metric" in completed("quantfl export --me")
