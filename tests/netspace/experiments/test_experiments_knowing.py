"""What embeddings know: guesses of accuracy and hyper-parameters, and embeddings of reordered units."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from small_zoos import DIGITS
from torch import nn
from untrained import subject_of, untrained_run

import prepkit
from netspace.experiments.beyond import orbit, representation
from netspace.experiments.result import Result
from netspace.run.run import Run
from netspace.space.network import NetSpace
from prepkit.support import bootstrap
from prepkit.symmetry.aligning import Aligner
from prepkit.tasks.randomness import generator

pytestmark = pytest.mark.usefixtures("one_thread")
SPLITS = {"train": 12, "validation": 6, "test": 8}


@pytest.fixture(scope="module")
def zoo_path(tmp_path_factory):
    """Networks of one architecture whose weights grow with the `epochs` that their table records."""
    torch.manual_seed(0)
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    path = tmp_path_factory.mktemp("grown") / "zoo"
    with prepkit.ZooWriter(path, width=128, task=DIGITS, registry=registry) as writer:
        for split, count in SPLITS.items():
            for number in range(count):
                network = prepkit.architecture("resnet8@digits").build()
                epochs = 1 + (number * 7) % 20
                with torch.no_grad():
                    for tensor in network.parameters():
                        tensor.mul_(1 + epochs / 20)
                facts = {"epochs": epochs, "epoch": epochs, "batch_size": 32 + number % 2, "momentum": 0.9}
                writer.add(network, id=f"{split}-{number}", split=split, accuracy=number / 10, **facts)
    return path


@pytest.fixture(scope="module")
def run(zoo_path, tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", "digits_single", zoo_path)


@pytest.fixture
def subject(run, tmp_path):
    return subject_of(run, tmp_path)


@pytest.fixture
def views(subject):
    return {split: subject.zoo.split(split) for split in SPLITS}


# Representation ---------------------------------------------------------------------------------------------------


def test_guesses_are_those_of_scikit_learn(subject, views, tmp_path):
    result = representation.run(subject)
    assert repr(Result.load(result.save(tmp_path))) == repr(result)
    assert (tmp_path / result.pictures[0].file).read_bytes().startswith(b"\x89PNG")
    space = subject.run.space()
    preps = {split: view.preps().flatten(1).double().numpy() for split, view in views.items()}
    with torch.no_grad():
        embeddings = {
            split: torch.cat([space.encode(view.preps([row])) for row in range(len(view))]).double().numpy()
            for split, view in views.items()
        }
    pca = PCA(11).fit(preps["train"])
    features = {
        "embedding": embeddings,
        "PRep": preps,
        "principal components": {split: pca.transform(values) for split, values in preps.items()},
    }
    for label, found in result.numbers["labels"].items():
        column = "batch_size" if label == "batch_size" else "epochs"
        if label == "accuracy":
            continue
        truth = {split: np.array(view.table[column].to_pylist(), float) for split, view in views.items()}
        truth = {split: np.log(values) if label.startswith("log") else values for split, values in truth.items()}
        for kind, values in features.items():
            scale = StandardScaler().fit(values["train"])
            if kind == "principal components":
                scale.scale_ = np.full(11, np.sqrt(scale.var_.mean()))
            strength = found[kind]["strength"]
            model = Ridge(alpha=12 * strength).fit(scale.transform(values["train"]), truth["train"])
            guess = model.predict(scale.transform(values["test"]))
            assert found[kind]["r2"] == pytest.approx(r2_score(truth["test"], guess), abs=2e-3)
            assert found[kind]["mean_error"] == pytest.approx(np.abs(truth["test"] - guess).mean(), abs=2e-3)
            if np.ptp(guess) > 1e-3:  # or the order is that of rounding
                tau = scipy.stats.kendalltau(truth["test"], guess).statistic
                assert found[kind]["tau"] == pytest.approx(tau, abs=0.08)
    assert result.numbers["features"]["principal components"] == 11
    assert result.numbers["features"]["embedding"] == 256


def test_what_stands_in_the_weights_is_found(subject):
    result = representation.run(subject)
    found = result.numbers["labels"]["log of epochs"]
    assert found["layer statistics"]["r2"] > 0.6
    assert found["layer statistics"]["tau"] > 0.6
    assert found["PRep"]["r2"] < 0.3
    assert found["layer statistics"]["tau_over_ceiling"] == pytest.approx(
        found["layer statistics"]["tau"] / found["ceiling"]
    )
    (claim,) = [one for one in result.claims if "log of epochs" in one.text]
    others = max(found[kind]["tau"] for kind in ("layer statistics", "PRep", "principal components"))
    assert claim.number == pytest.approx(found["embedding"]["tau"] - others)
    assert claim.interval == (0, 0)  # both orders are perfect, in each draw


def test_the_interval_of_a_difference_of_taus_is_that_of_drawn_instances():
    random = np.random.default_rng(4)
    truth = random.normal(size=12)
    guesses = {"embedding": truth + random.normal(size=12), "PRep": truth + 2 * random.normal(size=12)}
    guesses["principal components"] = truth + 2 * random.normal(size=12)
    draws = bootstrap.drawn(np.arange(12), 3)
    label = representation.Label("accuracy", {"test": truth}, 0.9)
    taus = {kind: {"tau": scipy.stats.kendalltau(truth, guess).statistic} for kind, guess in guesses.items()}
    (claim,) = representation._claims({"accuracy": taus}, [label], {"accuracy": guesses}, draws)
    slow = []
    for times in draws[:200].astype(int):
        rows = np.repeat(np.arange(12), times)
        own, *others = (scipy.stats.kendalltau(truth[rows], guess[rows]).statistic for guess in guesses.values())
        slow.append(own - max(others))
    (short,) = representation._claims({"accuracy": taus}, [label], {"accuracy": guesses}, draws[:200])
    assert short.interval == pytest.approx(np.quantile(slow, [0.025, 0.975]))
    assert claim.interval == pytest.approx(short.interval, abs=0.2)


def test_labels(subject, views):
    accuracy = representation.accuracy_label(subject, views)
    images, labels = subject.task.normalised("test")
    for split, view in views.items():
        for row in range(len(view)):
            with torch.no_grad():
                right = view.network(row)(images).argmax(1) == labels
            assert accuracy.values[split][row] == pytest.approx(float(right.double().mean()))
    assert [label.name for label in representation.hyperparameter_labels(views)] == ["log of epochs", "batch_size"]
    epochs, batch_size = representation.hyperparameter_labels(views)
    assert np.exp(epochs.values["test"]) == pytest.approx([1 + (number * 7) % 20 for number in range(8)])
    assert epochs.ceiling == pytest.approx(1.0, abs=1e-15)
    perfect = batch_size.values["test"] + 0.01 * np.arange(8)
    assert batch_size.ceiling == pytest.approx(scipy.stats.kendalltau(batch_size.values["test"], perfect).statistic)


def test_without_a_spread_nothing_is_claimed(small_zoo, tmp_path):
    run = untrained_run(tmp_path / "run", "digits_multi", small_zoo("digits_multi"))
    result = representation.run(subject_of(run, tmp_path))
    assert list(result.numbers["labels"]) == ["accuracy"]
    ceiling = result.numbers["labels"]["accuracy"]["ceiling"]
    assert bool(result.claims) == (ceiling is not None and ceiling >= 0.5)
    assert ("nothing is claimed" in result.text) != bool(result.claims)
    assert result.numbers["labels"]["accuracy"]["embedding"]["tau_within_architectures"] is None  # one of each


def test_components_are_principal_and_of_training_instances():
    random = np.random.default_rng(0)
    features = {split: random.normal(size=(count, 30)) * np.arange(30) for split, count in SPLITS.items()}
    for count, kept in ((5, 5), (256, 11)):
        found = representation.components(features, count)
        pca = PCA(kept).fit(features["train"])
        for split, values in features.items():
            assert np.abs(found[split]) == pytest.approx(np.abs(pca.transform(values)))  # signs are free


# Orbits -----------------------------------------------------------------------------------------------------------


class Stub(NetSpace):
    """A space whose encoder is the given function."""

    num_architectures = None

    def __init__(self, function, size):
        nn.Module.__init__(self)
        self.function, self.embedding_size = function, size
        self.anchor = nn.Parameter(torch.zeros(1))  # says on which device it is

    alignment = None

    def encoder(self, preps):
        return self.function(preps.flatten(1))

    def decode(self, latents):
        return torch.zeros(len(latents), 40, 128)


def test_orbit_by_hand(run, tmp_path):
    subject = subject_of(run, tmp_path, seed=5)
    result = orbit.run(subject, orders=3)
    (found,) = result.numbers["by_architecture"].values()
    space, view = run.space(), subject.zoo.split("test")
    architecture = run.registry.by_class_id(0)
    images, _ = subject.task.normalised("test")
    with torch.no_grad():
        own = [space.encode(view.preps([row]))[0].double() for row in range(8)]
        others, outputs, preps_moved = [], [], []
        for number in range(3):
            stream = generator("orders of units", 5, 0, number)
            moved = Aligner.of(architecture).scrambled(view.preps(), stream, ("permute",))
            for row, prep in enumerate(moved.split(1)):
                assert torch.equal(prep.flatten().sort().values, view.preps([row]).flatten().sort().values)
                others.append((row, space.encode(prep)[0].double()))
                preps_moved.append(float((prep - view.preps([row])).norm()))
                network = architecture.build_folded().eval()
                network.load_state_dict(architecture.layout.unpack(prep[0]))
                before = view.network(row)(images)
                outputs.append(float((network(images) - before).abs().max() / before.abs().max()))
    apart = np.mean([float((own[i] - own[j]).norm()) for i in range(8) for j in range(8) if i != j])
    moved = np.mean([float((other - own[row]).norm()) for row, other in others])
    assert found["embedding_moved"] == pytest.approx(moved / apart, rel=1e-3)
    preps = view.preps().double()
    preps_apart = np.mean([float((preps[i] - preps[j]).norm()) for i in range(8) for j in range(8) if i != j])
    assert found["prep_moved"] == pytest.approx(np.mean(preps_moved) / preps_apart, rel=1e-5)
    nearest = [min(range(8), key=lambda i, other=other: float((other - own[i]).norm())) == row for row, other in others]
    assert found["still_nearest"] == pytest.approx(np.mean(nearest), abs=1 / 24 + 1e-9)
    orbits = [torch.stack([own[row], *(other for place, other in others if place == row)]) for row in range(8)]
    everything = torch.cat(orbits)
    within = sum(float(((one - one.mean(0)) ** 2).sum()) for one in orbits)
    whole = float(((everything - everything.mean(0)) ** 2).sum())
    assert found["variance_within_orbits"] == pytest.approx(within / whole, rel=1e-3)
    assert max(outputs) < 1e-5
    assert found["output_difference"] < 1e-5
    assert result.claims[0].held
    assert result.claims[1].number == pytest.approx(found["embedding_moved"])
    slow = []
    for times in bootstrap.drawn(np.arange(8), 5).astype(int):
        rows = np.repeat(np.arange(8), times)
        pairs = [float((own[i] - own[j]).norm()) for i in rows for j in rows if i != j]
        each = [np.mean([float((other - own[row]).norm()) for row, other in others if row == i]) for i in rows]
        slow.append(np.mean(each) / np.mean(pairs))
    assert result.claims[1].interval == pytest.approx(np.quantile(slow, [0.025, 0.975]), rel=1e-3)


@pytest.mark.parametrize(
    ("function", "size", "moved"),
    [
        (lambda flat: flat.sort(1).values, 5120, 0.0),  # knows the values, not their places
        (lambda flat: flat, 5120, None),  # knows the PRep and nothing else
    ],
)
def test_orbits_of_encoders_that_know_everything_and_nothing(function, size, moved, subject, monkeypatch):
    monkeypatch.setattr(Run, "space", lambda self, *_, **__: Stub(function, size))
    result = orbit.run(subject, orders=2)
    (found,) = result.numbers["by_architecture"].values()
    if moved is None:
        assert found["embedding_moved"] == pytest.approx(found["prep_moved"])
        assert 0.3 < found["embedding_moved"] < 2
    else:
        assert found["embedding_moved"] == found["variance_within_orbits"] == 0.0
        assert found["still_nearest"] == 1.0
    assert result.claims[1].held == (moved == 0.0)


def test_an_order_that_changes_the_function_is_seen(subject, monkeypatch):
    """The wrong order of one instance among several is noticed too."""
    scrambled = Aligner.scrambled

    def wrong_once(self, preps, stream, kinds):
        moved, total = scrambled(self, preps, stream, kinds), self.layout.total
        moved[3].flatten()[:total] = preps[3].flatten()[torch.randperm(total, generator=stream)]
        return moved

    monkeypatch.setattr(Aligner, "scrambled", wrong_once)
    result = orbit.run(subject, orders=1)
    assert result.numbers["output_difference"] > 0.01
    assert not result.claims[0].held


@pytest.mark.parametrize("setting", ["digits_multi", "chairs_mini"])
def test_orbits_of_several_architectures_and_of_signals(setting, small_zoo, tmp_path):
    run = untrained_run(tmp_path / "run", setting, small_zoo(setting))
    told = []
    result = orbit.run(subject_of(run, tmp_path, progress=told.append), orders=2)
    groups = result.numbers["by_architecture"]
    assert list(groups) == list(run.registry.class_ids)
    assert len(told) == len(groups)
    assert all(one["output_difference"] < 1e-5 for one in groups.values())
    assert all(one["embedding_distance_moved"] > 0 and one["embedding_moved"] is None for one in groups.values())
