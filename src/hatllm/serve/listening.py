"""Where a server listens, and who may call: settled before anything is loaded."""

import os
import socket

from hatllm.config.serve import ServeConfig

TOKEN = "HATLLM_TOKEN"  # the name of the variable
BACKLOG = 2048  # connections that wait to be taken, as uvicorn has it


def token_of(config: ServeConfig) -> str | None:
    """The bearer token of the environment; None = nobody needs one.

    Raises:
        ValueError: If others could reach the server and there is none.
    """
    token = os.environ.get(TOKEN) or None
    if token is None and not config.is_local:
        raise ValueError(
            f"task.serve.host={config.host!r} lets other machines call: set {TOKEN} to a long "
            "random text that they must send, or listen on 127.0.0.1"
        )
    return token


def listening_socket(config: ServeConfig) -> socket.socket:
    """A socket that takes connections from now on, whether somebody answers already or not.

    Raises:
        ValueError: If the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    address = (config.host.strip("[]"), config.port)
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise ValueError(
            f"task.serve.host={config.host!r}, task.serve.port={config.port} cannot be listened "
            f"to: {error.strerror}"
        ) from error
