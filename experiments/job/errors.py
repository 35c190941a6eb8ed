"""Failures a user can act on; the command line prints their message alone."""

from __future__ import annotations

import errno
import inspect
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import wraps

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments.job.old_names import todays
from experiments.job.process import leads
from experiments.job.terminal import replace_what_cannot_be_shown

_Main = Callable[[list[str]], int]


class BadInput(ValueError):
    """The request is wrong: nothing was started. Exit code 2."""


class VideoLost(Exception):
    """A finished video's lossless file, which a metric needs, is gone or damaged; the message says what to do."""


@dataclass(frozen=True)
class Failure:
    """A video that could not be made, or not be measured; ``label`` is its job's."""

    label: str
    prompt: str
    error: Exception


class RunFailed(Exception):
    """Some videos could not be made or measured; the others were. Its cause is the first one's error. Exit code 1."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        first = failures[0]
        lost = isinstance(first.error, VideoLost)
        super().__init__(
            f"{len(failures)} of the videos could not be {'measured' if lost else 'made'}, the first "
            f"{first.label}: {first.prompt!r}: {explain(first.error)}"
            + ("" if lost else "; the same command tries them again")
        )
        self.__cause__ = first.error


class CasesFailed(Exception):
    """Some cases of a benchmark could not be measured; the others were. Exit code 1."""

    def __init__(self, failures: Sequence[tuple[str, Exception]]) -> None:
        names = ", ".join(name for name, _ in failures)
        super().__init__(f"{names} could not be measured (see above); the same command tries again")
        self.__cause__ = failures[0][1]


class RanksFailed(Exception):
    """One of the processes that make a video together failed, and all end; the message says which and why. Exit code
    1."""


class TaskFailed(Exception):
    """A task that a launcher started failed: its error as one line, since not every error can be sent. Exit code 1."""


_LESS_MEMORY = (
    "ask for less: fewer setting.num_frames, a smaller setting.height and setting.width, kv.budget='2 chunks', "
    "or workers=1"
)
_GO_ON = "finished videos are kept, and the same command goes on from them"
HELP = {"--help", "-h"}


def explain(error: BaseException) -> str:
    """One line: what went wrong, and which knob to turn."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, (VideoLost, RunFailed, CasesFailed, RanksFailed, TaskFailed)):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch for it
        return f"the GPU is out of memory ({text}); {_LESS_MEMORY}; or take another device=; {_GO_ON}"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return f"memory ran out ({text}); {_LESS_MEMORY}; {_GO_ON}"
    if isinstance(error, BrokenProcessPool):
        return f"a worker was killed, most likely because memory ran out ({text}); {_LESS_MEMORY}; {_GO_ON}"
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"compiling failed ({text}); install the C++ compiler that torch.compile needs, or give compile=false"
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({text}); free some space, or give output_dir=<folder elsewhere>; {_GO_ON}"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no access ({text}); change the permissions, or give output_dir=<folder that you can write>; {_GO_ON}"
    return f"the run failed: {text} (debug=true shows where)"


def complain(program: str, error: Exception) -> int:
    """Say in one line what is wrong; returns the exit code, 2 for bad input and 1 for a failure."""
    bad_input = isinstance(error, (BadInput, HydraException, OmegaConfBaseException))
    message = str(error) if bad_input else explain(error)
    if bad_input and not leads():  # the process that does says the same
        return 2
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return 2 if bad_input else 1


def stopped(program: str) -> int:
    """Say that the user stopped the program; returns the exit code."""
    print(f"{program}: stopped; {_GO_ON}", file=sys.stderr)
    return 1


def plain(description: str) -> str:
    """A module's docstring as a terminal shows it, with where to read on for options of a job."""
    text = inspect.cleandoc(description).replace("``", "`")
    return text + ("\n\nkey=value are options of a job: python run.py --help" if "[key=value ...]" in text else "")


def command(program: str, explain: Callable[[list[str]], str] | None = None) -> Callable[[_Main], _Main]:
    """Of a command's ``main(arguments)``: errors are one line and an exit code; ``debug=true`` lets them through.

    ``--help`` prints what ``explain`` says of the arguments, or else the docstring of the command's module.
    """

    def guard(main: _Main) -> _Main:
        @wraps(main)
        def guarded(arguments: list[str]) -> int:
            from experiments.job.recognise import recognised  # imported late: it raises what is defined here

            replace_what_cannot_be_shown()
            try:
                if HELP & set(arguments):
                    own = sys.modules[main.__module__].__doc__ or ""
                    print(plain(explain(arguments) if explain else own))
                    return 0
                return main(recognised(todays(arguments)))
            except KeyboardInterrupt:
                return stopped(program)
            except Exception as error:
                if "debug=true" in arguments:
                    raise
                return complain(program, error)

        return guarded

    return guard
