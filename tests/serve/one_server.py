"""`python one_server.py WHAT PORT`: a supervised server of a moment, without torch and models.

`GET /pid` answers with the process that serves, `GET /slow` once the file `go` is there.
"""

import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hatllm.serve.supervisor import Supervisor

MAX_RESTARTS = 2


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/slow":
            Path("begun").touch()
            while not Path("go").exists():
                time.sleep(0.01)
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def answer(what: str, listening: socket.socket) -> None:
    if what == "refused":
        raise ValueError("the run has no weights")
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
    server.daemon_threads = False  # the end waits for what is in flight
    server.socket = listening
    end = threading.Thread(target=server.shutdown)
    signal.signal(signal.SIGTERM, lambda *_: end.start())
    server.serve_forever(0.01)
    server.server_close()


if __name__ == "__main__":
    what, port = sys.argv[1:]
    with socket.create_server(("127.0.0.1", int(port))) as listening:
        print(listening.getsockname()[1], flush=True)
        try:
            Supervisor(partial(answer, what), MAX_RESTARTS).run(listening)
        except (ValueError, OSError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
