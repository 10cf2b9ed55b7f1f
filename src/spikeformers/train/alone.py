"""Work in a process of its own: its peak of memory is its own, and so is its death."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from signal import SIGTERM
from typing import Any

import torch

from spikeformers.errors import SpikeformersError, StoppedError, TrainingError
from spikeformers.train.stop import Stop


def alone(stop: Stop, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a function in a process of its own.

    Args:
        stop: Of the caller; a SIGTERM is passed on, Ctrl-C reaches both processes by itself.
        work: A function of a module.
        arguments: Its arguments, which travel as pickles, as its result does.

    Raises:
        TrainingError: If it fails or its process dies.
        StoppedError: If it does so because it was asked to stop.
    """
    # A forked process would share the caller's memory, threads and GPU.
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    threads = torch.get_num_threads()
    process = spawn.Process(target=_answer, args=(theirs, threads, work, *arguments))
    process.start()
    theirs.close()
    while not ours.poll(0.1) and stop.signal != SIGTERM:
        pass
    if stop.signal == SIGTERM:
        process.terminate()
    try:
        answer = ours.recv()
    except EOFError:
        answer = None
    process.join()
    if isinstance(answer, dict):
        return answer
    if stop.signal:
        said = answer or f"stopped by {stop.signal.name}; the same command goes on"
        raise StoppedError(said, stop.signal)
    code = process.exitcode or 0
    died = f"was killed by signal {-code}, perhaps for lack of memory" if code < 0 else "failed"
    raise TrainingError(answer or f"the process {died}")


def _answer(pipe: Connection, threads: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Send what a function returns, or the sentence that says why it does not."""
    torch.set_num_threads(threads)
    try:
        pipe.send(work(*arguments))
    except SpikeformersError as error:
        pipe.send(str(error))
    except KeyboardInterrupt:
        # Whoever waits for the answer was interrupted too, and says so.
        pass
