"""`python -m tuner` is the command `tune`."""

import sys

from tuner.cli import main

sys.exit(main())
