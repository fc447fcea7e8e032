"""The laptop's stack: the processes `make run` starts, and the database that commands and tests share.

Owns starting, watching and stopping them. Nothing in production may import it.
"""


class StackError(Exception):
    """Something on this machine is in the way. The text is one sentence for the person at the keyboard."""
