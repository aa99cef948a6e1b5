"""The trained baselines: what does not change when hidden units change places, and what training keeps."""

import bench_samples
import numpy as np
import pytest
import torch

import prepkit
from prepkit import views
from prepkit.benching import _training
from prepkit.benching._networks import GraphNetwork, TokenTransformer
from prepkit.symmetry.acting import Action

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def short_trainings(monkeypatch):
    monkeypatch.setattr(_training, "LEAST_STEPS", 4)
    monkeypatch.setattr(_training, "EPOCHS", 0)
    monkeypatch.setattr(_training, "JUDGED_EVERY", 2)


@pytest.mark.parametrize("name", ["lenet_like@digits", "resnet8@digits"])
def test_the_graph_network_does_not_see_the_order_of_hidden_units(name):
    architecture = prepkit.architecture(name)
    shape = architecture.layout.shape(64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        preps = torch.randn(3, shape.height, shape.width, dtype=torch.float64)
        graph = GraphNetwork(views.graph(architecture, kernels="joined"), preps, 2).double()
        transformer = TokenTransformer(views.tokens(architecture), preps, 2).double()
    action = Action(prepkit.symmetries(architecture))
    assert action.symmetries.movable
    moved = action.on_preps(action.draw(torch.Generator().manual_seed(1), count=3), preps)
    before, after = graph(preps), graph(moved)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert before.std(0).min() > 1e-4  # other networks give other outputs
    assert (transformer(moved) - transformer(preps)).abs().max() > 1e-4
    layer = [slot for slot in architecture.layout if slot.shape[0] == 10][-2:]
    # The outputs of the last layer have an order.
    swapped = {slot.name: value.flip(1) for slot in layer for value in [architecture.layout.unpack(preps)[slot.name]]}
    turned = architecture.layout.pack({**architecture.layout.unpack(preps), **swapped}, shape)
    assert (graph(turned) - before).abs().max() > 1e-4


@pytest.mark.parametrize("baseline", ["tokens + transformer", "graph + equivariant network"])
def test_a_training_is_the_same_again(zoo_folder, baseline):
    runs = [prepkit.bench(zoo_folder, "score", baselines=[baseline], seed=seed).rows[baseline] for seed in (0, 0, 1)]
    assert all(row.error is None for row in runs)
    assert np.array_equal(runs[0].guesses, runs[1].guesses)
    assert not np.array_equal(runs[0].guesses, runs[2].guesses)


@pytest.mark.slow
def test_networks_learn_classes(zoo_folder, monkeypatch):
    monkeypatch.setattr(_training, "LEAST_STEPS", 60)
    row = prepkit.bench(zoo_folder, "side", baselines=["graph + equivariant network"]).rows[
        "graph + equivariant network"
    ]
    assert row.measures["accuracy"] > 0.8


def test_the_weights_that_were_best_in_validation_are_kept(monkeypatch):
    """The third of six judgements is the best one."""
    errors = iter([5.0, 4.0, 1.0, 3.0, 2.0, 6.0])
    network = torch.nn.Linear(1, 1)
    kept = []

    def judged(network, preps, device):
        kept.append(network.weight.item())
        return torch.full((1, 1), next(errors) ** 0.5)

    monkeypatch.setattr(_training, "LEAST_STEPS", 12)
    monkeypatch.setattr(_training, "_outputs", judged)
    x = torch.linspace(-1, 1, 8)[:, None]
    _training._fit(network, x, 3 * x[:, 0], x[:1], torch.zeros(1), 0, torch.device("cpu"))
    assert len(set(kept)) == 6
    assert network.weight.item() == kept[2]


def test_networks_that_a_graph_has_no_place_for_are_left_out(tmp_path):
    root = tmp_path / "zoo"
    with prepkit.ZooWriter(root, width=64) as writer:
        for number in range(16):
            tensors = {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4)}
            writer.add(tensors, split=("train", "train", "validation", "test")[number % 4], score=float(number))
    result = prepkit.bench(root, "score", baselines=["graph + equivariant network", "constant"])
    assert "is not known" in result.rows["graph + equivariant network"].left_out
    assert result.rows["constant"].measures["r2"] < 0


def test_a_network_of_too_many_tokens_is_left_out(zoo_folder, monkeypatch):
    monkeypatch.setattr(_training, "MOST_TOKENS", 20)
    row = prepkit.bench(zoo_folder, "score", baselines=["tokens + transformer"]).rows["tokens + transformer"]
    assert row.left_out.startswith("a network is 58 tokens")


def test_each_architecture_is_learned_by_itself(tmp_path):
    """VanillaCNNs that say something else of the same weights do not disturb LeNets."""
    few = {"train": 10, "validation": 4, "test": 4}
    lenets = bench_samples.write_zoo(tmp_path / "lenets", sizes=few)
    others = bench_samples.write_zoo(tmp_path / "others", sizes=few, name="vanilla_cnn@digits")
    prepkit.merge(tmp_path / "both", [lenets, others], prefix=True)
    result = prepkit.bench(tmp_path / "both", "score", baselines=["statistics + ridge"])
    alone = prepkit.bench(lenets, "score", baselines=["statistics + ridge"]).rows["statistics + ridge"].guesses
    names = result.question.test.zoo.table["architecture"].to_pylist()
    own = result.rows["statistics + ridge"].guesses[[name == bench_samples.NAME for name in names]]
    assert len(names) == 8
    np.testing.assert_allclose(own, alone, rtol=1e-9)
