"""Many visitors with a known history, on storages whose servers and network fail: what is lost, mixed up or late."""
