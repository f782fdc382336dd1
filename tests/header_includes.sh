#!/bin/sh
# header_includes.sh <compiler> <include directory> <header>: of this library, the header pulls in
# exactly what it says it does, and nothing of any other library.
set -eu
compiler=$1 include=$2 header=$3

text=$(awk '/^#pragma once/ { exit } sub(/^\/\/\/ ?/, "")' "$include/vmm/$header" | tr '\n' ' ')
case $text in
*"Includes of this library: "*)
    said=${text#*Includes of this library: }
    said=$(printf '%s' "${said%%.  Links*}" | tr -d ' ' | tr ',' '\n' | sort) ;;
*"Includes nothing else of this library."*) said= ;;
*) echo "$header does not say what it includes"; exit 1 ;;
esac

all=$("$compiler" -std=c++20 -M -x c++ -I "$include" "$include/vmm/$header" |
    tr -d '\\' | tr ' ' '\n' | sed '/^$/d; 1d')
found=$(printf '%s\n' "$all" | sed -n "s|^$include/vmm/||p" | grep -vx "$header" | sort || true)
if [ "$said" != "$found" ]; then
    printf '%s says it includes:\n%s\nand includes:\n%s\n' "$header" "$said" "$found"
    exit 1
fi
if printf '%s\n' "$all" | grep -E '/(boost|fmt|spdlog|Zydis|gtest|benchmark)/'; then
    echo "$header includes another library"
    exit 1
fi
