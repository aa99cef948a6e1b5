"""`python -m prepkit` and the installed script are the command `prepkit`."""

from prepkit.program import run


def main() -> None:
    """Run the command `prepkit`."""
    run("prepkit.cli", "prepkit")


if __name__ == "__main__":
    main()
