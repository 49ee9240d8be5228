"""The tables of a run folder: written and read back, summarised, and what follows from them.

In memory a row is a dict, whose key ``part`` holds what the file's column of the task's name tells
(``structure``); empty where cases have no parts.
"""
