"""Run the command line: `python -m supmim VERB ...` equals `supmim VERB ...`."""

import gc

from supmim.runtime import start_up


def main() -> None:
    """Run the console script `supmim`."""
    start_up.begin()
    from supmim.runtime import accelerator, host_memory

    if accelerator.cpu_is_asked_for() or not accelerator.visible():
        host_memory.keep_freed()
    gc.set_threshold(100_000, 20, 100)  # tracing makes many objects, and few that end in circles
    from supmim import cli

    try:
        cli.main()
    except SystemExit as end:
        cli.leave_threads(int(end.code or 0))
        raise


if __name__ == "__main__":
    main()
