"""`netspace train`: what it prints, and values of the recipe that contradict each other."""

import json

import pytest
from click.testing import CliRunner
from untrained import untrained_run

from netspace.cli import main
from netspace.cli.train import print_run
from netspace.run.run import State
from prepkit.cli.output import Output

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "3", "--set", "training.steps=4"], "training.steps is to be 4 and 3; give one value."),
        (
            ["--set", "optimizer.clip=1", "--set", "optimizer.clip=2"],
            "optimizer.clip is to be 1 and 2; give one value.",
        ),
        (["--seed", "1", "--set", "training.seed=1"], "training.seed is to be 1 and 1; give one value."),
    ],
)
def test_a_value_that_is_given_twice_is_refused(tmp_path, options, message):
    command = ["train", "digits_single", "--zoo", "zoo", "--out", str(tmp_path / "run"), *options, "--json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["message"] == message
    assert not (tmp_path / "run").exists()


def test_a_score_that_is_not_known_is_null_in_json(tmp_path, small_zoo, capsys):
    """No point of a shape may lie near its surface; JSON has no word for NaN."""
    run = untrained_run(tmp_path / "run", "chairs_mini", small_zoo("chairs_mini"))
    scores = {"score": 0.5, "closeness_near": float("nan")}
    run.save("best", State(1, run.state("best").tensors, {"scores": scores}))
    print_run(run, Output(True))
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["best"]["scores"] == {"score": 0.5, "closeness_near": None}
