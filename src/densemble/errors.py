"""The one kind of error that a user's input can cause."""


class InputError(Exception):
    """Bad input: the message names the file or option, what is wrong with it, and what to do.

    The command line prints the message alone and exits with code 2.
    """
