from collections.abc import Callable

from pushd.ledger._ledger import Ledger

class PatchedPart:
    def made(self, stored: bytes | None) -> bytes: ...

def forget_patches(ledger: Ledger) -> None: ...
def newest(
    ledger: Ledger, number: int, limit: int, read: Callable[[int], bytes | None]
) -> list[tuple[int, int, int, int, int, int]]: ...
