#!/usr/bin/env bash
# expect.sh STATUS REGEX COMMAND…: the command must end with STATUS, print one line on standard
# error that matches REGEX (an empty REGEX: print nothing there), within ten seconds.
set -u
status=$1 regex=$2
shift 2
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
timeout 10 "$@" </dev/null 2>"$errors"
got=$?
cat "$errors" >&2
if [ "$got" -ne "$status" ]; then
    echo "exit status $got, expected $status" >&2
    exit 1
fi
if [ -z "$regex" ]; then
    [ ! -s "$errors" ] || { echo "unexpected output on standard error" >&2; exit 1; }
else
    [ "$(wc -l <"$errors")" -eq 1 ] || { echo "expected exactly one line" >&2; exit 1; }
    grep -Eq -- "$regex" "$errors" || { echo "expected a match of: $regex" >&2; exit 1; }
fi
