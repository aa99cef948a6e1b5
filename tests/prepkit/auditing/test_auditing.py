"""Tests of prepkit.auditing: planted faults are found, each under its kind, and nothing else."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_samples import NAME, TASK, drawn, norm, nudged, reordered, zoo_of

from prepkit.api import open_zoo
from prepkit.auditing import _copies, _values
from prepkit.auditing._values import candidates
from prepkit.auditing.audit import audit
from prepkit.auditing.findings import KINDS, Audit
from prepkit.auditing.report import page_of, text_of
from prepkit.errors import ZooError
from prepkit.families.registry import Architecture, architecture
from prepkit.tasks import load_task
from prepkit.zoo.format.function import Function
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.write.writer import ZooWriter

pytestmark = pytest.mark.usefixtures("one_thread")


def kinds(found: Audit) -> set[str]:
    return {kind for kind, count in found.counts.items() if count}


def groups(found: Audit, kind: str) -> set[tuple[str, ...]]:
    return {group for finding in found.of(kind) for group in finding.groups}


def test_a_clean_zoo_has_no_findings(tmp_path: Path) -> None:
    splits = {f"n{seed}": {"split": ("train", "test")[seed % 2]} for seed in range(6)}
    found = audit(zoo_of(tmp_path / "zoo", {id_: drawn(seed) for seed, id_ in enumerate(splits)}, splits))
    assert found.findings == ()
    assert found.unchecked == ()
    assert text_of(found).splitlines()[0] == "zoo: 6 networks"
    assert any("6 networks ran on 128 test images" in sentence for sentence in found.checked)


def test_copies_and_leaks_between_splits(tmp_path: Path) -> None:
    one, two, three, four = (drawn(seed) for seed in range(4))
    networks = {
        "one": one, "one again": one, "two": two, "two reordered": reordered(two, 1),
        "three": three, "three moved": nudged(reordered(three, 2), 5e-4), "far": nudged(three, 5e-3),
        "four": four, "four later": nudged(four, 5e-4),
    }  # fmt: skip
    columns = {
        "one again": {"split": "test", "accuracy": 0.9},
        "two reordered": {"split": "test"},
        "four later": {"split": "test", "run": "four", "seed": 99},
    }
    found = audit(zoo_of(tmp_path / "zoo", networks, columns))
    assert kinds(found) == {"leaks", "duplicates", "near-duplicates", "same-run", "columns"}
    assert groups(found, "duplicates") == {("one", "one again")}
    assert groups(found, "near-duplicates") == {("two", "two reordered"), ("three", "three moved")}
    assert groups(found, "same-run") == {("four", "four later")}
    assert groups(found, "leaks") == {("one", "one again"), ("two", "two reordered"), ("four", "four later")}
    assert groups(found, "columns") == {("one", "one again")}  # equal weights of different accuracy
    (near,) = found.of("near-duplicates")
    assert "at most 0.0005 of the norm; in 2 groups the hidden units have another order" in near.sentence
    assert audit(tmp_path / "zoo", tolerance=6e-3).counts["near-duplicates"] == 5  # "far" too
    exact = audit(tmp_path / "zoo", tolerance=0)
    assert groups(exact, "near-duplicates") == {("two", "two reordered")}


def test_reordering_a_residual_network(tmp_path: Path) -> None:
    """Groups of channels that residual sums join; the order is one that was written by hand."""
    from hand_written_units import permutation, permute

    name = "resnet8@digits"
    layout = architecture(name).layout
    prep = layout.pack(drawn(0, name), layout.shape(64))[None]
    moved = permute(prep, permutation(architecture(name), torch.Generator().manual_seed(3)))[0]
    networks = {"a": drawn(0, name), "b": layout.unpack(moved), "c": drawn(1, name)}
    found = audit(zoo_of(tmp_path / "zoo", networks))
    assert groups(found, "near-duplicates") == {("a", "b")}
    assert not groups(found, "duplicates")


def test_networks_that_also_stand_in_another_zoo(tmp_path: Path) -> None:
    one, two, three = (drawn(seed) for seed in range(3))
    zoo_of(tmp_path / "zoo", {"one": one, "two": two, "three": three})
    zoo_of(tmp_path / "other", {"x": reordered(nudged(two, 1e-4), 5), "y": one, "y2": one}, width=64)
    found = audit(tmp_path / "zoo", tmp_path / "other")
    assert groups(found, "leaks") == {("one", "y"), ("two", "x")}
    assert not groups(found, "duplicates")  # those of the other zoo are not this one's
    assert "compared with 'other'" in text_of(found)
    zoo_of(tmp_path / "strange", {"w": {"w": torch.ones(3, 5), "b": torch.zeros(3)}})
    found = audit(tmp_path / "zoo", tmp_path / "strange")
    assert not groups(found, "leaks")
    assert any("none of its 3 networks was compared with it" in sentence for sentence in found.unchecked)


def test_runs_and_seeds_in_several_splits(tmp_path: Path) -> None:
    networks = {f"n{seed}": drawn(seed) for seed in range(5)}
    columns = {
        "n1": {"split": "test", "run": "n0"},
        "n3": {"split": "validation", "seed": 2},
        "n4": {"run": "n2", "epoch": 1},
        "n2": {"epoch": 1},
    }
    found = audit(zoo_of(tmp_path / "zoo", networks, columns))
    assert groups(found, "leaks") == {("n0", "n1")}
    assert groups(found, "seeds") == {("n2", "n3")}
    assert groups(found, "columns") == {("n2", "n4")}  # one run, one epoch, two networks


def test_broken_networks(tmp_path: Path) -> None:
    names = list(drawn(0))
    last, first = names[-2], names[0]
    dead = drawn(1)
    dead[last].zero_()  # the outputs are the last biases
    loud = {name: tensor * 1e30 for name, tensor in drawn(4).items()}
    networks = {
        "empty": {name: torch.zeros_like(tensor) for name, tensor in dead.items()},
        "dead": dead, "broken": drawn(3), "loud": loud, "good": drawn(5),
    }  # fmt: skip
    root = zoo_of(tmp_path / "zoo", networks)
    put_nan(root, "broken")
    found = audit(root)
    assert kinds(found) == {"nan", "constant", "zeros"}
    assert groups(found, "nan") == {("broken",), ("loud",)}
    assert groups(found, "constant") == {("empty",), ("dead",)}
    assert groups(found, "zeros") == {("dead",)}
    assert last in found.of("zeros")[0].sentence
    assert first not in found.of("zeros")[0].sentence
    assert f"{NAME} calls no ReLU, so that no unit can be 0 for all inputs." in found.checked


def test_hidden_units_that_are_never_active(tmp_path: Path) -> None:
    """Which units are dead is computed here too, on the same images."""
    arguments = {"channels": [1, 6, 8], "kernels": [[3, 3], [2, 2]], "outputs": 10, "activation": "relu"}
    small = Architecture("small@digits", "small_cnn", (1, 8, 8), "prepkit.families.small_cnn:SmallCNN", arguments)
    images = load_task(TASK).normalised("test")[0][:128]
    expected = {}
    with ZooWriter(tmp_path / "zoo", task=TASK) as writer, torch.inference_mode():
        for seed in range(4):
            torch.manual_seed(seed)
            network = small.build()
            network.convs[0].bias[:seed] = -100.0
            writer.add(network.state_dict(), architecture=small, id=f"n{seed}")
            first = network.convs[0](images).clamp(min=0)
            second = network.convs[1](first).clamp(min=0)
            expected[f"n{seed}"] = sum(int((x.amax((0, 2, 3)) == 0).sum()) for x in (first, second))
    found = audit(tmp_path / "zoo")
    assert [expected[f"n{seed}"] >= seed for seed in range(4)] == [True] * 4
    assert groups(found, "dead") == {(id_,) for id_, count in expected.items() if count}
    (dead,) = found.of("dead")
    assert f"{sum(expected.values())} units, in a network at most {max(expected.values()) / 14:.0%}" in dead.sentence


def put_nan(root: Path, id_: str) -> None:
    """Write NaN into the first value of an instance, and the file's new sum into zoo.json."""
    zoo = open_zoo(root)
    row = zoo.table["id"].to_pylist().index(id_)
    manifest = read_manifest(root)
    shard = manifest.shards[zoo.table["shard"][row].as_py()]
    file = root / shard.path
    content = bytearray(file.read_bytes())
    place = content.index(zoo.values([row]).numpy().tobytes())
    content[place : place + 4] = np.float32("nan").tobytes()
    file.write_bytes(content)
    new = replace(shard, sha256=sha256(content).hexdigest())
    shards = tuple(new if one == shard else one for one in manifest.shards)
    write_manifest(replace(manifest, shards=shards), root, overwrite=True)


def test_columns_that_say_nothing_or_what_cannot_be(tmp_path: Path) -> None:
    networks = {f"n{seed}": drawn(seed) for seed in range(4)}
    columns = {
        id_: {"val_acc": 70 + 5 * number, "note": "", "kept": "x", "curve": [1, 2], "epoch": number - 1, "none": None}
        for number, id_ in enumerate(networks)
    }
    columns["n1"]["loss"] = float("nan")
    columns["n2"]["accuracy"] = 1.5
    found = audit(zoo_of(tmp_path / "zoo", networks, columns))
    said = [finding.sentence for finding in found.of("columns")]
    assert kinds(found) == {"columns"}
    assert said == [
        "2 columns are empty: note, none.",
        "2 columns have the same value in all rows: kept, curve.",
        "Column accuracy is not between 0 and 1 in 1 row; its values go from 0.5 to 1.5. An accuracy is a share from 0 "
        "to 1.",
        "Column val_acc is not between 0 and 1 in 4 rows; its values go from 70 to 85. An accuracy is a share from 0 "
        "to 1; these may be per cent.",
        "Column epoch is negative in 1 row.",
        "Column loss is NaN or infinite in 1 row.",
    ]


def test_what_is_not_known_of_a_zoo(tmp_path: Path) -> None:
    nameless = {"w": torch.arange(15.0).view(3, 5), "b": torch.ones(3)}
    networks = {"a": nameless, "b": {name: t + 1e-5 for name, t in nameless.items()}, "n": drawn(0)}
    turned = {"w": nameless["w"].flip(0), "b": nameless["b"]}
    networks["turned"] = turned
    columns = {id_: {"run": None, "split": None} for id_ in networks} | {"n": {"split": "train"}}
    root = zoo_of(tmp_path / "zoo", networks, columns, seeds=False, task=None, license=None, provenance=None)
    manifest = read_manifest(root)
    write_manifest(replace(manifest, function=Function({"unverifiable": "nobody kept it"})), root, overwrite=True)
    found = audit(root)
    said = " ".join(finding.sentence for finding in found.of("lineage"))
    for part in (
        "No licence", "No task", "No provenance", "since nobody kept it", "Only the layout is known of 1 architecture",
        "Column run is empty in 3 rows of 4", "No column tells the seed", "3 networks of 4 are in no split",
    ):  # fmt: skip
        assert part in said
    assert groups(found, "near-duplicates") == {("a", "b")}
    left = " ".join(found.unchecked)
    assert "networks with much the same sorted values were not compared in another order" in left
    assert "3 networks could not be run, as the zoo knows only the layout" in left
    assert "the zoo names no task" in left
    assert "only the split train" in left


def test_views_and_other_dtypes(tmp_path: Path) -> None:
    one = {name: tensor.bfloat16() for name, tensor in drawn(0).items()}
    networks = {"a": one, "b": reordered(one, 1), "c": one}
    root = zoo_of(tmp_path / "zoo", networks, dtype="bfloat16")
    found = audit(root)
    assert groups(found, "duplicates") == {("a", "c")}
    assert groups(found, "near-duplicates") == {("a", "b")}
    assert kinds(audit(open_zoo(root).select(["b"]))) == set()
    assert groups(audit(open_zoo(root, mmap=False)), "duplicates") == {("a", "c")}


def test_an_empty_zoo_and_wrong_arguments(tmp_path: Path) -> None:
    root = zoo_of(tmp_path / "zoo", {"a": drawn(0)})
    assert audit(open_zoo(root).select([])).counts["columns"] == 0
    with pytest.raises(ZooError, match="tolerance is 2; it is a share of the norm"):
        audit(root, tolerance=2)
    shard = next((root / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ZooError, match=r"damaged.*prepkit zoo verify"):
        audit(root)


def test_comparisons_that_find_nothing_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copies, "MAX_DIFFERENT", 1)
    one = drawn(0)
    mixed = {}
    for seed in range(3):  # the same values in each tensor, but another network
        generator = torch.Generator().manual_seed(seed)
        mixed[f"m{seed}"] = {
            name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)
            for name, tensor in one.items()
        }
    found = audit(zoo_of(tmp_path / "zoo", mixed))
    assert found.counts["near-duplicates"] == 0
    assert any("some were not compared" in said and "after 1 comparison " in said for said in found.unchecked)


def test_a_long_chain_of_near_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is near the next, the ends are not near each other; many near pairs are left out at once."""
    monkeypatch.setattr(_values, "DENSE", 0)
    one, step = drawn(0), drawn(1)
    share = 9e-4 * norm(one) / norm(step)
    chain = {f"n{n}": {name: tensor + n * share * step[name] for name, tensor in one.items()} for n in range(6)}
    found = audit(zoo_of(tmp_path / "zoo", {**chain, "other": drawn(2)}))
    assert groups(found, "near-duplicates") == {tuple(chain)}
    assert "the distance to the nearest is at most 0.0009" in found.of("near-duplicates")[0].sentence
    zoo_of(tmp_path / "ends", {"a": chain["n0"], "b": chain["n5"]})
    assert not groups(audit(tmp_path / "ends"), "near-duplicates")
    assert groups(audit(tmp_path / "zoo", tmp_path / "ends"), "leaks") == {
        ("n0", "a"), ("n1", "a"), ("n4", "b"), ("n5", "b")
    }  # fmt: skip


def test_the_search_misses_no_pair() -> None:
    """All pairs within the distance are among the candidates, and few others are; found one by one here."""
    generator = np.random.default_rng(0)
    a = generator.normal(size=(300, 12))
    a[200:] = a[:100] + generator.normal(size=(100, 12)) * np.geomspace(1e-4, 3, 100)[:, None]
    b = np.concatenate([a[250:] + 1e-3, generator.normal(size=(700, 12))])
    norms_a, norms_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    for first, second, norms in ((a, a, norms_a), (a, b, norms_b)):
        distances = np.linalg.norm(first[:, None] - second, axis=2)
        near = distances <= 0.3 * np.maximum(norms_a[:, None], norms)
        expected = {(i, j) for i, j in np.argwhere(near).tolist() if first is not second or i < j}
        found = {tuple(sorted(p)) if first is second else p for p in candidates(first, norms_a, second, norms, 0.3)}
        assert expected
        assert found == expected


def test_the_page_is_whole_and_escaped(tmp_path: Path) -> None:
    one = drawn(0)
    found = audit(zoo_of(tmp_path / "zoo", {"<script>a</script>": one, "b": one}, name="<i>zoo</i>"))
    page = page_of(found)
    assert "<script" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;a&lt;/script&gt; = b" in page
    assert "http" not in page.replace("http-equiv", "")  # it asks for nothing
    document = json.loads(json.dumps(found.to_dict()))
    assert document["counts"]["duplicates"] == 2
    assert document["findings"][0] | {"sentence": ""} == {
        "kind": "duplicates", "sentence": "", "count": 2, "groups": [["<script>a</script>", "b"]]
    }  # fmt: skip
    assert set(document["counts"]) == set(KINDS)


def test_samples_are_what_they_say() -> None:
    """The planted copies compute the same function, and lie as far apart as they should."""
    from torch.func import functional_call

    one, network = drawn(0), architecture(NAME).build_folded().eval()
    inputs = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (functional_call(network, tensors, (inputs,)) for tensors in (one, reordered(one, 1)))
    torch.testing.assert_close(first, second)
    assert not torch.equal(one[next(iter(one))], reordered(one, 1)[next(iter(one))])
    moved = nudged(one, 1e-3)
    assert norm({name: moved[name] - one[name] for name in one}) / norm(one) == pytest.approx(1e-3, rel=1e-3)
    assert TASK["dataset"] == "digits"


def test_a_zoo_on_the_hub(hub, tmp_path: Path) -> None:
    one = drawn(0)
    root = zoo_of(tmp_path / "zoo", {"a": one, "b": one, "c": reordered(one, 1)}, shard_bytes=12_000)
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")}
    hub.add("me/zoo", files)
    assert len(read_manifest(root).shards) > 1
    assert audit("hf://me/zoo").findings == audit(root).findings
    assert groups(audit("hf://me/zoo"), "near-duplicates") == {("a", "c")}
