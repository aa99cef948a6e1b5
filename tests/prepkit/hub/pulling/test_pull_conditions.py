"""A wrong condition of `prepkit pull --where` is told before anything is asked of the Hub."""

import pytest
from click.testing import CliRunner
from folder_contents import files_of
from pushed_zoos import write_zoo

from prepkit.cli import main
from prepkit.errors import WhereError
from prepkit.hub.pull import pull
from prepkit.zoo.card.card import write_card

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = write_zoo(tmp_path_factory.mktemp("source") / "zoo", count=2)
    write_card(root)
    return files_of(root)


@pytest.mark.parametrize(
    ("condition", "match"),
    [
        ("accuracy >", "is not a condition"),
        ("accuracy + 1", "expected a comparison"),
        ("config.l2 < 1", "put the name of the column in backticks: `config.l2`"),
        ("1 < 2", "a comparison needs a column"),
    ],
)
def test_a_wrong_condition_is_told_before_the_hub_is_asked(hub, files, tmp_path, condition, match):
    hub.add("me/zoo", files)
    with pytest.raises(WhereError, match=match):
        pull("me/zoo", tmp_path / "zoo", where=condition)
    done = CliRunner().invoke(main, ["pull", "me/zoo", str(tmp_path / "zoo"), "--where", condition])
    assert (done.exit_code, match in done.stderr) == (2, True)
    assert hub.requests == []
    with pytest.raises(WhereError, match=r"there is no column 'accuracie'.*accuracy"):
        pull("me/zoo", tmp_path / "zoo", where="accuracie > 0.5 or `odd name` is None")
    assert hub.requests
