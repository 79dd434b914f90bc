"""Running the command as a user does, with stdout and stderr apart."""

import inspect

from click.testing import CliRunner, Result

from densemble.cli import main


def invoke(*arguments: object) -> Result:
    separate = "mix_stderr" in inspect.signature(CliRunner).parameters  # click before 8.2
    runner = CliRunner(mix_stderr=False) if separate else CliRunner()
    return runner.invoke(main, [str(a) for a in arguments])


def sentence(done: Result) -> str:
    """The one line on stderr of a command that ended with code 2 and no traceback."""
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("densemble: ")
    return lines[0].removeprefix("densemble: ")
