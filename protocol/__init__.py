"""The rules of the swarm, and nothing else.

Pure code: no event loop, no sockets, no clock, no randomness, no tensors. Time and chance arrive as
arguments, decisions leave as effects (`effects.py`). SPEC.md in this folder numbers the rules and names
the function that holds each of them.
"""
