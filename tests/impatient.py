"""`python -m tests.impatient VERB ...`: supmim, whose processes miss each other sooner.

Its runs draw no pictures, which is a fifth of a short one.
"""

from supmim import cli, train
from supmim.runtime import life

if __name__ == "__main__":
    life.SILENT, life.EVERY, life.AFTER_END = 6.0, 0.5, 2.0
    train.draw = lambda *_: None
    cli.main()
