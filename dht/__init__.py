"""Finding each other: signed, expiring records, and the directories that carry them.

Nothing that a directory says is trusted beyond its signature, and no directory decides who is in the roster.
"""
