"""What a process of ours ends with, where 0 and 1 do not say enough."""

REFUSED = 2  # a setting does not fit; it would not fit again
BUSY = 75  # another process holds the run folder (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # after Ctrl-C
TERMINATED = 143  # after SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM came; all that Ctrl-C ends, it ends."""
