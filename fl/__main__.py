"""`quantfl VERB ...`, `python -m fl VERB ...`: the verbs; only the one that is asked for is imported."""

import sys
from importlib import import_module

from fl.core.errors import one_line_errors, suggestion
from fl.core.output import complain, speak_as_typed
from fl.core.stop import listen

VERBS = {
    "train": "train as configured: conf/, and key=value on the command line",
    "resume": "continue a run that was killed",
    "sweep": "draw table and pictures of a multirun again",
    "compare": "one model in several precisions: accuracy, size, cost",
    "export": "the model of the best round, ready to ship",
    "bench": "speed, memory and answers of model files",
    "recommend": "in what to train, what to ship, what to transmit",
    "report": "one page of a run, or of several side by side",
    "plot": "pictures for papers, of one run or many",
    "communication": "what traffic takes over satellite links",
}

EXAMPLES = (
    "quantfl train experiment=demo",
    "quantfl compare outputs/DATE/TIME",
    "quantfl --completion bash    # the script that completes all of these: docs/configuration.md",
)


def door(verb: str, name: str) -> None:
    """Runs a verb if the module that calls this is the program; `name` is its `__name__`."""
    if name == "__main__":
        listen()
        import_module("fl.train" if verb == "train" else f"fl.commands.{verb}").main()


def main() -> None:
    """Runs the verb that the command line begins with."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print("usage: quantfl VERB [...]; quantfl VERB --help says more\n")
        print("\n".join(f"  {name:<15}{told}" for name, told in VERBS.items()))
        print("\nExamples:\n" + "\n".join(f"  {each}" for each in EXAMPLES))
    elif verb == "--completion":
        listen()
        with one_line_errors():
            print(import_module("fl.commands.completion").script("".join(sys.argv[2:3]), VERBS))
    elif verb in VERBS:
        del sys.argv[1]
        door(verb, "__main__")
    else:
        speak_as_typed(sys.argv)
        complain(f"{verb}: there is no such verb; {suggestion(verb, VERBS)}valid: {', '.join(VERBS)}")
        sys.exit(2)


if __name__ == "__main__":
    main()
