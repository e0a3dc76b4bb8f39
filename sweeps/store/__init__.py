"""What a sweep keeps on disk: its directory, its lease, its ledger and its progress."""
