"""The few errors callers tell apart. Every message names the thing, its value, what was wanted and the next move.

`RequestError` ends a command with exit code 2 (the request was wrong), every other error with 1 (the run failed).
They cross process boundaries by class name, see `requests.py`.
"""


class NightmillError(Exception):
    """A failure with a message meant for the person who started the run."""


class RequestError(NightmillError):
    """The request itself is wrong: a misspelt key, a missing folder, a value out of range. Never retried."""


class DataError(NightmillError):
    """The data cannot be used: an empty corpus, an archive nobody can read, a shard changed after publishing."""


class QualityError(DataError):
    """A check between two steps failed. The data stays where it is, nothing behind the check runs."""


class TrainingError(NightmillError):
    """Training cannot go on: a loss that is not finite, a checkpoint of another model."""


class JobCrashed(NightmillError):
    """A child process died without an answer (killed, out of memory, machine lost). Worth a retry."""


class DiskFull(NightmillError):
    """No space left where an output is being written. Earlier outputs are untouched."""


class StepBusy(NightmillError):
    """Another live run holds the lock of this step."""


class ChampionMoved(NightmillError):
    """The champion is another one than the gate compared with. The gate is asked again."""


ERRORS: dict[str, type[NightmillError]] = {
    cls.__name__: cls
    for cls in (RequestError, DataError, QualityError, TrainingError, JobCrashed, DiskFull, StepBusy, ChampionMoved)
}
