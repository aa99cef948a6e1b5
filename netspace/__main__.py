"""`python -m netspace` and `torchrun -m netspace` are the command `netspace`."""

from netspace.cli import main

if __name__ == "__main__":
    main(prog_name="netspace")
