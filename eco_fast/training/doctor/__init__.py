"""`eco-fast doctor`: what a machine is, and what on it would stop, slow down or spoil a training.

A group of checks is a module whose `checks` are functions that yield facts and findings. Each group runs in a process
of its own (`group.py`), which `examine.py` ends when its time is over: whatever a check does, the others are made.
"""
