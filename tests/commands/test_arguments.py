"""Options mean the same in every command, and a mistake in them is one line."""

import pytest

from fl.commands.arguments import Parser


def test_one_word_means_one_thing_in_every_command():
    from fl.commands import bench, communication, compare, export

    assert compare.parse(["m", "--num-clients", "3", "--num-rounds", "4", "--format", "onnx"]) == (
        compare.parse(["m", "--clients", "3", "--rounds", "4", "--formats", "onnx"])
    )
    assert compare.parse(["m", "--precision", "fp16"]).precisions == "fp16"
    assert export.parse(["r", "--formats", "onnx"]) == export.parse(["r", "--format", "onnx"])
    assert bench.parse(["m", "--batch-size", "4"]) == bench.parse(["m", "--batch-sizes", "4"])
    sizes = ["--broadcast-bytes", "1", "--update-bytes", "1"]
    assert communication.parse([*sizes, "--num-clients", "3", "--num-rounds", "4"]) == (
        communication.parse([*sizes, "--clients", "3", "--rounds", "4"])
    )


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--roundz", "3", "x"], "error: --roundz: there is no such option; did you mean --rounds?; see prog --help"),
        (["--rounds", "three", "x"], "error: --rounds/--num-rounds: invalid int value: 'three'; see prog --help"),
        ([], "error: missing: place; see prog --help"),
    ],
)
def test_a_mistake_in_options_is_one_line(typed, told, capsys):
    parser = Parser(prog="prog")
    parser.add_argument("place")
    parser.add_argument("--rounds", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(typed)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{told}\n"
