"""vLLM's own server for a load: processes that end with the one that asked for them.

::

    measured process -- this module's main (its group) -- api_server -- engine core

vLLM's engine core does not notice the end of its parents. The main here does, and takes the whole
group along.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from orchestrator.engines.endpoint.client import Endpoint
from orchestrator.engines.endpoint.engine import EndpointModel, EndpointSession
from orchestrator.engines.port import Footprint, Work
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.measure import HostClock, Identity, InputError, Recorder

if TYPE_CHECKING:
    from orchestrator.engines.transformers import Prepared

_PR_SET_PDEATHSIG = 1
_NAME = "served"
_READY_EVERY_S = 0.1
_LOCAL_TIMEOUT_S = 5.0
# Another process may take the port between our look and the server's start.
_PORTS = 3


class ServedVllm(EndpointSession):
    """A server of vLLM, loaded and ready.

    Parameters
    ----------
    dtype : str
        As vLLM calls it.
    limits : mapping
        vLLM's options for memory.
    """

    def __init__(
        self,
        identity: Identity,
        prepared: Prepared,
        dtype: str,
        size: Footprint,
        work: Work,
        limits: Mapping[str, float],
    ) -> None:
        self._prepared, self._size = prepared, size
        self._group: subprocess.Popen[bytes] | None
        self._group, port = ready_server(
            lambda port: _start([*_words(identity, prepared, dtype, work, port), *_options(limits)])
        )
        clock = HostClock()
        server = Endpoint(f"http://127.0.0.1:{port}/v1", None, clock.now_ns)
        server.model = _NAME
        asked = {**identity, "engine": {"key_variable": None}}
        try:
            super().__init__(EndpointModel(server, {}, asked, clock), work)
        except BaseException:
            self.close()
            raise
        self.context_tokens = prepared.context_tokens

    def ready(self, recorder: Recorder) -> None:
        recorder.fact("server", "vllm.entrypoints.openai.api_server")

    def footprint(self) -> Footprint:
        return self._size

    def tokenizer(self) -> Tokenizer | str:
        from orchestrator.engines.transformers.tokens import load_tokenizer

        return load_tokenizer(self._prepared, trust_remote_code=False)

    def close(self) -> None:
        if self._group is not None:
            os.killpg(self._group.pid, signal.SIGKILL)
            self._group.wait()
            self._group = None


def _words(identity: Identity, prepared: Prepared, dtype: str, work: Work, port: int) -> list[str]:
    room = work.tokens + 2
    words = {
        "model": prepared.directory,
        "served-model-name": _NAME,
        "host": "127.0.0.1",
        "port": port,
        "dtype": dtype,
        "max-model-len": min(room, prepared.context_tokens or room),
        "max-num-seqs": work.batch_size,
        "seed": identity["seed"],
    }
    reuse = work.reuse or work.turns > 1
    flags = ["--enable-prefix-caching" if reuse else "--no-enable-prefix-caching"]
    if identity["engine"]["enforce_eager"]:
        flags.append("--enforce-eager")
    return [*_options(words), *flags]


def _options(values: Mapping[str, object]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def _start(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__, *words],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def ready_server(
    start: Callable[[int], subprocess.Popen[bytes]],
) -> tuple[subprocess.Popen[bytes], int]:
    """A server that answers, and its port: another one where a start fails.

    Raises
    ------
    InputError
        All starts ended before the server was ready.
    """
    for _ in range(_PORTS):
        port = _free_port()
        server = start(port)
        if _is_ready(server, f"http://127.0.0.1:{port}/health"):
            return server, port
    raise InputError(
        "vLLM's server ended before it was ready; the attempt's log says why", where="engine=vllm"
    )


def _is_ready(server: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until it answers; False where it has ended."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None:
        try:
            with direct.open(url, timeout=_LOCAL_TIMEOUT_S):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(_READY_EVERY_S)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[1:]]
    sys.exit(subprocess.call(command))


if __name__ == "__main__":
    _main()
