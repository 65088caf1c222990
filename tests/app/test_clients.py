"""The page's server under clients that are not its page: any value, and very many events."""

import gc
import json
import re
import socket
import tracemalloc
import uuid

import pytest

gr = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

from lightning_fair.app.page import build  # noqa: E402

pytestmark = pytest.mark.slow

BAD = [None, "x", float("nan"), float("inf"), -1, 1e9, [1], {"a": 1}, {"__type__": "update"}]
MOST_BYTES = 5_000  # by which an event may let the server grow


class Client:
    """Sends events as the page does."""

    def __init__(self, address):
        self.address, self.session, self.http = address, uuid.uuid4().hex, httpx.Client(timeout=60)
        config = self.http.get(f"{address}/config").json()
        self.events = [event for event in config["dependencies"] if event["backend_fn"]]
        self.parts = {part["id"]: part["props"] for part in config["components"]}
        self.send(self.events[0])  # that the page has been loaded

    def event(self, elem_id):
        """Return the event of the component with this id."""
        return next(
            event
            for event in self.events
            for part, _ in event["targets"]
            if elem_id == self.parts.get(part, {}).get("elem_id")
        )

    def send(self, event, values=()):
        """Send an event with other values of some inputs, by place; return whether it succeeded, and its words."""
        data = [self.parts[part].get("value") for part in event["inputs"]]
        for place, value in dict(values).items():
            data[place] = value
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session, "event_data": None}
        kind = {"Content-Type": "application/json"}  # not `json=...`, which refuses NaN
        join = f"{self.address}/gradio_api/queue/join"
        self.http.post(join, content=json.dumps(body), headers=kind).raise_for_status()
        with self.http.stream("GET", f"{self.address}/gradio_api/queue/data?session_hash={self.session}") as stream:
            messages = (json.loads(line.removeprefix("data:")) for line in stream.iter_lines() if line)
            message = next(message for message in messages if message["msg"] == "process_completed")
        output = message["output"]
        if not message["success"]:
            return False, output["error"] or ""
        updates = [str(part.get("value")) for part in output["data"] if isinstance(part, dict)]
        return True, " ".join(re.findall('<div class="notice[^>]*>([^<]+)', " ".join(updates)))


@pytest.fixture(scope="module")
def demo():
    """The page in this process, on a free port."""
    demo = build()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    demo.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield demo
    demo.close()


@pytest.fixture
def client(demo):
    return Client(demo.local_url.rstrip("/"))


def test_batches_do_not_fill_the_server(client):
    generate = client.event("generate")
    for _ in range(20):
        client.send(generate)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            assert client.send(generate) == (True, "")
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 100 * MOST_BYTES
    finally:
        tracemalloc.stop()


def test_no_event_leaves_fields(demo, client):
    """An input that an event's function skips becomes a new component, and the old one stays: no field does so."""

    def num_fields():
        components = demo.state_holder[client.session].blocks_config.blocks.values()
        return sum(isinstance(component, gr.Number) for component in components)

    before = num_fields()
    for event in client.events[1:]:
        for values in ({}, {len(event["inputs"]) - 1: [1]}, {}):
            client.send(event, values)
    assert num_fields() == before == 3


def test_errors_have_words(client):
    """Whatever a client sends in whichever input, an error has a sentence."""
    answers = [
        (event["targets"], client.parts[part].get("label"), value, *client.send(event, {place: value}))
        for event in client.events
        for place, part in enumerate(event["inputs"])
        for value in BAD
    ]
    assert len(answers) > 300
    assert [answer for answer in answers if not answer[-2] and len(answer[-1].split()) < 5] == []


@pytest.mark.parametrize("value", BAD)
def test_feedback_names_the_slider(client, value):
    reverse = client.event("reverse")
    for place, part in list(enumerate(reverse["inputs"]))[1:]:
        slider = client.parts[part]
        succeeded, words = client.send(reverse, {place: value})
        assert succeeded
        interval = f"in [{slider['minimum']}, {slider['maximum']}], got"
        assert words.startswith(
            (f"{slider['label']} must be a number {interval}", f"{slider['label']} must lie {interval}")
        )
