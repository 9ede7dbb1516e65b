"""`python -m eco_fast`, which torchrun starts."""

import sys

from eco_fast.cli.main import main

sys.exit(main())
