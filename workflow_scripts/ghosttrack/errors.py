"""The one error type whose message is written for the person at the terminal."""


class UserError(Exception):
    """Bad input or a damaged file: says what was found, what was expected, and what to change.

    Jobs print the message alone, without a traceback; the rule's log keeps the traceback.
    """
