"""How jobs run: files, locks, logs and records. Not in the code digest: no result depends on it."""
