"""Ctrl-C that lets a training loop finish its batch and save."""

import os
import signal

SECOND_SIGNAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class GracefulStop:
    """Context manager in which the first SIGINT or SIGTERM only sets ``requested``; a second one ends the process.

    Main thread only.
    """

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._handle) for number in SECOND_SIGNAL}
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self.requested = True
        for other, handler in SECOND_SIGNAL.items():
            signal.signal(other, handler)
        # print() is not safe here: the signal may have arrived in the middle of another print
        os.write(2, b"\nstopping after this step; interrupt again to stop at once\n")
