"""Which round's model is taken, and why."""

import pytest

from fl.core.errors import ConfigError
from fl.core.records import best_round
from fl.core.run_folder import model_of_round
from fl.deployment.choice import choose_round
from fl.federation.kept_models import keep_model


def chosen(folder, scores, kept=(), metric="accuracy", wanted=None):
    """Chooses among rounds with these (accuracy, loss), of which some models were kept."""
    (folder / "models").mkdir(exist_ok=True)
    for number in kept:
        model_of_round(folder, number).touch()
    records = [
        {"round": n, **({"validation_accuracy": score[0], "validation_loss": score[1]} if score else {})}
        for n, score in enumerate(scores, start=1)
    ]
    return choose_round(folder, folder / "final_model.pt", records, metric, wanted)


SCORES = [(0.5, 1.0), (0.9, 0.8), (0.8, 0.3), (0.6, 0.5)]


@pytest.mark.parametrize(
    ("kept", "metric", "expected", "words"),
    [
        ((1, 2, 3), "accuracy", 2, "best validation accuracy of 4 rounds"),
        ((1, 2, 3), "loss", 3, "best validation loss of 4 rounds"),
        ((1, 3), "accuracy", 3, "best validation accuracy of the 3 rounds whose model was kept; round 2 was better"),
        ((), "accuracy", 4, "of the 1 round"),
    ],
)
def test_the_best_of_those_that_were_kept_is_taken(kept, metric, expected, words, tmp_path):
    choice = chosen(tmp_path, SCORES, kept, metric)
    assert choice.round == expected
    assert choice.path == (tmp_path / "final_model.pt" if expected == 4 else model_of_round(tmp_path, expected))
    assert words in choice.reason
    assert [each["kept"] for each in choice.candidates] == [n in (*kept, 4) for n in range(1, 5)]
    assert [each["validation_loss"] for each in choice.candidates] == [loss for _, loss in SCORES]


def test_of_equal_rounds_the_other_score_decides_then_the_earlier_one():
    def best(metric, *scores):
        records = [
            {"round": n, "validation_accuracy": accuracy, "validation_loss": loss}
            for n, (accuracy, loss) in enumerate(scores, start=1)
        ]
        return best_round(records, metric)

    assert best("accuracy", (0.5, 0.1), (0.9, 0.8), (0.9, 0.7), (0.9, 0.7)) == 3
    assert best("loss", (0.8, 0.2), (0.9, 0.2), (0.9, 0.2), (1.0, 0.3)) == 2


def test_the_best_by_either_score_is_kept_while_it_is_the_best(tmp_path):
    records = [
        {"round": n, "validation_accuracy": accuracy, "validation_loss": loss}
        for n, (accuracy, loss) in enumerate([(0.5, 1.0), (0.9, 0.8), (0.6, 0.9), (0.8, 0.3)], start=1)
    ]
    left = []
    for done in range(1, 5):
        keep_model(tmp_path, {}, records[:done], "best")
        left.append(sorted(path.name for path in (tmp_path / "models").iterdir()))
    names = [model_of_round(tmp_path, number).name for number in range(5)]
    assert left == [[names[1]], [names[2]], [names[2]], [names[2], names[4]]]


def test_without_validation_the_last_round_is_taken(tmp_path):
    choice = chosen(tmp_path, [None, None], kept=(1,))
    assert (choice.round, choice.path) == (2, tmp_path / "final_model.pt")
    assert "no validation images" in choice.reason
    assert choice.candidates == ({"round": 1, "kept": True}, {"round": 2, "kept": True})


def test_the_round_that_was_asked_for_is_taken_or_refused(tmp_path):
    choice = chosen(tmp_path, SCORES, kept=(1, 2), wanted=1)
    assert (choice.round, choice.reason) == (1, "asked for with --round")
    assert chosen(tmp_path, SCORES, wanted=4).path == tmp_path / "final_model.pt"
    for wanted, words in ((3, "its model was not kept; there are 1, 2, 4"), (0, "the run has 4 rounds"), (5, "has 4")):
        with pytest.raises(ConfigError, match=f"--round {wanted}: .*{words}"):
            chosen(tmp_path, SCORES, wanted=wanted)
