"""The token of a cluster that is joined: found as Ray finds it, used where the head asks for one.

Ray sends a token only where ``RAY_AUTH_MODE=token`` is set, while a head asks for one as soon as it
finds one on its own host. Left to itself Ray then tries for 20 s, warns every second and names
neither. The head is asked once here, before Ray connects.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from orchestrator.errors import ClusterError
from orchestrator.schedule.cluster.ray.head import Head
from orchestrator.schedule.cluster.ray.variables import variables

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
FIX = f"Type `export {TOKEN}=…` with what `ray get-auth-token` prints on the head"


def show_token(address: str, stack: contextlib.ExitStack) -> None:
    """Let Ray use the token it can find, until ``stack`` ends, if the head asks for one.

    Parameters
    ----------
    address : str
        The head, as HOST:PORT.
    stack : contextlib.ExitStack
        Of the connection.

    Raises
    ------
    ClusterError
        The head asks for a token and there is none here, or it rejects this one.
    """
    try:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
    except ImportError:
        return  # a Ray that knows no tokens
    read_variables_again()
    where = f"cluster.address={address}"
    if not is_token_auth_enabled():
        if not _rejected(address):
            return
        if MODE in os.environ:
            what = f"the head requires a token, and {MODE}={os.environ[MODE]} uses none"
            raise ClusterError(what, where=where, fix=f"Type `export {MODE}=token`")
    if not _has_token():
        raise ClusterError(f"the head requires a token; none in {_source()}", where=where, fix=FIX)
    stack.enter_context(variables({MODE: "token"}))
    read_variables_again()
    if _rejected(address):
        raise ClusterError(f"the head rejects the token in {_source()}", where=where, fix=FIX)


def read_variables_again() -> None:
    """Let Ray see what the environment says of tokens now: it reads that once a process."""
    from ray import _raylet

    raylet: Any = _raylet  # its stub lacks both
    with contextlib.suppress(AttributeError):  # a Ray that knows no tokens
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        raylet.Config.initialize("")


def _has_token() -> bool:
    from ray import _raylet
    from ray.exceptions import AuthenticationError

    raylet: Any = _raylet
    try:
        return bool(raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError:
        return False  # RAY_AUTH_TOKEN_PATH names no file, or an empty one


def _source() -> str:
    """Where Ray looks for the token."""
    if os.environ.get(TOKEN):
        return TOKEN
    if TOKEN_PATH in os.environ:
        return f"{TOKEN_PATH}={os.environ[TOKEN_PATH]}"
    return str(Path.home() / ".ray" / "auth_token")


def _rejected(address: str) -> bool:
    """Whether the head wants another token than it is given."""
    import grpc

    with contextlib.closing(Head(address)) as head:
        try:
            head.cluster_id()
        except grpc.RpcError as error:
            # Whatever else it may be (TLS, another version), Ray itself will say.
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False
