"""What the words of `lt-sweep` do: `here` on this machine, `jobs` for running sweeps anywhere, `families`."""
