#!/bin/sh
# header_example.sh <header> <output>: the code in the header's @file paragraph.
set -eu
awk '/^#pragma once/ { exit } sub(/^\/\/\/     /, "")' "$1" > "$2"
test -s "$2" || { echo "$1: no example before #pragma once" >&2; rm -f "$2"; exit 1; }
