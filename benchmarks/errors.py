"""The one exception for a user's mistake."""


class UserError(Exception):
    """Bad input. The message is one clear line: what is wrong, where, and what to do about it.

    The command line prints it without a traceback and exits with `status` (2 unless told otherwise).
    """

    def __init__(self, message: str, status: int = 2):
        super().__init__(" ".join(str(message).split()))
        self.status = status
