"""What scripts accept on their command lines."""

from argparse import ArgumentTypeError


def positive(text: str) -> int:
    """For ``argparse``: a whole number above 0."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number
