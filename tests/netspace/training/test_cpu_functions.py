"""Own or plain functions on a CPU: chosen by what takes less time, recorded, and followed by all that comes after."""

import json

import pytest
import torch
from said import Said
from small_zoos import SMALL

import netspace
from netspace.recipe import load_recipe, recipe_names
from netspace.run.run import CPU_FUNCTIONS, new_space
from netspace.space import cpu_functions, fast, network
from netspace.space.cpu_functions import OWN, PLAIN, choose, least_seconds
from netspace.space.network import NetSpace
from netspace.training import _functions
from prepkit.support.progress import Progress

pytestmark = pytest.mark.usefixtures("one_thread")
SECONDS = {"encoder": {OWN: 0.1, PLAIN: 0.3}, "decoder": {OWN: 0.3, PLAIN: 0.1}}
CHOSEN = {"encoder": OWN, "decoder": PLAIN, "seconds": SECONDS}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """PReps of any width count as wide."""
    monkeypatch.setattr(fast._encoder, "WIDE", 8)
    monkeypatch.setattr(fast._decoder, "WIDE", 8)
    monkeypatch.setattr(fast._decoder, "MANY_COLUMNS", 8)


@pytest.fixture
def timed(monkeypatch):
    """Passes take what `SECONDS` says; the list holds who was timed."""
    turns = []

    def seconds_of(way, given, asked, halved):
        part = "encoder" if given.dim() == 3 else "decoder"
        name = OWN if isinstance(way, torch.nn.Module) else PLAIN
        turns.append((part, name))
        return SECONDS[part][name]

    monkeypatch.setattr(cpu_functions, "seconds_of", seconds_of)
    return turns


@pytest.fixture
def untimed(monkeypatch):
    """Nothing may be timed."""

    def seconds_of(*_):
        raise AssertionError("timed")

    monkeypatch.setattr(cpu_functions, "seconds_of", seconds_of)


@pytest.fixture
def taken(monkeypatch):
    """Which own functions were called."""
    calls = set()
    for name in ("encode", "decode"):
        function = getattr(fast, name)
        monkeypatch.setattr(
            network.fast, name, lambda *args, name=name, function=function: (calls.add(name), function(*args))[1]
        )
    return calls


def recipe_of(steps, **changes):
    changes = {"training.steps": steps, "training.validate_every": 3, **changes}
    return load_recipe("digits_single", {**SMALL["digits_single"], **changes})


def train(small_zoo, out, steps=1, *, progress=None, resume=False, **changes):
    zoo = small_zoo("digits_single")
    return netspace.train(recipe_of(steps, **changes), zoo, out, device="cpu", resume=resume, progress=progress)


def same_weights(one, other):
    a, b = (run.state("latest").tensors for run in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_faster_functions_are_recorded_and_followed_when_the_training_goes_on(
    small_zoo, tmp_path, timed, taken, monkeypatch
):
    said = Said()
    whole = train(small_zoo, tmp_path / "whole", 3, progress=said)
    assert whole.record[CPU_FUNCTIONS] == json.loads((whole.path / "run.json").read_text())[CPU_FUNCTIONS] == CHOSEN
    assert said.texts[:2] == [
        "encoder on this CPU: a batch takes 0.1 s by own functions, 0.3 s by plain ones; the run keeps to own ones.",
        "decoder on this CPU: a batch takes 0.3 s by own functions, 0.1 s by plain ones; the run keeps to plain ones.",
    ]
    assert taken == {"encode"}
    train(small_zoo, tmp_path / "cut", 1)
    before = len(timed)
    monkeypatch.setitem(SECONDS["decoder"], OWN, 0.01)  # another machine, or another time
    cut = train(small_zoo, tmp_path / "cut", 3, resume=True)
    assert len(timed) == before
    assert taken == {"encode"}
    assert same_weights(whole, cut)
    assert "the encoder by own functions and the decoder by plain functions" in (cut.path / "README.md").read_text()
    space = netspace.load(cut.path)
    assert (space.encoder.own_on_cpu, space.decoder.own_on_cpu) == (True, False)


def test_a_recipe_that_says_which_is_not_measured(small_zoo, tmp_path, untimed, taken):
    """The two round differently, so a training that changed its functions on the way would not repeat another one."""
    runs = {}
    for asked, expected in (("own", {"encode", "decode"}), ("plain", set())):
        taken.clear()
        runs[asked] = train(small_zoo, tmp_path / asked, **{"training.cpu_functions": asked})
        netspace.load(runs[asked].path).encode(torch.zeros(1, 40, 128))
        assert taken == expected
        assert CPU_FUNCTIONS not in runs[asked].record
    assert not same_weights(*runs.values())


def test_a_run_from_before_there_was_a_choice_goes_on_with_own_functions(small_zoo, tmp_path, timed, taken):
    train(small_zoo, tmp_path / "run", 1)
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    del record[CPU_FUNCTIONS]
    file.write_text(json.dumps(record))
    timed.clear()
    taken.clear()
    run = train(small_zoo, tmp_path / "run", 2, resume=True)
    assert (timed, taken) == ([], {"encode", "decode"})
    assert CPU_FUNCTIONS not in run.record


def test_small_preps_need_no_choice(monkeypatch):
    """Those of all recipes in miniature: their trainings are the same on every machine."""
    monkeypatch.undo()
    for recipe in (load_recipe(name) for name in recipe_names()):
        size = recipe.network
        if size.width < 1000:
            space, preps = new_space(recipe), torch.zeros(1, size.height, size.width)
            assert choose(space, preps, halved=False, fits=True, progress=Progress()) is None


def test_without_room_for_the_plain_network_it_is_not_tried(small_zoo, tmp_path, untimed, monkeypatch):
    monkeypatch.setattr(_functions, "free_bytes", lambda device: 1000)
    said = Said()
    run = train(small_zoo, tmp_path / "run", progress=said)
    assert run.record[CPU_FUNCTIONS] == {"encoder": OWN, "decoder": OWN}
    assert "The memory has no room for the plain network" in said.texts[0]


@pytest.mark.parametrize(("plain", "expected"), [(0.94, PLAIN), (0.96, OWN), (2.0, OWN)])
def test_the_plain_network_must_be_clearly_faster(monkeypatch, plain, expected):
    space, preps = NetSpace(height=8, width=64, embedding_size=256), torch.randn(2, 8, 64)
    monkeypatch.setattr(cpu_functions, "least_seconds", lambda *_: {OWN: 1.0, PLAIN: plain})
    chosen = choose(space, preps, halved=False, fits=True, progress=Progress())
    assert (chosen["encoder"], chosen["decoder"]) == (expected, expected)


def test_the_first_pass_counts_for_nothing_and_others_until_the_time_is_over(monkeypatch):
    monkeypatch.setattr(cpu_functions, "ROUNDS", 3)
    monkeypatch.setattr(cpu_functions, "BUDGET", 20.0)
    clock, took = [0.0], iter([9.0, 9.0, 3.0, 1.0, 2.0, 4.0, 0.5, 0.5])

    def seconds_of(*_):
        seconds = next(took)
        clock[0] += seconds
        return seconds

    monkeypatch.setattr(cpu_functions, "seconds_of", seconds_of)
    monkeypatch.setattr(cpu_functions.time, "perf_counter", lambda: clock[0])
    encoder = NetSpace(height=8, width=64, embedding_size=256).encoder
    assert least_seconds(encoder, encoder.plain, torch.randn(1, 8, 64), False) == {OWN: 3.0, PLAIN: 1.0}
    monkeypatch.setattr(cpu_functions, "BUDGET", 100.0)
    took = iter([9.0, 9.0, 3.0, 1.0, 2.0, 4.0, 0.5, 0.75])
    assert least_seconds(encoder, encoder.plain, torch.randn(1, 8, 64), False) == {OWN: 0.5, PLAIN: 0.75}


@pytest.mark.parametrize("halved", [False, True])
def test_a_measurement_leaves_no_trace(halved):
    space, preps = NetSpace(height=8, width=64, embedding_size=256), torch.randn(2, 8, 64)
    state = torch.get_rng_state()
    chosen = choose(space, preps, halved=halved, fits=True, progress=Progress())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in space.parameters())
    assert all(seconds > 0 for took in chosen["seconds"].values() for seconds in took.values())
