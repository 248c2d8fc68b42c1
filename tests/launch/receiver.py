"""A server on this machine that receives messages through apprise's json://."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

SECRET = 2 * "hunter2"  # so that it is not in a copy of this file


class Server(HTTPServer):
    """Keeps what is posted to it while its context is open, and answers with a status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posts: list[dict[str, Any]] = []
        self.status = 200
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        super().__exit__(*error)

    def url(self) -> str:
        return f"json://ada:{SECRET}@127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body["password"] = (
            base64.b64decode(self.headers["Authorization"].split()[1]).decode().partition(":")[2]
        )
        self.server.posts.append(body)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Prints nothing."""
