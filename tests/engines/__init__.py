"""Other servers than those of every run: `make test-engines` starts them.

No file here is called `test_*.py`, so that `make test` leaves them out.
"""
