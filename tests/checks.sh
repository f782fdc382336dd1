# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced by the scripts beside it that make checks: counts them, and ends with the line that tests/run.sh reads.

passed=0
failed=0

report() { # NAME PROBLEM [LOG…]: no problem is a pass; the ends of the logs follow a failure.
    local name=$1 problem=$2
    shift 2
    if [[ -z $problem ]]; then
        passed=$((passed + 1))
        echo "ok      $name"
        return
    fi
    failed=$((failed + 1))
    echo "FAILED  $name: $problem"
    local log
    for log in "$@"; do
        tail -n 12 "$log" | sed 's/^/        /'
    done
}

# finish: the last command of such a script.
finish() {
    echo "$passed passed, $failed failed"
    [[ $failed -eq 0 && $passed -gt 0 ]]
}
