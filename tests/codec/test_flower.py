"""Codecs around any Flower app: both ends agree bit for bit, whoever is away, fails, or is not heard."""

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SMALL, composed
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg, FedProx
from torch import nn

from fl.codec import CodecStrategy, Ecq, Eden, Fp16, PayloadError, Raw, ServerLink, Uniform, codec_mod, fingerprint
from fl.codec.client_mod import REFERENCE, RESIDUAL
from fl.codec.payload import specs_of
from fl.codec.wire import WIRE
from fl.core.errors import QuantflError
from fl.core.files import read_json, read_jsonl
from fl.core.run_folder import COMMUNICATION
from fl.experiment.run import run
from fl.federation.engine.in_process import InProcess

CODECS = [Raw(), Fp16(), Uniform(8, "stochastic"), Uniform(4, error_feedback=True), Ecq(2.0), Eden(2)]


def start():
    """A model with a large, a tiny, a BatchNorm and an integer tensor."""
    rng = np.random.default_rng(7)
    return {
        "fc.weight": rng.normal(size=(32, 64)).astype(np.float32),
        "fc.bias": np.zeros(32, np.float32),
        "bn.running_var": np.ones(32, np.float32),
        "bn.num_batches_tracked": np.array(0),
    }


def moving(codecs, seen=None, failing=()):
    """A ClientApp whose training moves the model by what round and client decide; it may fail in a (round, client)."""
    app = ClientApp(mods=[codecs])

    @app.train()
    def train(message, context):
        config, client = message.content["config"], context.node_config["partition-id"]
        server_round = config["server-round"]
        received = {name: array.numpy() for name, array in message.content["arrays"].items()}
        if seen is not None:
            seen[server_round, client] = received
        if (server_round, client) in failing:
            raise ValueError("battery empty")
        rng = np.random.default_rng((server_round, client))
        moved = {
            "fc.weight": received["fc.weight"] + rng.normal(size=(32, 64)).astype(np.float32) / 100,
            "fc.bias": received["fc.bias"] + np.float32(0.01),
            "bn.running_var": received["bn.running_var"] * np.float32(0.9),
            "bn.num_batches_tracked": np.asarray(received["bn.num_batches_tracked"] + 1),
        }
        arrays = ArrayRecord({name: Array(array) for name, array in moved.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    return app


def record(tensors):
    return ArrayRecord({name: Array(array) for name, array in tensors.items()})


def rounds(link, grid, asked, drop=()):
    """Runs rounds of plain averaging over a link; `asked` are the clients of each. Yields (round, sent fingerprint)."""
    exact = start()
    for server_round, clients in enumerate(asked, 1):
        content = RecordDict({"arrays": record(exact), "config": ConfigRecord({"server-round": server_round})})
        exact = {name: array.numpy() for name, array in link.begin(record(exact)).items()}
        messages = link.send([Message(content, 2 + client, "train") for client in clients])
        sent = messages[0].content[WIRE]["reference"]
        changes = []
        for reply in grid.send_and_receive(messages):
            if (server_round, reply.metadata.src_node_id - 2) in drop:
                continue
            try:
                link.receive(reply)
            except PayloadError:
                continue
            if not reply.has_error():
                link.accept(reply)
                changes.append({name: array.numpy() for name, array in reply.content["arrays"].items()})
        if changes:
            means = {name: np.mean([each[name] for each in changes], axis=0) for name in exact}
            exact = {name: np.asarray(mean, start()[name].dtype) for name, mean in means.items()}
        yield server_round, sent, messages, exact


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.description)
def test_all_clients_hold_the_servers_reference_whoever_is_away_or_fails(codec):
    asked = [[0, 1], [1, 2], [0, 2], [1], [0, 1, 2, 3], [3], [0, 1, 2, 3]]
    seen = {}
    app = moving(codec_mod(broadcast=codec, update=codec, initial=start), seen, failing={(2, 2), (5, 1)})
    link = ServerLink(codec, codec, initial=start)
    with InProcess().open(app, 4) as grid:
        for server_round, sent, _, _ in rounds(link, grid, asked):
            trained = {client: model for (number, client), model in seen.items() if number == server_round}
            assert sorted(trained) == asked[server_round - 1]
            assert all(fingerprint(model) == sent for model in trained.values())
            assert all((model["bn.running_var"] > 0).all() for model in trained.values())


def test_who_missed_rounds_gets_the_missed_frames_or_the_whole_model_if_that_is_shorter():
    codec = Uniform(8)
    app = moving(codec_mod(broadcast=codec, update=codec, initial=start))
    link = ServerLink(codec, codec, initial=start)
    sizes = {}
    with InProcess().open(app, 2) as grid:
        for server_round, _, messages, _ in rounds(link, grid, [[0], [0], [0, 1], [0], [0], [0], [0], [0], [0, 1]]):
            for message in messages:
                payloads = [array.data for array in message.content["arrays"].values() if array.data]
                sizes[server_round, message.metadata.dst_node_id - 2] = (len(payloads), sum(map(len, payloads)))
    whole = len(Raw().encode(start(), np.random.default_rng(0)))
    assert sizes[1, 0] == (0, 0), "the initial model is known to all"
    assert sizes[2, 0][0] == sizes[4, 0][0] == 1
    assert sizes[3, 1][0] == 2, "one frame for each round that was missed"
    assert sizes[9, 1][0] == 1, "the whole model, for six frames are longer"
    assert sizes[9, 1][1] <= 1.1 * whole < 6 * sizes[4, 0][1]


def test_a_client_without_the_reference_says_so_and_is_sent_it_in_its_next_round():
    codec, seen = Ecq(2.0), {}
    app = moving(codec_mod(broadcast=codec, update=codec, initial=start), seen)
    link = ServerLink(codec, codec, initial=start)
    with InProcess().open(app, 2) as grid:
        for server_round, sent, _, _ in rounds(link, grid, [[0, 1]] * 5):
            if server_round == 2:
                grid.states.put(3, RecordDict())  # the second client's memory is gone
            if server_round == 3:
                assert (3, 1) not in seen
            else:
                assert fingerprint(seen[server_round, 1]) == sent


@pytest.mark.parametrize(
    "codec", [Uniform(4, error_feedback=True), Ecq(2.0, error_feedback=True)], ids=lambda codec: codec.description
)
def test_a_lost_update_is_sent_again_with_what_was_lost_before(codec):
    """What the server received plus what the client still remembers is all that the client ever learned."""
    app = moving(codec_mod(update=codec))
    link = ServerLink(None, codec)
    received = np.zeros((32, 64))
    with InProcess().open(app, 1) as grid:
        before = start()
        for server_round, _, _, exact in rounds(link, grid, [[0]] * 6, drop={(2, 0), (3, 0)}):
            received += exact["fc.weight"] - before["fc.weight"]
            before = exact
            residual = grid.states.get(2).array_records[RESIDUAL]["fc.weight"].numpy()
            learned = sum(
                np.random.default_rng((each, 0)).normal(size=(32, 64)) / 100 for each in range(1, server_round + 1)
            )
            if server_round in (1, 4, 5, 6):
                np.testing.assert_allclose(received + residual, learned, atol=2e-6)


def test_a_client_that_raised_keeps_what_it_remembered():
    codec = Ecq(2.0)
    app = moving(codec_mod(broadcast=codec, update=codec, initial=start), failing={(2, 0)})
    link = ServerLink(codec, codec, initial=start)
    with InProcess().open(app, 1) as grid:
        states = [grid.states.get(2) for _ in rounds(link, grid, [[0]] * 3)]
    assert states[0] == states[1] != states[2]


def test_a_link_continues_from_its_state():
    codec = Uniform(4, "stochastic")
    finals = []
    for interrupted in (False, True):
        app = moving(codec_mod(broadcast=codec, update=codec, initial=start))
        link = ServerLink(codec, codec, initial=start)
        with InProcess().open(app, 3) as grid:
            for *_, exact in rounds(link, grid, [[0, 1, 2], [0], [0, 1], [2]]):  # noqa: B007
                if interrupted:
                    state = link.state()
                    link.__init__(codec, codec, initial=start)
                    link.load_state(state)
        finals.append(fingerprint(exact))
    assert finals[0] == finals[1]


def test_the_readme_adds_a_codec_with_one_class(tmp_path):
    """Runs the documentation's own text."""
    readme = (REPOSITORY / "docs" / "codecs.md").read_text().split("## Add a codec")[1]
    namespace = {}
    exec(readme.split('```python title="my_codecs.py"\n')[1].split("```")[0], namespace)
    codec = namespace["ScaledSign"]()
    tensors, specs = start(), specs_of(start())
    decoded = codec.decode(codec.encode(tensors, np.random.default_rng(0)), specs)
    np.testing.assert_array_equal(np.sign(decoded["fc.weight"]), np.sign(tensors["fc.weight"]))
    seen = {}
    app = moving(codec_mod(broadcast=codec, update=codec, initial=start), seen)
    with InProcess().open(app, 2) as grid:
        for server_round, sent, _, _ in rounds(ServerLink(codec, codec, initial=start), grid, [[0, 1]] * 3):
            assert fingerprint(seen[server_round, 1]) == sent


class Quickstart(nn.Module):
    """A network of somebody else's."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(20, 64), nn.BatchNorm1d(64), nn.Linear(64, 3)

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))


def quickstart(mods, wrap, num_rounds=6):
    """A plain Flower app, as public quickstarts write it, with FedProx; returns accuracy and payload bytes."""
    torch.manual_seed(0)
    teacher = torch.randn(20, 3)

    def images(client):
        generator = torch.Generator().manual_seed(client)
        x = torch.randn(200, 20, generator=generator)
        return x, (x @ teacher).argmax(1)

    client_app = ClientApp(mods=mods)

    @client_app.train()
    def train(message, context):
        model = Quickstart()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        received = [parameter.detach().clone() for parameter in model.parameters()]
        mu = message.content["config"]["proximal-mu"]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, y = images(context.node_config["partition-id"])
        for batch in torch.arange(len(x)).split(20):
            pairs = zip(model.parameters(), received, strict=True)
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            loss = loss + mu / 2 * sum((p - r).square().sum() for p, r in pairs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        arrays = ArrayRecord(model.state_dict())
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": len(x)})})
        return Message(content, reply_to=message)

    @client_app.evaluate()
    def evaluate(message, context):
        model = Quickstart()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = images(100 + context.node_config["partition-id"])
        accuracy = (model.eval()(x).argmax(1) == y).float().mean().item()
        metrics = MetricRecord({"num-examples": len(x), "accuracy": accuracy})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    server_app, results, weights = ServerApp(), [], []

    @server_app.main()
    def main(grid, context):
        carry = grid.send_and_receive

        def weighed(messages, timeout=None):
            messages = list(messages)
            replies = list(carry(messages))
            for message in messages + replies:
                records = message.content.array_records.values()
                weights.append(sum(len(array.data) for each in records for array in each.values()))
            return replies

        grid.send_and_receive = weighed
        initial = ArrayRecord(Quickstart().state_dict())
        results.append(wrap(FedProx(proximal_mu=0.01)).start(grid, initial, num_rounds=num_rounds))

    with InProcess().open(client_app, 3) as grid:
        server_app(grid, None)
    return results[0].evaluate_metrics_clientapp[num_rounds]["accuracy"], sum(weights)


def test_a_plain_flower_app_needs_just_a_mod_and_a_wrapper():
    plain, plain_bytes = quickstart([], lambda strategy: strategy)
    coded, coded_bytes = quickstart(
        [codec_mod(broadcast=Uniform(8), update=Uniform(8, error_feedback=True))],
        lambda strategy: CodecStrategy(strategy, broadcast=Uniform(8), update=Uniform(8, error_feedback=True)),
    )
    assert plain > 0.8, "the app learns"
    assert coded > plain - 0.05
    assert coded_bytes < plain_bytes / 2, "tiny tensors and the first model, which is sent whole, count too"


def test_a_payload_that_nobody_decodes_fails_loudly():
    link = ServerLink(Uniform(8), None, initial=start)
    changed = {name: np.asarray(array + 1) for name, array in start().items()}
    content = RecordDict({"arrays": record(changed), "config": ConfigRecord()})
    link.begin(record(start()))
    link.begin(record(changed))
    (message,) = link.send([Message(content, 2, "train")])
    with pytest.raises(TypeError, match="Unsupported serialization"):
        message.content["arrays"].to_torch_state_dict()


def test_a_damaged_payload_is_a_failed_client_with_the_reason(tmp_path, monkeypatch):
    from fl.federation.engine import in_process

    carry = in_process._Grid.answer

    def damaging(self, message, context):
        reply, context = carry(self, message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            payload = reply.content["arrays"]["update"]
            data = bytearray(payload.data)
            data[len(data) // 2] ^= 1
            reply.content["arrays"]["update"] = Array(payload.dtype, payload.shape, payload.stype, bytes(data))
        return reply, context

    monkeypatch.setattr(in_process._Grid, "answer", damaging)
    run(composed(*SMALL, "codec@broadcast=ecq", "codec@update=ecq"), tmp_path)
    for line in read_jsonl(tmp_path / "rounds.jsonl"):
        (failure,) = line["clients_failed"]
        assert failure["partition_id"] == 1
        assert "checksum" in failure["reason"]
        assert line["clients_completed"] == 3


@pytest.mark.parametrize("server_model", ["exact", "reference"])
@pytest.mark.long
def test_a_run_says_what_both_models_reach_and_keeps_the_one_that_was_chosen(tmp_path, server_model):
    overrides = ["codec@broadcast=ecq", "broadcast.bits=0.3", "codec@update=int8", f"server_model={server_model}"]
    run(composed(*SMALL, *overrides), tmp_path)
    line, summary = read_jsonl(tmp_path / "rounds.jsonl")[-1], read_json(tmp_path / "summary.json")
    assert line["test_accuracy"] == line[f"{server_model}_accuracy"]
    assert line["exact_loss"] != line["reference_loss"]
    assert summary["server_model"] == server_model
    for name in ("broadcast", "update"):
        traffic = line[name]
        assert traffic["compression_ratio"] == traffic["fp32_payload_bytes"] / traffic["payload_bytes"]
    assert line["broadcast"]["fp32_payload_bytes"] / line["broadcast"]["payload_bytes"] > 90
    assert line["update"]["fp32_payload_bytes"] / line["update"]["payload_bytes"] > 4
    for direction in ("broadcast", "update"):
        for kind in ("payload_bytes", "message_bytes"):
            assert line[direction][kind] == sum(client[f"{direction}_{kind}"] for client in line["clients"])


def test_only_answers_with_a_payload_count_as_updates(tmp_path, monkeypatch):
    from fl.federation.engine import in_process

    carry = in_process._Grid.answer

    def forgetting(self, message, context):
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            context.state = RecordDict()
        return carry(self, message, context)

    monkeypatch.setattr(in_process._Grid, "answer", forgetting)
    run(composed(*SMALL, "data.num_images=100", "num_rounds=3", "codec@broadcast=int8", "codec@update=int8"), tmp_path)
    _, second, third = read_jsonl(tmp_path / "rounds.jsonl")
    assert "lacked the reference" in third["clients_failed"][0]["reason"]
    assert third["update"]["message_bytes"] == sum(client["update_message_bytes"] for client in third["clients"])
    assert third["update"]["fp32_payload_bytes"] == 3 * second["update"]["fp32_payload_bytes"] // 4
    told = read_json(tmp_path / "communication.json")["measured"]
    assert sum(client["fp32_payload_bytes"] for client in told["clients"]) == told["total"]["fp32_payload_bytes"]


def test_a_codec_that_refuses_the_servers_model_is_a_failed_run(tmp_path):
    settings = ["codec@broadcast=fp16", "data.num_images=100", "optimizer=sgd", "lr=1000000.0"]
    with pytest.raises(QuantflError):
        run(composed(*SMALL, *settings), tmp_path)
    assert read_json(tmp_path / "summary.json")["state"] == "failed"
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["event"] == "failed"


def test_names_in_another_order_are_put_in_order_and_other_names_refused():
    app = ClientApp(mods=[codec_mod(update=Uniform(8))])

    @app.train()
    def train(message, context):
        backwards = dict(reversed(message.content["arrays"].items()))
        return Message(RecordDict({"arrays": ArrayRecord(backwards)}), reply_to=message)

    link = ServerLink(Uniform(8), Uniform(8), initial=start)
    with InProcess().open(app, 1) as grid:
        ((_, _, _, exact),) = rounds(ServerLink(None, Uniform(8)), grid, [[0]])
    assert {name: array.tolist() for name, array in exact.items()} == {n: a.tolist() for n, a in start().items()}
    with pytest.raises(PayloadError, match="other names"):
        link.begin(record({"w": np.zeros(3, np.float32)}))


def test_evaluation_on_clients_uses_the_same_chain(tmp_path):
    overrides = [
        "codec@broadcast=int4",
        "codec@update=int4",
        "fraction_train=0.5",
        "fraction_evaluate=1.0",
        "data.num_images=100",
    ]
    run(composed(*SMALL, *overrides, "num_rounds=3"), tmp_path)
    lines = read_jsonl(tmp_path / "rounds.jsonl")
    assert not any(line["clients_failed"] or line["evaluation_failed"] for line in lines)
    assert lines[-1]["evaluation_traffic"]["payload_bytes"] < lines[-1]["evaluation_traffic"]["fp32_payload_bytes"] / 4
    for told in (read_json(tmp_path / COMMUNICATION)["measured"], read_json(tmp_path / "summary.json")["totals"]):
        assert told["broadcast"]["payload_bytes"] == sum(
            line["broadcast"]["payload_bytes"] + line["evaluation_traffic"]["payload_bytes"] for line in lines
        )
        assert 4 < told["broadcast"]["fp32_payload_bytes"] / told["broadcast"]["payload_bytes"] < 100


def test_records_of_the_link_never_reach_an_app():
    seen = []
    app = ClientApp(mods=[codec_mod(update=Uniform(8))])

    @app.train()
    def train(message, context):
        seen.append(set(message.content))
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    link = ServerLink(None, Uniform(8))
    content = RecordDict({"arrays": record(start()), "config": ConfigRecord()})
    with InProcess().open(app, 1) as grid:
        link.begin(record(start()))
        (reply,) = grid.send_and_receive(link.send([Message(content, 2, "train")]))
        link.receive(reply)
    assert seen == [{"arrays", "config"}]
    assert WIRE not in reply.content
    assert REFERENCE not in grid.states.get(2)
    for name, array in reply.content["arrays"].items():
        np.testing.assert_array_equal(array.numpy(), start()[name])


def test_strategies_that_ask_nobody_send_nothing():
    strategy = CodecStrategy(FedAvg(fraction_evaluate=0.0), broadcast=Uniform(8), initial=start)
    with InProcess().open(moving(codec_mod(broadcast=Uniform(8), initial=start)), 2) as grid:
        assert list(strategy.configure_evaluate(1, record(start()), ConfigRecord(), grid)) == []
