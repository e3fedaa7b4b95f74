"""Run the command line: `python -m supmim VERB ...` equals `supmim VERB ...`."""

from supmim.cli import main

if __name__ == "__main__":
    main()
