"""What a job of a Ray cluster needs: the job API, what travels with a sweep, secrets in files, banks for every node."""
