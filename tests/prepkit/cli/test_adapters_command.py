"""`prepkit zoo adapters`: what comes out is compared with the files that went in, read by safetensors alone."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import prepkit
from prepkit.cli import main
from prepkit.errors import ZooError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PATHS = ("sst2/seed_0", "sst2/seed_1", "mnli/seed_0")


@pytest.fixture
def zoo(tmp_path):
    rng = np.random.default_rng(0)
    for number, path in enumerate(PATHS):
        folder = tmp_path / "src" / path
        folder.mkdir(parents=True)
        tensors = {
            f"base_model.model.model.layers.{layer}.q.lora_{side}.weight": rng.normal(size=shape).astype(np.float32)
            for layer in range(2)
            for side, shape in {"A": (2, 6), "B": (4, 2)}.items()
        }
        save_file(tensors, folder / WEIGHTS)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "base_model_name_or_path": "acme/é", "x": number}
        (folder / CONFIG).write_text(json.dumps(config, indent=3, ensure_ascii=False) + "\n\n", encoding="utf-8")
    prepkit.import_zoo("peft", tmp_path / "src", tmp_path / "zoo", pattern="{task}/seed_{seed:int}")
    return tmp_path / "zoo"


def command(*arguments, status=0, stdin=None):
    result = CliRunner().invoke(main, ["zoo", "adapters", *map(str, arguments)], input=stdin)
    assert result.exit_code == status, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def files_in(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def products(folder):
    tensors = load_file(folder / WEIGHTS)
    names = sorted(name.partition(".lora_A")[0] for name in tensors if ".lora_A" in name)
    return [4 * tensors[f"{n}.lora_B.weight"] @ tensors[f"{n}.lora_A.weight"] for n in names]


def test_the_files_are_those_that_went_in(zoo, tmp_path):
    result = command(zoo, tmp_path / "out", "--json")
    ids = ("sst2/0", "sst2/1", "mnli/0")
    assert files_in(tmp_path / "out") == {f"{id_}/{name}" for id_ in ids for name in (WEIGHTS, CONFIG)}
    assert set(json.loads(result.stdout)["adapters"]) == {str(tmp_path / "out" / id_) for id_ in ids}
    for path, id_ in zip(PATHS, ids, strict=True):
        source, written = tmp_path / "src" / path, tmp_path / "out" / id_
        assert (written / CONFIG).read_bytes() == (source / CONFIG).read_bytes()
        before, after = load_file(source / WEIGHTS), load_file(written / WEIGHTS)
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_some_are_chosen_and_made_canonical(zoo, tmp_path):
    command(zoo, tmp_path / "where", "--where", "task == 'sst2' and seed == 1")
    assert files_in(tmp_path / "where") == {f"sst2/1/{name}" for name in (WEIGHTS, CONFIG)}
    command(zoo, tmp_path / "ids", "--ids", "-", "--canonical", stdin="mnli/0\n")
    assert files_in(tmp_path / "ids") == {f"mnli/0/{name}" for name in (WEIGHTS, CONFIG)}
    source, written = tmp_path / "src/mnli/seed_0", tmp_path / "ids/mnli/0"
    for before, after in zip(products(source), products(written), strict=True):
        assert np.abs(before - after).max() < 1e-5
    assert not np.array_equal(*(next(iter(load_file(f / WEIGHTS).values())) for f in (source, written)))


def test_what_cannot_be_written_is_refused_before_anything_is(zoo, tmp_path):
    (tmp_path / "out/mnli/0").mkdir(parents=True)
    (tmp_path / "out/mnli/0" / CONFIG).write_text("mine")
    result = command(zoo, tmp_path / "out", status=2)
    assert "mnli/0' holds an adapter already; --force replaces it" in result.stderr
    assert files_in(tmp_path / "out") == {f"mnli/0/{CONFIG}"}
    command(zoo, tmp_path / "out", "--force")
    assert len(files_in(tmp_path / "out")) == 6
    assert "no instance 'mnli/9'" in command(zoo, tmp_path / "x", "--ids", "-", stdin="mnli/9", status=2).stderr
    assert "no column 'tusk'" in command(zoo, tmp_path / "x", "--where", "tusk == 'a'", status=2).stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("id_", ["../evil", "/etc/evil", "a/../../b", "c:evil", "a\\..\\..\\b", "a//b"])
def test_ids_do_not_lead_out_of_the_folder(tmp_path, id_):
    tensors = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(4, 2)}
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    with prepkit.ZooWriter(tmp_path / "zoo") as writer:
        writer.add(tensors, id=id_, adapter_config=config)
    result = command(tmp_path / "zoo", tmp_path / "deep/out", status=2)
    assert "the id is no path below a folder" in result.stderr
    assert not (tmp_path / "deep").exists()


def test_networks_that_are_no_adapters_are_told(tmp_path):
    with prepkit.ZooWriter(tmp_path / "zoo") as writer:
        writer.add({"a.weight": torch.ones(2, 2)}, id="plain")
    assert "instance 'plain': no adapter" in command(tmp_path / "zoo", tmp_path / "out", status=2).stderr
    assert not (tmp_path / "out").exists()


def test_the_card_and_verify_say_that_adapters_are_not_run(zoo):
    card = (zoo / "README.md").read_text()
    assert "`function: unverified`: an adapter runs only inside its base model, which prepkit does not run;" in card
    assert "--rerun" not in card
    with pytest.raises(ZooError, match=r"no run can prove .*only inside its base model.*zoo adapters"):
        prepkit.verify(zoo, rerun=2)
