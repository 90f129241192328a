"""Everything that can go wrong in a miner, by whose fault it is.

MinerError
├── SettingsError             the operator's: a flag, a key file, a model name
│   ├── NoCudaError           a GPU was asked for, and cannot be used
│   └── MemoryShortError      a model does not fit, with the slots and context that were asked for
├── ModelError                a model directory or its source
│   ├── ModelDownloadError    it could not be fetched, or is not the file that was asked for
│   ├── ModelFormatError      the file breaks its own format (hostile or damaged)
│   └── UnsupportedModelError a sound file that this runtime cannot run
├── JobError                  the job's: it is failed, with this message as its reason
│   └── PromptTooLongError
├── EngineError               this miner's, just now: another one may do the job
│   ├── OverdueError          the answer's time is over
│   ├── RoomError             the answer may need more tokens than this miner holds
│   └── BusyError             more requests than may wait
└── CoordinatorError          the node's answer, or that there was none
    ├── UnreachableError      no answer, or one that asks to come back later: try again
    ├── RefusedError          a 4xx answer: trying the same again cannot help
    │   └── LeaseLostError    the job is no longer this miner's (lost, cancelled, finished)
    └── BadAnswerError        an answer that breaks the API document
"""


class MinerError(Exception):
    """Base of every error a miner raises on purpose; its text is one line for people."""


class SettingsError(MinerError):
    """The operator asked for something that cannot be."""


class NoCudaError(SettingsError):
    """A model cannot run on a GPU here; the text says what is missing."""


class MemoryShortError(SettingsError):
    """A model with its cache needs more memory than is free; the text has the figures."""


class ModelError(MinerError):
    """A model cannot be used."""


class ModelDownloadError(ModelError):
    """The embedded model could not be fetched, checked or stored."""


class ModelFormatError(ModelError):
    """A model file breaks its own format."""


class UnsupportedModelError(ModelError):
    """A sound model that this runtime cannot run."""


class JobError(MinerError):
    """A job cannot be done by anybody running this model as asked."""


class PromptTooLongError(JobError):
    """The prompt leaves no room for a single token of answer."""


class EngineError(MinerError):
    """A job was not done here, and another miner may do it."""


class OverdueError(EngineError):
    """The answer was not done by its deadline."""


class RoomError(EngineError):
    """The model allows a longer answer than this miner has room for."""


class BusyError(EngineError):
    """More requests wait for a slot than may."""


class CoordinatorError(MinerError):
    """The node did not answer as hoped."""


class UnreachableError(CoordinatorError):
    """No answer, or 429/5xx.

    Attributes:
        retry_after_s: how long the node asked to be left alone, if it did.
        is_refusal: whether a node that goes on running has no room for this (503).
    """

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, is_refusal: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_refusal = is_refusal


class RefusedError(CoordinatorError):
    """A 4xx answer.

    Attributes:
        status: the HTTP status.
        error_code: the node's code, empty if it gave none.
    """

    def __init__(self, message: str, *, status: int, error_code: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code


class LeaseLostError(RefusedError):
    """Another miner has the job, or nobody may have it any more."""


class BadAnswerError(CoordinatorError):
    """An answer that breaks the API document."""
