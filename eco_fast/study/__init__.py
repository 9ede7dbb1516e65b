"""Studies of the paper: runs compared with one another and with its numbers."""
