"""A zoo has the same bytes whichever unit is finished first, and after a kill at any moment."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import killed_training
import pytest
from folder_contents import files_of
from killed_training import TEXTS
from run_samples import trained

from prepkit.errors import ZooError
from prepkit.training import run as running
from prepkit.training._units import train_unit

pytestmark = pytest.mark.xdist_group("trainings")  # one worker runs all, since they share zoos

# Any order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0, pytest.param(1, marks=pytest.mark.slow)])
def test_units_may_finish_in_any_order(alone, tmp_path, monkeypatch, seed):
    spooled = []

    def disorderly(task, engine, device, run, ray, gpus):
        def execute(units):
            order = list(reversed(units))
            if seed is not None:
                random.Random(seed).shuffle(order)
            for unit in order:
                yield train_unit(unit, task, engine, device)
                spooled.append(len(list(run.folder.glob("done-*"))))

        return execute

    monkeypatch.setattr(running, "executor", disorderly)
    trained(tmp_path / "zoo", TEXTS["last"], stack=1)
    assert files_of(tmp_path / "zoo") == files_of(alone)
    assert len(spooled) == 7  # six instances and the teacher
    assert max(spooled) > 1
    assert spooled[-1] == 0


def test_units_that_wait_are_not_trained_again(alone, tmp_path, monkeypatch):
    """Interrupted when all but the first unit had finished, only the first is trained."""
    orders = []

    def reversed_until_the_last(task, engine, device, run, ray, gpus):
        def execute(units):
            orders.append([unit.ids for unit in units])
            for unit in reversed(units):
                if len(orders) == 1 and unit.number == 0:
                    raise KeyboardInterrupt
                yield train_unit(unit, task, engine, device)

        return execute

    monkeypatch.setattr(running, "executor", reversed_until_the_last)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "zoo", TEXTS["last"], stack=1)
    assert len(list((tmp_path / "zoo/.writing/training").glob("done-*"))) == 5
    trained(tmp_path / "zoo", TEXTS["last"])  # the engine, and its stacks of 1, is the record's
    assert [len(order) for order in orders] == [7, 2]  # the teacher is last of the reversed, so it is due again
    assert files_of(tmp_path / "zoo") == files_of(alone)


# Killed -------------------------------------------------------------------------------------------------------


class Killer:
    """The process of killed_training.py."""

    def __init__(self, folder):
        script = Path(killed_training.__file__)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(script), str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes, env=environment)
        if self.process.stdout.readline() != "ready\n":
            self.stop()
            raise RuntimeError("it does not start")

    def run(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    killer = Killer(tmp_path_factory.mktemp("warm"))
    yield killer
    killer.stop()


@pytest.fixture(scope="module")
def straight(killer, tmp_path_factory):
    """Files of a zoo that was not interrupted, the epochs it took, and its seconds."""
    root = tmp_path_factory.mktemp("straight") / "zoo"
    whole = killer.run(root=str(root))
    assert whole["told"].pop() == "finished"
    return files_of(root), whole["told"], whole["seconds"]


@pytest.mark.parametrize("num_kills", [3, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["seconds", "epochs"])
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(killer, straight, tmp_path, how, num_kills):
    """Killed again and again in one folder until it ends, at random moments."""
    seed = int(os.environ.get("PREPKIT_KILL_SEED", random.SystemRandom().randrange(1 << 30)))
    print("PREPKIT_KILL_SEED =", seed)
    chance = random.Random(seed)
    files, epochs, seconds = straight
    begun, kills = [], 0
    while True:
        limit = chance.uniform(0.1, 0.6) * seconds if how == "seconds" else chance.randint(1, len(epochs) // 2)
        told = killer.run(root=str(tmp_path / "zoo"), **({how: limit} if kills < num_kills else {}))["told"]
        if kills and any("holds a finished zoo" in line for line in told):
            break  # the last kill came after its end, before it could tell
        assert not [line for line in told if line.startswith("error")], (seed, told)
        begun += [line for line in told if line.startswith("epoch")]
        if "finished" in told:
            break
        kills += 1
    print(f"{kills} kills; {len(begun)} epochs begun, {len(epochs)} without kills")
    assert files_of(tmp_path / "zoo") == files, seed
    # What a kill costs: the epoch on its way, the one whose state was being written, and the last of a unit again
    # where its rows were not yet in the zoo. Were units begun anew, it would be many more.
    assert len(begun) <= len(epochs) + 3 * kills, seed


def test_killed_before_its_card_is_written_it_gets_one(zoos, tmp_path):
    name, other = list(TEXTS)[:2]
    whole = files_of(zoos / name)
    shutil.copytree(zoos / name, tmp_path / "zoo")
    (tmp_path / "zoo" / "README.md").unlink()
    with pytest.raises(ZooError, match="holds a finished zoo"):
        trained(tmp_path / "zoo", TEXTS[other])  # not its own
    assert not (tmp_path / "zoo" / "README.md").exists()
    with pytest.raises(ZooError, match="holds a finished zoo"):
        trained(tmp_path / "zoo", TEXTS[name])
    assert files_of(tmp_path / "zoo") == whole


def test_a_unit_goes_on_in_its_middle(killer, straight, tmp_path):
    files, epochs, _ = straight
    first = killer.run(root=str(tmp_path / "zoo"), epochs=6)["told"]  # an epoch of the teacher, 5 of the first unit
    assert len(first) < len(epochs)
    saved = list((tmp_path / "zoo/.writing/training").glob("unit-*.safetensors"))
    assert len(saved) == 1
    rest = killer.run(root=str(tmp_path / "zoo"))["told"]
    assert rest.pop() == "finished"
    assert len(epochs) <= len(first) + len(rest) <= len(epochs) + 2
    assert 0 < rest.count(first[-1]) < epochs.count(first[-1])
    assert not any("teacher" in line for line in rest)
    assert files_of(tmp_path / "zoo") == files
