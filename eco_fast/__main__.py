"""`python -m eco_fast`, which torchrun starts."""

import sys

from eco_fast.cli import main

sys.exit(main())
