"""The command line `lt-train`, and what it shares with `lt-sweep`."""
