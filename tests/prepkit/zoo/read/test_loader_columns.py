"""Tests of what loaders give beside PReps: columns as tensors, and what `transform` makes of a batch."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from writer_samples import tensors_of

from prepkit.api import open_zoo
from prepkit.errors import ZooError
from prepkit.zoo.write.writer import ZooWriter

ACCURACIES = np.random.default_rng(0).random(11)


@pytest.fixture(scope="module", params=["safetensors", "hdf5"])
def zoo(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("columns") / "zoo"
    with ZooWriter(root, width=8, shard_bytes=1000, format=request.param) as writer:
        for index in range(11):
            columns = {"accuracy": float(ACCURACIES[index]), "label": index * 2**40, "is_good": index % 3 == 0}
            gaps = {"gap": None if index in (2, 5) else 0.5, "text": f"t{index}", "curve": [0.1, 0.2], "huge": 1e300}
            writer.add(tensors_of(index, (3, 5 + index % 2, 2)), split="train", **columns, **gaps)
    return open_zoo(root)


@pytest.mark.parametrize("resident", [False, True])
def test_columns_are_those_of_the_instances(zoo, resident):
    view = zoo.select([7, 1, 3, 10, 0])
    loader = (view.to("cpu") if resident else view).loader(2, seed=1, columns=["is_good", "accuracy", "label", "row"])
    seen = []
    for _ in range(2):
        for preps, class_ids, indices, columns in loader:
            assert torch.equal(preps, view.preps(indices))
            assert torch.equal(class_ids, view.class_ids(indices))
            ids = np.array([7, 1, 3, 10, 0])[indices.numpy()]
            assert list(columns) == ["is_good", "accuracy", "label", "row"]
            assert [values.dtype for values in columns.values()] == [
                torch.bool,
                torch.float32,
                torch.int64,
                torch.int64,
            ]
            assert columns["accuracy"].numpy().tolist() == ACCURACIES[ids].astype(np.float32).tolist()
            assert columns["label"].tolist() == (ids * 2**40).tolist()
            assert columns["is_good"].tolist() == (ids % 3 == 0).tolist()
            seen += indices.tolist()
    assert sorted(seen) == sorted([*range(5)] * 2)


def test_batches_have_names_and_three_items_without_columns(zoo):
    batch = next(iter(zoo.loader(4)))
    assert batch._fields == ("preps", "class_ids", "indices")
    batch = next(iter(zoo.loader(4, columns=[])))
    assert batch._fields == ("preps", "class_ids", "indices", "columns")
    assert batch.columns == {}


@pytest.mark.parametrize("resident", [False, True])
def test_transform_sees_each_batch_as_it_would_be_given(zoo, resident):
    one = zoo.where("row == row").select([0, 2, 4])
    source = one.to("cpu") if resident else one
    plain = list(source.loader(2, seed=5, view="flat", columns=["accuracy"]))
    changed = list(
        source.loader(2, seed=5, view="flat", columns=["accuracy"], transform=lambda batch: (batch, len(batch.indices)))
    )
    assert len(changed) == len(plain) == 2
    for (batch, count), expected in zip(changed, plain, strict=True):
        assert count == len(expected.indices)
        assert torch.equal(batch.preps, expected.preps)
        assert batch.preps.ndim == 2  # the view was made first
        assert torch.equal(batch.columns["accuracy"], expected.columns["accuracy"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["acuracy"], "has no column 'acuracy'.*Did you mean 'accuracy'"),
        (["gap"], r"column 'gap': 2 instances of 11 have no value.*where\(\"`gap` is not None\"\)"),
        (["text"], r"holds string, of which no tensor is made; zoo.table\['text'\].*zoo.with_columns"),
        (["curve"], "holds list<.*of which no tensor is made"),
        (["huge"], "11 values cannot be written as float32, as the largest is 1e\\+300"),
        ("accuracy", r"give columns=\['accuracy'\]"),
        (["label", "label"], "names a column twice"),
    ],
)
def test_columns_of_which_no_tensor_is_made(zoo, columns, message):
    for make in (zoo.loader, zoo.to("cpu").loader):
        with pytest.raises(ZooError, match=message):
            make(2, columns=columns)


def test_the_remedy_for_missing_values_works(zoo):
    found = zoo.where("`gap` is not None")
    assert [len(batch.columns["gap"]) for batch in found.loader(20, columns=["gap"])] == [9]


@pytest.mark.parametrize("context", [None, "fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_dataset_gives_columns_to_the_data_loader_of_torch(zoo, context):
    dataset = zoo.select([7, 1, 3, 10, 0]).dataset(columns=["label", "accuracy"])
    seen = []
    for preps, class_ids, indices, columns in DataLoader(
        dataset, batch_size=2, shuffle=True, num_workers=2 if context else 0, multiprocessing_context=context
    ):
        ids = np.array([7, 1, 3, 10, 0])[indices.numpy()]
        assert torch.equal(preps, zoo.preps(ids))
        assert class_ids.tolist() == zoo.class_ids(ids).tolist()
        assert columns["label"].tolist() == [index * 2**40 for index in ids]
        assert torch.equal(columns["accuracy"], torch.tensor(ACCURACIES[ids], dtype=torch.float32))
        seen += ids.tolist()
    assert sorted(seen) == [0, 1, 3, 7, 10]
    assert len(zoo.dataset()[0]) == 3
    with pytest.raises(ZooError, match="column 'gap'"):
        zoo.dataset(columns=["gap"])
