"""`python -m fledge.cli`, as the processes of a run are started."""

import sys

from fledge.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
