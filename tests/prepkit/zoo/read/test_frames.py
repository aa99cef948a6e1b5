"""The table as pandas and datasets have it, held against what the table itself and `preps` give."""

import pickle
import sys
from datetime import UTC, date, datetime

import datasets
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader
from zoo_samples import NAMES, write_zoo

import prepkit
from prepkit.errors import ZooError

VALUES = {
    "epoch": [3, None, 2**60 + 1],
    "ok": [True, None, False],
    "begun": [date(1, 1, 1), None, date(9999, 12, 31)],
    "at": [datetime(2026, 1, 2, 3, 4, 5, 6, UTC), None, datetime(1, 1, 1, tzinfo=UTC)],
    "curve": [[0.25, 0.5], None, []],
    "tags": [["a", "b"], [], None],
    "loss": [0.5, None, 1e300],
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames") / "zoo"
    columns = lambda number: {name: values[number % 3] for name, values in VALUES.items()}  # noqa: E731
    return prepkit.open_zoo(write_zoo(root, 7, NAMES[:2], columns=columns))


@pytest.fixture(autouse=True)
def no_progress():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def assert_equal_rows(dataset, zoo, column="prep"):
    """Each row has all columns of the table, and the PRep of its id."""
    for row in dataset:
        assert torch.equal(row.pop(column), zoo.preps([row["id"]])[0])
        (expected,) = zoo.table.filter(pa.compute.equal(zoo.table["id"], row["id"])).to_pylist()
        assert row == expected


# pandas -------------------------------------------------------------------------------------------------------


def test_pandas_has_all_values_and_types_of_the_table(zoo):
    frame = zoo.to_pandas()
    back = pa.Table.from_pandas(frame, schema=zoo.table.schema, preserve_index=False)
    assert back.replace_schema_metadata(None).equals(zoo.table.replace_schema_metadata(None))
    assert frame["epoch"].tolist()[:3:2] == [3, 2**60 + 1]
    assert frame["begun"].tolist()[2] == date(9999, 12, 31)
    assert frame["curve"].list.len().tolist()[0] == 2


def test_types_do_not_depend_on_values(zoo):
    whole = zoo.to_pandas().dtypes
    assert {name: str(whole[name]) for name in ("epoch", "class_id", "ok", "note", "loss")} == {
        "epoch": "Int64",
        "class_id": "Int32",
        "ok": "boolean",
        "note": "string",
        "loss": "float64",
    }
    for condition in ("epoch == 3", "epoch is None", "accuracy > 2"):
        assert zoo.where(condition).to_pandas().dtypes.equals(whole), condition


def test_pandas_respects_views_and_goes_back_into_the_zoo(tmp_path):
    zoo = prepkit.open_zoo(write_zoo(tmp_path / "zoo", 5, NAMES[:1]))
    frame = zoo[[4, 1]].to_pandas()
    assert frame["id"].tolist() == ["m4", "m1"]
    frame["doubled"] = 2 * frame["accuracy"]
    changed = zoo.with_columns(frame[["id", "doubled"]])
    assert changed.table["doubled"].to_pylist() == [None, 2 * 0.51, None, None, 2 * 0.54]


# datasets -----------------------------------------------------------------------------------------------------


def test_a_dataset_has_the_table_and_reads_preps(zoo):
    dataset = zoo.to_hf_dataset()
    assert dataset.column_names == [*zoo.table.column_names, "prep"]
    assert_equal_rows(dataset, zoo)
    assert torch.equal(dataset[2:5]["prep"], zoo.preps([2, 3, 4]))
    assert torch.equal(torch.stack(list(dataset["prep"])), zoo.preps())
    assert dataset[:0]["prep"] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda dataset: dataset.shuffle(seed=1).select([4, 0, 4]),
        lambda dataset: dataset.filter(lambda accuracy: accuracy > 0.53, input_columns="accuracy"),
        lambda dataset: dataset.filter(lambda row: bool(row["prep"].sum() < 1e9)),
        lambda dataset: dataset.train_test_split(test_size=0.3, seed=0)["test"],
        lambda dataset: datasets.concatenate_datasets([dataset.select([5]), dataset.select([2])]),
        lambda dataset: pickle.loads(pickle.dumps(dataset)),
    ],
)
def test_rows_keep_their_preps_whatever_is_done_with_them(change, zoo):
    changed = change(zoo.to_hf_dataset())
    assert len(changed)
    assert_equal_rows(changed, zoo)


def test_columns_of_a_dataset_are_renamed_removed_and_added(zoo):
    dataset = zoo.to_hf_dataset()
    assert_equal_rows(dataset.rename_column("prep", "weights"), zoo, "weights")
    assert dataset.remove_columns("prep")[0] == zoo.table.slice(0, 1).to_pylist()[0]
    summed = dataset.map(lambda row: {"sum": row["prep"].double().sum().item()})
    assert summed["sum"][:] == pytest.approx(zoo.preps().double().sum((1, 2)).tolist())
    assert torch.equal(summed[3]["prep"], zoo.preps([3])[0])


def test_other_formats_give_the_id(zoo):
    dataset = zoo.to_hf_dataset().select_columns(["prep", "accuracy"])
    for kind in (None, "numpy", "torch"):
        assert dataset.with_format(kind)[1]["prep"] == {"instance": "m1"}


def test_a_dataset_of_views(zoo):
    lenets = zoo.where("architecture == 'lenet_like@digits'")
    tokens = lenets.to_hf_dataset(view="tokens")
    assert torch.equal(tokens[1:3]["tokens"], prepkit.views.tokens(lenets)(lenets.preps([1, 2])))
    layers = lenets.to_hf_dataset(view="layers", column="net")[1]["net"]
    expected = prepkit.views.layers(lenets)(lenets.preps([1]))
    assert all(torch.equal(a, b[0]) for a, b in zip(layers.weights, expected.weights, strict=True))


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_dataset_in_workers(context, zoo):
    dataset = zoo.to_hf_dataset().select_columns(["prep", "accuracy"])
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context=context)
    batches = list(loader)
    assert torch.equal(torch.cat([batch["prep"] for batch in batches]), zoo.preps())
    assert torch.cat([batch["accuracy"] for batch in batches]).tolist() == zoo.table["accuracy"].to_pylist()


# Mistakes -----------------------------------------------------------------------------------------------------


def test_a_column_of_the_same_name_is_refused(zoo):
    with pytest.raises(ZooError, match=r"has a column 'note' already.*column='note_values'"):
        zoo.to_hf_dataset(column="note")


@pytest.mark.parametrize(("method", "library"), [("to_pandas", "pandas"), ("to_hf_dataset", "datasets")])
def test_a_missing_library_is_named(method, library, zoo, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ZooError, match=rf"{method} needs {library}, which is missing; pip install 'prepkit\[{library}"):
        getattr(zoo, method)()
