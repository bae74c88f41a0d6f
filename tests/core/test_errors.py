"""Words of messages."""

from fl.core.errors import did_you_mean


def test_a_word_is_recognised_whatever_its_case():
    assert did_you_mean("FEDAVG", ["fedavg", "fedadam"]) == "fedavg"
    assert did_you_mean("zzz", ["fedavg"]) is None
