"""`python -m mpdiag`."""

from mpdiag.cli.main import main as main
from mpdiag.cli.main import process

if __name__ == "__main__":
    process()
