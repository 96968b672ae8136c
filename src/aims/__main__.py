"""``python -m aims``: the same as the command ``aims``."""

from aims.cli.main import main

if __name__ == "__main__":
    main()
