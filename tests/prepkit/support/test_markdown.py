"""Markdown of cards: text stays in its place, and the user's own README.md stays as it is."""

from pathlib import Path

from prepkit.support.markdown import fenced, markdown_table, one_line, write_readme

MARK = "<!-- ours -->"


def test_a_table_holds_any_text() -> None:
    rows = [("a|b", 12345), ("two\nlines", "<b>")]
    assert markdown_table(("name", "count"), rows) == [
        "| name | count |",
        "| --- | --- |",
        "| a\\|b | 12,345 |",
        "| two lines | &lt;b> |",
    ]


def test_text_stays_in_its_line() -> None:
    assert one_line(" a\n  b\t<c> ") == "a b &lt;c>"


def test_a_fence_is_longer_than_all_in_the_text() -> None:
    assert fenced("\na\n````\nb\n") == ["`````", "a", "````", "b", "`````"]


def test_a_readme_of_the_user_s_stays(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    assert write_readme(path, f"{MARK} first", MARK)
    assert write_readme(path, f"{MARK} second", MARK)
    assert path.read_text() == f"{MARK} second"
    path.write_text("my own words")
    assert not write_readme(path, f"{MARK} third", MARK)
    assert path.read_text() == "my own words"
