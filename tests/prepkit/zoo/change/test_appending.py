"""Tests of appending to a finished zoo: all instances are there, and the old ones stay as they were."""

import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folder_contents import files_of
from zoo_samples import NAMES, TASK, network, registry, write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import ZooError
from prepkit.tensors import same_bits
from prepkit.zoo.card import card
from prepkit.zoo.change.annotating import annotate
from prepkit.zoo.change.choosing import drop
from prepkit.zoo.change.normalising import normalise
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.function import Function, Verified
from prepkit.zoo.format.ids import sha256_of_ids
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.format.tables import write_table_at_once
from prepkit.zoo.write.writer import ZooWriter

OLD = [f"m{number}" for number in range(7)]


@pytest.fixture(scope="module", params=["safetensors", "hdf5"])
def source(request, tmp_path_factory):
    """Seven instances m0 ... m6 of two architectures, in shards of several, with splits and columns."""
    folder = tmp_path_factory.mktemp("source")
    return write_zoo(folder / "zoo", count=7, format=request.param, provenance={"week": 1})


@pytest.fixture(scope="module")
def only(tmp_path_factory):
    """The same in one format, for what does not depend on it."""
    return write_zoo(tmp_path_factory.mktemp("only") / "zoo", count=7, provenance={"week": 1})


@pytest.fixture
def grown(source, tmp_path):
    return shutil.copytree(source, tmp_path / "zoo")


@pytest.fixture
def root(only, tmp_path):
    return shutil.copytree(only, tmp_path / "zoo")


def append(root, *ids, name=NAMES[0], seed=100, **given):
    """Append networks of other seeds than those of the zoo, and return the writer's notes."""
    with ZooWriter(root, append=True) as writer:
        for number, id in enumerate(ids):
            writer.add(network(name, seed + number), id=id, **given)
    return writer.notes


def assert_unchanged(root, before, ids):
    """Check that instances are in a zoo as they are in another one, with the same ClassIds."""
    after, old = open_zoo(root), open_zoo(before)
    for id in ids:
        (prep, row), (expected, expected_row) = after[id], old[id]
        assert same_bits(prep.values, expected.values)
        assert {name: row[name] for name in expected_row} == expected_row


# What is there afterwards -------------------------------------------------------------------------------------


def test_old_and_new_instances_are_there(grown, source):
    before = files_of(source)
    with ZooWriter(grown, append=True, provenance={"week": 2}, shard_bytes=20_000) as writer:
        assert (len(writer), len(writer.finished_ids), "m6" in writer, "n0" in writer) == (0, 7, True, False)
        for number, name in enumerate([NAMES[2], NAMES[0], NAMES[0], NAMES[1], NAMES[0]]):
            writer.add(network(name, 50 + number), id=f"n{number}", split="train", accuracy=number, epoch=number)
        assert writer.written_ids == {"n0", "n1", "n2", "n3", "n4"}
        assert files_of(grown).items() >= before.items()  # nothing changes before the end
    zoo = open_zoo(grown)
    assert verify(grown).ok
    assert zoo.table["id"].to_pylist() == [*OLD, "n0", "n1", "n2", "n3", "n4"]
    assert_unchanged(grown, source, OLD)
    for number, name in enumerate([NAMES[2], NAMES[0], NAMES[0], NAMES[1], NAMES[0]]):
        row = zoo.metadata(f"n{number}")
        assert (row["architecture"], row["accuracy"], row["epoch"]) == (name, float(number), number)
        assert row["class_id"] == {NAMES[0]: 0, NAMES[1]: 1, NAMES[2]: 2}[name]
        inputs = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(zoo.network(f"n{number}")(inputs), network(name, 50 + number)(inputs), atol=1e-5)
    assert zoo.table["epoch"].to_pylist() == [None] * 7 + [0, 1, 2, 3, 4]
    assert zoo.table["note"].to_pylist()[7:] == [None] * 5
    assert {name: content for name, content in files_of(grown).items() if name in before and name != "zoo.json"} == {
        name: content for name, content in before.items() if name != "zoo.json"
    }
    assert not (grown / ".appending").exists()
    manifest = zoo.manifest
    assert (manifest.splits, manifest.task, manifest.license) == ({"test": 2, "train": 7}, TASK, "mit")
    (record,) = manifest.provenance["appends"]
    assert (record["instances"], record["splits"], record["provenance"]) == (5, {"train": 5}, {"week": 2})
    assert manifest.provenance["week"] == 1
    batches = list(zoo.loader(4, seed=0, columns=["class_id"]))
    assert torch.equal(torch.cat([b.class_ids for b in batches]), torch.cat([b.columns["class_id"] for b in batches]))


def test_appending_twice_and_a_stack(grown, source):
    append(grown, "n0", name=NAMES[2])
    values = open_zoo(grown).preps([0, 2]) + 1
    with ZooWriter(grown, append=True, width=512) as writer:
        names = writer.add_stack(values, architecture=NAMES[0], accuracy=[0.25, 0.75])
    assert names == ["000008", "000009"]
    zoo = open_zoo(grown)
    assert_unchanged(grown, source, OLD)
    assert verify(grown).ok
    count = zoo.layout("m0").total
    assert torch.equal(zoo.select(names).preps().flatten(1)[:, :count], values.flatten(1)[:, :count])
    assert [record["instances"] for record in zoo.manifest.provenance["appends"]] == [1, 2]
    assert [one.class_id for one in zoo.manifest.architectures] == [0, 1, 2]


def test_equal_networks_after_a_removal_are_other_instances(root):
    """Neither an equal shard nor an equal appended zoo is taken for the one before."""
    append(root, "n0", "n1")
    drop(root, ids=["m0", "m1", "n0", "n1"], card=False)
    append(root, "n0", "n1")
    append(root, "o0", "o1")
    zoo = open_zoo(root)
    assert zoo.table["id"].to_pylist() == [*OLD[2:], "n0", "n1", "o0", "o1"]
    assert torch.equal(zoo.select(["n0", "n1"]).preps(), zoo.select(["o0", "o1"]).preps())
    assert len({shard.path for shard in zoo.manifest.shards}) == len(zoo.manifest.shards)
    assert verify(root).ok
    with ZooWriter(root, append=True) as writer:  # there are nine instances
        assert [writer.add(network(NAMES[0], 1)) for _ in range(2)] == ["000009", "000010"]
    drop(root, ids=["m2", "m3"], card=False)
    with ZooWriter(root, append=True) as writer:
        assert writer.add(network(NAMES[0], 1)) == "000011"


def test_an_append_of_nothing_changes_nothing(root):
    before = files_of(root)
    assert append(root) == ()
    assert files_of(root) == before
    with pytest.raises(ZooError, match="'m3' is the id of an instance"):
        append(root, "m3")
    with ZooWriter(root, append=True, resume=True) as writer:
        assert len(writer) == 0
    assert files_of(root) == before


def test_the_first_instances_of_an_empty_zoo(tmp_path):
    ZooWriter(tmp_path / "zoo", width=64, license="mit").close()
    append(tmp_path / "zoo", "a", name=NAMES[2])
    zoo = open_zoo(tmp_path / "zoo")
    assert verify(tmp_path / "zoo").ok
    assert zoo.preps().shape == (1, zoo.layout(0).shape(64).height, 64)


def test_the_teachers_architecture_gets_a_class_id(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=3, names=NAMES[:1], teacher=NAMES[2], height=40)
    with ZooWriter(root, append=True) as writer:
        assert writer.has_teacher
        with pytest.raises(ZooError, match=r"only instances are appended; .* keeps the teacher that it has"):
            writer.set_teacher(network(NAMES[2], 1))
        writer.add(network(NAMES[2], 5), id="n")
        writer.add(network(NAMES[1], 5), id="o")
    zoo = open_zoo(root)
    assert [(one.name, one.class_id) for one in zoo.manifest.architectures] == [
        (NAMES[0], 0),
        (NAMES[1], 1),
        (NAMES[2], 2),
    ]
    assert verify(root).ok
    assert zoo.teacher is not None


# Columns, ids, settings ---------------------------------------------------------------------------------------


def test_types_of_columns_are_joined(root):
    annotate(root, {"id": OLD, "count": range(7), "curve": [[1, 2]] * 7, "big": [2**60] * 7}, card=False)
    with ZooWriter(root, append=True) as writer:
        writer.add(network(NAMES[0], 1), id="n", count=0.5, curve=[0.5], run=3, big=1)
        for given, message in (
            ({"note": 3}, rf"instance 'x': the column 'note' holds int64 here, and string in '{root}'"),
            ({"big": 0.5}, "the column 'big' would hold whole numbers above 2^53 and fractions".replace("^", r"\^")),
            ({"accuracy": 2**60}, "the column 'accuracy' would hold whole numbers above"),
        ):
            with pytest.raises(ZooError, match=message):
                writer.add(network(NAMES[0], 1), id="x", **given)
            assert not writer.can_hold(given)
        assert writer.can_hold({"note": "text", "new": 3})
    table = open_zoo(root).table
    assert table["count"].to_pylist() == [*map(float, range(7)), 0.5]
    assert table["curve"].to_pylist()[6:] == [[1.0, 2.0], [0.5]]
    assert table["big"].to_pylist() == [2**60] * 7 + [1]
    assert "new" not in table.column_names


def test_the_zoos_own_columns_of_another_tool_may_be_narrow_or_empty(root):
    manifest = replace(read_manifest(root), splits={})
    table = pq.read_table(root / manifest.table.path)
    narrow = {"split": pa.nulls(7), "shard": table["shard"].cast(pa.uint8()), "id": table["id"].cast(pa.large_string())}
    for name, values in narrow.items():
        table = table.set_column(table.column_names.index(name), name, values)
    write_manifest(replace(manifest, table=write_table_at_once(table, root)), root, overwrite=True)
    append(root, "n0", split="train")
    assert verify(root).ok
    assert open_zoo(root).table["split"].to_pylist() == [None] * 7 + ["train"]
    kinds = open_zoo(root).table.schema
    assert [kinds.field(name).type for name in narrow] == [pa.string(), pa.int32(), pa.string()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 64}, "has width 512, not 64. What is appended shares the zoo's settings"),
        ({"height": 80}, r"has height \d+, not 80"),
        ({"format": "hdf5"}, "has format 'safetensors', not 'hdf5'"),
        ({"dtype": "float64"}, "has dtype 'float32', not 'float64'"),
        ({"name": "other"}, "has name 'zoo', not 'other'"),
        ({"license": "apache-2.0"}, "has license 'mit', not 'apache-2.0'"),
        ({"task": {**TASK, "dataset": "mnist"}}, "has task.dataset 'digits', not 'mnist'"),
        ({"registry": registry(NAMES[0])}, "keeps its ClassIds"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused(only, given, message):
    before = files_of(only)
    with pytest.raises(ZooError, match=message):
        ZooWriter(only, append=True, **given)
    assert files_of(only) == before


def test_the_zoos_own_settings_may_be_given(root):
    zoo = open_zoo(root)
    given = {"width": 512, "height": zoo.shape.height, "format": "safetensors", "dtype": "float32", "task": TASK}
    with ZooWriter(root, append=True, name="zoo", license="mit", **given) as writer:
        writer.add(network(NAMES[0], 1), id="n")
    assert len(open_zoo(root)) == 8


def test_networks_that_do_not_fit_are_refused(root):
    with ZooWriter(root, append=True) as writer:
        with pytest.raises(
            ZooError, match=r"instance 'x': PReps of layout-.* are 412 x 512, those of .* keeps its shape"
        ):
            writer.add({"w": torch.zeros(300, 700)}, id="x")
        assert len(writer) == 0
    assert len(open_zoo(root)) == 7
    manifest = read_manifest(root)
    other = [replace(one, num_trainable=1) if one.name == NAMES[0] else one for one in manifest.architectures]
    write_manifest(replace(manifest, architectures=tuple(other)), root, overwrite=True)
    with (
        ZooWriter(root, append=True) as writer,
        pytest.raises(ZooError, match=rf"{NAMES[0]} is not the architecture that .* name: num_trainable differ"),
    ):
        writer.add(network(NAMES[0], 1), id="x")


def test_only_a_finished_zoo_is_appended_to(tmp_path, root):
    with pytest.raises(ZooError, match="does not exist"):
        ZooWriter(tmp_path / "none", append=True)
    writer = ZooWriter(tmp_path / "unfinished")
    writer.add(network(NAMES[0], 1))
    with pytest.raises(ZooError, match=r"is an unfinished zoo: process .* is writing it"):
        ZooWriter(tmp_path / "unfinished", append=True)
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with pytest.raises(ZooError, match=r"is an unfinished zoo: writing it was interrupted\. Run the command"):
        ZooWriter(tmp_path / "unfinished", append=True)
    with pytest.raises(ZooError, match="is a finished zoo; append=True adds instances to it"):
        ZooWriter(root)


# Splits, preprocessing, function, card ------------------------------------------------------------------------


def test_instances_without_a_split_leave_all_splits_as_they_are(root):
    split(root, {"train": 0.6, "test": 0.4}, group=False, force=True, card=False)
    normalise(root, card=False)
    before = open_zoo(root)
    notes = append(root, "n0", "n1", name=NAMES[2])
    zoo = open_zoo(root)
    assert [zoo.split(name).sha256 for name in before.manifest.splits] == [
        before.split(name).sha256 for name in before.manifest.splits
    ]
    assert zoo.split_rule == "drawn with seed 0"
    assert zoo.manifest.preprocessing == before.manifest.preprocessing
    assert notes == (
        "2 appended instances have no split, so no split holds them. A split may be named when an instance is added, "
        "and `prepkit zoo split --force` draws all splits anew.",
        f"What the zoo is normalised by has no statistics of {NAMES[2]}.",
    )
    assert zoo.preprocessing.forward(zoo.preps([0]), [0]).isfinite().all()


def test_instances_with_a_split_change_what_is_said_of_it(root):
    split(root, {"train": 0.6, "test": 0.4}, group=False, force=True, card=False)
    normalise(root, card=False)
    ids = [*open_zoo(root).split("train").table["id"].to_pylist(), "n0", "n1"]
    notes = append(root, "n0", "n1", split="train")
    zoo = open_zoo(root)
    assert zoo.split("train").sha256 == sha256_of_ids(ids)
    assert zoo.split_rule == "drawn with seed 0, and 2 instances appended with a split"
    assert "drawn_split" not in zoo.manifest.provenance
    assert zoo.manifest.provenance["appends"][0]["drawn_split"]["seed"] == 0
    assert zoo.manifest.preprocessing is None
    assert notes == (
        "The splits have grown, train by 2, so their sha256 are others than before; that they were drawn is true of "
        "the others only.",
        "What the zoo was normalised by was computed without the new instances, and is gone; run `prepkit zoo "
        "normalise`.",
    )
    append(root, "n2", split="test")
    assert open_zoo(root).split_rule == "drawn with seed 0, and 3 instances appended with a split"
    split(root, {"train": 0.5, "test": 0.5}, seed=3, group=False, force=True, card=False)
    assert open_zoo(root).split_rule == "drawn with seed 3"
    append(root, "n3", split="test")
    assert open_zoo(root).split_rule == "drawn with seed 3, and 1 instance appended with a split"
    assert verify(root).ok


def test_a_test_instance_leaves_the_preprocessing_of_train(root):
    normalise(root, card=False)
    append(root, "n0", split="test")
    zoo = open_zoo(root)
    assert zoo.manifest.preprocessing.ids_sha256 == zoo.split("train").sha256
    normalise(root, split=None, force=True, card=False)
    stored = open_zoo(root).manifest
    write_manifest(stored_over_all(stored), root, overwrite=True)
    append(root, "n1", split="test")
    assert open_zoo(root).manifest.preprocessing is None


def stored_over_all(manifest):
    """Return a manifest whose preprocessing was computed from all instances."""
    return replace(manifest, preprocessing=replace(manifest.preprocessing, split=None))


def test_what_running_proved_is_not_said_of_new_instances(root):
    function = Function({"grid": "xy"}, Verified("accuracy", 7, 0.0))
    write_manifest(replace(read_manifest(root), function=function), root, overwrite=True)
    notes = append(root, "n0", split="train", run=1)
    assert read_manifest(root).function == Function({"grid": "xy"})
    assert "None of the new instances was run yet, so the zoo's function counts as unverified again." in notes
    assert "run 1 is among the old instances and the new ones, and counts as one run." in notes


def test_the_card_is_written_anew_if_there_is_one(root):
    append(root, "n0")
    assert not (root / "README.md").exists()
    card.write_card(root)
    append(root, "n1")
    assert "9 trained networks" in (root / "README.md").read_text()
    (root / "README.md").write_text("my own text")
    assert any("README.md is your own text, so it was left alone" in note for note in append(root, "n2"))
