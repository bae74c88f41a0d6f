"""Records of rounds, sums over them, milestones, and which round is the best: each is computed in one place."""

import dataclasses
import json

from fl.core.files import plain
from fl.core.records import ClientRecord, RoundRecord, Score, Traffic, best_round, reached, totals

CLIENT = ClientRecord(0, 100, 110, 50, 60, 2.0)


RECORD = RoundRecord(
    round=1,
    lr=0.01,
    test=Score(1.5, 0.25),
    validation=None,
    exact=None,
    reference=None,
    federated=None,
    train_loss=1.0,
    fp32_model_bytes=400,
    shared_start_bytes=0,
    clients_asked=3,
    clients_completed=2,
    clients_failed=(),
    broadcast=Traffic(100, 110, 400),
    update=Traffic(50, 60, 400),
    control_message_bytes=7,
    late=(),
    clients=(CLIENT,),
    evaluated=(),
    evaluation_traffic=None,
    evaluation_failed=(),
    train_s=2.0,
    evaluate_s=1.0,
    aggregate_s=0.5,
)


EVALUATED = dataclasses.replace(
    RECORD,
    round=2,
    validation=Score(1.25, 0.5),
    federated=Score(1.0, 0.75),
    evaluated=(ClientRecord(1, 30, 35, 0, 5, 0.0), ClientRecord(2, 30, 35, 0, 5, 0.0)),
    evaluation_traffic=Traffic(60, 80, 800),
)


def written(*records):
    return [json.loads(json.dumps(plain(record.to_json()))) for record in records]


def test_scores_are_written_flat_and_absent_ones_left_out():
    line, evaluated = written(RECORD, EVALUATED)
    assert (line["test_loss"], line["test_accuracy"]) == (1.5, 0.25)
    for name in ("validation_loss", "exact_loss", "reference_accuracy", "federated_loss", "evaluated", "test"):
        assert name not in line
    assert "evaluation_traffic" not in line
    assert "evaluation_failed" not in line
    assert (evaluated["validation_accuracy"], evaluated["federated_loss"]) == (0.5, 1.0)
    assert len(evaluated["evaluated"]) == 2
    assert (line["broadcast"]["compression_ratio"], line["update"]["compression_ratio"]) == (4.0, 8.0)
    assert Traffic(0, 10, 400).compression_ratio is None


def test_sums_over_rounds_are_those_of_their_parts():
    sums = totals(written(RECORD, EVALUATED))
    assert sums["broadcast"]["payload_bytes"] == 100 + 100 + 60
    assert sums["broadcast"]["message_bytes"] == 110 + 110 + 70
    assert sums["broadcast"]["fp32_payload_bytes"] == 400 + 400 + 2 * 400
    assert sums["update"]["fp32_payload_bytes"] == 400 + 400
    assert sums["update"]["payload_bytes"] == 50 + 50
    assert sums["update"]["message_bytes"] == 60 + 60 + 10
    assert sums["evaluation_traffic"]["message_bytes"] == 80
    assert (sums["train_s"], sums["evaluate_s"], sums["aggregate_s"]) == (4.0, 2.0, 1.0)
    assert (sums["clients_asked"], sums["clients_completed"], sums["clients_failed"]) == (6, 4, 2)
    assert "evaluation_traffic" not in totals(written(RECORD))


def test_milestones_are_the_first_round_that_is_there_with_all_bytes_until_then():
    rounds = [
        dataclasses.replace(RECORD, round=number, test=Score(1.0, accuracy))
        for number, accuracy in enumerate((0.6, 0.7, 0.69, 0.85), start=1)
    ]
    found = reached(written(*rounds))
    assert found["70"] == {"rounds": 2, "broadcast_payload_bytes": 200, "update_payload_bytes": 100}
    assert found["80"] == found["85"] == {"rounds": 4, "broadcast_payload_bytes": 400, "update_payload_bytes": 200}
    assert found["90"] is None


def records(*scores):
    """Lines of rounds.jsonl with these validation accuracies and losses."""
    return [
        {"round": number, "validation_accuracy": accuracy, "validation_loss": loss}
        for number, (accuracy, loss) in enumerate(scores, start=1)
    ]


def test_of_equal_rounds_the_other_score_decides_then_the_earlier():
    scored = records((0.5, 1.0), (0.7, 0.6), (0.7, 0.5), (0.6, 0.5), (0.7, 0.5))
    assert best_round(scored, "accuracy") == 3
    assert best_round(scored, "loss") == 3
    assert best_round(scored[:3] + records((0.9, 0.5))[:1], "loss") == 1
    assert best_round([{"round": 1, "test_accuracy": 1.0, "test_loss": 0.0}], "accuracy") is None
