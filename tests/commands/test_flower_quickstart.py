"""The two lines of docs/codecs.md, run as they stand on a Flower app of the usual form."""

import importlib
import random
import re
import sys
import tomllib

import pytest
import torch
from conftest import REPOSITORY
from flwr.app import Context, RecordDict

from fl.federation.engine.in_process import InProcess
from fl.federation.messages import payload_bytes

EXAMPLE = REPOSITORY / "examples" / "flower_quickstart"
CONFIG = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


@pytest.fixture
def quickstart(monkeypatch):
    """Imports a module of the example."""
    monkeypatch.syspath_prepend(EXAMPLE)
    torch.set_num_threads(1)
    yield lambda name: importlib.import_module(f"flower_quickstart.{name}")
    for name in [name for name in sys.modules if name.startswith("flower_quickstart")]:
        del sys.modules[name]


def snippet():
    text = (REPOSITORY / "docs" / "codecs.md").read_text().split("In any other Flower app")[1]
    return text.split("```python\n")[1].split("```")[0]


def configured(grid, config):
    plain = grid._context

    def told(node):
        context = plain(node)
        context.run_config.update(config)
        return context

    grid._context = told
    random.seed(1)
    carry, weights = grid.send_and_receive, []

    def weighed(messages, timeout=None):
        messages = list(messages)
        replies = list(carry(messages))
        weights.extend(payload_bytes(each.content) for each in messages + replies)
        return replies

    grid.send_and_receive = weighed
    return weights


def test_the_readmes_lines_code_the_example_as_its_own_files_do(quickstart, capsys):
    namespace, client, task = {}, quickstart("client_app"), quickstart("task")
    exec(snippet(), namespace)
    app, strategy, config = namespace["app"], namespace["strategy"], CONFIG["config"] | {"num-server-rounds": 2}
    app.train()(client.train)
    app.evaluate()(client.evaluate)
    with InProcess().open(app, 4) as grid:
        weights = configured(grid, config)
        result = strategy.start(grid, task.initial_model(), num_rounds=2)
    plain = payload_bytes(RecordDict({"arrays": task.initial_model()}))
    assert sum(weights) < len(weights) / 2 * plain / 6, "messages out and back"
    reached = result.evaluate_metrics_clientapp[2]["eval_acc"]
    assert reached > 0.8

    with InProcess().open(client.app, 4) as grid:
        again = configured(grid, config)
        quickstart("server_app").app(grid, Context(1, 1, {}, RecordDict(), config))
    assert again == weights, "the same bytes"
    assert f"accuracy after 2 rounds: {100 * reached:.1f} %" in capsys.readouterr().out


def test_the_example_is_an_app_that_flwr_run_takes(quickstart):
    for component in ("serverapp", "clientapp"):
        module, name = CONFIG["components"][component].removeprefix("flower_quickstart.").split(":")
        assert hasattr(quickstart(module), name)


def test_the_examples_own_figures_are_measured_ones(quickstart, capsys):
    measure = quickstart("measure")
    stated = (EXAMPLE / "README.md").read_text()
    bytes_stated = [int(each.replace(",", "")) for each in re.findall(r"([\d,]+) B \|", stated)]
    measure.main(1)
    row = capsys.readouterr().out.split("| coded |")[1].splitlines()[0]
    sent, received = (int(each.replace(",", "")) for each in re.findall(r"([\d,]+) B", row))
    plain_sent, plain_received, coded_sent, coded_received = bytes_stated
    assert received == pytest.approx(coded_received / 5, rel=0.02)
    assert 0 < sent < coded_sent
    assert plain_sent / coded_sent > 10
    assert plain_received / coded_received > 25
