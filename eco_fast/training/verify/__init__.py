"""`eco-fast verify`: whether a run's networks came from its recipe, by making parts of the training again.

A step is a function of the recipe, the images, the seed and the state before it, and a checkpoint holds all of that
state. So every kept checkpoint can be made again from the one before it.
"""
