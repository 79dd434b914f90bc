"""The one kind of error that a user's input can cause, and a check that many commands make."""


class InputError(Exception):
    """Bad input: the message names the file or option, what is wrong with it, and what to do.

    The command line prints the message alone and exits with code 2.
    """


def check_resolution(resolution: float) -> None:
    """See that a resolution in Å that was given is one.

    Raises:
        InputError: it is not above zero, or not finite.
    """
    if not 0 < resolution < float("inf"):
        raise InputError(f"--resolution {resolution:g} Å: must be above zero")
