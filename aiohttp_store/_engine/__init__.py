"""What loads, merges and saves sessions, in a storage or in the cookie itself."""
