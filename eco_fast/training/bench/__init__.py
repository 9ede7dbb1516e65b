"""`eco-fast bench`: how fast a recipe trains here, and beside what.

Every round times all ways one after the other, so that a change of the machine's speed hits all alike; ratios are those
of a round, and what is said of them is their median and their quartiles.
"""
