"""`prepkit stat` and `prepkit diff` of networks on the Hub: a model, a file of one, and an instance of a zoo."""

import pytest
from click.testing import CliRunner
from folder_contents import files_of
from pushed_zoos import write_zoo
from safetensors.torch import save

from prepkit.api import open_zoo
from prepkit.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def invoke(*arguments, status=0):
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, (result.output, result.exception)
    return result


def test_the_same_network_as_a_model_and_in_a_zoo(hub, tmp_path):
    root = write_zoo(tmp_path / "zoo", count=2)
    zoo = open_zoo(root)
    first, second = zoo.table["id"].to_pylist()
    hub.add("me/zoo", files_of(root))
    hub.add("me/model", {"model.safetensors": save(zoo[first][0].tensors())}, repo_type="model")
    for place in ("hf://me/model", "hf://me/model/model.safetensors", f"hf://me/zoo#{first}"):
        assert invoke("diff", f"{root}#{first}", place).stdout.endswith("none differs\n")
    assert invoke("diff", "hf://me/model", f"hf://me/zoo#{second}", status=1).stdout.endswith("differ\n")
    assert f"hf://me/zoo#{first}: " in invoke("stat", f"hf://me/zoo#{first}").stdout
    assert "has no instance 'none'" in invoke("stat", "hf://me/zoo#none", status=2).stderr
