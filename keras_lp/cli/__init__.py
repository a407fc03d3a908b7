"""The command line, made of what the library's functions return.

Exit codes: 0 for success, 1 where the work failed, 2 where the command was not understood.
"""
