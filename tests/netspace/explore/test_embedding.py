"""A zoo as a table of embeddings, and its file formats."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from untrained import untrained_run

import prepkit
from netspace.data import ZooMismatch
from netspace.explore.embedding import embed, embeddings, encode, write_table
from prepkit.errors import OutputError, ZooError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(small_zoo, tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", "digits_multi", small_zoo("digits_multi"))


@pytest.fixture(scope="module")
def zoo(run):
    return run.open_zoo()


def test_embeddings_are_what_the_encoder_gives_one_by_one(run, zoo):
    table = embed(run, zoo)
    space = run.space()
    with torch.no_grad():
        expected = torch.stack([space.encoder(zoo.preps([row]))[0] for row in range(len(zoo))])
        class_ids = space.classifier(expected).argmax(1).tolist()
    assert expected.std(0).max() > 1e-3  # or the test could not tell instances apart
    torch.testing.assert_close(embeddings(table), expected, rtol=1e-4, atol=1e-5)
    assert table["predicted_class_id"].to_pylist() == class_ids
    names = list(zoo.registry.class_ids)
    assert table["predicted_architecture"].to_pylist() == [names[class_id] for class_id in class_ids]
    assert table["id"].to_pylist() == zoo.table["id"].to_pylist()
    assert table["accuracy"].to_pylist() == zoo.table["accuracy"].to_pylist()
    assert table["embedding"].type == pa.list_(pa.float32(), 256)
    assert not {"shard", "row"} & set(table.column_names)


def test_a_split_and_a_view(run, zoo):
    table = embed(run, zoo, "test")
    assert set(table["split"].to_pylist()) == {"test"}
    assert len(table) == 4
    whole = embeddings(embed(run, zoo))
    rows = [zoo.index(id) for id in table["id"].to_pylist()]
    torch.testing.assert_close(embeddings(table), whole[rows], rtol=1e-4, atol=1e-5)
    chosen = encode(run.space(), zoo, [5, 2])
    torch.testing.assert_close(chosen, whole[[5, 2]], rtol=1e-4, atol=1e-5)


def test_more_than_are_encoded_at_once(run, zoo, monkeypatch):
    told = []
    whole = embeddings(embed(run, zoo))
    monkeypatch.setattr("netspace.explore.embedding.chunks", lambda count: iter([[0, 1, 2], list(range(3, count))]))
    parts = embeddings(embed(run, zoo, progress=told.append))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert told == [3, len(zoo) - 3]


def test_a_zoo_of_another_size(run, small_zoo):
    other = prepkit.open_zoo(small_zoo("digits_single"))
    assert other.shape.height != run.recipe.network.height
    assert embeddings(embed(run, other)).shape == (len(other), 256)


def test_nothing_to_embed(run, zoo):
    with pytest.raises(ZooMismatch, match="no instances to embed"):
        embed(run, zoo.select([]))
    with pytest.raises(ZooError, match=r"no split 'tset'; it has .* Did you mean 'test'"):
        embed(run, zoo, "tset")


# Files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    values = np.arange(6, dtype=np.float32) / 3
    return pa.table(
        {
            "id": ["a", 'b "quoted", comma'],
            "file": [1, None],
            "note": [None, "x"],
            "accuracy": [0.1, 0.25],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), 3),
        }
    )


def test_parquet_is_the_table(table, tmp_path):
    write_table(table, tmp_path / "t.parquet")
    assert pa.parquet.read_table(tmp_path / "t.parquet").equals(table)


def test_csv_has_a_column_for_each_value(table, tmp_path):
    write_table(table, tmp_path / "t.csv")
    found = pa.csv.read_csv(tmp_path / "t.csv")
    assert found.column_names == ["id", "file", "note", "accuracy", "embedding_0", "embedding_1", "embedding_2"]
    assert found["id"].to_pylist() == table["id"].to_pylist()
    read = np.stack([found[f"embedding_{number}"].to_numpy() for number in range(3)], axis=1)
    np.testing.assert_array_equal(read.astype(np.float32), np.array(table["embedding"].to_pylist(), np.float32))


def test_npz_has_an_array_for_each_column(table, tmp_path):
    write_table(table, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as found:
        assert sorted(found) == sorted(table.column_names)
        np.testing.assert_array_equal(found["embedding"], np.array(table["embedding"].to_pylist(), np.float32))
        assert found["id"].tolist() == table["id"].to_pylist()
        np.testing.assert_array_equal(found["file"], [1, np.nan])
        assert found["note"].tolist() == ["", "x"]


def test_a_slice_of_a_table(table, tmp_path):
    """An Arrow slice keeps the values before it in memory."""
    last = table.slice(1)
    write_table(last, tmp_path / "t.csv")
    assert pa.csv.read_csv(tmp_path / "t.csv")["embedding_0"].to_pylist() == [1.0]
    write_table(last, tmp_path / "t.npz")
    assert np.load(tmp_path / "t.npz")["embedding"].tolist() == last["embedding"].to_pylist()
    assert embeddings(last).tolist() == last["embedding"].to_pylist()


@pytest.mark.parametrize(("name", "message"), [("t.xlsx", "suffix"), ("old.csv", "exists already"), ("no/t.csv", "no")])
def test_what_cannot_be_written(table, tmp_path, name, message):
    (tmp_path / "old.csv").write_text("old")
    with pytest.raises(OutputError, match=message):
        write_table(table, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"
