#!/usr/bin/env python3
"""A pipeline of trivial stages under `runner`, ninja and Snakemake, in the same run.

usage: thousand_stages.py RUNNER_BINARY [--stages 1000] [--lanes 10] [--rounds 5] [--no-snakemake]

The graph: `lanes` chains side by side; a stage reads the stage before it in its lane and in the next lane. A stage of
`runner` makes a table; a rule of the others runs `echo N > out`. Cold runs execute everything; no-op runs find
everything up to date. Times are wall seconds and CPU seconds (user + system of the whole process tree) of whole
processes, medians over the rounds, the fast tools taken in turn within each round. Every timed no-op follows an
untimed one of the same command, so that nobody pays for the caches that the tool before left cold.
"""
import argparse, os, resource, shutil, statistics, subprocess, tempfile, time


def graph(n, lanes):
    for i in range(n):
        lane, depth = i % lanes, i // lanes
        above = [] if depth == 0 else sorted({(depth - 1) * lanes + lane, (depth - 1) * lanes + (lane + 1) % lanes})
        yield i, above


def write_runner(path, n, lanes):
    lines = ['name = "thousand"']
    for i, above in graph(n, lanes):
        lines += [f"[stages.s{i}]", 'stage = "test/echo"', f"value = {i}.0"]
        if above:
            lines.append("from = { tables = [%s] }" % ", ".join(f'"s{a}"' for a in above))
    open(path, "w").write("\n".join(lines) + "\n")


def write_ninja(path, n, lanes):
    lines = ["rule echo", "  command = echo $value > $out"]
    for i, above in graph(n, lanes):
        lines += [f"build out/{i}: echo " + " ".join(f"out/{a}" for a in above), f"  value = {i}"]
    open(path, "w").write("\n".join(lines) + "\n")


def write_snakemake(path, n, lanes):
    lines = [f"rule all:\n    input: [f'out/{{i}}' for i in range({n})]\n"]
    for i, above in graph(n, lanes):
        inputs = ", ".join(f"'out/{a}'" for a in above)
        lines.append(f"rule s{i}:\n" + (f"    input: {inputs}\n" if above else "") + f"    output: 'out/{i}'\n    shell: 'echo {i} > {{output}}'\n")
    open(path, "w").write("\n".join(lines))


def timed(command, cwd):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command} failed: {done.stderr.decode()[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runner")
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--lanes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-snakemake", action="store_true")
    args = parser.parse_args()
    runner = os.path.abspath(args.runner)
    root = tempfile.mkdtemp(prefix="thousand")
    dirs = {name: os.path.join(root, name) for name in ("runner", "ninja", "snakemake")}
    for path in dirs.values():
        os.mkdir(path)
    open(os.path.join(dirs["runner"], "runner.toml"), "w").close()
    write_runner(os.path.join(dirs["runner"], "p.toml"), args.stages, args.lanes)
    write_ninja(os.path.join(dirs["ninja"], "build.ninja"), args.stages, args.lanes)
    write_snakemake(os.path.join(dirs["snakemake"], "Snakefile"), args.stages, args.lanes)
    os.environ.pop("RUNNER_CACHE", None)
    tools = {
        "runner run": ("runner", [runner, "run", "p.toml", "--quiet"]),
        "ninja": ("ninja", ["ninja", "-j2"]),
        "snakemake": ("snakemake", ["snakemake", "-j2", "--quiet", "all"]),
    }
    if args.no_snakemake or not shutil.which("snakemake"):
        tools.pop("snakemake")
    if not shutil.which("ninja"):
        tools.pop("ninja")
    print(f"{args.stages} stages in {args.lanes} lanes, {os.cpu_count()} cores")
    print(f"{'':24}{'wall ms':>10}{'CPU ms':>10}{'CPU ms/stage':>14}")
    for name, (where, command) in tools.items():
        # Snakemake takes its time; the others start from nothing three times.
        # Nothing is removed in between: ext4 is slow to make files right after many were removed.
        runs = []
        for i in range(1 if name == "snakemake" else 3):
            fresh = f"{dirs[where]}-{i}"
            shutil.copytree(dirs[where], fresh)
            runs.append(timed(command, fresh))
        dirs[where] = fresh
        wall, cpu = (statistics.median(run[k] for run in runs) for k in (0, 1))
        print(f"{'cold  ' + name:24}{wall * 1e3:10.1f}{cpu * 1e3:10.1f}{cpu * 1e3 / args.stages:14.2f}   wall {wall * 1e3 / args.stages:.2f} ms a stage")
    tools["runner plan"] = ("runner", [runner, "plan", "p.toml"])
    tools["runner status"] = ("runner", [runner, "status", "p.toml"])
    samples = {name: [] for name in tools}
    # Snakemake by itself: for a while after it, the others take up to twice as long.
    for together in (["runner run", "runner plan", "runner status", "ninja"], ["snakemake"]):
        for _ in range(args.rounds):
            for name in together:
                if name in tools:
                    where, command = tools[name]
                    timed(command, dirs[where])
                    samples[name].append(timed(command, dirs[where]))
    for name, rows in samples.items():
        wall, cpu = (statistics.median(r[k] for r in rows) * 1e3 for k in (0, 1))
        print(f"{'no-op ' + name:24}{wall:10.1f}{cpu:10.1f}")
    if "ninja" in samples:
        ratios = [a[0] / b[0] for a, b in zip(samples["runner run"], samples["ninja"])]
        print(f"no-op wall, runner / ninja, median of pairs: {statistics.median(ratios):.2f}")
    if "snakemake" in samples:
        ratios = [b[0] / a[0] for a, b in zip(samples["runner run"], samples["snakemake"])]
        print(f"no-op wall, snakemake / runner, median of pairs: {statistics.median(ratios):.0f}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
