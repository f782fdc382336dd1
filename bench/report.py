#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a table of Google Benchmark's JSON: one row a workload, one column an engine.

report.py RAW.json OUT.json [--compare OLD.json]

A cell is the median of the repetitions and, behind it, their spread: (maximum - minimum) / median.
OUT.json keeps medians and spreads by "engine/workload", and resident memory.
"""

import json
import platform
import statistics
import sys

RATIO_BASE = "dev_kvm"


def nanoseconds(run):
    # Workloads that do many things in one run report the time of one as a counter.
    if "ns" in run:
        return run["ns"]
    return run["real_time"] * {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[run["time_unit"]]


def medians(raw):
    samples = {}
    memory = {}
    # In the order of registration: the runs are interleaved at random.
    for run in sorted(raw["benchmarks"], key=lambda run: run["family_index"]):
        if run.get("run_type") == "iteration" and not run.get("error_occurred"):
            # "soft/pio_out/iterations:2000/manual_time"
            name = "/".join(run["run_name"].split("/")[:2])
            samples.setdefault(name, []).append(nanoseconds(run))
            for counter in ("bytes_vm", "bytes_vcpu"):
                if counter in run:
                    memory.setdefault(f"{name.split('/')[0]} {counter[6:]}", []).append(run[counter])
    # Of memory the largest: later repetitions find the allocator's memory resident already.
    return {
        name: {
            "median_ns": statistics.median(values),
            "spread": (max(values) - min(values)) / statistics.median(values),
        }
        for name, values in samples.items()
    }, {name: max(values) for name, values in memory.items()}


def cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "unknown CPU"


def time_text(ns):
    for limit, divisor, unit in ((1e3, 1, "ns"), (1e6, 1e3, "us"), (1e9, 1e6, "ms")):
        if ns < limit:
            return f"{ns / divisor:.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


def print_table(results, old):
    engines = sorted({name.split("/")[0] for name in results}, key=lambda e: (e == RATIO_BASE, e))
    workloads = list(dict.fromkeys(name.split("/")[1] for name in results))
    compared = [e for e in engines if e != RATIO_BASE and RATIO_BASE in engines]
    head = ["workload"] + [f"{e} (spread)" for e in engines] + [f"{RATIO_BASE} : {e}" for e in compared]
    if old:
        head += [f"{e} now : before" for e in engines]
    rows = [head]
    for workload in workloads:
        row = [workload]
        for engine in engines:
            r = results.get(f"{engine}/{workload}")
            row.append(f"{time_text(r['median_ns'])} ({r['spread']:.0%})" if r else "-")
        base = results.get(f"{RATIO_BASE}/{workload}")
        for engine in compared:
            r = results.get(f"{engine}/{workload}")
            row.append(f"{base['median_ns'] / r['median_ns']:.1f}" if base and r else "-")
        for engine in engines if old else []:
            now, before = results.get(f"{engine}/{workload}"), old.get(f"{engine}/{workload}")
            row.append(f"{now['median_ns'] / before['median_ns']:.2f}" if now and before else "-")
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for number, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def main():
    arguments = sys.argv[1:]
    old = {}
    if "--compare" in arguments:
        at = arguments.index("--compare")
        with open(arguments[at + 1], encoding="utf-8") as file:
            old = json.load(file)["results"]
        del arguments[at : at + 2]
    with open(arguments[0], encoding="utf-8") as file:
        results, memory = medians(json.load(file))
    machine = f"{cpu_name()}, Linux {platform.release()}"
    with open(arguments[1], "w", encoding="utf-8") as file:
        json.dump({"machine": machine, "results": results, "resident_bytes": memory}, file, indent=1)
    print(machine)
    print_table(results, old)
    for name, size in memory.items():
        print(f"resident memory of an idle {name} (mean of 1,000 in one process): {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
