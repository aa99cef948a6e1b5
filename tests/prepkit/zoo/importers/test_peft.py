"""`prepkit zoo import peft` and `zoo.adapters()`: the adapters' function is computed again by numpy, from the files."""

import math
import os
import shutil

import numpy as np
import pytest
import torch
from adapter_samples import SHAPES, UP, Q, V, command, distance, factors, imported, name, product, save
from safetensors.numpy import load_file

import prepkit
from prepkit.errors import OutputError

SCALES = {
    "plain": ({}, {Q: 4, V: 4, UP: 4}, {Q: 4.0, V: 4.0, UP: 4.0}),
    "rslora": ({"use_rslora": True}, {Q: 4, V: 4, UP: 4}, {Q: 8.0, V: 8.0, UP: 8.0}),
    "patterns": (
        {
            "rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 3},
            "alpha_pattern": {r"^model\.layers\.0\..*q_proj": 8, "proj": 1000, "up_proj": 6},
        },
        {Q: 4, V: 2, UP: 3},
        {Q: 2.0, V: 8.0, UP: 2.0},
    ),
    "patterns and rslora": (
        {"use_rslora": True, "r": 9, "rank_pattern": {".*self_attn.*": 2}, "alpha_pattern": {"up_proj": 4.5}},
        {Q: 2, V: 2, UP: 9},
        {Q: 16 / math.sqrt(2), V: 16 / math.sqrt(2), UP: 1.5},
    ),
    "negative": ({"lora_alpha": -2}, {Q: 4, V: 4, UP: 4}, {Q: -0.5, V: -0.5, UP: -0.5}),
}


@pytest.mark.parametrize(("config", "ranks", "scales"), SCALES.values(), ids=SCALES)
def test_products_are_those_of_the_files_also_after_writing_back(tmp_path, config, ranks, scales):
    tensors = factors(1, ranks)
    save(tmp_path / "src/run", tensors, **config)
    adapter = imported(tmp_path).adapters()["run"]
    assert {module: pair.A.shape[0] for module, pair in adapter.pairs.items()} == ranks
    assert {module: pair.scale for module, pair in adapter.pairs.items()} == pytest.approx(scales, rel=1e-15)
    for module, found in adapter.products().items():
        assert distance(found.numpy(), product(tensors, module, scales[module])) < 1e-6

    adapter.save(tmp_path / "all/same")
    same = load_file(tmp_path / "all/same/adapter_model.safetensors")
    assert same.keys() == tensors.keys()
    assert all(same[key].tobytes() == tensors[key].tobytes() for key in tensors)
    adapter.canonical().save(tmp_path / "all/canonical")
    written = load_file(tmp_path / "all/canonical/adapter_model.safetensors")
    assert {key: (value.shape, value.dtype) for key, value in written.items()} == {
        key: (value.shape, value.dtype) for key, value in tensors.items()
    }
    for module, scale in scales.items():
        assert distance(product(written, module, scale), product(tensors, module, scale)) < 1e-6
    original = (tmp_path / "src/run/adapter_config.json").read_bytes()
    for folder in ("all/same", "all/canonical"):
        assert (tmp_path / folder / "adapter_config.json").read_bytes() == original


def test_the_canonical_form_is_that_of_the_svd_and_the_same_for_all_factors_of_a_product(tmp_path):
    tensors = factors(2)
    save(tmp_path / "src/a", tensors)
    rng = np.random.default_rng(3)
    for key in ("b", "c"):
        moved = dict(tensors)
        for module in SHAPES:
            change = rng.normal(size=(4, 4)) + 3 * np.eye(4)
            a, b = tensors[name(module, "A")].astype(float), tensors[name(module, "B")].astype(float)
            moved[name(module, "A")] = (np.linalg.inv(change) @ a).astype(np.float32)
            moved[name(module, "B")] = (b @ change).astype(np.float32)
            assert distance(moved[name(module, "B")], b) > 0.5
        save(tmp_path / f"src/{key}", moved)
    forms = [adapter.canonical().pairs for adapter in imported(tmp_path).adapters()]
    for module in SHAPES:
        u, values, vh = np.linalg.svd(product(tensors, module, 4.0), full_matrices=False)
        u, values, vh = u[:, :4], values[:4], vh[:4]
        largest = np.take_along_axis(u, np.abs(u).argmax(axis=0)[None], axis=0)[0]
        b = u * np.sign(largest) * np.sqrt(values / 4.0)
        a = (vh.T * np.sign(largest) * np.sqrt(values / 4.0)).T
        for form in forms:
            assert distance(form[module].A.numpy(), a) < 1e-5
            assert distance(form[module].B.numpy(), b) < 1e-5


def test_the_canonical_form_of_a_lower_rank_has_zeros_and_stays_as_it_is(tmp_path):
    tensors = factors(4, {UP: 8})  # `up_proj` has 5 rows only
    tensors[name(Q, "B")][:, 2] = 0
    tensors[name(Q, "B")][:, 3] = tensors[name(Q, "B")][:, 1]  # rank 2 of 4, but for rounding
    tensors[name(V, "B")][:] = 0  # as at the start of a training
    save(tmp_path / "src/run", tensors, rank_pattern={"up_proj": 8})
    adapter = imported(tmp_path).adapters()[0]
    form = adapter.canonical()
    for module, rank in ((Q, 2), (V, 0), (UP, 5)):
        assert torch.linalg.matrix_rank(form.pairs[module].B) == rank
        assert not form.pairs[module].A[rank:].any()
        assert not form.pairs[module].B[:, rank:].any()
        if rank:
            assert distance(form.products()[module].numpy(), adapter.products()[module].numpy()) < 1e-6
    again = form.canonical()
    for module in SHAPES:
        torch.testing.assert_close(again.pairs[module].A, form.pairs[module].A, rtol=0, atol=1e-5)
        torch.testing.assert_close(again.pairs[module].B, form.pairs[module].B, rtol=0, atol=1e-5)


def test_convolutions_embeddings_and_modules_saved_whole(tmp_path):
    rng = np.random.default_rng(5)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    tensors = {
        name("conv", "A"): draw(4, 3, 3, 3),
        name("conv", "B"): draw(8, 4, 1, 1),
        "base_model.model.wte.lora_embedding_A": draw(4, 50),
        "base_model.model.wte.lora_embedding_B": draw(12, 4),
        "base_model.model.score.weight": draw(2, 12),
        "base_model.model.head.norm.bias": draw(7),
    }
    save(tmp_path / "src", tensors, task_type="SEQ_CLS", modules_to_save=["head"])
    zoo = imported(tmp_path)
    adapter = zoo.adapters()["src"]
    products = adapter.products()
    conv = 4.0 * np.einsum("or,rihw->oihw", tensors[name("conv", "B")][:, :, 0, 0], tensors[name("conv", "A")])
    assert distance(products["conv"].numpy(), conv) < 1e-6
    table = tensors["base_model.model.wte.lora_embedding_B"] @ tensors["base_model.model.wte.lora_embedding_A"]
    assert distance(products["wte"].numpy(), 4.0 * table) < 1e-6
    assert set(adapter.saved) == {"base_model.model.score.weight", "base_model.model.head.norm.bias"}
    adapter.canonical().save(tmp_path / "out")
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {key: value.shape for key, value in written.items()} == {key: value.shape for key, value in tensors.items()}
    for key in adapter.saved:
        assert written[key].tobytes() == tensors[key].tobytes()
    again = 4.0 * np.einsum("or,rihw->oihw", written[name("conv", "B")][:, :, 0, 0], written[name("conv", "A")])
    assert distance(again, conv) < 1e-6


def test_half_precision_comes_back_bit_for_bit_and_its_canonical_form_is_float32(tmp_path):
    tensors = {
        key: torch.from_numpy(value).to(torch.bfloat16 if "A" in key.rpartition("lora_")[2] else torch.float16)
        for key, value in factors(6).items()
    }
    save(tmp_path / "src/run", {"x": np.zeros(1, np.float32)})
    prepkit.save_state_dict(tensors, tmp_path / "src/run/adapter_model.safetensors", overwrite=True)
    adapter = imported(tmp_path).adapters()["run"]
    adapter.save(tmp_path / "out")
    written = prepkit.load_checkpoint(tmp_path / "out/adapter_model.safetensors")
    assert all(written[key].dtype == tensors[key].dtype and written[key].equal(tensors[key]) for key in tensors)
    form = adapter.canonical()
    wide = {key: value.double().numpy() for key, value in tensors.items()}
    for module in SHAPES:
        assert form.pairs[module].A.dtype == form.pairs[module].B.dtype == torch.float32
        assert distance(form.products()[module].numpy(), product(wide, module, 4.0)) < 1e-6


def test_a_tree_with_a_pattern_and_tables(tmp_path):
    for task in ("mnli", "sst2"):
        for seed in (0, 1):
            save(tmp_path / f"src/{task}/seed_{seed}", factors(seed), r=4, base_model_name_or_path=f"acme/{task}")
    save(tmp_path / "src/mnli/seed_0/checkpoint-5", factors(9))
    scores = tmp_path / "scores.csv"
    scores.write_text("task,seed,acc\nmnli,0,0.5\nmnli,1,0.75\nsst2,0,0.25\nsst2,1,1\n")
    written = prepkit.import_zoo(
        "peft", tmp_path / "src", tmp_path / "zoo", pattern="{task}/seed_{seed:int}", table=scores
    )
    (note,) = written.notes
    assert note.startswith("1 adapter left out, which the pattern does not fit:")
    assert note.endswith("src/mnli/seed_0/checkpoint-5.")
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    rows = {row["id"]: row for row in zoo.table.to_pylist()}
    assert list(rows) == ["mnli/0", "mnli/1", "sst2/0", "sst2/1"]
    assert [row["acc"] for row in rows.values()] == [0.5, 0.75, 0.25, 1.0]
    expected = {"base_model": "acme/sst2", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16.0, "use_rslora": False}
    assert {key: rows["sst2/1"][key] for key in expected} == expected
    view = zoo.where("base_model == 'acme/sst2' and acc > 0.5").adapters()
    assert [adapter.id for adapter in view] == ["sst2/1"]
    assert view[0].base_model == "acme/sst2"
    assert view[0].task_type == "CAUSAL_LM"
    assert distance(view[0].products()[Q].numpy(), product(factors(1), Q, 4.0)) < 1e-6
    assert "model that the adapter was trained on" in (tmp_path / "zoo/README.md").read_text()


def test_all_adapters_of_a_tree_are_found_and_called_by_their_paths(tmp_path, monkeypatch):
    for number, folder in enumerate(("a", "a/checkpoint-10", "a/checkpoint-9", "b/deep/c", ".cache/d")):
        save(tmp_path / "src" / folder, factors(number))
    (tmp_path / "src/b/README.md").write_text("no adapter")
    (tmp_path / "scores.csv").write_text("file,acc\na,1\na/checkpoint-9,2\na/checkpoint-10,3\nb/deep/c,4\n")
    command(tmp_path / "src", tmp_path / "zoo", "--table", tmp_path / "scores.csv")
    table = prepkit.open_zoo(tmp_path / "zoo").table.to_pylist()
    assert [(row["id"], row["acc"]) for row in table] == [
        ("a", 1),
        ("a/checkpoint-9", 2),
        ("a/checkpoint-10", 3),
        ("b/deep/c", 4),
    ]
    command(tmp_path / "src", tmp_path / "some", "--from", "-", stdin="b/deep/c\na/adapter_model.safetensors\n")
    assert prepkit.open_zoo(tmp_path / "some").table["id"].to_pylist() == ["b/deep/c", "a"]
    monkeypatch.chdir(tmp_path / "src")
    command(".", tmp_path / "here", "--pattern", "{run}/checkpoint-{step:int}")
    assert prepkit.open_zoo(tmp_path / "here").table["id"].to_pylist() == ["a/9", "a/10"]


def test_a_pickle_is_read_without_running_it(tmp_path):
    tensors = factors(7)
    save(tmp_path / "src/old", tensors)
    (tmp_path / "src/old/adapter_model.safetensors").unlink()
    torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, tmp_path / "src/old/adapter_model.bin")
    assert distance(imported(tmp_path).adapters()[0].products()[Q].numpy(), product(tensors, Q, 4.0)) < 1e-6

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    shutil.copytree(tmp_path / "src/old", tmp_path / "evil/run")
    torch.save({"base_model.model.x.lora_A.weight": Evil()}, tmp_path / "evil/run/adapter_model.bin")
    message = command(tmp_path / "evil", tmp_path / "zoo2", status=2).output
    assert "adapter_model.bin" in message
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "zoo2").exists()


def test_saving_keeps_files_that_are_there(tmp_path):
    save(tmp_path / "src/a", factors(0))
    adapter = imported(tmp_path).adapters()["a"]
    adapter.save(tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    before = (tmp_path / "out/adapter_model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        adapter.canonical().save(tmp_path / "out")
    assert (tmp_path / "out/adapter_model.safetensors").read_bytes() == before
    adapter.canonical().save(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/adapter_model.safetensors").read_bytes() != before
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "notes.txt",
    ]
    with pytest.raises(OutputError, match="it is a file"):
        adapter.save(tmp_path / "out/notes.txt")
