"""`python -m tests.impatient VERB ...`: supmim, whose processes miss each other sooner."""

from supmim import cli
from supmim.runtime import life

if __name__ == "__main__":
    life.SILENT, life.EVERY, life.AFTER_END = 6.0, 0.5, 2.0
    cli.main()
