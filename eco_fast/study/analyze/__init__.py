"""`eco-fast analyze`: measurements on the kept checkpoints of runs."""
