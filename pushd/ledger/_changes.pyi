from pushd.ledger._cold import PatchedPart
from pushd.ledger._ledger import Ledger
from pushd.ledger._loading import load_part as load_part
from pushd.ledger._loading import renumber as renumber
from pushd.ledger._replay import ready as ready
from pushd.ledger._replay import replay as replay

LOG_BYTES: int

def take_changes(
    ledger: Ledger, log_bytes: int = ..., take_bytes: int = ..., memory: int = ...
) -> tuple[int, bytes, list[tuple[int, bytes | PatchedPart | None]], int]: ...
def has_changes(ledger: Ledger) -> bool: ...
