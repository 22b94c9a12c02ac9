"""Arguments in, exit status out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.loadlib.options import LoadError, parse
from bench.loadlib.report import table, write_json
from bench.loadlib.run import measure


def run(argv: Sequence[str]) -> int:
    """0 everything arrived; 1 losses, or nothing could be measured; 2 wrong usage; 130 interrupted."""
    options = parse(argv)
    try:
        report = measure(options)
        print(table(options, report))
        if options.json_file:
            write_json(options, report)
    except LoadError as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("load: interrupted", file=sys.stderr)
        return 130
    return 1 if report.has_losses else 0
