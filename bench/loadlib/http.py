"""As much HTTP/1.1 as a publisher needs: requests out, answers in."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from bench.loadlib.options import LoadError, Options

MAX_RETRY_AFTER_S = 30.0
UPGRADE = "upgrade refused"
_CONTENT_LENGTH = b"\r\ncontent-length:"
_RETRY_AFTER = b"\r\nretry-after:"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    head: bytes
    body: bytes

    @property
    def retry_after_s(self) -> float:
        """What Retry-After asks for, 1 s if it says nothing of use."""
        text = _field(self.head, _RETRY_AFTER)
        return min(MAX_RETRY_AFTER_S, float(text)) if text.isdigit() else 1.0

    @property
    def error(self) -> tuple[str, str]:
        """Code and text of an error as the daemon words it."""
        try:
            said = json.loads(self.body)
            return str(said["error"]), _one_line(str(said["message"]))
        except (ValueError, KeyError, TypeError):
            return "", _one_line(self.body[:80].decode(errors="replace"))


class AnswerParser:
    """Bytes in, whole answers out. Only answers that state their length; raises LoadError at others."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Answer]:
        """The answers that are complete now."""
        buffer = self._buffer + data if self._buffer else data
        answers: list[Answer] = []
        at = 0
        while (end := buffer.find(b"\r\n\r\n", at)) >= 0:
            head = buffer[at:end]
            length = _field(head, _CONTENT_LENGTH)
            if not head.startswith(b"HTTP/1.") or not length.isdigit() or not head[9:12].isdigit():
                raise LoadError("what answers there does not speak HTTP as the daemon does")
            body_end = end + 4 + int(length)
            if len(buffer) < body_end:
                break
            answers.append(Answer(int(head[9:12]), head, buffer[end + 4 : body_end]))
            at = body_end
        self._buffer = buffer[at:]
        return answers


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _field(head: bytes, name: bytes) -> bytes:
    at = head.lower().find(name)
    if at < 0:
        return b""
    at += len(name)
    end = head.find(b"\r\n", at)
    return (head[at:end] if end >= 0 else head[at:]).strip()


def advice(answer: Answer, what: str) -> LoadError:
    """A refusal in one line, with what to do about it."""
    code, text = answer.error
    hint = {
        401: "; give --secret or --api-key",
        403: "" if what == UPGRADE else "; the credentials need an admin role (--admin-role, --token-template)",
        404: "; is the URL's path right?" if what == UPGRADE else "; is --api-prefix right?",
        429: "; lower --rate or raise the daemon's limits",
    }.get(answer.status, "")
    return LoadError(f"{what}: {answer.status} {code}: {text}{hint}")


def request(options: Options, method: str, path: str, credentials: str, body_size: int | None = None) -> bytes:
    """The head of a request; with `body_size` None it ends there, else a %d waits for the body's size."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {options.authority}"]
    if credentials:
        lines.append(f"Authorization: Bearer {credentials}")
    if body_size is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {body_size}"]
    return "\r\n".join([*lines, "", ""]).encode()


async def fetch(options: Options, address: str, path: str, credentials: str) -> Answer:
    """GET on a connection of its own. Raises LoadError."""
    try:
        async with asyncio.timeout(options.timeout_s):
            reader, writer = await asyncio.open_connection(address, options.port)
            try:
                writer.write(request(options, "GET", path, credentials))
                parser = AnswerParser()
                while data := await reader.read(65_536):
                    if answers := parser.feed(data):
                        return answers[0]
            finally:
                writer.close()
    except TimeoutError:
        raise LoadError(f"no answer from {options.authority} within {options.timeout_s:g} s") from None
    except OSError as error:
        raise LoadError(f"{options.authority}: {error.strerror or error}") from None
    raise LoadError(f"{options.authority} closed the connection instead of answering")
