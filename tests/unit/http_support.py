"""What unit tests of HTTP share: an application that says little, and a transport that notes what is done to it."""

from __future__ import annotations

import asyncio
from typing import Any

from pushd.http.messages import Request, Response


class Application:
    """Answers everything at once with its path, unless `error` is set: then it raises that."""

    answer_within_s = 60.0

    def __init__(self) -> None:
        self.error: Exception | None = None

    def _say(self, text: str, status: int = 200) -> Response:
        if self.error is not None:
            raise self.error
        return Response(status, text.encode())

    def judge_head(self, request: Request) -> Response | bool:
        return self._say("").status == 200

    def handle(self, request: Request) -> Response:
        return self._say(request.path)

    def too_late(self) -> Response:
        return self._say("too late", 503)

    def failure(self, status: int, text: str) -> Response:
        return self._say(text, status)

    def share(self, request: Request | None, response: Response) -> Response:
        response.headers += (("X-Shared", self._say("yes").body.decode()),)
        return response

    def admit(self, request: Request) -> str:
        return self._say("admitted").body.decode()

    def attach(self, transport: asyncio.Transport, request: Request, upgrade: str, tail: bytes) -> None:
        self._say("")


class Transport(asyncio.Transport):
    """Notes what was written, and whether reading goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.unsent_bytes = 0
        self.is_paused = False
        self.is_aborted = False
        self.resumed = 0

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.written += map(bytes, list_of_data)

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self.is_aborted

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False
        self.resumed += 1

    def abort(self) -> None:
        self.is_aborted = True
