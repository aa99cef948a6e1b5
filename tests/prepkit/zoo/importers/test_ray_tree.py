"""`prepkit zoo import ray-tree`: networks, columns, variants of the layout, and what running proves."""

import pytest
import torch
from ray_samples import (
    HALF,
    MNIST,
    ResNet,
    SmallCNNZooNet,
    balanced,
    filled,
    imported,
    large_cnn,
    settings_of,
    share_right,
    small_cnn,
    write_images,
    write_run,
)
from torch import nn

import prepkit
from prepkit.errors import ZooError

pytestmark = pytest.mark.usefixtures("one_thread")


def outputs_of(network, images):
    with torch.no_grad():
        return network(images)


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def mnist(tmp_path, data):
    """Three runs of two iterations, as ModelZooDataset has them; the second has dropout, the third GELU."""
    root = tmp_path / "tune_zoo_mnist_uniform"
    for number, (nlin, dropout) in enumerate([("tanh", False), ("tanh", True), ("gelu", False)]):
        networks = [filled(small_cnn(nlin, dropout=dropout), 10 * number + epoch) for epoch in range(2)]
        networks = [balanced(network, data, MNIST) for network in networks]
        settings = settings_of("CNN", nlin, number, **{"model::dropout": 0.5 * dropout})
        write_run(root, number, networks, lambda network: share_right(network, data, MNIST), settings)
    return root


@pytest.mark.parametrize(
    ("kind", "nlin", "network", "shape", "name"),
    [
        ("CNN", "tanh", small_cnn("tanh"), (1, 28, 28), "cnn_1-5x8p-5x6p-2x4-20-10_tanh@svhn"),
        ("CNN", "silu", small_cnn("silu", 3, True, 4), (3, 28, 28), "cnn_3-5x8p-5x6p-2x4-20-4_dropout_silu@svhn"),
        ("CNN3", "gelu", large_cnn("gelu"), (3, 32, 32), "cnn_3-3x16p-3x32p-3x15p-20-10_dropout_gelu@svhn"),
        ("any", "relu", SmallCNNZooNet(), (1, 28, 28), "cnn_1-3x16-3x16-3x16-10_relu@svhn"),
        ("Resnet18", "tanh", ResNet(), (3, 32, 32), "resnet18_3-4-6-8-10-10_relu@svhn"),
        ("ResNet18Slim", "relu", ResNet(shortcut="shortcut"), (3, 32, 32), "resnet18s_3-4-6-8-10-10_relu@svhn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_networks_compute_what_their_makers_ran(tmp_path, kind, nlin, network, shape, name):
    filled(network, 1)
    write_run(tmp_path / "svhn", 0, [network], lambda _: 0.5, settings_of(kind, nlin, 0))
    zoo, _ = imported(tmp_path / "svhn", tmp_path)
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        outputs_of(zoo.network(0), images), outputs_of(network, images), rtol=1e-3, atol=1e-3 if "Res" in kind else 1e-5
    )
    assert zoo.metadata(0)["architecture"] == name
    assert zoo.registry[name].input_shape == shape
    assert zoo.registry[name].config["builder"].startswith("prepkit.families.")


def test_tables_become_columns_and_tensors_correct_settings(mnist, tmp_path):
    zoo, notes = imported(mnist, tmp_path)
    run = sorted(path.name for path in mnist.iterdir())[1]
    row = zoo.metadata(f"{run}/1")
    assert len(zoo) == 6
    assert (row["run"], row["epoch"], row["train_loss"], row["seed"]) == (run, 1, 1.0, 1)
    assert row["train_acc"] == row["accuracy"] / 2
    # The settings say 4 outputs and no bias, but ten outputs and biases are there.
    assert (row["model::o_dim"], row["model::use_bias"], row["model::dropout"]) == (10, True, 0.5)
    assert "model::o_dim (6 models), model::use_bias (6 models)" in notes
    assert "Left beside the weights: optimizer (6 files)" in notes
    assert "what ray notes beside the metrics (config, date, hostname, pid)" in notes
    assert not {"hostname", "pid", "config.seed", "training_iteration"} & set(zoo.table.column_names)
    assert len(zoo.where("`model::nlin` == 'gelu' and epoch == 0")) == 1
    untrained = torch.load(mnist / run / "checkpoint_000000" / "checkpoints")
    assert torch.equal(zoo[f"{run}/0"][0].tensors()["module_list.0.weight"], untrained["module_list.0.weight"])


def test_running_decides_the_normalisation_and_proves_the_function(mnist, data, tmp_path):
    zoo, notes = imported(mnist, tmp_path, "named")
    assert "Names tell that the data set is mnist" in notes
    assert zoo.manifest.function.status == "unverified"
    zoo, notes = imported(mnist, tmp_path, data=tmp_path / "images")
    assert "Running 4 models" in notes
    how = zoo.manifest.function.how
    assert (how.mean, how.std, how.activation, how.padding) == ((0.1307,), (0.3081,), "model::nlin", "none")
    assert "maximum of 2 x 2 squares, activation" in how.order
    assert zoo.task["mean"] == [0.1307]
    assert zoo.manifest.provenance["conventions_run"]["accuracy_differences"]["mnist"] == 0
    found = prepkit.verify(tmp_path / "zoo", rerun=6, data=tmp_path / "images")
    assert found.ok
    assert found.function.status == "verified"
    assert found.function.verified.largest_difference < 1e-9


class PooledAfter(nn.Module):
    """The small CNN with the activation before the maximum, which differs for GELU alone."""

    def __init__(self, chain):
        super().__init__()
        self.module_list = chain.module_list

    def forward(self, images):
        modules = list(self.module_list)
        for first in (1, 4):
            modules[first : first + 2] = reversed(modules[first : first + 2])
        return nn.Sequential(*modules)(images)


def test_running_decides_and_not_the_name(tmp_path, data):
    root = tmp_path / "tune_zoo_mnist"  # whose makers took another normalisation and order
    networks = [balanced(filled(PooledAfter(small_cnn("gelu")), seed), data, HALF) for seed in range(4)]
    for number, network in enumerate(networks):
        write_run(
            root, number, [network], lambda each: share_right(each, data, HALF), settings_of("CNN", "gelu", number)
        )
    zoo, notes = imported(root, tmp_path, data=tmp_path / "images")
    assert "decided for 'half with pooling after the activation'" in notes
    how = zoo.manifest.function.how
    assert how.mean == (0.5,)
    assert "activation, maximum of 2 x 2 squares" in how.order
    images = (data[0] - 0.5) / 0.5
    torch.testing.assert_close(
        outputs_of(zoo.network(1), images), outputs_of(networks[1], images), rtol=1e-4, atol=1e-4
    )
    assert prepkit.verify(tmp_path / "zoo", rerun=4, data=tmp_path / "images").function.status == "verified"


def test_a_task_says_how_inputs_are_normalised(mnist, tmp_path):
    task = {"kind": "images", "dataset": "folder", "mean": [0.25], "std": [0.125], "split": {"seed": 0, "test": "test"}}
    zoo, notes = imported(mnist, tmp_path, task=task)
    assert zoo.task == task
    assert (zoo.manifest.function.how.mean, zoo.manifest.function.how.std) == ((0.25,), (0.125,))
    assert "Names tell" not in notes
    with pytest.raises(ZooError, match="data=PATH finds it by running; give one of them"):
        imported(mnist, tmp_path, "both", task=task, data=tmp_path)
