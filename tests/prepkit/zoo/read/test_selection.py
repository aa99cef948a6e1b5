"""Tests of views that are sorted, joined, chosen by id, or made of runs."""

import pickle

import pytest
import torch

from prepkit.api import open_zoo
from prepkit.errors import ZooError
from prepkit.zoo.write.writer import ZooWriter

# id, run, epoch, accuracy; the rows are neither in the order of runs nor of epochs
ROWS = [
    ("c", "r2", 10, 0.5),
    ("a", "r1", 5, None),
    ("b", "r2", 0, 0.9),
    ("e", None, 3, 0.5),
    ("d", "r1", 0, 0.1),
    ("f", "r2", 5, 0.7),
]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("selection") / "zoo"
    with ZooWriter(root, width=8) as writer:
        for number, (id, run, epoch, accuracy) in enumerate(ROWS):
            columns = {"run": run, "epoch": epoch, "accuracy": accuracy, "curve": [0.5]}
            writer.add({"w": torch.full((4,), float(number))}, id=id, **columns)
    return open_zoo(root)


def ids(view):
    return "".join(view.table["id"].to_pylist())


def test_sort(zoo):
    assert ids(zoo.sort("epoch")) == "bdeafc"  # b and d, a and f, have equal epochs and stay in their order
    assert ids(zoo.sort("run", "epoch")) == "dabfce"  # no run comes last
    assert ids(zoo.sort("accuracy", descending=True)) == "bfceda"  # no accuracy comes last
    view = zoo.where("run == 'r2'").sort("accuracy")
    assert ids(view) == "cfb"
    assert view.preps()[:, 0, 0].tolist() == [0.0, 5.0, 2.0]


def test_union(zoo):
    good, late = zoo.where("accuracy > 0.6"), zoo.where("epoch >= 5")
    assert ids(good.union(late)) == "bfca"
    assert ids(late.union(good, zoo.select([3]))) == "cafbe"
    again = open_zoo(zoo._store.root)
    assert ids(good.union(again.select(["d"]))) == "bfd"


def test_ids_in_place_of_indices(zoo):
    assert ids(zoo.select(["d", "a", "d"])) == "dad"
    assert ids(zoo[["f"]]) == "f"
    assert torch.equal(zoo.preps(["e", "b"]), zoo.preps([3, 2]))
    with pytest.raises(ZooError, match="has no instance 'x'"):
        zoo.select(["a", "x"])


def test_runs_from_the_first_epoch_to_the_last(zoo):
    runs = zoo.runs()
    assert {run: ids(view) for run, view in runs.items()} == {"r2": "bfc", "r1": "da"}
    assert list(runs) == ["r2", "r1"]
    assert runs["r2"].preps()[:, 0, 0].tolist() == [2.0, 5.0, 0.0]  # [epochs, H, W]
    assert runs["r1"].table["epoch"].to_pylist() == [0, 5]
    assert repr(runs) == "<2 runs of 'zoo', in the order of 'epoch'>"
    assert ids(zoo.where("accuracy > 0").runs(order="accuracy")["r2"]) == "cfb"
    assert ids(pickle.loads(pickle.dumps(runs["r2"]))) == "bfc"


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda zoo: zoo.sort(), "name a column to sort by"),
        (lambda zoo: zoo.sort("epock"), "has no column 'epock'; it has .* Did you mean 'epoch'?"),
        (lambda zoo: zoo.sort("curve"), "column 'curve': it holds lists, which have no order"),
        (lambda zoo: zoo.union([1]), "only views of 'zoo' can be joined"),
        (lambda zoo: zoo.runs("rum"), "has no column 'rum'"),
        (lambda zoo: zoo.runs("run", "accuracy"), "run 'r1': its 2 instances cannot be put in order .* one has none"),
        (lambda zoo: zoo.select([0, 0]).runs(), "run 'r2': its 2 instances .* two have the same"),
    ],
)
def test_mistakes(zoo, mistake, message):
    with pytest.raises(ZooError, match=message):
        mistake(zoo)


def test_all_runs_as_one_tensor(zoo):
    runs = zoo.runs()  # r2: rows 2, 5, 0; r1: rows 4, 1
    assert list(runs) == ["r2", "r1"]
    assert runs.mask().tolist() == [[True, True, True], [True, True, False]]
    assert runs.preps().shape == (2, 3, *zoo.preps().shape[1:])
    assert runs.preps()[..., 0, 0].tolist() == [[2.0, 5.0, 0.0], [4.0, 1.0, 0.0]]
    assert runs.column("epoch").tolist() == [[0, 5, 10], [0, 5, 0]]
    assert runs.column("epoch").dtype == torch.int64
    with pytest.raises(ZooError, match="column 'accuracy': 1 instance of 5 have no value"):
        runs.column("accuracy")
    equal = zoo.where("epoch < 10 and run is not None").runs()
    assert equal.mask().all()
    assert torch.equal(equal.preps(), torch.stack([run.preps() for run in equal.values()]))
    assert equal.column("epoch").tolist() == [[0, 5], [0, 5]]
    none = zoo.where("epoch > 10").runs()
    assert none.preps().shape == (0, 0, *zoo.preps().shape[1:])


def test_an_unknown_run_and_a_zoo_without_epochs(zoo, tmp_path):
    with pytest.raises(KeyError, match="has no run 'r3'; it has 2 runs"):
        zoo.runs()["r3"]
    with ZooWriter(tmp_path / "zoo", width=8) as writer:
        writer.add({"w": torch.zeros(4)}, id="a", run="r", when=3)
    other = open_zoo(tmp_path / "zoo")
    with pytest.raises(ZooError, match=r"no column epoch, step, iteration, training_iteration, so name the one"):
        other.runs()
    assert len(other.runs(order="when")) == 1
    with pytest.raises(ZooError, match="only views of 'zoo' can be joined"):
        zoo.union(other)
