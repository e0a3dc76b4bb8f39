"""The command line `lt-sweep`."""
