"""The card of a zoo on the Hub: the YAML that the Hub reads, the lines that load the zoo, and a README of the user."""

import re
from dataclasses import replace

import huggingface_hub
import pytest
from pushed_zoos import write_zoo

from prepkit.api import verify
from prepkit.errors import ZooError
from prepkit.hub.push import zoo_bundle
from prepkit.licence import HUB_LICENCES, licence_of_card
from prepkit.zoo.card.card import MARK, PICTURE, README, write_card
from prepkit.zoo.format.manifest import read_manifest, write_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = write_zoo(tmp_path_factory.mktemp("card") / "zoo", teacher=True)
    write_card(root)
    return root


@pytest.fixture
def zoo(whole, tmp_path):
    """A copy that a test may change."""
    root = tmp_path / "zoo"
    for file in sorted(whole.rglob("*")):
        if file.is_file():
            target = root / file.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return root


def pushed(root, repo="me/zoo"):
    """Contents of the files that would be pushed, by path."""
    files = zoo_bundle(root, repo).files
    return {file.path: file.content if isinstance(file.content, bytes) else file.content.read_bytes() for file in files}


def viewer_of(paths):
    return [path for path in paths if path.startswith("viewer/")]


def test_it_tells_how_to_load_the_zoo_from_the_hub_and_the_local_one_stays(zoo):
    before = (zoo / README).read_bytes()
    text = pushed(zoo, "some-lab/a.zoo")[README].decode()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].splitlines()
    assert code[:2] == ["import prepkit", 'zoo = prepkit.open_zoo("hf://some-lab/a.zoo").split("train")']
    assert len(code) == 3
    assert "`prepkit pull some-lab/a.zoo`" in text
    assert f"({PICTURE})" in text
    assert "path/to/this/folder" not in text
    assert (zoo / README).read_bytes() == before
    assert b"path/to/this/folder" in before


def test_the_hub_reads_what_it_needs(zoo):
    data = huggingface_hub.DatasetCard(pushed(zoo)[README].decode()).data.to_dict()
    assert data == {
        "license": "mit",
        "pretty_name": "zoo",
        "tags": ["prepkit", "weight-space-learning", "model-zoo", "pytorch"],
        "size_categories": ["n<1K"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": path[7:-21], "path": path} for path in viewer_of(pushed(zoo))],
            }
        ],
    }


def test_card_and_picture_are_made_where_a_zoo_has_none(zoo):
    expected = pushed(zoo)
    (zoo / README).unlink()
    (zoo / PICTURE).unlink()
    assert pushed(zoo) == expected
    assert not (zoo / README).exists()
    assert not (zoo / PICTURE).exists()


def test_all_files_go_and_nothing_else(zoo):
    (zoo / "notes.txt").write_text("mine")
    (zoo / "shards" / "left.safetensors").write_text("of an older version")
    manifest = read_manifest(zoo)
    named = [shard.path for shard in manifest.shards] + [manifest.teacher.path, manifest.table.path]
    copies = viewer_of(pushed(zoo))
    assert [path.rpartition("-")[0] for path in copies] == ["viewer/train", "viewer/test"]
    assert list(pushed(zoo)) == [*named, *copies, "zoo.json", README, PICTURE]
    assert zoo_bundle(zoo, "me/zoo").last == {manifest.table.path, "zoo.json", README, PICTURE}


# A README of the user's own -----------------------------------------------------------------------------------


def own(zoo, text):
    (zoo / README).write_bytes(text.encode())
    return pushed(zoo)[README].decode()


def test_words_without_yaml_get_ours(zoo):
    text = own(zoo, "# Mine\n\nwords\n")
    assert text.endswith("---\n# Mine\n\nwords\n")
    assert huggingface_hub.DatasetCard(text).data.to_dict()["configs"][0]["config_name"] == "default"
    assert MARK not in text


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_their_yaml_lacks_is_added_and_what_it_has_stays(zoo, end):
    text = own(zoo, end.join(["---", "license: MIT", "language: en", "tags: [mine]", "---", "# Mine", ""]))
    data = huggingface_hub.DatasetCard(text).data.to_dict()
    assert (data["license"], data["language"], data["tags"]) == ("MIT", "en", ["mine"])
    assert data["size_categories"] == ["n<1K"]
    assert text.endswith(f"---{end}# Mine{end}")


def test_a_readme_that_lacks_nothing_is_left_as_it_is(zoo):
    keys = ("license: mit", "pretty_name: x", "tags: [x]", "size_categories: [n<1K]", "configs: []")
    text = "\n".join(["---", *keys, "---", "words"])
    assert own(zoo, text) == text


def test_another_licence_there_is_a_conflict(zoo):
    with pytest.raises(ZooError, match=r"README.md: its licence is 'apache-2.0', the zoo's is 'mit'; make them one"):
        own(zoo, "---\nlicense: apache-2.0\n---\nwords")


@pytest.mark.parametrize("yaml", ["a: [", "- a list"])
def test_yaml_that_cannot_be_read_is_refused(zoo, yaml):
    with pytest.raises(ZooError, match=r"README.md: the YAML before the text cannot be read"):
        own(zoo, f"---\n{yaml}\n---\nwords")


def test_a_readme_in_another_encoding_is_refused(zoo):
    (zoo / README).write_bytes("Zoo für alle".encode("latin-1"))
    with pytest.raises(ZooError, match=r"README.md: not in UTF-8: "):
        pushed(zoo)


# Licences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        ("MIT", ("mit", None)),
        ("cc-by-4.0", ("cc-by-4.0", None)),
        ("Other", ("other", None)),
        (None, ("unknown", None)),
        ("Our Licence, v2 (2026)", ("other", "our-licence-v2-2026")),
        ("§§", ("other", None)),
    ],
)
def test_licences_are_named_as_the_hub_knows_them(licence, told):
    assert licence_of_card(licence) == told


def test_a_licence_of_ones_own_stands_in_the_header(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=1, license="Lab Licence")
    data = huggingface_hub.DatasetCard(pushed(root)[README].decode()).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "lab-licence")
    assert "lab-licence" not in HUB_LICENCES


@pytest.mark.parametrize("licence", [None, "", "  "])
def test_a_zoo_without_a_licence_is_refused(tmp_path, licence):
    root = write_zoo(tmp_path / "zoo", count=1, license=licence)
    with pytest.raises(
        ZooError, match=r"has no licence, so nobody might use it; give it one with license=, such as mit"
    ):
        zoo_bundle(root, "me/zoo")


def test_a_licence_is_given_once_and_kept(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=2, license=None)
    before = (root / "zoo.json").read_bytes()
    dry = {file.path: file.sha256 for file in zoo_bundle(root, "me/zoo", license="mit", dry_run=True).files}
    assert (root / "zoo.json").read_bytes() == before
    done = {file.path: file.sha256 for file in zoo_bundle(root, "me/zoo", license="mit").files}
    assert dry == done
    assert read_manifest(root).license == "mit"
    assert huggingface_hub.DatasetCard.load(root / README).data.license == "mit"
    assert verify(root).ok
    assert {file.path: file.sha256 for file in zoo_bundle(root, "me/zoo").files} == done
    assert {file.path: file.sha256 for file in zoo_bundle(root, "me/zoo", license="mit").files} == done
    with pytest.raises(ZooError, match="has the licence 'mit' already, not 'isc'"):
        zoo_bundle(root, "me/zoo", license="isc")
    assert read_manifest(root).license == "mit"


# What is refused ----------------------------------------------------------------------------------------------


def test_a_zoo_that_does_not_verify_is_refused(zoo):
    shard = zoo / read_manifest(zoo).shards[1].path
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ZooError, match=rf"does not verify, so nothing was pushed: {shard.relative_to(zoo)} .*damaged"):
        zoo_bundle(zoo, "me/zoo")


def test_what_is_no_zoo_is_refused(tmp_path):
    with pytest.raises(ZooError, match="is not a zoo"):
        zoo_bundle(tmp_path, "me/zoo")


def test_bytes_are_counted_while_they_are_hashed(zoo):
    told = []
    zoo_bundle(zoo, "me/zoo", progress=told.append)
    manifest = read_manifest(zoo)
    named = [shard.path for shard in manifest.shards] + [manifest.teacher.path, manifest.table.path]
    assert sum(told) == sum((zoo / path).stat().st_size for path in named)


def test_a_zoo_that_changes_while_it_is_verified_is_refused(zoo):
    def change(count):
        write_manifest(replace(read_manifest(zoo), name="changed"), zoo, overwrite=True)

    with pytest.raises(ZooError, match="was changed while it was verified, so nothing was pushed"):
        zoo_bundle(zoo, "me/zoo", progress=change)
