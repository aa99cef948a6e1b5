"""Adapters that are damaged, or hold more than pairs of factors: each is named, and the others stay."""

import json

import numpy as np
import pytest
import torch
from adapter_samples import CONFIG, UP, Q, V, command, distance, factors, imported, name, product, save

import prepkit
from prepkit.errors import ZooError


def without(*keys):
    return {key: value for key, value in factors(0).items() if key not in keys}


BAD = {
    "config missing": (
        factors(0),
        None,
        "adapter_config.json' is missing, though 'adapter_model.safetensors' is there",
    ),
    "weights missing": (None, {}, "adapter_model.safetensors' is missing, though 'adapter_config.json' is there"),
    "A without B": (
        without(name(Q, "B")),
        {},
        f"adapter_model.safetensors: '{name(Q, 'A')}' has no partner '{name(Q, 'B')}'",
    ),
    "B without A": (without(name(V, "A")), {}, f"'{name(V, 'B')}' has no partner '{name(V, 'A')}'"),
    "another rank": (factors(0), {"r": 8}, f"'{Q}' has lora_A [4, 32] and lora_B [24, 4], so rank 4, but"),
    "another rank of a module": (factors(0), {"rank_pattern": {"v_proj": 3}}, f"'{V}' has lora_A [4, 32]"),
    "no common rank": ({**factors(0), name(Q, "B"): np.ones((24, 5), np.float32)}, {}, "whose product B A is none"),
    "DoRA": (factors(0), {"use_dora": True}, "use_dora is true, which adds the magnitudes of DoRA"),
    "a magnitude": (
        {**factors(0), f"base_model.model.{Q}.lora_magnitude_vector": np.ones(24, np.float32)},
        {},
        "lora_magnitude_vector' is of no pair",
    ),
    "bias": (factors(0), {"bias": "lora_only"}, "bias is 'lora_only'"),
    "lora_bias": (factors(0), {"lora_bias": True}, "lora_bias is true, which adds the bias of lora_B"),
    "a bias": ({**factors(0), f"base_model.model.{Q}.bias": np.ones(24, np.float32)}, {}, f"{Q}.bias' is of no pair"),
    "parameters": (factors(0), {"target_parameters": ["mlp.experts"]}, "target_parameters"),
    "another kind": (factors(0), {"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "no rank": (factors(0), {"r": None}, "r is null; it must be a whole number above 0"),
    "a rank that is no number": (factors(0), {"rank_pattern": {"q": "8"}}, "rank_pattern is no object of names"),
    "a pattern that is none": (factors(0), {"alpha_pattern": {"(q": 8}}, "'(q', which is no regular expression"),
    "no pairs": ({"base_model.model.score.w": np.ones(3, np.float32)}, {"modules_to_save": ["score"]}, "no pair"),
    "whole numbers": ({**factors(0), "base_model.model.s.n": np.ones(3, np.int64)}, {"modules_to_save": ["s"]}, "s.n"),
    "NaN": ({**factors(0), name(Q, "A"): np.full((4, 32), np.nan, np.float32)}, {}, "NaN"),
}


@pytest.mark.parametrize(("tensors", "config", "message"), BAD.values(), ids=BAD)
def test_what_is_not_whole_or_more_than_pairs_is_refused_by_name_and_goes_on_when_mended(
    tmp_path, tensors, config, message
):
    folder = tmp_path / "src/b"
    save(folder, factors(0) if tensors is None else tensors, **(config or {}))
    if tensors is None:
        (folder / "adapter_model.safetensors").unlink()
    if config is None:
        (folder / "adapter_config.json").unlink()
    refused = command(tmp_path / "src", tmp_path / "zoo", status=2).output
    assert message in refused
    assert "src/b" in refused
    assert not (tmp_path / "zoo").exists()

    save(tmp_path / "src/a", factors(1))
    save(tmp_path / "src/c", factors(2))
    refused = command(tmp_path / "src", tmp_path / "zoo", "--keep-going", status=2).output
    assert message in refused
    assert "2 of 3 models are kept; the same command goes on" in refused
    assert not (tmp_path / "zoo/zoo.json").exists()
    save(folder, factors(3))
    command(tmp_path / "src", tmp_path / "zoo", "--keep-going")
    adapters = prepkit.open_zoo(tmp_path / "zoo").adapters()
    for key, seed in (("a", 1), ("b", 3), ("c", 2)):
        assert distance(adapters[key].products()[UP].numpy(), product(factors(seed), UP, 4.0)) < 1e-6


def test_files_that_are_cut_short_are_named(tmp_path):
    save(tmp_path / "src/a", factors(0))
    weights, config = tmp_path / "src/a/adapter_model.safetensors", tmp_path / "src/a/adapter_config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "adapter_model.safetensors" in command(tmp_path / "src", tmp_path / "zoo", status=2).output
    weights.write_bytes(content)
    config.write_text(config.read_text()[:50])
    assert "adapter_config.json: damaged" in command(tmp_path / "src", tmp_path / "zoo", status=2).output
    (tmp_path / "adapters.zip").write_bytes(b"PK")
    assert "unpack an archive first" in command(tmp_path / "adapters.zip", tmp_path / "zoo", status=2).output
    (tmp_path / "empty").mkdir()
    assert "holds no adapter" in command(tmp_path / "empty", tmp_path / "zoo", status=2).output
    config.write_text(json.dumps(CONFIG))
    refused = command(tmp_path / "src", tmp_path / "zoo", "--pattern", "{x}/{y}", status=2).output
    assert "1 adapter in" in refused
    assert "does not fit the pattern '{x}/{y}'" in refused
    assert not (tmp_path / "zoo").exists()


def test_adapters_with_nan_are_dropped_and_counted(tmp_path):
    save(tmp_path / "src/a", factors(0))
    save(tmp_path / "src/b", {**factors(0), name(Q, "A"): np.full((4, 32), np.nan, np.float32)})
    output = command(tmp_path / "src", tmp_path / "zoo", "--drop-nan")
    assert "1 model that holds NaN or infinity left out: b" in output.output
    assert prepkit.open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["a"]


def test_a_table_may_not_fill_the_config_and_other_zoos_have_no_adapters(tmp_path):
    save(tmp_path / "src/a", factors(0))
    (tmp_path / "t.csv").write_text("file,adapter_config\na,x\n")
    with pytest.raises(ZooError, match="'adapter_config' is filled from the adapters themselves"):
        imported(tmp_path, table=tmp_path / "t.csv")
    torch.save({"w": torch.ones(3)}, tmp_path / "m.pt")
    prepkit.create_zoo(tmp_path / "other", [tmp_path / "m.pt"])
    with pytest.raises(ZooError, match="no adapter, it has no 'adapter_config'; `prepkit zoo import peft`"):
        prepkit.open_zoo(tmp_path / "other").adapters()[0]
