"""Which way of sharing a GPU is chosen by timing, with a clock of the test's own; recorded, and kept when resumed."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from killed_training import CHAIRS, spec

import prepkit
from prepkit.tasks import load_task
from prepkit.training import _trial as trial_module
from prepkit.training import run as run_module
from prepkit.training._engine import ALL_AT_ONCE, Engine, Way, choose_engine
from prepkit.training._plan import plan
from prepkit.training._provenance import read_provenance
from prepkit.training._step import forward_of
from prepkit.training._trial import WAYS, trial, ways_for, with_ways
from prepkit.training._units import setup_of, units_of
from prepkit.training.run import train_zoo

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def setting(text=None, stack=3):
    own = spec() if text is None else spec(text)
    jobs = plan(own)
    return own, jobs, load_task(own.task), choose_engine(own, jobs, CPU, stack, 1)


def clock(*seconds):
    """Tells these seconds, for each trial as often as it is asked."""
    left = [each for each in seconds for _ in range(trial_module.ROUNDS)]

    def timed(steps):
        steps(1)
        return left.pop(0)

    return timed


@pytest.fixture
def worth_it(monkeypatch):
    monkeypatch.setattr(trial_module, "LEAST_STEPS", 1)


def test_the_fastest_way_is_taken_and_told(worth_it):
    own, jobs, task, engine = setting(stack=6)
    told = []
    (tried,) = {tuple(ways_for(prepkit.architecture(name), size)) for name, size in engine.stacks.items()}
    times = [8.0] * len(tried)
    times[1] = 4.0
    found = with_ways(engine, own, jobs, task, CPU, told.append, clock(*times * len(engine.stacks)))
    assert found.ways == dict.fromkeys(engine.stacks, tried[1])
    assert found.stacks == engine.stacks
    assert len(told) == len(engine.stacks)
    for line, (name, size) in zip(told, engine.stacks.items(), strict=True):
        assert line.startswith(
            f"note: {size} {name} are trained {tried[1]}. Steps a second in a trial: all at once 1.0;"
        )


def test_nothing_is_recorded_where_all_at_once_is_fastest(worth_it):
    own, jobs, task, engine = setting()
    times = [float(number) for number, _ in enumerate(WAYS, 1)]
    found = with_ways(engine, own, jobs, task, CPU, timed=clock(*times * len(engine.stacks)))
    assert found == engine
    assert "ways" not in found.to_dict()


def never(*arguments):
    raise AssertionError("it was tried")


def test_a_short_training_is_not_tried():
    own, jobs, task, engine = setting()
    assert with_ways(engine, own, jobs, task, CPU, timed=never) == engine


def test_linear_layers_alone_are_not_tried(worth_it):
    own, jobs, task, engine = setting(CHAIRS)
    assert with_ways(engine, own, jobs, task, CPU, timed=never) == engine


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("resnet8@digits", 32, True), ("resnet8@cifar10", 32, True), ("resnet8@cifar10", 4, False), ("Even", 32, False)],
)
def test_channels_are_padded_where_that_makes_a_difference(name, size, expected):
    """Four images of 1 or 3 channels do not fill matrix units, eight do; two channels fill them without."""
    even = SimpleNamespace(input_shape=(2, 8, 8))
    ways = ways_for(even if name == "Even" else prepkit.architecture(name), size)
    assert any(way.padded for way in ways) == expected
    assert ways == [way for way in WAYS if way in ways]


def test_a_padded_way_runs_padded_convolutions():
    own, jobs, task, engine = setting()
    unit = units_of(own, jobs, engine)[0]
    counts = []
    for padded in (False, True):
        way = Way(2, dense=True, padded=padded)
        setup = setup_of(unit, task, replace(engine, ways={unit.architecture.name: way}), CPU)
        forward = forward_of(setup)
        layers = [layer for layer in forward.network.modules() if hasattr(layer, "padded")]
        counts.append([layer.padded for layer in layers])
    assert not any(counts[0])
    assert counts[1]
    assert all(counts[1])


def test_a_way_that_does_not_fit_the_memory_is_left_out(monkeypatch):
    own, jobs, task, engine = setting()
    unit = units_of(own, jobs, engine)[0]
    seconds_of = trial_module.seconds_of_a_step

    def short_of_memory(stack, batch, timed):
        if stack.setup.way == ALL_AT_ONCE:
            raise torch.OutOfMemoryError
        return seconds_of(stack, batch, timed)

    monkeypatch.setattr(trial_module, "seconds_of_a_step", short_of_memory)
    ways = (ALL_AT_ONCE, Way(2, dense=True), Way(1, 2))
    assert list(trial(unit, ways, engine, task, CPU)) == [*ways[1:]]


def test_ways_are_recorded_and_read():
    own = Engine("cuda", None, {"a": 8, "b": 4}, {"a": Way(4, 2, dense=True)})
    record = json.loads(json.dumps(own.to_dict()))
    assert record["ways"] == {"a": {"at_once": 4, "streams": 2, "dense": True, "padded": False}}
    assert Engine.from_dict(record) == own
    del record["ways"]["a"]["padded"]  # as zoos recorded it before ways could be padded
    assert Engine.from_dict(record) == own
    assert (own.way_of("a"), own.way_of("b")) == (Way(4, 2, dense=True), ALL_AT_ONCE)
    assert [str(way) for way in (ALL_AT_ONCE, Way(4, 2, dense=True, padded=True), Way(8, 2))] == [
        "all at once",
        "4 at once, dense, padded, on 2 streams",
        "8 at once, on 2 streams",
    ]


def test_a_resumed_training_keeps_the_way_and_tries_none(tmp_path, monkeypatch):
    """The first training ends as soon as its record is written; the second, on the same device, finds it."""

    class Ended(Exception):
        pass

    def chosen(engine, *others):
        return Engine(engine.device, engine.threads, engine.stacks, {"lenet_like@digits": Way(2, dense=True)})

    def end(self, execute, task):
        raise Ended

    own = spec()
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "tried", chosen)
        patch.setattr(run_module.ZooTraining, "train", end)
        with pytest.raises(Ended):
            train_zoo(own, tmp_path / "zoo", device="cpu")
    begun = read_provenance(tmp_path / "zoo").engine
    assert begun.ways == {"lenet_like@digits": Way(2, dense=True)}

    monkeypatch.setattr(run_module, "tried", never)
    assert train_zoo(own, tmp_path / "zoo").engine == begun
