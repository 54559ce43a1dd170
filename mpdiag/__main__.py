"""`python -m mpdiag`."""

from mpdiag.cli.main import main

if __name__ == "__main__":
    main()
