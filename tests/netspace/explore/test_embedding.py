"""A zoo as a table of embeddings, and its file formats."""

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

import prepkit
from netspace.data import ZooMismatch
from netspace.explore.embedding import embed, embeddings, encode
from prepkit.errors import ZooError

pytestmark = pytest.mark.usefixtures("one_thread")


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
