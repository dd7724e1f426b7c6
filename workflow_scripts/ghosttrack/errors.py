"""The error type for messages to the user."""


class UserError(Exception):
    """Wrong input or a damaged file; the message gives the problem, the expectation and the remedy.

    Jobs print the message without a traceback; the traceback is in the rule's log.
    """
