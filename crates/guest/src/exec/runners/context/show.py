"""Results of cells: values in several forms, and their way to the caller."""

import base64
import contextlib
import inspect
import io
import json
import math
import os
import tempfile

from bouvet_context import figures
from bouvet_context.control import control
from bouvet_context.errors import attempt

METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_pdf_": "application/pdf",
}
# Forms that count as images, and the names of their files.
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}
ENDINGS = {
    **IMAGES,
    "image/svg+xml": "svg",
    "text/html": "html",
    "text/markdown": "md",
    "text/latex": "tex",
    "application/javascript": "js",
    "application/pdf": "pdf",
}
# Limits of one result, so that its description fits in one line.
MAX_FORMS = 16
MAX_TYPE_BYTES = 128
MAX_ID_BYTES = 256
MAX_PATH_BYTES = 512
# Results that wait between two runs for the next one.
MAX_WAITING_RESULTS = 32
MAX_WAITING_BYTES = 256 * 1024  # of each
# Attempts to make an image smaller, and its least width and height.
MAX_SHRINKS = 6
MIN_IMAGE_PIXELS = 64
JPEG_QUALITY = 85


class Room:
    """Bytes that the results of one run may still take."""

    def __init__(self, form, forms, images):
        self.all = (forms, images)
        self.form, self.forms, self.images = form, forms, images

    def clear(self):
        self.forms, self.images = self.all


class Results:
    """The results of the run of the moment."""

    def __init__(self):
        self.number = 0
        self.room = Room(0, 0, 0)
        # Bytes and files of each result, by its name.
        self.taken = {}
        self.waiting = []
        self.clears_next = False

    def begin(self, number, room):
        """Begins the cell of this number. What was shown since the last one belongs to it."""
        self.number, self.room, self.taken, self.clears_next = number, Room(**room), {}, False
        control.is_running = True
        waiting, self.waiting = self.waiting, []
        for data, options in waiting:
            self.send(data, {**options, "earlier": True})

    def publish(self, data, display_id=None, update=False):
        """Sends one value in the forms that `data` has, by MIME type."""
        if not control.is_ours():
            return
        named = [(kind, form) for kind, form in data.items() if is_type(kind) and form is not None]
        data = {kind: attempt(encoded, kind, form) for kind, form in named[:MAX_FORMS]}
        data = {kind: form for kind, form in data.items() if form is not None}
        options = {"update": True} if update else {}
        if display_id is not None and len(json.dumps(str(display_id))) <= MAX_ID_BYTES:
            options["id"] = str(display_id)
        if data and control.is_running:
            self.send(data, options)
        elif data and len(self.waiting) < MAX_WAITING_RESULTS and sum(map(len, data.values())) <= MAX_WAITING_BYTES:
            self.waiting.append((data, options))

    def send(self, data, options):
        if self.clears_next:
            self.clear()
        name = options.get("id", len(self.taken))
        if options.get("update") and name in self.taken:
            self.give_back(self.taken.pop(name))
        before, paths = (self.room.forms, self.room.images), []
        parts = self.fitted(data, paths)
        self.taken[name] = before[0] - self.room.forms, before[1] - self.room.images, paths
        control.send({"result": [part for part, _ in parts], **options}, *[body for _, body in parts])

    def give_back(self, taken):
        """Frees what a result took that nobody will see."""
        forms, images, paths = taken
        self.room.forms += forms
        self.room.images += images
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def clear(self, wait=False):
        """Drops the results so far; with `wait`, as soon as there is another one."""
        self.clears_next = wait
        if wait or not control.is_ours():
            return
        self.waiting.clear()
        while self.taken:
            self.give_back(self.taken.popitem()[1])
        if control.is_running:
            control.send({"clear": True})

    def fitted(self, data, paths):
        """The parts of a message, and their bytes. Forms that are too large are kept in files, added to `paths`."""
        parts = [self.part(kind, form, paths) for kind, form in data.items()]
        for kind in IMAGES:
            if kind in data and not any(part[0] in IMAGES and part[1] for part, _ in parts):
                small = smaller(data[kind], self.room.images // 2)
                if small is not None:
                    self.room.images -= len(small)
                    parts = [*[part for part in parts if part[0][0] != "image/jpeg"], (["image/jpeg", len(small)], small)]
        return parts

    def part(self, kind, form, paths):
        size = len(form)
        if kind in IMAGES:
            # Half of what is left, so that something is left for those that follow.
            if size <= self.room.images // 2:
                self.room.images -= size
                return [kind, size], form
        elif size <= min(self.room.form, self.room.forms):
            self.room.forms -= size
            return [kind, size], form
        elif kind == "text/plain":
            start = form[: min(self.room.form, self.room.forms)].decode("utf-8", "ignore").encode()
            self.room.forms -= len(start)
            return [kind, len(start), size, None], start
        path = keep(form, f"cell-{self.number}-{len(self.taken) + 1}.{ending(kind)}")
        paths += [path] if path else []
        return [kind, 0, size, path], b""


def keep(form, name):
    """The path of a new file that has `form`; none if it cannot be written."""
    directory = os.path.join(os.path.abspath(tempfile.gettempdir()), f"context-{os.getpid()}")
    path = os.path.join(directory, name)
    if len(json.dumps(path)) > MAX_PATH_BYTES:
        return None
    try:
        os.makedirs(directory, exist_ok=True)
        with open(path, "wb") as file:
            file.write(form)
    except OSError:
        return None
    return path


def ending(kind):
    """Returns the extension for files of this type."""
    return ENDINGS.get(kind, "json" if kind.endswith("json") else "txt" if kind.startswith("text/") else "bin")


results = Results()


def encoded(kind, form):
    """The bytes of a form, as notebooks describe it."""
    if isinstance(form, (bytes, bytearray, memoryview)):
        return bytes(form)
    if kind == "application/json" or kind.endswith("+json"):
        return json.dumps(without_nan(form), allow_nan=False, default=plain).encode()
    if isinstance(form, str) and is_binary(kind):
        return base64.b64decode(form)
    return str(form).encode("utf-8", "replace")


def is_type(kind):
    return isinstance(kind, str) and kind.isascii() and len(kind) <= MAX_TYPE_BYTES


def is_binary(kind):
    return kind != "image/svg+xml" and (kind.startswith(("image/", "audio/", "video/")) or kind == "application/pdf")


def without_nan(form):
    """`form` with `None` for numbers that JSON does not have: infinities and NaN."""
    if isinstance(form, float):
        return form if math.isfinite(form) else None
    if isinstance(form, dict):
        return {key: without_nan(value) for key, value in form.items()}
    return [without_nan(value) for value in form] if isinstance(form, (list, tuple)) else form


def plain(value):
    """JSON for what arrays and numbers of libraries hold."""
    listed = getattr(value, "tolist", None)
    return without_nan(listed()) if callable(listed) else str(value)


def smaller(image, limit):
    """`image` as a JPEG of at most `limit` bytes; none if that is too little, or there is no Pillow that reads it."""
    try:
        from PIL import Image

        with Image.open(io.BytesIO(image)) as opened:
            picture = opened.convert("RGBA")
    except Exception:
        return None
    background = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(background, picture).convert("RGB")
    for _ in range(MAX_SHRINKS):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
        if file.tell() <= limit:
            return file.getvalue()
        scale = min(0.85, 0.95 * math.sqrt(limit / file.tell()))
        width, height = (int(length * scale) for length in picture.size)
        if min(width, height) < MIN_IMAGE_PIXELS:
            return None
        picture.thumbnail((width, height))
    return None


def method(value, name):
    """The method of this name. It is looked for where looking runs no code of the value's: proxies and mocks have
    whatever is asked for."""
    try:
        if inspect.getattr_static(value, name, None) is None:
            return None
        found = getattr(value, name)
    except Exception:
        return None
    return found if callable(found) else None


def forms(value):
    """All that `value` can be shown as. A form that fails is left out."""
    data = {"text/plain": text(value)}
    if isinstance(value, type):
        return data
    if figures.is_figure(value):
        return data if figures.is_empty(value) else {**data, "image/png": attempt(figures.picture, value)}
    bundle = method(value, "_repr_mimebundle_")
    if bundle is not None:
        found = attempt(lambda: without_metadata(bundle(include=None, exclude=None)))
        data.update(found if isinstance(found, dict) else {})
    for name, kind in METHODS.items():
        represent = None if kind in data else method(value, name)
        if represent is not None:
            data[kind] = without_metadata(attempt(represent))
    if "application/json" not in data:
        data["application/json"] = as_json(value)
    return data


def text(value):
    said = attempt(repr, value)
    return bare(value) if said is None else said


def bare(value):
    """Returns the default `repr` of an object."""
    return f"<{type(value).__module__}.{type(value).__qualname__} object at {id(value):#x}>"


def without_metadata(form):
    return form[0] if isinstance(form, tuple) and form else form


def as_json(value):
    """`value` in JSON, if that says all of it and there is room for it."""
    if not issubclass(type(value), (dict, list, tuple, int, float, str, bool)):
        return None
    size, chunks = 0, []
    try:
        for chunk in json.JSONEncoder(allow_nan=False).iterencode(value):
            size += len(chunk)
            if size > results.room.form:
                return None
            chunks.append(chunk)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return None  # It is not JSON, as most values are not.
    return "".join(chunks).encode()


class Handle:
    """A result that can be shown again."""

    def __init__(self, display_id):
        self.display_id = display_id

    def display(self, value, **options):
        display(value, display_id=self.display_id, **options)

    def update(self, value, **options):
        display(value, display_id=self.display_id, update=True, **options)


def display(*values, raw=False, display_id=None, update=False, clear=False, **_):
    """Shows each value in all its forms; with `raw`, values are such forms by their MIME types."""
    if display_id is True:
        display_id = os.urandom(16).hex()
    if clear:
        results.clear(wait=True)
    for value in values:
        own = None if raw else method(value, "_ipython_display_")
        if own is not None and not isinstance(value, type) and attempt(lambda: (own(),)) is not None:
            continue
        results.publish(value if raw else forms(value), display_id, update)
    return Handle(display_id) if display_id is not None else None


# The function that shows values: that of IPython, once its shell has taken over.
show = display
