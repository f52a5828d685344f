"""`python -m edgetune` is the same program as `edgetune`."""

from edgetune.cli import main

if __name__ == "__main__":
    main()
