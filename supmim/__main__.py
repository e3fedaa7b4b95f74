"""`python -m supmim VERB ...` is the same as `supmim VERB ...`."""

from supmim.cli import main

if __name__ == "__main__":
    main()
