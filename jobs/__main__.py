"""`python -m jobs JOB ...`: the same as the command `mma-mrnnet`."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
