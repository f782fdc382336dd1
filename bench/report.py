#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tables of Google Benchmark's JSON.

report.py --exits RAW.json [--components RAW.json] --json OUT.json [--compare OLD.json] [--machine NAME]

Of exits: one row a workload, one column an engine.  A cell is the median of the repetitions and, behind it, their
spread: (maximum - minimum) / median.  Of components: one row an access pattern and size, one column a structure, and
the time of the library's over that of the best of the others.
OUT.json keeps medians and spreads by "engine/workload" and "find/layout/access/size/structure", and resident memory.
"""

import argparse
import json
import platform
import statistics

RATIO_BASE = "dev_kvm"


def nanoseconds(run):
    # Workloads that do many things in one run report the time of one as a counter.
    if "ns" in run:
        return run["ns"]
    # What a thread used, where it waits for nobody: the machine may be busy.
    time = run["real_time"] if "_time" in run["run_name"] else run["cpu_time"]
    return time * {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[run["time_unit"]]


def medians(raw, name_of):
    samples = {}
    # In the order of registration: the runs are interleaved at random.
    for run in sorted(raw["benchmarks"], key=lambda run: run["family_index"]):
        if run.get("run_type") == "iteration" and not run.get("error_occurred"):
            samples.setdefault(name_of(run), []).append(nanoseconds(run))
    return {
        name: {
            "median_ns": statistics.median(values),
            "spread": (max(values) - min(values)) / statistics.median(values),
        }
        for name, values in samples.items()
    }


def exit_name(run):
    # "soft/pio_out/iterations:2000/manual_time"
    return "/".join(run["run_name"].split("/")[:2])


def resident_memory(raw):
    memory = {}
    for run in raw["benchmarks"]:
        for counter in ("bytes_vm", "bytes_vcpu"):
            if counter in run and run.get("run_type") == "iteration":
                memory.setdefault(f"{run['run_name'].split('/')[0]} {counter[6:]}", []).append(run[counter])
    # The largest: later repetitions find the allocator's memory resident already.
    return {name: max(values) for name, values in memory.items()}


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


def print_exits(results, old):
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
    print_rows(rows)


def print_rows(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


OTHERS = {"std_map": "std::map", "sorted_vector": "sorted vector", "icl_interval_map": "Boost.ICL"}
OURS = {"range_map_hint": "RangeMap, hint", "range_map": "RangeMap"}


def print_components(results):
    """Look-ups of the slot table's and the buses' map beside the obvious choices."""
    times = {}
    for name, result in results.items():
        parts = name.split("/")
        if parts[0] == "find":
            _, layout, access, size, who = parts
            times.setdefault((layout, access, int(size)), {})[who] = result["median_ns"]
    rows = [["ns a look-up"] + list(OURS.values()) + list(OTHERS.values()) + [f"{o} : best other" for o in OURS.values()]]
    for (layout, access, size), by in sorted(times.items()):
        best = min(by[who] for who in OTHERS)
        rows.append(
            [f"{size:,} {layout} ranges, {access}"]
            + [f"{by[who]:.1f}" for who in (*OURS, *OTHERS)]
            + [f"{by[who] / best:.2f}" for who in OURS]
        )
    print_rows(rows)
    whole = [by for by in times.values() if "memslot_table_with_epoch" in by]
    if whole:
        epoch = statistics.median(by["memslot_table_with_epoch"] - by["range_map_hint"] for by in whole)
        print(f"Entering and leaving the epoch adds {epoch:.0f} ns to a look-up in the whole slot table (median).")
    if "reader/alone" in results and "reader/beside_a_writer" in results:
        ratio = results["reader/beside_a_writer"]["median_ns"] / results["reader/alone"]["median_ns"]
        print(f"A reader's look-up beside a writer that publishes without pause takes {ratio:.2f} times as long as alone.")


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--exits", required=True)
    parser.add_argument("--components")
    parser.add_argument("--json", required=True)
    parser.add_argument("--compare")
    parser.add_argument("--machine", default=f"{cpu_name()}, Linux {platform.release()}")
    arguments = parser.parse_args()

    raw = load(arguments.exits)
    exits = medians(raw, exit_name)
    memory = resident_memory(raw)
    components = {}
    if arguments.components:
        components = medians(load(arguments.components), lambda run: run["run_name"].replace("/real_time", ""))
    old = load(arguments.compare)["results"] if arguments.compare else {}
    with open(arguments.json, "w", encoding="utf-8") as file:
        json.dump({"machine": arguments.machine, "results": exits | components, "resident_bytes": memory}, file, indent=1)
    print(arguments.machine)
    print_exits(exits, old)
    for name, size in memory.items():
        print(f"resident memory of an idle {name} (mean of 1,000 in one process): {size / 1024:.0f} KiB")
    if components:
        print()
        print_components(components)


if __name__ == "__main__":
    main()
