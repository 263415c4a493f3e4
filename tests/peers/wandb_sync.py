#!/usr/bin/env python3
"""Uploads tracked runs with the real `wandb sync` to a server of our own on the loopback address.

    wandb_sync.py target/release/runner     runs a small pipeline, syncs it, and compares what arrived with the JSON lines
                                            of the same run; ends with 1 at a difference
    wandb_sync.py golden FILE               writes a log by wandb itself with records longer than a block, and prints
                                            records that tests in src/track/wandb.rs compare with

Needs `pip install wandb` (0.31.0 is what was checked), and is no part of the test suite. Nothing leaves the machine.
"""

import base64
import gzip
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

import tracked


def golden(path):
    import wandb
    from wandb.proto import wandb_internal_pb2 as proto

    with tempfile.TemporaryDirectory() as folder:
        settings = wandb.Settings(
            mode="offline", root_dir=folder, run_id="abcdefgh", host="host", program="p", console="off",
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, disable_git=True, save_code=False,
        )
        run = wandb.init(project="p", settings=settings)
        run.log({"text": "x" * 33000})
        for i in range(3):
            run.log({"n": i})
        run.finish()
        [log] = pathlib.Path(folder).glob("wandb/offline-run-*/run-*.wandb")
        pathlib.Path(path).write_bytes(log.read_bytes())
    record = proto.Record(num=5)
    for key, value in (("model/history/epoch", "3"), ("_step", "0")):
        item = record.history.item.add(value_json=value)
        item.nested_key.append(key)
    record.history.step.num = 1
    record._info.stream_id = "abc"
    print(record.SerializeToString(deterministic=True).hex())
    record = proto.Record(num=6)
    record.metric.name, record.metric.step_metric, record.metric.options.defined = "m", "s", True
    record._info.stream_id = "abc"
    print(record.SerializeToString(deterministic=True).hex())


class Received:
    """What the server was sent of a run."""

    def __init__(self):
        self.bucket, self.history, self.summary, self.files, self.complete, self.exit = {}, {}, {}, {}, False, None


RECEIVED = {}


class Server(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while n := int(self.rfile.readline(), 16):
                body += self.rfile.read(n)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def reply(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply({})

    def do_PUT(self):
        _, _, run, name = self.path.split("/", 3)
        RECEIVED[run].files[name] = self.body()
        self.reply({})

    def do_POST(self):
        body = json.loads(self.body())
        if self.path != "/graphql":
            self.file_stream(self.path.split("/")[-2], body)
            return self.reply({})
        query, given = body["query"], body.get("variables") or {}
        data = {}
        if "viewer" in query:
            data["viewer"] = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        if "serverInfo" in query:
            data["serverInfo"] = {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []}
        if "upsertBucket" in query:
            run = RECEIVED.setdefault(given["name"], Received())
            run.bucket.update({key: value for key, value in given.items() if value is not None})
            project = {"id": "p", "name": given.get("project") or "p", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": given["name"], "displayName": given.get("displayName"), "project": project}
            data["upsertBucket"] = {"bucket": bucket, "inserted": True}
        if "createRunFiles" in query:
            base = f"http://127.0.0.1:{self.server.server_address[1]}/up/{given['run']}"
            files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in given["files"]]
            data["createRunFiles"] = {"runID": "b", "uploadHeaders": [], "files": files}
        self.reply({"data": data})

    def file_stream(self, name, body):
        run = RECEIVED[name]
        for file, chunk in (body.get("files") or {}).items():
            rows = [json.loads(row) for row in chunk["content"]]
            if file == "wandb-history.jsonl":
                run.history.update({chunk["offset"] + i: row for i, row in enumerate(rows)})
            elif file == "wandb-summary.json":
                run.summary = rows[-1]
        if body.get("complete"):
            run.complete, run.exit = True, body.get("exitcode")


def sync(paths):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        environment = dict(
            os.environ, HOME=home, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_address[1]}",
            WANDB_API_KEY="0" * 40, WANDB_ERROR_REPORTING="false", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1",
        )
        command = [str(pathlib.Path(sys.executable).with_name("wandb")), "sync", *map(str, paths)]
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=100)
    server.shutdown()
    print("\n".join("  " + line for line in (done.stdout + done.stderr).strip().splitlines()))
    assert done.returncode == 0, done.returncode


def check(lines, run, received):
    """Compares a run that arrived with the JSON lines; what was compared."""
    mine = [line for line in lines if "node" in line and run in tracked.combination(lines, line)]
    rows = [received.history[i] for i in sorted(received.history)]
    n_points = 0
    for line in mine:
        if line["event"] == "scalars":
            wanted = {f"{line['series']}/{name}": value for name, value in line["values"].items()}
            if line["axis"]:
                wanted[f"{line['series']}/{line['axis']}"] = line["at"]
            assert any(wanted.items() <= row.items() for row in rows), wanted
            n_points += len(wanted)
    config = {key: item["value"] for key, item in json.loads(received.bucket["config"]).items()}
    for line in mine:
        if line["event"] == "state" and line["state"] in ("stored", "cached"):
            stage = line["node"].split("[")[0]
            assert config["results"][stage]["key"] == line["key"]
            assert config["results"][stage]["state"] == line["state"]
    first = next(line for line in lines if line["event"] == "run")
    for node, stage in first["stages"].items():
        if run in tracked.combination(lines, {"node": node}):
            assert config["stages"][node.split("[")[0]]["params"] == stage["params"]
    figures = {line["name"]: base64.b64decode(line["base64"]) for line in mine if line["event"] == "figure"}
    for name, png in figures.items():
        image = received.summary[name]
        assert image["_type"] == "image-file" and image["sha256"] == hashlib.sha256(png).hexdigest()
        assert received.files[image["path"]] == png, image["path"]
    tables = {line["name"]: line["table"] for line in mine if line["event"] == "table"}
    for name, table in tables.items():
        assert json.loads(received.files[received.summary[name]["path"]])["data"] == table["rows"]
    return n_points, len(rows), len(figures), len(tables)


def main(runner):
    with tempfile.TemporaryDirectory() as folder:
        for target, is_cached in (("first", False), ("second", True)):
            RECEIVED.clear()
            lines = tracked.run(runner, folder, f"wandb={target}")
            print("cached:" if is_cached else "computed:")
            dirs = sorted((pathlib.Path(folder) / target / "wandb").iterdir())
            sync(dirs)
            names = {run.bucket["displayName"].split(" ")[-1]: run for run in RECEIVED.values()}
            assert sorted(names) == tracked.RUNS, names.keys()
            for run, received in sorted(names.items()):
                assert received.complete and received.exit == 0, run
                assert received.bucket["project"] == "tracked" and received.bucket["tags"] == ["runner"]
                counts = check(lines, run, received)
                print("  {}: {} numbers in {} rows of history, {} images, {} tables".format(run, *counts))
                print(f"    files: {', '.join(sorted(received.files))}")
            if not is_cached:
                metadata = json.loads(names["all"].files["wandb-metadata.json"])
                assert metadata["program"] == "runner", metadata
                metrics = json.loads(names["rate=0.1"].bucket["config"])["_wandb"]["value"]["m"]
                print(f"  metrics with an x-axis: {len([m for m in metrics if '5' in m])}")
        # Killed: no end, and the last record torn.
        RECEIVED.clear()
        [log] = dirs[-1].glob("run-*.wandb")
        content = log.read_bytes()
        log.write_bytes(content[: int(len(content) * 0.8)])
        log.with_suffix(".wandb.synced").unlink(missing_ok=True)
        print("torn:")
        sync([dirs[-1]])
        [received] = RECEIVED.values()
        print(f"  {len(received.history)} rows of history all the same")
        assert received.history


if __name__ == "__main__":
    golden(sys.argv[2]) if sys.argv[1] == "golden" else main(sys.argv[1])
