"""Reading a compiled program: what it moves between chips and to and from memory.

XLA's own cost analysis counts the body of a loop once and knows nothing of collectives, so
the text of the optimised program is read instead: loops with their trip counts, collectives
with their groups, and arrays that lie in main memory (others carry S(1): on-chip memory).
"""
