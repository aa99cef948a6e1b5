"""What a probe says of zoos, against scikit-learn and loops of our own, and what it refuses."""

import json
import shutil
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GroupKFold
from small_zoos import CHAIRS, DIGITS
from torch.nn import functional

import prepkit
from netspace.cli import main
from netspace.cli.probe import text_of
from netspace.data import ZooMismatch
from netspace.explore import _probed_instances, _probed_outputs
from netspace.explore._reader import read_outputs
from netspace.explore.probing import probe, starts_of, verdict_of
from prepkit.tasks.chairs import build, chair
from prepkit.tasks.randomness import generator
from prepkit.zoo.change.annotating import annotate

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "lenet_like@digits"
SPLITS = ["train"] * 12 + ["test"] * 4


def zoo_of(path, task=DIGITS, name=NAME, splits=SPLITS, shared=True, changed=None, width=128, factor=1.0):
    """A zoo of untrained networks, each with a start of its own, or all near one: moved in two directions."""
    torch.manual_seed(0)
    start, *ways = (prepkit.architecture(name).build().state_dict() for _ in range(3))
    registry = prepkit.Registry([prepkit.architecture(name)])
    with prepkit.ZooWriter(path, width=width, task=task, registry=registry) as writer:
        for number, split in enumerate(splits):
            network = prepkit.architecture(name).build()
            if shared:
                steps = torch.rand(2).tolist()
                moved = {
                    key: value + sum(s * w[key] for s, w in zip(steps, ways, strict=True))
                    for key, value in start.items()
                }
                network.load_state_dict(moved)
            weight, bias = list(network.parameters())[-2:]
            weight.data *= factor
            bias.data /= factor
            if number == changed:
                network.load_state_dict({key: 1e30 * value for key, value in network.state_dict().items()})
            writer.add(network, id=f"n{number}", split=split, run=f"run {number // 2}", item=number)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return zoo_of(tmp_path_factory.mktemp("zoos") / "shared")


@pytest.fixture(scope="module")
def shared(path):
    return prepkit.open_zoo(path)


@pytest.fixture(scope="module")
def found(shared):
    return probe(shared)


@pytest.fixture(scope="module")
def own_starts(tmp_path_factory):
    zoo = prepkit.open_zoo(zoo_of(tmp_path_factory.mktemp("zoos") / "own", shared=False))
    return zoo, probe(zoo)


# Against independent computations ---------------------------------------------------------------------------------


def written_guess(known, outputs, asked, runs):
    """The same regression by kernels of scikit-learn's own, on the outputs themselves."""
    scale = np.sqrt(((known - known.mean(0)) ** 2).sum(1).mean())
    x, z = ((values - known.mean(0)) / scale for values in (known, asked))
    apart = np.median([((x[i] - x[j]) ** 2).sum() for i in range(len(x)) for j in range(i)])
    kernels = [{"kernel": "linear"}] + [{"kernel": "rbf", "gamma": each / apart} for each in (0.1, 0.3, 1.0, 3.0)]
    best, mean = None, outputs.mean(0)
    for kernel in kernels:
        for strength in 10.0 ** np.arange(-6, 3.1, 1.5):
            errors = []
            for fit, left in GroupKFold(5).split(x, groups=runs):
                model = KernelRidge(alpha=strength, **kernel).fit(x[fit], outputs[fit] - mean)
                errors.append(((model.predict(x[left]) - outputs[left] + mean) ** 2).mean())
            if best is None or np.mean(errors) < best[0] * (1 - 1e-9):
                best = np.mean(errors), KernelRidge(alpha=strength, **kernel)
    return mean + best[1].fit(x, outputs - mean).predict(z), 1 - best[0] / outputs.var(0).mean()


def test_the_reader_is_scikit_learn_s_kernel_ridge():
    draws = np.random.default_rng(0)
    known, asked = (draws.normal(size=(count, 30)).astype(np.float32) for count in (14, 5))
    known[:, 7] = 1.0  # it never changes, and in asked instances it does
    mixed = draws.normal(size=(30, 40)) / 5
    mixed[7] = 0
    outputs, true = (values @ mixed + 0.3 * np.sin(9 * values @ mixed) for values in (known, asked))
    runs = np.arange(14) // 2
    found = read_outputs((known, outputs), (asked, true), runs)
    wanted = asked.copy()
    wanted[:, 7] = 1.0
    guess, inside = written_guess(known.astype(np.float64), outputs, wanted.astype(np.float64), runs)
    np.testing.assert_allclose(found.guesses_MV, guess, rtol=1e-6, atol=1e-8)
    assert found.inside == pytest.approx(inside, rel=1e-6)
    assert found.explained == pytest.approx(1 - ((guess - true) ** 2).sum() / ((true - outputs.mean(0)) ** 2).sum())
    assert 0.1 < found.explained < 1


@pytest.mark.parametrize("own", [False, True])
def test_measures_of_a_zoo(shared, found, own_starts, own):
    shared, found = own_starts if own else (shared, found)
    row = found.rows[NAME]
    train, test = shared.split("train"), shared.split("test")
    images, labels = prepkit.load_task(shared.task).normalised("test")

    def run(network):
        with torch.no_grad():
            logits = network(images).double()
        return logits - logits.mean(1, keepdim=True)

    outputs = torch.stack([run(train.network(row)) for row in range(12)])
    targets = torch.stack([run(test.network(row)) for row in range(4)])
    reading = read_outputs(*pairs_of(train, outputs, test, targets), np.arange(12) // 2)
    guess = torch.from_numpy(reading.guesses_MV).view_as(targets)
    assert row["explained_inside"] == pytest.approx(reading.inside, rel=1e-4)
    assert row["explained"] == pytest.approx(reading.explained, rel=1e-4)

    kl = [[functional.kl_div(p.log_softmax(1), t.softmax(1), reduction="batchmean") for t in targets] for p in guess]
    kl = torch.tensor(kl)
    assert row["own"] == pytest.approx(float(kl.diagonal().mean()), rel=1e-3)
    assert row["others"] == pytest.approx(np.mean([kl[i, j] for i, j in permutations(range(4), 2)]), rel=1e-3)
    true, guessed = ((each.argmax(-1) == labels).double().mean(1) for each in (targets, guess))
    assert row["points_off"] == pytest.approx(float((true - guessed).abs().mean()))
    told = []
    for i in range(4):
        near = sorted((j for j in range(4) if j != i), key=lambda j: abs(float(true[i] - true[j])))[:2]
        told += [float(kl[i, i] + kl[j, j] < kl[i, j] + kl[j, i]) for j in near]
    assert found.told_apart == row["told_apart"] == pytest.approx(np.mean(told))
    assert not own or row["told_apart"] < 1

    order = torch.randperm(12, generator=generator("pairs half-way", 0)).tolist()
    ends, half = [], []
    for a, b in zip(order[:6], order[6:], strict=True):
        states = [train.network(row).state_dict() for row in (a, b)]
        middle = prepkit.architecture(NAME).build().eval()
        middle.load_state_dict({key: (states[0][key] + states[1][key]) / 2 for key in states[0]})
        half.append(float((run(middle).argmax(1) == labels).double().mean()))
        ends += [float((outputs[row].argmax(1) == labels).double().mean()) for row in (a, b)]
    assert row["halfway"] == pytest.approx({"pairs": 6, "halfway": np.mean(half), "ends": np.mean(ends)})


def pairs_of(train, known, test, asked):
    return [(view.preps().flatten(1).numpy(), out.flatten(1).numpy()) for view, out in ((train, known), (test, asked))]


def test_shapes_are_compared_near_their_surface_and_by_overlap(tmp_path, monkeypatch):
    monkeypatch.setattr(_probed_outputs, "RESOLUTION", 14)
    task = {**CHAIRS, "count": 20}
    zoo = prepkit.open_zoo(zoo_of(tmp_path / "zoo", task, "sine_mlp@sdf_small", width=64, factor=5.0))
    found = probe(zoo, device="cpu")
    row = found.rows["sine_mlp@sdf_small"]
    axis = torch.linspace(-1, 1, 14)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)

    def run(view):
        with torch.no_grad():
            return torch.stack([view.network(place)(points)[:, 0].double() for place in range(len(view))])

    train, test = run(zoo.split("train")), run(zoo.split("test"))
    cut = (zoo.split("train"), train.clamp(-0.1, 0.1), zoo.split("test"), test.clamp(-0.1, 0.1))
    guess = torch.from_numpy(read_outputs(*pairs_of(*cut), np.arange(12) // 2).guesses_MV)
    target = cut[3]

    def overlap(a, b):
        return float(((a < 0) & (b < 0)).sum() / ((a < 0) | (b < 0)).sum().clamp(min=1))

    def close(p, t):
        near = t.abs() < 0.1
        return float(((p - t).abs()[near] <= 1e-2).double().mean())

    others = list(permutations(range(4), 2))
    assert row["own"] == pytest.approx(np.mean([overlap(guess[i], target[i]) for i in range(4)]), abs=2e-3)
    assert row["others"] == pytest.approx(np.mean([overlap(guess[i], target[j]) for i, j in others]), abs=2e-3)
    assert row["close_own"] == pytest.approx(np.mean([close(guess[i], target[i]) for i in range(4)]), abs=5e-3)
    assert row["close_others"] == pytest.approx(np.mean([close(guess[i], target[j]) for i, j in others]), abs=5e-3)
    assert 0.02 < float((target.abs() < 0.1).double().mean()) < 0.98
    assert row["own"] > row["others"]

    order = torch.randperm(12, generator=generator("pairs half-way", 0)).tolist()
    found_of = {"pairs": 6, "halfway": [], "ends": [], "true": [], "true_blended": []}
    for a, b in zip(order[:6], order[6:], strict=True):
        states = [zoo.split("train").network(place).state_dict() for place in (a, b)]
        middle = prepkit.architecture("sine_mlp@sdf_small").build()
        middle.load_state_dict({key: (states[0][key] + states[1][key]) / 2 for key in states[0]})
        with torch.no_grad():
            half, mean = middle(points)[:, 0].double(), (train[a] + train[b]) / 2
        ends = [chair(zoo.split("train").metadata(place)["item"], CHAIRS["seed"]) for place in (a, b)]
        true = build({key: (ends[0][key] + ends[1][key]) / 2 for key in ends[0]}).distance(points.double().numpy())
        found_of["halfway"].append(overlap(half, mean))
        found_of["ends"].append(overlap(train[a], train[b]))
        found_of["true"].append(overlap(half, torch.from_numpy(true)))
        found_of["true_blended"].append(overlap(mean, torch.from_numpy(true)))
    assert row["halfway"] == pytest.approx({key: np.mean(value) for key, value in found_of.items()}, abs=2e-3)
    assert row["halfway"]["true"] > 0
    assert "overlaps (IoU)" in found.text
    assert found.about["starts"] == "unknown"
    assert "IoU own" in text_of(found)


# The verdict ------------------------------------------------------------------------------------------------------


def test_a_zoo_near_one_start_can_be_learnt_and_one_of_own_starts_cannot(found, own_starts):
    good, bad = found, own_starts[1]
    assert good.verdict == "learnable"
    assert good.explained > 0.9
    assert bad.verdict == "not learnable"
    assert bad.explained < 0.2
    assert good.text.startswith(
        "The outputs of unseen instances follow from their PReps, so a space can learn this zoo"
    )
    assert bad.text.startswith("The outputs of unseen instances do not follow from their PReps")
    for each in (good, bad):
        assert each.text.count(". ") == 1  # two sentences
        assert "nan" not in json.dumps(each.to_dict()).lower()


@pytest.mark.parametrize(
    ("halfway", "starts", "end"),
    [
        (0.85, "unknown", "so the two lie in one basin."),
        (0.85, "one", "so the two lie in one basin, as networks with a common start do."),
        (0.85, "own", "so the two lie in one basin, though each began with a start of its own."),
        (0.3, "unknown", "so each lies in a basin of its own."),
        (0.3, "own", "as networks with starts of their own do; those with a common start can be read better."),
        (
            0.3,
            "one",
            "a basin of its own, though all of an architecture began with one start: training led them apart.",
        ),
        (0.3, "shared", "only instances with one and the same start, as the column `start` tells, may share a basin."),
    ],
)
def test_words_on_basins_depend_on_what_was_measured_and_on_starts(found, halfway, starts, end):
    rows = {name: {**row, "halfway": {"halfway": halfway, "ends": 1.0}} for name, row in found.rows.items()}
    text = replace(found, rows=rows, about={**found.about, "starts": starts}).text
    assert text.endswith(end)
    assert ("one basin" in text) == (halfway > 0.8)


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        (["own"], "own"),
        (["fitted"], "one"),
        (["shared-0", "shared-1"], "shared"),
        (["own", "fitted"], "unknown"),
        ([None], "unknown"),
    ],
)
def test_starts_are_those_of_the_column(path, tmp_path, starts, expected):
    copy = shutil.copytree(path, tmp_path / "zoo")
    values = [starts[number % len(starts)] if split == "train" else "own" for number, split in enumerate(SPLITS)]
    annotate(copy, {"id": [f"n{number}" for number in range(len(SPLITS))], "start": values}, card=False)
    assert starts_of(prepkit.open_zoo(copy)) == expected


@pytest.mark.parametrize(
    ("explained", "told_apart", "low", "expected"),
    [
        (0.9, 0.8, 0.6, "learnable"),
        (0.5, 0.75, 0.4, "learnable"),
        (0.49, 1.0, 0.9, "in part"),
        (0.9, 0.7, 0.51, "in part"),
        (0.9, 0.7, 0.5, "not learnable"),
        (0.19, 1.0, 0.9, "not learnable"),
        (float("nan"), 1.0, 0.9, "not learnable"),
    ],
)
def test_verdicts(explained, told_apart, low, expected):
    assert verdict_of(explained, told_apart, low) == expected


# What it refuses and leaves out -----------------------------------------------------------------------------------


def test_zoos_that_cannot_be_probed(shared, small_zoo, tmp_path):
    with pytest.raises(ZooMismatch, match=r"does not record its task.*`prepkit zoo create --task`"):
        probe(zoo_of(tmp_path / "plain", task=None))
    with pytest.raises(ZooMismatch, match=r"no instances in the split 'train'; it has none. `prepkit zoo split`"):
        probe(zoo_of(tmp_path / "undealt", splits=[None] * 16))
    with pytest.raises(ZooMismatch, match=r"no instances in the split 'validation'; it has test, train"):
        probe(shared, split="validation")
    with pytest.raises(ZooMismatch, match="the reader learns from the split 'train'"):
        probe(shared, split="train")
    with pytest.raises(ZooMismatch, match=r"needs 10 training .* has 5 training instances and 2 unseen"):
        probe(small_zoo("digits_single"))
    constant = constant_zoo(tmp_path / "same", shared.preps()[0])
    with pytest.raises(ZooMismatch, match=f"all training instances of {NAME} put out the same"):
        probe(constant)


def constant_zoo(path, prep):
    registry = prepkit.Registry([prepkit.architecture(NAME)])
    tensors = prepkit.architecture(NAME).layout.unpack(prep)
    network = prepkit.architecture(NAME).build()
    network.load_state_dict(dict(tensors))
    with prepkit.ZooWriter(path, width=128, task=DIGITS, registry=registry) as writer:
        for number, split in enumerate(SPLITS):
            writer.add(network, id=f"n{number}", split=split)
    return path


def test_what_is_left_out_is_said(tmp_path, monkeypatch):
    zoo = prepkit.open_zoo(zoo_of(tmp_path / "zoo", changed=15))
    found = probe(zoo)
    assert found.rows[NAME]["unseen_instances"] == 3
    assert found.notes == [f"1 instance of {NAME} with outputs that are not finite are left out."]
    monkeypatch.setattr(_probed_instances, "MOST_KNOWN", 11)
    assert probe(zoo).notes[0] == f"of {NAME}, 11 of 12 training instances and 4 of 4 unseen ones are taken."


# The command ------------------------------------------------------------------------------------------------------


def test_the_command(path, found, tmp_path):
    done = CliRunner().invoke(main, ["probe", str(path)])
    assert done.exit_code == 0, done.output
    assert found.text in done.stdout
    assert "60 test images" in done.stdout
    document = json.loads(CliRunner().invoke(main, ["probe", str(path), "--json"]).stdout)
    assert document == json.loads(json.dumps(found.to_dict()))
    assert document["format"] == "netspace-probe/1"
    assert document["by_architecture"][NAME]["halfway"]["pairs"] == 6
    done = CliRunner().invoke(main, ["probe", str(tmp_path), "--json"])
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["message"]
