"""`python -m netspace`, `torchrun -m netspace` and the installed script are the command `netspace`."""

from prepkit.program import run


def main() -> None:
    """Run the command `netspace`."""
    run("netspace.cli", "netspace")


if __name__ == "__main__":
    main()
