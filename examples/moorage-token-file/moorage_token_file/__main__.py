"""Make a token: `python -m moorage_token_file NAME >> tokens` appends its line and shows the token on the terminal."""

import sys

from .tokens import new_token


def main(arguments: list[str]) -> int:
    """Write a line for the file to standard output and the token itself, once, to standard error."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m moorage_token_file NAME\n")
        return 2
    try:
        token, line = new_token(arguments[0])
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{line}\n")
    sys.stderr.write(f"{token}\n")
    return 0


sys.exit(main(sys.argv[1:]))
