"""Checkpoints on the Hub: the file that an address means, its commit, shards and sum; packing and zoos of them."""

import hashlib
import io
import json

import pytest
import torch
from click.testing import CliRunner
from pushed_zoos import network
from safetensors.torch import save

from prepkit.api import open_zoo, verify
from prepkit.cli import main
from prepkit.errors import CheckpointError, HubError
from prepkit.hub.checkpoints import fetch_checkpoint
from prepkit.prep.file import load_prep

pytestmark = pytest.mark.usefixtures("one_thread")
LENET = "lenet_like@digits"


def weights(seed=0):
    return {name: tensor.clone() for name, tensor in network(LENET, seed).state_dict().items()}


def sharded(tensors, folder=""):
    """Files of a sharded model with one tensor in each shard."""
    where = {name: f"model-{number:05}-of-{len(tensors):05}.safetensors" for number, name in enumerate(tensors, 1)}
    files = {folder + shard: save({name: tensors[name]}) for name, shard in where.items()}
    return {**files, f"{folder}model.safetensors.index.json": json.dumps({"weight_map": where}).encode()}


def model(hub, repo, files):
    return hub.add(repo, files, repo_type="model")


def invoke(*arguments, status=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == status, (result.output, result.exception)
    return result


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# Packing ------------------------------------------------------------------------------------------------------


def test_a_model_is_packed_and_its_commit_told(hub, folder):
    commit = model(hub, "me/le-net.1", {"model.safetensors": save(weights()), "config.json": b"{}"})
    (told,) = json.loads(invoke("pack", "hf://me/le-net.1", "--json").stdout)["packed"]
    assert told["source"] == f"hf://me/le-net.1@{commit}/model.safetensors"
    assert (told["architecture"], told["output"]) == (LENET, "le-net.1.prep.safetensors")
    assert told["source_sha256"] == hashlib.sha256(save(weights())).hexdigest()
    assert same(load_prep(folder / told["output"]).tensors(), weights())


def test_a_sharded_model_is_packed_whole(hub, folder):
    commit = model(hub, "me/big", sharded(weights(1)))
    told = invoke("pack", "hf://me/big").stdout
    assert told.startswith(f"hf://me/big@{commit}/model.safetensors.index.json -> big.prep.safetensors\n")
    assert same(load_prep(folder / "big.prep.safetensors").tensors(), weights(1))


def test_a_model_in_parts_of_another_format_is_packed_whole(hub, folder):
    tensors = weights(1)
    names = [f"pytorch_model-{part:05d}-of-00002.bin" for part in (1, 2)]
    where = {name: names[number % 2] for number, name in enumerate(tensors)}
    parts = {}
    for part in names:
        content = io.BytesIO()
        torch.save({name: tensors[name] for name in tensors if where[name] == part}, content)
        parts[part] = content.getvalue()
    index = json.dumps({"metadata": {}, "weight_map": where}).encode()
    model(hub, "me/big", {**parts, "pytorch_model.bin.index.json": index, "config.json": b"{}"})
    invoke("pack", "hf://me/big")
    assert same(load_prep(folder / "big.prep.safetensors").tensors(), tensors)


def test_a_file_in_a_folder_of_an_older_version(hub, folder):
    old = model(hub, "me/m", sharded(weights(1), "a/b/"))
    model(hub, "me/m", sharded(weights(2), "a/b/"))
    found = fetch_checkpoint(f"hf://me/m@{old}/a/b/model.safetensors.index.json")
    assert str(found.address) == f"hf://me/m@{old}/a/b/model.safetensors.index.json"
    invoke("pack", found.address, "-o", "old.prep.safetensors")
    invoke("pack", "hf://me/m/a/b/model.safetensors.index.json", "-o", "new.prep.safetensors")
    assert same(load_prep(folder / "old.prep.safetensors").tensors(), weights(1))
    assert same(load_prep(folder / "new.prep.safetensors").tensors(), weights(2))


def test_what_is_here_and_pinned_needs_no_request(hub):
    commit = model(hub, "me/m", sharded(weights()))
    first = fetch_checkpoint("hf://me/m")
    hub.forget()
    again = fetch_checkpoint(f"hf://me/m@{commit}")
    assert (again.file, hub.requests) == (first.file, [])


def test_only_what_is_needed_is_fetched(hub):
    model(
        hub, "me/m", {"model.safetensors": save(weights()), "other.safetensors": b"x" * 9999, "pytorch_model.bin": b"y"}
    )
    fetch_checkpoint("hf://me/m")
    fetched = {path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {"model.safetensors"}


# Which file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors.index.json", "model.safetensors", "x.safetensors"], "model.safetensors.index.json"),
        (["other.safetensors", "model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["weights.safetensors", "a.pt", "b.pt"], "weights.safetensors"),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state_0.pth"], "pytorch_model.bin"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "x.pt"], "pytorch_model.bin.index.json"),
        (["model.safetensors", "pytorch_model.bin.index.json"], "model.safetensors"),
        (["pytorch_model.bin.index.json", "pytorch_model.bin"], "pytorch_model.bin.index.json"),
        (["net.pth", "scheduler.pt", "config.json", "sub/other.pth"], "net.pth"),
        (["one.prep.safetensors", "last.ckpt"], "last.ckpt"),
        (["diffusion_pytorch_model.safetensors", "z.safetensors"], "diffusion_pytorch_model.safetensors"),
    ],
)
def test_the_weights_are_found(hub, names, chosen):
    index = json.dumps({"weight_map": {"w": "part"}}).encode()
    content = {"part": b"x", **{name: index for name in names if "index" in name}}
    model(hub, "me/m", {name: content.get(name, b"x") for name in (*names, "part")})
    assert fetch_checkpoint("hf://me/m").address.path == chosen


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["a.safetensors", "b.safetensors"],
            "no one file of weights at its top; choose one: hf://me/m/a.safetensors, ",
        ),
        (["x/a.pt", "x/optimizer.pt"], "no one file of weights at its top; choose one: hf://me/m/x/a.pt."),
        (
            ["a.gguf", "README.md"],
            "no weights that prepkit reads (.safetensors, .bin, .pt, .pth, .ckpt): it has README",
        ),
        (["model-00001-of-00002.safetensors"], "no weights that prepkit reads"),
    ],
)
def test_what_is_not_clear_is_asked(hub, names, told):
    model(hub, "me/m", dict.fromkeys(names, b"x"))
    assert told in invoke("pack", "hf://me/m", status=2).stderr


# What goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("hf://me/none", "the Hub has no model repository 'me/none' that you may see"),
        ("hf://me/m@nope", "the model repository 'me/m' has no revision 'nope'"),
        ("hf://me/m@" + "0" * 40, "the model repository 'me/m' has no revision '" + "0" * 40),
        ("hf://me/m/modell.safetensors", "'me/m' has no file 'modell.safetensors'; "),
    ],
)
def test_what_is_not_there_is_told(hub, folder, address, told):
    model(hub, "me/m", {"model.safetensors": save(weights())})
    assert told in invoke("pack", address, status=1).stderr
    assert list(folder.iterdir()) == []


def test_a_flipped_bit_is_found_and_the_file_fetched_again(hub):
    model(hub, "me/m", {"model.safetensors": save(weights())})
    hub.fault("flip", "model.safetensors")
    assert fetch_checkpoint("hf://me/m").file.read_bytes() == save(weights())


def test_what_stays_damaged_is_told_and_not_kept(hub, folder):
    model(hub, "me/m", sharded(weights()))
    name = f"model-00001-of-{len(weights()):05}.safetensors"
    hub.fault("flip", name, 99)
    told = invoke("pack", "hf://me/m", status=1).stderr
    assert f"{name} came damaged 2 times" in told
    assert list(folder.iterdir()) == []
    hub.fault("flip", name, 0)
    invoke("pack", "hf://me/m")
    assert same(load_prep(folder / "m.prep.safetensors").tensors(), weights())


def test_a_flipped_bit_of_an_index_is_found(hub):
    files = sharded(weights())
    model(hub, "me/m", files)
    hub.fault("flip", ".index.json")
    assert fetch_checkpoint("hf://me/m").file.read_bytes() == files["model.safetensors.index.json"]


def test_a_connection_that_ends_early_and_a_busy_server_are_got_over(hub):
    model(hub, "me/m", {"model.safetensors": save(weights())})
    hub.fault("drop", "model.safetensors")
    hub.fault("busy", "/tree/" + hub.head("me/m", repo_type="model"))
    assert fetch_checkpoint("hf://me/m").file.read_bytes() == save(weights())


def test_a_truncated_body_is_told(hub, folder):
    model(hub, "me/m", {"model.safetensors": save(weights())})
    hub.fault("truncate", "model.safetensors", 99)
    assert "came with another size than announced; run it again." in invoke("pack", "hf://me/m", status=1).stderr
    hub.fault("truncate", "model.safetensors", 0)
    invoke("pack", "hf://me/m")


def test_a_file_that_is_listed_and_not_there_is_told(hub):
    model(hub, "me/m", sharded(weights()))
    hub.fault("hide", "model-00002-of-00010.safetensors", 99)
    with pytest.raises(HubError, match=r"the model repository 'me/m' does not have that file"):
        fetch_checkpoint("hf://me/m")


def test_a_path_that_leads_out_of_the_cache_writes_nothing(hub, folder):
    model(hub, "me/m", {"model.safetensors": save(weights())})
    hub.extra = ["../../../../../evil.safetensors"]
    invoke("pack", "hf://me/m")
    assert not list(folder.parent.rglob("*evil*"))
    told = invoke("pack", "hf://me/m/../../../../../evil.safetensors", status=2).stderr
    assert "is no address on the Hub" in told
    assert not list(folder.parent.rglob("*evil*"))


def test_a_private_model_needs_the_token(hub, monkeypatch):
    hub.token = "hf_right"
    hub.add("me/m", {"model.safetensors": save(weights())}, repo_type="model", private=True)
    with pytest.raises(HubError, match="the Hub has no model repository 'me/m' that you may see"):
        fetch_checkpoint("hf://me/m", token="hf_wrong")
    assert fetch_checkpoint("hf://me/m", token="hf_right").file.read_bytes() == save(weights())


def test_trees_of_several_pages_are_read_whole(hub):
    hub.page_size = 3
    model(hub, "me/m", sharded(weights()))
    invoke("pack", "hf://me/m")


def test_damage_in_the_cache_is_found_too(hub):
    model(hub, "me/m", {"model.safetensors": save(weights())})
    found = fetch_checkpoint("hf://me/m")
    content = bytearray(found.file.read_bytes())
    content[-1] ^= 1
    found.file.resolve().write_bytes(content)
    assert fetch_checkpoint(found.address).file.read_bytes() == save(weights())


def test_a_shard_that_the_repository_lacks_is_told(hub):
    files = sharded(weights())
    missing = sorted(files)[0]
    model(hub, "me/m", {path: content for path, content in files.items() if path != missing})
    with pytest.raises(CheckpointError, match=f"names shards that 'me/m' does not have: {missing}"):
        fetch_checkpoint("hf://me/m")


def test_an_index_that_leads_out_of_the_repository_is_refused(hub):
    index = json.dumps({"weight_map": {"w": "../../../evil.safetensors"}}).encode()
    model(hub, "me/m", {"model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match="names shards outside its folder"):
        fetch_checkpoint("hf://me/m")


def test_out_of_reach_what_is_here_is_used_and_the_rest_told(hub, monkeypatch):
    model(hub, "me/m", sharded(weights()))
    model(hub, "me/other", sharded(weights(1)))
    found = fetch_checkpoint("hf://me/m")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch_checkpoint("hf://me/m") == found
    with pytest.raises(HubError, match=r"the Hub cannot be reached.* 'me/other'"):
        fetch_checkpoint("hf://me/other")


def test_errors_name_the_address_and_not_the_cache(hub):
    commit = model(hub, "me/m", {"model.pt": b"\x80\x04 no weights"})
    told = invoke("pack", "hf://me/m", status=2).stderr
    assert f"hf://me/m@{commit}/model.pt is" in told
    assert "snapshots" not in told


# A zoo of models in the wild ----------------------------------------------------------------------------------


def test_a_zoo_of_models_knows_each_ones_commit(hub, folder):
    torch.save(weights(5), folder / "local.pt")
    commits = [model(hub, "a/one", {"model.safetensors": save(weights(1))}), model(hub, "b/two", sharded(weights(2)))]
    table = "file,note\nhf://a/one,first\nhf://b/two@main,second\nlocal,mine\n"
    (folder / "t.csv").write_text(table)
    invoke(
        "zoo", "create", "wild", "hf://a/one", "hf://b/two@main", "local.pt", "--table", "t.csv", "--license", "other"
    )
    rows = {row["id"]: row for row in open_zoo("wild").table.to_pylist()}
    assert {id_: (row["source"], row["note"]) for id_, row in rows.items()} == {
        "a/one": (f"hf://a/one@{commits[0]}/model.safetensors", "first"),
        "b/two@main": (f"hf://b/two@{commits[1]}/model.safetensors.index.json", "second"),
        "local": (None, "mine"),
    }
    assert rows["a/one"]["source_sha256"] == hashlib.sha256(save(weights(1))).hexdigest()
    assert verify("wild").ok
    card = (folder / "wild" / "README.md").read_text()
    assert "| source | string | 1 | address on the Hub of the checkpoint, with its commit |" in card
    for id_, seed in (("a/one", 1), ("b/two@main", 2), ("local", 5)):
        assert same(open_zoo("wild")[id_][0].tensors(), weights(seed))


def test_a_model_that_cannot_be_fetched_keeps_the_others_and_the_zoo_goes_on(hub, folder):
    model(hub, "a/one", {"model.safetensors": save(weights(1))})
    models = ("hf://a/one", "hf://b/two")
    told = invoke("zoo", "create", "wild", *models, status=1).stderr
    assert "1 of 2 models is kept; go on with --resume" in told
    assert "the Hub has no model repository 'b/two'" in told
    commit = model(hub, "b/two", {"model.safetensors": save(weights(2))})
    hub.forget()
    invoke("zoo", "create", "wild", *models, "--resume")
    assert not any("a/one" in path for _, path in hub.requests)
    assert open_zoo("wild").table["source"].to_pylist()[1] == f"hf://b/two@{commit}/model.safetensors"


def test_a_zoo_of_files_alone_has_no_column_source(folder):
    torch.save(weights(5), folder / "local.pt")
    invoke("zoo", "create", "files", "local.pt")
    assert "source" not in open_zoo("files").table.column_names
