"""Adapters as peft writes them, how tests import them, and their function computed again by numpy."""

import json

import numpy as np
from click.testing import CliRunner
from safetensors.numpy import save_file

import prepkit
from prepkit.cli import main

Q, V, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj"

SHAPES = {Q: (24, 32), V: (16, 32), UP: (5, 40)}

CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "acme/small",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "target_modules": ["v_proj", "q_proj", "up_proj"],
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def name(module, side):
    return f"base_model.model.{module}.lora_{side}.weight"


def factors(seed, ranks=None, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        rank = (ranks or {}).get(module, 4)
        tensors[name(module, "A")] = rng.normal(size=(rank, columns)).astype(dtype)
        tensors[name(module, "B")] = rng.normal(size=(rows, rank)).astype(dtype)
    return tensors


def save(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}, indent=2))


def product(tensors, module, scale):
    b, a = tensors[name(module, "B")].astype(np.float64), tensors[name(module, "A")].astype(np.float64)
    return scale * np.einsum("or,ri->oi", b, a)


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def imported(tmp_path, **options):
    prepkit.import_zoo("peft", tmp_path / "src", tmp_path / "zoo", **options)
    return prepkit.open_zoo(tmp_path / "zoo")


def command(*arguments, status=0, stdin=None):
    result = CliRunner().invoke(main, ["zoo", "import", "peft", *map(str, arguments)], input=stdin)
    assert result.exit_code == status, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result
