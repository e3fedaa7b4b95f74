"""Run the command line: `python -m supmim VERB ...` equals `supmim VERB ...`."""

from supmim.runtime import start_up


def main() -> None:
    """Run the console script `supmim`."""
    start_up.begin()
    from supmim import cli

    try:
        cli.main()
    except SystemExit as end:
        cli.leave_threads(int(end.code or 0))
        raise


if __name__ == "__main__":
    main()
