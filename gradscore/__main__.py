"""``python -m gradscore``: the command line."""

from gradscore.cli import main

if __name__ == "__main__":
    main()
