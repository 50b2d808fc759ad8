"""`python -m moorage_app` is `moorage`."""

from .cli import main

if __name__ == "__main__":
    main()
