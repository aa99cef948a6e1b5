"""Tests of merge: the new zoo holds all instances of its sources, and an error names what is in conflict."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from folder_contents import files_of
from zoo_samples import NAMES, TASK, network, registry, write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import OutputError, VerificationError, ZooError
from prepkit.families.registry import architecture
from prepkit.tensors import same_bits
from prepkit.zoo.change import copying
from prepkit.zoo.change import merge as merging
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.write.writer import ZooWriter

merge = partial(merging.merge, card=False)


@pytest.fixture
def one(tmp_path):
    return write_zoo(tmp_path / "one", prefix="a")


def assert_holds(merged, sources, changed=("class_id", "shard", "id", "run")):
    start = 0
    for source in sources:
        for index in range(len(source)):
            (prep, row), (copy, other) = source[index], merged[start + index]
            layout = source.layout(index)
            assert merged.layout(start + index) == layout
            tensors = copy.tensors()
            assert all(same_bits(tensor, tensors[name]) for name, tensor in prep.tensors().items())
            kept = {key: value for key, value in row.items() if key not in changed}
            assert {key: other[key] for key in kept} == kept
            assert other["class_id"] == merged.registry.class_id(other["architecture"])
        start += len(source)
    assert len(merged) == start


@pytest.mark.parametrize("formats", [("safetensors", "safetensors"), ("hdf5", "safetensors"), ("safetensors", "hdf5")])
def test_class_ids_are_remapped_ascending_in_packed_parameters(tmp_path, formats):
    first = write_zoo(tmp_path / "a", names=NAMES[1:], prefix="a", format=formats[0])
    second = write_zoo(tmp_path / "b", names=NAMES[:2], prefix="b", format=formats[1], seed=50)
    third = write_zoo(tmp_path / "c", names=(NAMES[0],), prefix="c", registry=registry(NAMES[2], NAMES[0]))
    merged = merge(tmp_path / "all", [first, second, third])
    zoo = open_zoo(tmp_path / "all")
    assert zoo.registry.class_ids == {name: number for number, name in enumerate(NAMES)}
    assert [stored.class_id for stored in merged.manifest.architectures] == [0, 1, 2]
    assert merged.manifest.shard_format == formats[0]
    assert_holds(zoo, [open_zoo(first), open_zoo(second), open_zoo(third)])
    assert (zoo.manifest.splits, zoo.task, zoo.manifest.license) == ({"test": 6, "train": 6}, TASK, "mit")
    assert [origin["name"] for origin in zoo.manifest.provenance["merged"]] == ["a", "b", "c"]
    found = verify(tmp_path / "all")
    assert (found.faults, found.notes) == ((), ())
    network_out = zoo.network(8)(torch.ones(1, 1, 8, 8))
    torch.testing.assert_close(network_out, network(NAMES[1], 51)(torch.ones(1, 1, 8, 8)))


def test_another_width_is_another_way_to_read_the_same_values(tmp_path, one):
    second = write_zoo(tmp_path / "two", prefix="b", width=128, seed=9)
    for target, sources in [("x", [one, second]), ("y", [second, one])]:
        merge(tmp_path / target, sources)
        zoo = open_zoo(tmp_path / target)
        assert zoo.manifest.width == read_manifest(sources[0]).width
        assert_holds(zoo, [open_zoo(source) for source in sources])
        assert verify(tmp_path / target).ok


def test_values_where_another_width_has_no_room_are_not_dropped_in_silence(tmp_path, one, monkeypatch):
    second = write_zoo(tmp_path / "two", prefix="b", width=2000, names=NAMES[:1])
    manifest = read_manifest(second)
    rows = copying.rows_of_shard(second, manifest, manifest.shards[0])
    data = bytearray(rows.file.read_bytes())
    data[rows.offset + rows.extent.row_bytes - 1] = 1  # in the padding
    rows.file.write_bytes(data)
    monkeypatch.setattr("prepkit.zoo.change.merge.verified_manifest", read_manifest)
    with pytest.raises(ZooError, match="values after the last parameter"):
        merge(tmp_path / "all", [one, second])


def test_ids_in_two_zoos_are_an_error_that_offers_the_prefix(tmp_path, one):
    second = write_zoo(tmp_path / "two", prefix="a", seed=3)
    with pytest.raises(ZooError, match=r"7 ids of .*two' are in .*one' too: a0, a1, a2 and 4 more; .*prefix=True"):
        merge(tmp_path / "all", [one, second])
    assert not (tmp_path / "all").exists()
    merge(tmp_path / "all", [one, second], prefix=True)
    zoo = open_zoo(tmp_path / "all")
    assert zoo.table["id"].to_pylist() == [f"{name}-a{n}" for name in ("one", "two") for n in range(7)]
    assert zoo.table["run"].to_pylist()[5:9] == ["one-2", "one-3", "two-0", "two-0"]
    assert_holds(zoo, [open_zoo(one), open_zoo(second)])


def test_the_prefix_needs_zoos_of_different_names(tmp_path, one):
    second = write_zoo(tmp_path / "two", prefix="a", name="one")
    with pytest.raises(ZooError, match="two zoos are named 'one'"):
        merge(tmp_path / "all", [one, second], prefix=True)


def test_runs_that_two_zoos_share_are_noted(tmp_path, one):
    second = write_zoo(tmp_path / "two", prefix="b")
    third = write_zoo(tmp_path / "three", prefix="c", columns=lambda number: {"run": 100 + number})
    assert merge(tmp_path / "x", [one, third]).notes == ()
    (note,) = merge(tmp_path / "y", [one, second]).notes
    assert note == "run 0, 1, 2 and 1 more is in several zoos, so it counts as one run; prefix=True tells them apart."


def test_columns_are_brought_together(tmp_path):
    def columns(number):
        return {"depth": number, "only_one": True, "nothing": None}

    first = write_zoo(tmp_path / "a", prefix="a", count=3, columns=columns)
    second = write_zoo(tmp_path / "b", prefix="b", count=2, columns=lambda n: {"depth": n + 0.5, "nothing": "x"})
    merge(tmp_path / "all", [first, second])
    rows = open_zoo(tmp_path / "all").table.to_pydict()
    assert rows["depth"] == [0.0, 1.0, 2.0, 0.5, 1.5]
    assert rows["only_one"] == [True, True, True, None, None]
    assert rows["nothing"] == [None, None, None, "x", "x"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "the column 'depth' is int64 in .*one' and string in .*two'"),
        (True, "'depth' is int64"),
        (2**60 + 1, ""),
    ],
)
def test_columns_that_do_not_go_together_are_an_error(tmp_path, value, message):
    one = write_zoo(tmp_path / "one", prefix="a", columns=lambda number: {"depth": 2**60 + 1})
    second = write_zoo(tmp_path / "two", prefix="b", columns=lambda number: {"depth": value})
    third = write_zoo(tmp_path / "three", prefix="c", columns=lambda number: {"depth": 0.5})
    if message:
        with pytest.raises(ZooError, match=message):
            merge(tmp_path / "all", [one, second])
        return
    merge(tmp_path / "all", [one, second])
    with pytest.raises(ZooError, match="column 'depth' does not fit double"):  # a float cannot hold it exactly
        merge(tmp_path / "more", [one, third])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": {**TASK, "dataset": "mnist"}}, "differ in dataset: 'digits' and 'mnist'; a zoo has one task"),
        ({"task": {"kind": "images"}}, "differ in dataset: 'digits' and None, mean: "),
        ({"task": None}, "two' names no task, the others do"),
        ({"dtype": "float64"}, "differ in dtype: .*one has float32, .*two has float64"),
        ({"license": "cc-by-4.0"}, "differ in license: .*one has mit, .*two has cc-by-4.0; .*with license="),
        ({"license": None}, "differ in license: .*one has mit, .*two has None"),
    ],
)
def test_what_must_agree_is_an_error_that_says_what_differs(tmp_path, one, settings, message):
    second = write_zoo(tmp_path / "two", prefix="b", **settings)
    before = files_of(tmp_path)
    with pytest.raises(ZooError, match=message):
        merge(tmp_path / "all", [one, second])
    assert files_of(tmp_path) == before


def test_a_licence_that_is_given_settles_it(tmp_path, one):
    second = write_zoo(tmp_path / "two", prefix="b", license="cc-by-4.0")
    assert merge(tmp_path / "all", [one, second], license="cc-by-sa-4.0").manifest.license == "cc-by-sa-4.0"


def test_one_name_for_two_architectures_is_a_conflict(tmp_path):
    known = architecture("lenet_like@digits")
    other = replace(architecture("vanilla_cnn@digits"), name=known.name)
    other_input = replace(known, input_shape=(1, 8, 9))
    for number, (model, settings) in enumerate([(known, {}), (other, {}), (other_input, {})]):
        with ZooWriter(tmp_path / f"zoo{number}", **settings) as writer:
            writer.add(model.build(), id=f"x{number}", architecture=model)
    with pytest.raises(ZooError, match=r"'lenet_like@digits' is not the same in .*zoo0' and .*zoo1': layout, family,"):
        merge(tmp_path / "all", [tmp_path / "zoo0", tmp_path / "zoo1"])
    with pytest.raises(ZooError, match=r"zoo0' and .*zoo2': input_shape differ"):
        merge(tmp_path / "all", [tmp_path / "zoo0", tmp_path / "zoo2"])


def test_teachers_are_kept_where_they_agree(tmp_path):
    teacher = "resnet14@digits"
    first = write_zoo(tmp_path / "a", prefix="a", teacher=teacher)
    same = write_zoo(tmp_path / "b", prefix="b", teacher=teacher, columns=lambda n: {"run": 10 + n})
    without = write_zoo(tmp_path / "c", prefix="c", columns=lambda n: {"run": 20 + n})
    other = write_zoo(tmp_path / "d", prefix="d", teacher="resnet20@digits", columns=lambda n: {"run": 30 + n})
    inputs = torch.ones(1, 1, 8, 8)

    merged = merge(tmp_path / "ab", [first, same])
    assert merged.notes == ()
    assert merged.manifest.architectures[-1].class_id is None
    torch.testing.assert_close(open_zoo(tmp_path / "ab").teacher(inputs), open_zoo(first).teacher(inputs))

    merged = merge(tmp_path / "ca", [without, first])
    assert merged.notes == ("only 1 of 2 zoos has a teacher; the new zoo has it.",)
    assert open_zoo(tmp_path / "ca").registry.teacher.name == teacher

    merged = merge(tmp_path / "ad", [first, other])
    assert merged.notes == ("the zoos have different teachers; the new zoo has none.",)
    assert merged.manifest.teacher is None
    assert [stored.name for stored in merged.manifest.architectures] == list(NAMES[:2])
    assert verify(tmp_path / "ad").ok


def test_a_teacher_that_is_an_instance_elsewhere_has_a_class_id(tmp_path):
    first = write_zoo(tmp_path / "a", prefix="a", teacher=NAMES[2])
    second = write_zoo(tmp_path / "b", prefix="b", names=NAMES[2:])
    merge(tmp_path / "all", [first, second])
    zoo = open_zoo(tmp_path / "all")
    assert zoo.registry.class_id(NAMES[2]) == 2
    assert zoo.teacher is not None


def test_nameless_layouts_and_empty_zoos_merge_too(tmp_path, one):
    nameless = write_zoo(tmp_path / "two", prefix="b", count=1, tensors=4)
    empty = write_zoo(tmp_path / "three", prefix="c", count=0)
    merged = merge(tmp_path / "all", [empty, nameless, one])
    assert merged.manifest.table.rows == 12
    assert merged.manifest.architectures[0].name.startswith("layout-")
    zoo = open_zoo(tmp_path / "all")
    assert zoo["b-nameless3"][0].tensors()["w"].tolist() == [[3.5] * 5] * 3


def test_unknown_keys_are_kept_where_all_agree(tmp_path, one):
    second = write_zoo(tmp_path / "two", prefix="b", columns=lambda n: {"run": 10 + n})
    for root, value in [(one, 1), (second, 2)]:
        write_manifest(replace(read_manifest(root), unknown={"same": [0], "other": value}), root, overwrite=True)
    merged = merge(tmp_path / "all", [one, second])
    assert merged.manifest.unknown == {"same": [0]}
    assert "keys other are unknown" in merged.notes[0]


def test_refusals_leave_nothing(tmp_path, one):
    second = write_zoo(tmp_path / "two", prefix="b")
    with pytest.raises(ZooError, match="two zoos or more, not 1"):
        merge(tmp_path / "all", [one])
    with pytest.raises(ZooError, match="too: a0"):
        merge(tmp_path / "all", [one, one])
    with pytest.raises(OutputError, match="exists already"):
        merge(second, [one, second])
    file = second / read_manifest(second).table.path
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ZooError, match="truncated"):
        merge(tmp_path / "all", [one, second])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_copy_that_went_wrong_is_found(tmp_path, one, monkeypatch):
    second = write_zoo(tmp_path / "two", prefix="b")
    rows = copying.reshaped
    monkeypatch.setattr(copying, "reshaped", lambda *arguments: (piece[:-1] + b"\1" for piece in rows(*arguments)))
    with pytest.raises(VerificationError, match="holds other values"):
        merge(tmp_path / "all", [one, second])
    assert not (tmp_path / "all").exists()
