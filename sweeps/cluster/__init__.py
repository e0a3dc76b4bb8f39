"""Running sweeps as Ray jobs: the job API, uploads, secrets, and feature banks that all nodes can read."""
