#!/bin/sh
# Make secrets: `new_secrets.sh DIRECTORY NAME...` writes 32 random characters into each file that is not there yet.
#
# The directory is its owner's alone. The files in it are not, because a container that is given one may run as another
# user. Nothing of them is printed; a file that is there stays as it is.
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
    echo "made $file"
  fi
done
