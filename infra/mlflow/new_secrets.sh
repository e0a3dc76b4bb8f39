#!/bin/sh
# Create secrets: `new_secrets.sh DIRECTORY NAME...` writes 32 random characters to every file that does not exist yet.
#
# Only the owner can read the directory. Its files are readable by all users, because a container that mounts one may run
# as another user. Existing files are not changed, and no secret is printed.
set -eu
directory=$1
shift
mkdir -p "$directory"
chmod 700 "$directory"
for name in "$@"; do
  file=$directory/$name
  if [ ! -s "$file" ]; then
    head -c 24 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' >"$file"
    chmod 644 "$file"
    echo "created $file"
  fi
done
