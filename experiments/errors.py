"""Failures a user can act on; the command line prints their message alone."""


class BadInput(ValueError):
    """The request is wrong: nothing was started. Exit code 2."""
