"""A browser without a screen: speaks viser's web socket, knows the widgets by their labels."""

import threading
import time
import uuid

import msgspec
import viser
import zstandard
from websockets.sync.client import connect

from tests.helpers.patience import PATIENCE_SEC


class WebClient:
    """Connected when made. Widgets, pictures and messages are kept as the server sends them."""

    def __init__(self, port, origin=None):
        self.widgets, self.nodes, self.notifications, self.files = {}, {}, [], {}
        self.parts_taken = 0
        self._changed = threading.Condition()
        self._socket = connect(
            f"ws://127.0.0.1:{port}",
            subprotocols=[f"viser-v{viser.__version__}"],
            origin=origin or f"http://127.0.0.1:{port}",
            max_size=None,
        )
        threading.Thread(target=self._receive, daemon=True).start()
        self.camera = {
            "wxyz": (1.0, 0.0, 0.0, 0.0),
            "position": (0.0, 2.0, 0.0),
            "fov": 1.0,
            "near": 0.01,
            "far": 100.0,
            "image_height": 100,
            "image_width": 100,
            "look_at": (0.0, 0.0, 0.0),
            "up_direction": (0.0, 0.0, 1.0),
        }
        self.send("ViewerCameraMessage", **self.camera)

    def close(self):
        self._socket.close()

    def send(self, kind, **fields):
        self._socket.send(msgspec.msgpack.encode({"type": kind, **fields}))

    def set(self, label, value):
        """Moves a slider, chooses an option, presses a button."""
        self.send("GuiUpdateMessage", uuid=self.widget(label), updates={"value": value})

    def upload(self, name, data, size=None):
        """Sends a file through the page's upload button, as one part."""
        target, transfer = self.widget("Choose a picture"), uuid.uuid4().hex
        self.send(
            "FileTransferStartUpload",
            source_component_uuid=target,
            transfer_uuid=transfer,
            filename=name,
            mime_type="",
            size_bytes=len(data) if size is None else size,
            part_count=1,
        )
        self.send(
            "FileTransferPart",
            source_component_uuid=target,
            transfer_uuid=transfer,
            part_index=0,
            content=data,
        )

    def widget(self, label):
        """The id of the newest widget whose label begins so."""
        self.wait(lambda: self._find(label))
        return self._find(label)

    def _find(self, label):
        found = [
            name
            for name, props in self.widgets.items()
            if (props.get("label") or "").startswith(label)
        ]
        return found[-1] if found else None

    def shows(self, text):
        """Whether a widget or a message contains the text."""
        return any(text in str(props) for props in (*self.widgets.values(), *self.notifications))

    def wait(self, is_so, timeout_sec=PATIENCE_SEC):
        """Waits until the condition holds; what was seen stands in the error."""
        end = time.monotonic() + timeout_sec
        with self._changed:
            while not is_so():
                left = end - time.monotonic()
                if left <= 0:
                    seen = [(w.get("label"), w.get("value")) for w in self.widgets.values()]
                    raise TimeoutError(f"{self.notifications}, {seen}")
                self._changed.wait(left)

    def _receive(self):
        decompress = zstandard.ZstdDecompressor()
        for raw in self._socket:
            size = int.from_bytes(raw[:8], "little")
            stop = 16 + int.from_bytes(raw[8:16], "little")
            content = decompress.decompress(raw[16:stop], max_output_size=size)
            content = msgspec.msgpack.decode(content)
            buffers, start = [], stop
            for length in content["binaryBufferLengths"]:
                start += -start % 8
                buffers.append(raw[start : start + length])
                start += length
            with self._changed:
                for message in content["messages"]:
                    self._take(_with_buffers(message, buffers))
                self._changed.notify_all()

    def _take(self, message):
        kind, name = message["type"], message.get("uuid") or message.get("name")
        if kind == "GuiUpdateMessage":
            self.widgets.setdefault(name, {}).update(message["updates"])
        elif kind.startswith("Gui") and "props" in message:
            self.widgets[name] = {**message["props"], "value": message.get("value")}
        elif kind == "RemoveSceneNodeMessage":
            self.nodes.pop(name, None)
        elif kind == "SceneNodeUpdateMessage":
            self.nodes.setdefault(name, {}).update(message["updates"])
        elif kind == "FileTransferPartAck":
            self.parts_taken += 1
        elif kind == "SetPositionMessage":
            self.nodes.setdefault(name, {})["position"] = message["position"]
        elif kind == "NotificationShowMessage":
            self.notifications.append(message["props"])
        elif kind == "FileTransferStartDownload":
            self.files[message["transfer_uuid"]] = (message["filename"], message["size_bytes"], b"")
        elif kind == "FileTransferPart":
            file, size, data = self.files[message["transfer_uuid"]]
            self.files[message["transfer_uuid"]] = (file, size, data + message["content"])
        elif "props" in message and name:
            self.nodes[name] = dict(message["props"])


def _with_buffers(value, buffers):
    if isinstance(value, dict):
        if "__binary_index" in value:
            return buffers[value["__binary_index"]]
        return {key: _with_buffers(inner, buffers) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_buffers(inner, buffers) for inner in value]
    return value
