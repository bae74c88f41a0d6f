"""Trains in a process that kills itself at one of its writes, resumes in another, and says what came out.

    python tests/attacks/kill_at_writes.py FOLDER [NUMBER ...]

Every write of the project ends in `os.fsync` (the content is in a temporary file, or a line in its file) and, but for
lines, in `os.replace`: a process can die just before each, and that is every state of a folder that a kill can leave.
Processes are forks of this one, which has imported everything and done nothing. Prints one JSON line for each kill.
"""

import contextlib
import gc
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

from fl.core.files import read_json, read_jsonl
from fl.core.run_folder import SETTINGS, is_complete
from fl.experiment.run import run
from fl.federation.server_app import make_server_app  # noqa: F401


def in_a_fork(work, folder):
    """Returns the exit status of a process that does `work`; what it prints goes to a file beside the folder."""
    child = os.fork()
    if child == 0:
        status = 1
        with (
            contextlib.suppress(BaseException),
            folder.with_suffix(".log").open("a") as log,
            contextlib.redirect_stdout(log),
        ):
            try:
                work()
                status = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=log)
        os._exit(status)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def dying_at(number, work, count=None):
    """Returns `work` with a process that dies before its write of that number, and counts writes for another."""
    done = 0

    def counted(write):
        def wrapped(*arguments):
            nonlocal done
            done += 1
            if count is not None:
                count.write_text(str(done))
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments)

        return wrapped

    def start():
        os.fsync, os.replace = counted(os.fsync), counted(os.replace)
        work()

    return start


def trained(config, folder):
    """Trains, or resumes, as the commands do."""
    folder.mkdir(exist_ok=True)
    if is_complete(folder):
        return
    begun = (folder / SETTINGS).exists()
    run(read_json(folder / SETTINGS) if begun else config, folder, resume=begun)


def numbers(value):
    """Returns a value without what two runs of one seed may differ in."""
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items() if not key.endswith("_s")}
    return [numbers(each) for each in value] if isinstance(value, list) else value


def outcome(folder):
    """Returns what must be equal for every run."""
    return {
        "model": hashlib.sha256((folder / "final_model.pt").read_bytes()).hexdigest(),
        "rounds": hashlib.sha256(json.dumps(numbers(read_jsonl(folder / "rounds.jsonl"))).encode()).hexdigest(),
        "measured": numbers(read_json(folder / "communication.json")["measured"]),
        "state": read_json(folder / "summary.json")["state"],
        "files": sorted(str(each.relative_to(folder)) for each in folder.rglob("*")),
    }


def main():
    gc.freeze()  # else each fork copies the libraries' pages as soon as it collects garbage
    root = Path(sys.argv[1])
    config = read_json(root / "config.json")
    whole, count = root / "whole", root / "count"
    assert in_a_fork(lambda: trained(config, whole), whole) == 0, "the run itself fails"
    assert in_a_fork(dying_at(0, lambda: trained(config, root / "again"), count), root / "again") == 0
    assert outcome(root / "again") == outcome(whole), "the run is not the same twice"
    print(json.dumps({"writes": int(count.read_text()), **outcome(whole)}), flush=True)
    for number in map(int, sys.argv[2:]):
        folder = root / f"killed-{number}"
        first = in_a_fork(dying_at(number, lambda: trained(config, folder)), folder)  # noqa: B023
        twice = number % 3 == 0  # and while it is resumed
        again = in_a_fork(dying_at(number // 2 + 1, lambda: trained(config, folder)), folder) if twice else None  # noqa: B023
        last = in_a_fork(lambda: trained(config, folder), folder)  # noqa: B023
        told = folder.with_suffix(".log").read_text()
        print(json.dumps({"killed": [first, again, last], "told": told, **(outcome(folder) if not last else {})}))


if __name__ == "__main__":
    main()
