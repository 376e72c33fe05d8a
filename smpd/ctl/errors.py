"""What goes wrong in a command of smpctl and is no fault of a file, told in one sentence."""


class CommandError(Exception):
    """A command that cannot do its work; the text is a sentence for the sysadmin."""
