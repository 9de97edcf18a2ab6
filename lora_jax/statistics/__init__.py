"""How sure a score is, whether two differ, and where the spread comes from. Numbers in, numbers
out: nothing of ours is imported.
"""
