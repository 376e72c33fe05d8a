"""What goes wrong in a command of smpctl and is no fault of a file."""


class CommandError(Exception):
    """A command that cannot do its work; the text is a sentence for the sysadmin."""


class UsageError(CommandError):
    """A command line that is wrong in what its parts are together; exit status 2."""
