#!/usr/bin/env python3
"""Reads a tracked run with TensorBoard itself: through its EventAccumulator, and through a started server's HTTP API.

    tensorboard_read.py target/release/runner     runs a small pipeline, and compares what TensorBoard shows with the
                                                  JSON lines of the same run; ends with 1 at a difference
    tensorboard_read.py golden                    prints the records that tests in src/track/tensorboard.rs compare with

Needs `pip install tensorboard`, and is no part of the test suite. The server listens on the loopback address alone.
"""

import base64
import io
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import tracked


def golden():
    from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    value = summary_pb2.Summary.Value

    def metadata(plugin, data_class=0, description="", content=b""):
        data = summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
        return summary_pb2.SummaryMetadata(plugin_data=data, summary_description=description, data_class=data_class)

    def show(event):
        out = io.BytesIO()
        RecordWriter(out).write(event.SerializeToString(deterministic=True))
        print(out.getvalue().hex())

    def event(step, *values):
        event = event_pb2.Event(wall_time=2.5, step=step)
        event.summary.value.extend(values)
        return event

    show(event_pb2.Event(wall_time=1.5, file_version="brain.Event:2"))
    loss = value(tag="model/history/loss", simple_value=0.5, metadata=metadata("scalars", 1, "mean [nats]"))
    show(event(3, loss, value(tag="a/b", simple_value=-2.0, metadata=metadata("scalars", 1))))
    text = tensor_pb2.TensorProto(dtype=7)
    text.tensor_shape.dim.add(size=1)
    text.string_val.append(b"hi")
    figure = value(tag="curves", metadata=metadata("images", 3, "from the cache"))
    figure.image.height, figure.image.width, figure.image.colorspace = 2, 3, 4
    figure.image.encoded_image_string = b"png"
    show(event(1, value(tag="note", tensor=text, metadata=metadata("text", 2)), figure))
    data = plugin_data_pb2.HParamsPluginData()
    data.session_start_info.hparams["model.epochs"].number_value = 12
    data.session_start_info.group_name, data.session_start_info.start_time_secs = "g", 2.5
    empty = tensor_pb2.TensorProto(dtype=1)
    empty.tensor_shape.dim.add(size=0)
    content = data.SerializeToString(deterministic=True)
    tag = "_hparams_/session_start_info"
    show(event(1, value(tag=tag, tensor=empty, metadata=metadata("hparams", content=content))))


def single(value):
    """As TensorBoard keeps numbers."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def expected(lines):
    """Scalars (step, value), tables and figures by run, from the JSON lines."""
    runs = {run: {"scalars": {}, "tables": set(), "figures": {}} for run in tracked.RUNS}
    for line in lines:
        if line["event"] not in ("scalars", "table", "figure"):
            continue
        for run in tracked.combination(lines, line):
            if line["event"] == "scalars":
                for name, value in line["values"].items():
                    points = runs[run]["scalars"].setdefault(f"{line['series']}/{name}", [])
                    points.append((line["at"] or 0, single(value)))
            elif line["event"] == "table":
                runs[run]["tables"].add(line["name"])
            else:
                runs[run]["figures"][line["name"]] = base64.b64decode(line["base64"])
    return runs


def check_accumulator(folder, wanted, is_cached):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    scalars = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    assert scalars == wanted["scalars"], (scalars, wanted["scalars"])
    images = {tag: accumulator.Images(tag)[0].encoded_image_string for tag in tags["images"]}
    assert images == wanted["figures"], (images.keys(), wanted["figures"].keys())
    texts = {tag: accumulator.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"] if "hparams" not in tag}
    assert wanted["tables"] <= texts.keys(), texts.keys()
    for table in wanted["tables"]:
        assert texts[table].startswith("*from the cache*") == is_cached, texts[table]
    assert {"run/identity", "run/parameters", "run/stages", "run/end"} <= texts.keys()
    return len(scalars), sum(map(len, scalars.values())), len(images), len(texts)


def serve(folder):
    command = [str(pathlib.Path(sys.executable).with_name("tensorboard")), "--logdir", str(folder), "--host=127.0.0.1", "--port=0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return server, found[0]
    raise SystemExit("the server did not start")


def check_server(folder, runs):
    server, address = serve(folder)

    def get(path, **query):
        with urllib.request.urlopen(f"{address}/data/{path}?{urllib.parse.urlencode(query)}") as answer:
            return answer.read()

    def post(path, body):
        request = urllib.request.Request(f"{address}/data/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    try:
        start = time.time()
        while len(json.loads(get("runs"))) < len(runs):
            assert time.time() < start + 60, get("runs")
            time.sleep(0.2)
        found = {name.split("/")[-1]: name for name in json.loads(get("runs"))}
        assert sorted(found) == sorted(runs), found
        scalar_tags = json.loads(get("plugin/scalars/tags"))
        image_tags = json.loads(get("plugin/images/tags"))
        text_tags = json.loads(get("plugin/text/tags"))
        n = 0
        for run, wanted in runs.items():
            name = found[run]
            assert set(scalar_tags.get(name, {})) == set(wanted["scalars"])
            for tag, points in wanted["scalars"].items():
                shown = json.loads(get("plugin/scalars/scalars", run=name, tag=tag))
                assert [(step, single(value)) for _, step, value in shown] == points, (tag, shown, points)
                n += len(shown)
            assert set(image_tags.get(name, {})) == set(wanted["figures"])
            for tag, png in wanted["figures"].items():
                [shown] = json.loads(get("plugin/images/images", run=name, tag=tag, sample=0))
                assert get(f"plugin/images/individualImage?{shown['query']}&") == png
                print(f"  image `{tag}` of {run}: the figure's {len(png)} bytes, step {shown['step']}")
            assert wanted["tables"] <= set(text_tags[name]), text_tags[name]
            for tag in wanted["tables"]:
                assert "<table>" in json.loads(get("plugin/text/text", run=name, tag=tag))[0]["text"]
        experiment = post("plugin/hparams/experiment", {"experimentName": ""})
        hparams = {info["name"] for info in experiment["hparamInfos"]}
        assert {"matrix.rate", "model.epochs", "model.model", "seed"} <= hparams, hparams
        request = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": [], "startIndex": 0, "sliceSize": 10}
        groups = post("plugin/hparams/session_groups", request)["sessionGroups"]
        assert len(groups) == len(runs), groups
        print(f"  server: {n} points of scalars, {len(hparams)} hyper-parameters, {len(groups)} session groups")
        description = scalar_tags[found["rate=0.1"]]["scores/clean_accuracy/model"]["description"]
        assert description, scalar_tags
        print(f"  description of scores/clean_accuracy/model: {description}")
    finally:
        server.terminate()
        server.wait()


def main(runner):
    with tempfile.TemporaryDirectory() as folder:
        for target, is_cached in (("first", False), ("second", True)):
            lines = tracked.run(runner, folder, f"tensorboard={target}")
            runs = expected(lines)
            [base] = (pathlib.Path(folder) / target / "tracked").iterdir()
            print("cached:" if is_cached else "computed:")
            for run, wanted in runs.items():
                counts = check_accumulator(base / run, wanted, is_cached)
                print("  {}: {} scalars with {} points, {} images, {} texts".format(run, *counts))
            check_server(pathlib.Path(folder) / target, runs)
        # Killed: the last record is torn.
        [file] = (base / "rate=0.1").iterdir()
        file.write_bytes(file.read_bytes()[:-5])
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        accumulator = EventAccumulator(str(base / "rate=0.1"), size_guidance={"scalars": 0})
        accumulator.Reload()
        n_tags = len(accumulator.Tags()["scalars"])
        assert n_tags == len(runs["rate=0.1"]["scalars"])
        print(f"torn at the end: {n_tags} scalars all the same")


if __name__ == "__main__":
    golden() if sys.argv[1] == "golden" else main(sys.argv[1])
