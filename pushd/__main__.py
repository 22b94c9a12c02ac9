"""`python -m pushd`, `pushd` and `pushd-server`."""

from pushd import signals, streams


def main() -> int:
    """The exit status. What must come first comes before the rest of the program is imported."""
    heard = signals.Signals()
    heard.hold()
    streams.insist_on_utf8()
    streams.prepare()
    from pushd import cli

    return cli.main(signals=heard)


if __name__ == "__main__":
    raise SystemExit(main())
