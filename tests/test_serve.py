"""The server as its users meet it: real processes, real scans, and every refusal."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from serving import REPOSITORY, WAIT_SECONDS, Half, Running, running

from rare_trt.cli import main
from rare_trt.serving.client import Client, UnixConnection

pytest.importorskip("uvicorn", reason="needs the extra serve")

MEGABYTE = 1 << 20
SECRET = "SMITH^JOHN"


@pytest.fixture(scope="module")
def place(cache_folder: Path) -> Iterator[Path]:
    """A folder for sockets with a short path, and the cache for every server of this module."""
    before = os.environ.get("RARE_TRT_CACHE")
    os.environ["RARE_TRT_CACHE"] = str(cache_folder)
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        yield Path(folder)
    if before is None:
        del os.environ["RARE_TRT_CACHE"]
    else:
        os.environ["RARE_TRT_CACHE"] = before


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Running]:
    """The shipped package on a socket."""
    with running("--socket", place / "s", "--queue", "2", "--max-upload", "1") as found:
        yield found


@pytest.fixture
def scan(examples: Path) -> Path:
    return examples / "hippocampus_2mm.nii.gz"


def unpacked(body: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(body)) as files:
        assert files.testzip() is None
        return {name: files.read(name) for name in files.namelist()}


def infer(scan: Path, out: Path, *options: str) -> dict[str, bytes]:
    """Every output of `rare-trt infer`, by what it is."""
    paths = {"labels": out / "l.nii.gz", "report": out / "r.json", "picture": out / "p.png"}
    arguments = ["infer", str(scan), "-o", str(paths["labels"]), "--report", str(paths["report"])]
    assert main([*arguments, "--picture", str(paths["picture"]), *options]) == 0
    found = {what: path.read_bytes() for what, path in paths.items()}
    return {**found, "names": (out / "l_dseg.tsv").read_bytes()}


def without_timings(report: bytes) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(report)
    del values["timings_ms"]
    return values


def until(condition: Callable[[], bool]) -> None:
    end = monotonic() + WAIT_SECONDS
    while not condition():
        assert monotonic() < end, "it never came about"
        sleep(0.01)


@pytest.mark.parametrize(
    ("name", "query", "options"),
    [
        ("hippocampus_1mm", "", ()),
        ("hippocampus_2mm", "", ()),
        ("hippocampus_2mm", "&spacing_out=1", ("--spacing-out", "1")),
        ("hippocampus_1mm", "&route=2", ("--route", "2")),
        ("hippocampus_1mm", "&at=20,25,17&at=18,28,16", ("--at", "20,25,17", "--at=18,28,16")),
        ("hippocampus_1mm", "&at_voxel=20,25,17", ("--at-voxel", "20,25,17")),
    ],
)
def test_a_posted_scan_gets_what_infer_writes(
    server: Running, examples: Path, tmp_path: Path, name: str, query: str, options: tuple[str, ...]
) -> None:
    scan = examples / f"{name}.nii.gz"
    asked = f"picture=yes&name={scan.name}"
    response = server.call("POST", f"/v1/segment?{asked}{query}", scan.read_bytes())
    assert response.status == 200, response.body
    assert response.headers["content-type"] == "application/zip"
    files = unpacked(response.body)
    expected = infer(scan, tmp_path, *options)
    assert set(files) == {"labels.nii.gz", "labels_dseg.tsv", "report.json", "picture.png"}
    assert files["labels.nii.gz"] == expected["labels"]
    assert files["labels_dseg.tsv"] == expected["names"]
    assert files["picture.png"] == expected["picture"]
    assert without_timings(files["report.json"]) == without_timings(expected["report"])


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--spacing-out", "1.5"),
        ("--route", "0"),
        ("--at", "18,27,17", "--at", "21,24,16"),
        ("--at-voxel", "9,13,8", "--at-voxel", "10,12,8"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_infer_through_a_server_is_infer(
    server: Running,
    scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    options: tuple[str, ...],
) -> None:
    printed = []
    for server_options in ((), ("--server", server.address)):
        out = tmp_path / ("remote" if server_options else "local")
        arguments = ["infer", str(scan), "-o", str(out / f"l{suffix}"), *options, *server_options]
        arguments += ["--report", str(out / "r.json"), "--picture", str(out / "p.png")]
        assert main(arguments) == 0
        text, errors = capsys.readouterr()
        assert errors == ""
        printed.append(text.replace(str(out), "").rpartition(",")[0])
    assert printed[0] == printed[1]
    for name in (f"l{suffix}", "l_dseg.tsv", "p.png"):
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "remote" / name).read_bytes()
    reports = [(tmp_path / name / "r.json").read_bytes() for name in ("local", "remote")]
    assert without_timings(reports[0]) == without_timings(reports[1])


def damaged(scan: Path, folder: Path, kind: str) -> Path:
    """A scan that infer refuses."""
    image = nib.load(scan)
    bad = folder / f"{kind}.nii.gz"
    if kind == "text":
        bad.write_bytes(b"hello")
    elif kind == "empty":
        bad.write_bytes(b"")
    elif kind == "truncated":
        bad.write_bytes(scan.read_bytes()[:-500])
    elif kind == "head":
        nib.save(nib.Nifti1Image(np.tile(image.dataobj, (4, 4, 4)), image.affine), bad)
    elif kind == "labels":
        image.header.set_intent("label")
        nib.save(image, bad)
    elif kind == "constant":
        nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine), bad)
    return bad


@pytest.mark.parametrize(
    "kind", ["absent", "text", "empty", "truncated", "head", "labels", "constant"]
)
def test_a_scan_is_refused_with_infers_sentence(
    server: Running, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    bad = damaged(scan, tmp_path, kind)
    before = sorted(tmp_path.iterdir())
    printed = []
    for server_options in ([], ["--server", server.address]):
        assert main(["infer", str(bad), *server_options]) == 1
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]
    assert printed[0].err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [["--route", "7"], ["--at=900,0,0"], ["--spacing-out", "nan"], ["-o", "l.txt"]],
)
def test_options_are_refused_with_infers_sentence(
    server: Running, scan: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    printed = []
    for server_options in ([], ["--server", server.address]):
        assert main(["infer", str(scan), *arguments, *server_options]) == 1
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]


def test_strict_is_refused_with_infers_sentence(
    server: Running, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.load(scan)
    voxels = image.get_fdata(dtype=np.float32)
    negative = tmp_path / "negative.nii.gz"
    nib.save(nib.Nifti1Image(voxels.max() - voxels, image.affine), negative)
    printed = []
    for server_options in ([], ["--server", server.address]):
        assert main(["infer", str(negative), "--strict", *server_options]) == 1
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]
    assert "leave --strict out" in printed[0].err


def test_points_of_a_table_go_through_a_server(server: Running, scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        shutil.copy(scan, folder / name)
    table = folder / "points.tsv"
    table.write_text("scan\tx\ty\tz\na.nii.gz\t18\t27\t17\nb.nii.gz\t20\t25\t16\n")
    written = []
    for number, options in enumerate(([], ["--server", server.address])):
        out = tmp_path / str(number)
        command = ["infer", str(folder), "-o", str(out), "--points", str(table), *options]
        assert main(command) == 0
        written.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert written[0] == written[1]
    assert written[0]["a.nii.gz"] != written[0]["b.nii.gz"]


def test_a_folder_through_a_server_goes_on_after_a_bad_scan(
    server: Running, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for scan in examples.glob("hippocampus_*.nii.gz"):
        shutil.copy(scan, scans)
    (scans / "bad.nii").write_bytes(b"not a scan")
    assert main(["infer", str(scans), "-o", str(out), "--server", server.address]) == 1
    captured = capsys.readouterr()
    assert "2 of 3 scans" in captured.out
    assert "bad.nii: not a NIfTI file" in captured.err
    assert len(list(out.glob("*.nii.gz"))) == 2


def test_a_folder_through_a_server_is_a_folder(
    server: Running, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same lines, flags, table, reports and pictures."""
    scans = tmp_path / "in"
    scans.mkdir()
    shutil.copy(scan, scans / "a.nii.gz")
    image = nib.load(scan)
    voxels = image.get_fdata(dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels.max() - voxels, image.affine), scans / "negative.nii.gz")
    (scans / "bad.nii").write_bytes(b"not a scan")
    printed, tables = [], []
    for server_options in ([], ["--server", server.address]):
        out = tmp_path / "out"
        arguments = ["infer", str(scans), "-o", str(out), "--report", str(out)]
        arguments += ["--picture", str(out), "--table", str(out / "t.csv"), *server_options]
        assert main(arguments) == 1
        text, err = capsys.readouterr()
        printed.append((text, err[err.rindex("rare-trt: flagged") :]))
        with (out / "t.csv").open(newline="") as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
        names = {path.name for path in out.iterdir()}
        assert names == {"t.csv"} | {
            f"{name}{end}"
            for name in ("a", "negative")
            for end in (".nii.gz", "_dseg.tsv", ".json", ".png")
        }
        shutil.rmtree(out)
    assert printed[0] == printed[1]
    assert tables[0] == tables[1]
    assert "negative.nii.gz: " in printed[1][1]
    assert [row["status"] for row in tables[1]] == ["segmented", "failed", "segmented"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--server", "/nowhere/s"], "no response from a server (No such file"),
        (["--server", "http://127.0.0.1:1"], "no response from a server (Connection refused)"),
        (["--server", "http://pacs.example:80"], "on this machine only"),
        (["--server", "https://127.0.0.1:80"], "on this machine only"),
        (["--server", "http://127.0.0.1:x"], "on this machine only"),
        (["--server", "s", "--package", "hippocampus"], "--package goes with"),
        (["--server", "s", "--backend", "openvino"], "--backend goes with"),
        (["--server", "s", "--memory-limit", "4GiB"], "--memory-limit goes with"),
    ],
)
def test_a_client_reports_a_server_that_it_cannot_reach(
    scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    assert main(["infer", str(scan), "-o", str(tmp_path / "l.nii.gz"), *options]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("retry_after", [None, "tomorrow"])
def test_another_kind_of_server_is_recognised(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], retry_after: str | None
) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if retry_after is None else 503)
            if retry_after is not None:
                self.send_header("Retry-After", retry_after)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as other, ThreadPoolExecutor(1) as thread:
        thread.submit(other.handle_request)
        address = f"http://127.0.0.1:{other.server_port}"
        status = main(["infer", str(scan), "-o", str(tmp_path / "l.nii.gz"), "--server", address])
    assert status == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("something else than labels" in err) == (retry_after is None)
    assert list(tmp_path.iterdir()) == []


def test_a_client_repeats_a_refused_request_until_its_time_is_up(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Retry-After the server sends, once more at the end."""
    times: list[float] = []

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            times.append(monotonic())
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(503)
            self.send_header("Retry-After", "600" if len(times) == 2 else "0")
            self.end_headers()
            self.wfile.write(b'{"error": "as many as --queue allows"}')

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setattr("rare_trt.serving.client.RETRY_SECONDS", 3.0)
    with HTTPServer(("127.0.0.1", 0), Busy) as busy, ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: [busy.handle_request() for _ in range(3)])
        address = f"http://127.0.0.1:{busy.server_port}"
        status = main(["infer", str(scan), "-o", str(tmp_path / "l.nii.gz"), "--server", address])
    assert status == 1
    assert "as many as --queue allows" in capsys.readouterr().err
    first, second, third = times
    assert second - first >= 1.0
    assert 2.5 <= third - first < 10.0


def test_a_connection_that_is_closed_unread_is_tried_again(
    server: Running, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server does that has too many."""
    tried = []
    request = UnixConnection.request

    def closed_first(self: UnixConnection, *arguments: Any) -> None:
        tried.append(monotonic())
        if len(tried) == 1:
            raise BrokenPipeError(32, "Broken pipe")
        request(self, *arguments)

    monkeypatch.setattr(UnixConnection, "request", closed_first)
    out = tmp_path / "l.nii.gz"
    assert main(["infer", str(scan), "-o", str(out), "--server", server.address]) == 0
    assert out.exists()
    assert len(tried) == 2


def test_a_report_of_another_version_is_refused_before_anything_is_written(
    server: Running,
    scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segment = Client.segment

    def other_version(self: Client, *arguments: Any, **options: Any) -> dict[str, bytes]:
        files = segment(self, *arguments, **options)
        return files | {"report.json": b'{"route": 1}'}

    monkeypatch.setattr(Client, "segment", other_version)
    command = ["infer", str(scan), "-o", str(tmp_path / "l.nii.gz"), "--server", server.address]
    assert main(command) == 1
    assert "expected a `rare-trt serve` of this version" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("several", [False, True])
def test_a_client_loads_nothing_that_computes(
    server: Running, scan: Path, tmp_path: Path, several: bool
) -> None:
    code = "import sys; from rare_trt.cli import main; status = main(sys.argv[1:]); "
    code += "heavy = 'openvino', 'torch', 'uvicorn', 'PIL', 'numpy', 'nibabel'; "
    code += "print([name for name in heavy if name in sys.modules])"
    inputs, out, written = scan, tmp_path / "l.nii.gz", tmp_path / "l.nii.gz"
    if several:
        inputs, out, written = tmp_path / "in", tmp_path / "out", tmp_path / "out" / "t.csv"
        inputs.mkdir()
        shutil.copy(scan, inputs)
    command = [sys.executable, "-c", code, "infer", str(inputs), "-o", str(out)]
    command += ["--table", str(written), "--skip-existing"] if several else []
    done = subprocess.run(
        [*command, "--server", server.address], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert written.exists()


@pytest.mark.parametrize(
    ("target", "body", "headers", "status", "words"),
    [
        ("?route=x", b"", {}, 400, "not a valid route"),
        ("?route=" + "9" * 5000, b"", {}, 400, "5000 characters"),
        ("?at=1,2", b"", {}, 400, "not a valid point"),
        ("?spacing_out=fine", b"", {}, 400, "is not a number"),
        ("?rote=1", b"", {}, 400, "'rote' is not an option; expected one of route, at"),
        ("?rote=1", b"", {}, 400, "spacing_out, strict, picture"),
        ("?route=1&route=2", b"", {}, 400, "route is given twice"),
        ("?picture=yes&picture=yes", b"", {}, 400, "picture is given twice"),
        ("?at_voxel=1,2,3.5", b"", {}, 400, "not a valid voxel"),
        ("?route", b"", {}, 400, "query is malformed"),
        ("?route=%ff", b"", {}, 400, "query is malformed"),
        ("?" + "&".join(f"o{i}=1" for i in range(99)), b"", {}, 400, "query is malformed"),
        ("?picture=maybe", b"", {}, 400, "yes or no"),
        ("?strict=1", b"", {}, 400, "neither yes nor no"),
        ("", b"x" * (MEGABYTE + 1), {}, 413, "larger than 1048576 bytes"),
        ("", b'{"scan": "/x.nii"}', {"Content-Type": "application/json"}, 422, "not a NIfTI file"),
        ("", b"x", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "multipart"),
        ("", b"x", {"Content-Encoding": "gzip"}, 415, "content encoding"),
        ("", b"x", {}, 422, "not a NIfTI file"),
        ("?route=9", None, {}, 422, "route 9"),
    ],
)
def test_a_request_is_refused_with_its_status_and_one_sentence(
    server: Running,
    scan: Path,
    target: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
    words: str,
) -> None:
    sent = scan.read_bytes() if body is None else body
    response = server.call("POST", f"/v1/segment{target}", sent, headers)
    assert response.status == status
    assert words in response.error
    assert "\n" not in response.error


def test_a_body_of_unknown_length_is_limited_too(server: Running, scan: Path) -> None:
    chunked = {"Transfer-Encoding": "chunked"}
    data = scan.read_bytes()

    def sent(body: bytes) -> int:
        chunks = [body[i : i + 50000] for i in range(0, len(body), 50000)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
        return raw(server, b"POST /v1/segment HTTP/1.1\r\nHost: x\r\n", chunked, framed)

    assert sent(data) == 200
    assert sent(b"x" * (2 * MEGABYTE)) == 413


def raw(server: Running, start: bytes, headers: dict[str, str], body: bytes) -> int:
    """The status of the response to exactly these bytes."""
    head = start + b"".join(f"{k}: {v}\r\n".encode() for k, v in headers.items()) + b"\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_SECONDS)
        connection.connect(server.address)
        connection.sendall(head + body)
        response = b""
        while part := connection.recv(65536):
            response += part
    return int(response.split()[1])


@pytest.mark.parametrize(
    "start",
    [
        b"hello\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
        b"POST /v1/segment HTTP/1.1\r\n",
    ],
)
def test_what_is_no_http_is_refused(server: Running, start: bytes) -> None:
    assert raw(server, start, {}, b"") == 400


def test_pages(server: Running) -> None:
    for page in ("/healthz", "/readyz", "/metrics"):
        assert server.call("GET", page).status == 200
        assert server.call("HEAD", page).body == b""
    assert server.call("GET", "/v1/segment").status == 405
    assert server.call("POST", "/metrics", b"").status == 405
    assert server.call("GET", "/").status == 404


def test_two_clients_get_their_own_labels(server: Running, examples: Path, tmp_path: Path) -> None:
    scans = [examples / f"hippocampus_{mm}mm.nii.gz" for mm in (1, 2)]
    right = []
    for number, scan in enumerate(scans):
        (tmp_path / str(number)).mkdir()
        right.append(infer(scan, tmp_path / str(number))["labels"])

    def is_right(number: int) -> bool:
        response = server.call("POST", "/v1/segment", scans[number].read_bytes())
        return unpacked(response.body)["labels.nii.gz"] == right[number]

    with ThreadPoolExecutor(2) as clients:
        assert all(clients.map(is_right, [0, 1] * 6))


def test_a_body_whose_client_left_is_freed_before_its_turn() -> None:
    from threading import Event

    from rare_trt.serving.job_queue import JobQueue
    from rare_trt.serving.request import SegmentRequest

    class Body:
        """Bytes cannot have a weak reference."""

    queue, turn = JobQueue(max_waiting=2), Event()
    body: Any = Body()
    gone = weakref.ref(body)
    busy = queue._worker.submit(turn.wait)
    waiting = queue.submit(body, SegmentRequest({}, picture=False))
    del body
    assert gone() is not None
    assert waiting.cancel()
    assert gone() is None
    turn.set()
    busy.result()
    queue.close()


def test_the_picture_shows_the_name_that_the_client_sends(
    server: Running, examples: Path, tmp_path: Path
) -> None:
    """Also one that is no text, as names of files can be."""
    odd = tmp_path / os.fsdecode(b"odd \xff & co.nii.gz")
    odd.write_bytes((examples / "hippocampus_2mm.nii.gz").read_bytes())
    expected = infer(odd, tmp_path / "local")
    assert (
        infer(odd, tmp_path / "remote", "--server", server.address)["picture"]
        == expected["picture"]
    )
    nameless = server.call("POST", "/v1/segment?picture=yes", odd.read_bytes())
    assert unpacked(nameless.body)["picture.png"] != expected["picture"]


def test_a_socket_is_taken_before_its_server_responds(tmp_path: Path) -> None:
    from rare_trt.errors import BackendError
    from rare_trt.serving.listeners import listen_on_socket

    path = tmp_path / "taken"
    with (
        listen_on_socket(path),
        pytest.raises(BackendError, match="taken: a server is there already: name another path"),
        listen_on_socket(path),
    ):
        pass


def test_a_server_that_stops_leaves_the_socket_of_the_next_one(tmp_path: Path) -> None:
    """Also where the new socket has the old one's inode, as on ext4."""
    from rare_trt.serving.listeners import listen_on_socket

    path = tmp_path / "s"
    old = listen_on_socket(path)
    old.__enter__().close()
    with listen_on_socket(path), socket.socket(socket.AF_UNIX) as client:
        old.__exit__(None, None, None)
        client.connect(str(path))


def test_a_port_listens_before_it_is_logged() -> None:
    from rare_trt.serving.listeners import listen_on_port

    with listen_on_port(0) as listener:
        socket.create_connection(listener.getsockname(), WAIT_SECONDS).close()


def test_a_stop_while_the_server_starts_is_kept(
    tiny_package_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rare_trt import Segmenter
    from rare_trt.serving import server as serving
    from rare_trt.serving.app import Limits
    from rare_trt.serving.listeners import listen_on_port

    events = []

    def stop_at_once(event: str, **facts: Any) -> None:
        events.append(event)
        if event == "listening":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(serving, "log", stop_at_once)
    with listen_on_port(0) as listener:
        limits = Limits(MEGABYTE, 30.0, any_host=False)
        serving.serve(listener, lambda: Segmenter.load(tiny_package_folder), 1, limits)
    assert (events[0], events[-1]) == ("listening", "stopped")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory for this scan"),
        (OSError(28, "No space left on device", "/secret"), "cannot be used (No space left on"),
    ],
)
def test_an_error_of_the_system_is_no_bug(error: Exception, words: str) -> None:
    from rare_trt.serving.app import _response_from_error

    response = _response_from_error(error)
    assert response.status == 500
    assert words in json.loads(response.body)["error"]
    assert b"secret" not in response.body
    assert "at" not in response.facts


def test_a_full_queue_refuses_clearly_and_keeps_what_it_has(server: Running, scan: Path) -> None:
    data = scan.read_bytes()
    before = server.metrics()
    taken = [Half(server, data) for _ in range(3)]
    until(lambda: server.metrics()["rare_trt_queue_length"] == 3)
    response = server.call("POST", "/v1/segment", data)
    assert response.status == 503
    assert "3 requests are waiting already" in response.error
    assert int(response.headers["retry-after"]) >= 1
    for path in ("/healthz", "/readyz"):
        assert server.call("GET", path).status == 200
    assert [half.finish().status for half in taken] == [200, 200, 200]
    after = server.metrics()
    assert after["rare_trt_queue_length"] == 0
    for name, more in (
        ('rare_trt_requests_total{outcome="done"}', 3),
        ('rare_trt_requests_total{outcome="busy"}', 1),
        ('rare_trt_route_total{route="1"}', 3),
        ("rare_trt_request_seconds_count", 3),
        ('rare_trt_compute_seconds_bucket{le="+Inf"}', 3),
    ):
        assert after[name] - before.get(name, 0.0) == more, name


def test_a_client_waits_for_a_place(server: Running, scan: Path, tmp_path: Path) -> None:
    data = scan.read_bytes()
    taken = [Half(server, data) for _ in range(3)]
    until(lambda: server.metrics()["rare_trt_queue_length"] == 3)
    busy = 'rare_trt_requests_total{outcome="busy"}'
    before = server.metrics()[busy]
    out = tmp_path / "l.nii.gz"
    command = ["infer", str(scan), "-o", str(out), "--server", server.address]
    with ThreadPoolExecutor(1) as client:
        status = client.submit(main, command)
        until(lambda: server.metrics()[busy] > before)
        for half in taken:
            half.finish()
        assert status.result() == 0
    assert out.exists()


def test_a_client_that_leaves_gives_up_its_place(server: Running, scan: Path) -> None:
    gone = 'rare_trt_requests_total{outcome="client_gone"}'
    before = server.metrics()[gone]
    half = Half(server, scan.read_bytes())
    until(lambda: server.metrics()["rare_trt_queue_length"] == 1)
    half.leave()
    until(lambda: server.metrics()[gone] == before + 1)
    assert server.metrics()["rare_trt_queue_length"] == 0


def test_the_socket_is_for_its_user_alone(server: Running) -> None:
    state = Path(server.address).stat()
    assert stat.S_ISSOCK(state.st_mode)
    assert stat.S_IMODE(state.st_mode) == 0o600


@pytest.fixture(scope="module")
def small(place: Path, tiny_package_folder: Path) -> tuple[str | Path, ...]:
    """The arguments of a server that starts quickly."""
    return (tiny_package_folder, "--socket", place / "small")


def test_no_request_data_is_logged(small: tuple[str | Path, ...], tiny_scan: Path) -> None:
    named = {"Content-Disposition": f"attachment; filename={SECRET}.nii.gz"}
    with running(*small) as server:
        for body in (tiny_scan.read_bytes(), SECRET.encode()):
            server.call("POST", "/v1/segment", body, named)
        server.call("POST", f"/v1/segment?{SECRET}=1", b"x")
        server.call("POST", f"/{SECRET}", b"x")
        raw(server, f"{SECRET}\r\n".encode(), {}, b"")
        assert server.end() == 0
    assert SECRET not in json.dumps(server.log)
    statuses = [line["status"] for line in server.log if line["event"] == "segment"]
    assert statuses == [200, 422, 400]


def test_slow_clients_are_let_go(small: tuple[str | Path, ...], tiny_scan: Path) -> None:
    with running(*small, "--timeout", "2") as server:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.settimeout(WAIT_SECONDS)
            silent.connect(server.address)
            silent.sendall(b"POST /v1/seg")
            with pytest.raises(ConnectionResetError):
                # Nothing, or a reset, but never a response.
                assert silent.recv(1) == b""
                raise ConnectionResetError
        response = Half(server, tiny_scan.read_bytes()).response()
        assert (response.status, "did not arrive within" in response.error) == (408, True)
        # A client that drips is no better than one that is silent.
        with socket.socket(socket.AF_UNIX) as dripping:
            dripping.connect(server.address)
            with pytest.raises(OSError):
                while True:
                    dripping.sendall(b"P")
                    sleep(0.05)
        assert server.call("POST", "/v1/segment", tiny_scan.read_bytes()).status == 200


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_was_taken_and_takes_nothing_new(
    small: tuple[str | Path, ...], tiny_scan: Path, sig: int
) -> None:
    data = tiny_scan.read_bytes()
    with running(*small) as server:
        right = unpacked(server.call("POST", "/v1/segment", data).body)["labels.nii.gz"]
        taken = Half(server, data)
        until(lambda: server.metrics()["rare_trt_queue_length"] == 1)
        server.process.send_signal(sig)

        def refuses() -> bool:
            with socket.socket(socket.AF_UNIX) as connection:
                return connection.connect_ex(server.address) != 0

        until(refuses)
        response = taken.finish()
        assert response.status == 200
        assert unpacked(response.body)["labels.nii.gz"] == right
        assert server.end(sig) == 0
        assert server.log[-1]["event"] == "stopped"
        assert not Path(server.address).exists()


def test_a_killed_server_leaves_nothing_in_the_way_of_the_next(
    small: tuple[str | Path, ...], tiny_scan: Path
) -> None:
    data = tiny_scan.read_bytes()
    with running(*small) as server:
        half = Half(server, data)
        until(lambda: server.metrics()["rare_trt_queue_length"] == 1)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(OSError):
            half.finish()
        half.leave()
    assert Path(server.address).exists(), "a killed process cannot clean up"
    with running(*small) as server:
        assert server.call("POST", "/v1/segment", data).status == 200
        # Where one lives, a second one does not push it aside.
        done = command("serve", *small)
        assert (done.returncode, "a server is there already" in done.stderr) == (1, True)
        assert server.call("GET", "/readyz").status == 200
        assert server.end() == 0


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A server that must not start."""
    line = [sys.executable, "-m", "rare_trt.cli", *map(str, arguments)]
    return subprocess.run(
        line, cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT_SECONDS
    )


def test_a_server_that_cannot_start_reports_why(place: Path) -> None:
    precious = place / "precious"
    precious.write_text("precious")
    for arguments, words in (
        (("nowhere", "--socket", place / "t"), "no such package"),
        (("--socket", precious), "is not a socket"),
        (("--socket", place / "absent" / "s"), "no socket can be made"),
        (("--socket", place / ("x" * 200)), "no socket can be made"),
        (("--port", "99999"), "port 99999"),
    ):
        done = command("serve", *arguments)
        assert done.returncode == 1, arguments
        printed = [line for line in done.stderr.splitlines() if not line.startswith("{")]
        assert len(printed) == 1
        assert words in printed[0]
    assert precious.read_text() == "precious"
    assert not (place / "t").exists()


def test_a_port_serves_programs_of_this_machine_and_no_web_page(
    tiny_package_folder: Path, place: Path, tiny_scan: Path, tmp_path: Path
) -> None:
    with running(tiny_package_folder, "--port", "0") as server:
        data = tiny_scan.read_bytes()
        assert server.address.startswith("http://127.0.0.1:")
        assert server.call("POST", "/v1/segment", data).status == 200
        assert server.call("GET", "/healthz", headers={"Host": "localhost:1"}).status == 200
        for headers in ({"Host": "evil.example"}, {"Origin": "http://127.0.0.1"}):
            for page in ("/v1/segment", "/metrics"):
                refused = server.call("POST", page, data, headers)
                assert (refused.status, "web page" in refused.error) == (403, True)
        out = tmp_path / "l.nii.gz"
        assert main(["infer", str(tiny_scan), "-o", str(out), "--server", server.address]) == 0
        assert out.exists()
        taken = command("serve", "--port", server.address.rpartition(":")[2])
        assert (taken.returncode, "cannot be used" in taken.stderr) == (1, True)
        assert server.end() == 0
