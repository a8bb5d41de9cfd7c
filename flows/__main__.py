"""`python -m flows` is the `nightmill` command."""

import sys

from flows.cli import main

sys.exit(main())
