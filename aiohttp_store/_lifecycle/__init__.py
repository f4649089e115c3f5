"""The life of a request: `setup`, `get_session`, when a session is saved, and what a failure becomes."""
